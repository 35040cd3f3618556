"""Medications: what they are, and how they are ordered, dispensed, given and taken."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ehrmamba_hf.fhir.codings import Concept
from ehrmamba_hf.fhir.decoding import BROKEN, broken
from ehrmamba_hf.fhir.fields import (
    code_of,
    expect_time,
    id_of,
    number_of,
    patient_of,
    span_of,
    target_of,
    time_of,
)
from ehrmamba_hf.fhir.resources import (
    CodeableConcept,
    Coding,
    Contained,
    Ingredient,
    Medication,
    MedicationAdministration,
    MedicationDispense,
    MedicationRequest,
    MedicationStatement,
    MedicationUse,
)
from ehrmamba_hf.fhir.rows import Event, NotUsed, Reject, Rows, Site
from ehrmamba_hf.fhir.statuses import expect_happened, expect_not, expect_order, expect_taken
from ehrmamba_hf.fhir.times import Time

_contained: Final = msgspec.json.Decoder(Contained)


def medication(resource: Medication, site: Site) -> Rows:
    """What requests, administrations and the like refer to; no event of its own.

    Without a code, it is what its ingredients are.
    """
    expect_happened(resource.status, "Medication")
    concept = _concept_of(resource.code, site)
    if concept is None and resource.ingredient:
        ingredients = _ingredients_of(resource.ingredient, site)
        concepts = [found for found in ingredients if isinstance(found, Concept)]
        if len(concepts) < len(ingredients):
            return Rows(None, ingredients=ingredients)
        concept = _mixture(concepts)
    else:
        concept = _with_identifiers(resource, site)
    if concept is None:
        raise NotUsed("no code")
    return Rows(None, medication=concept)


def medication_request(resource: MedicationRequest, site: Site) -> Rows:
    """An order, at authoredOn, else at the start of what may be dispensed.

    Its end is a plan, and not known at the time.
    """
    expect_happened(resource.status, "MedicationRequest")
    expect_order(resource.intent)
    expect_not(doNotPerform=resource.doNotPerform)
    written = time_of(resource.authoredOn, "authoredOn", site)
    if written is None and resource.dispenseRequest is not None:
        window = resource.dispenseRequest.validityPeriod
        start = window.start if window is not None else None
        written = time_of(start, "dispenseRequest.validityPeriod.start", site)
    return _use(resource, "medication", written, site)


def medication_administration(resource: MedicationAdministration, site: Site) -> Rows:
    """A dose given, known at its start; the value is the dose. Rates have no column."""
    expect_happened(resource.status, "MedicationAdministration")
    expect_not(notGiven=resource.notGiven, wasNotGiven=resource.wasNotGiven)
    start, end = span_of(
        resource.effectiveDateTime, resource.effectivePeriod, None, "effective", site
    )
    if start is None:
        start, end = span_of(
            resource.occurenceDateTime or resource.occurrenceDateTime,
            resource.occurencePeriod or resource.occurrencePeriod,
            resource.occurenceTiming or resource.occurrenceTiming,
            "occurence",
            site,
        )
    dose = resource.dosage.dose if resource.dosage else None
    number, unit = number_of(dose, "dosage.dose.value")
    return _use(resource, "administration", start, site, number=number, unit=unit, end=end)


def medication_dispense(resource: MedicationDispense, site: Site) -> Rows:
    """A supply handed over, at whenHandedOver, else whenPrepared, else (R5) recorded.

    The value is the quantity.
    """
    expect_happened(resource.status, "MedicationDispense")
    expect_not(notDone=resource.notDone)
    done = time_of(resource.whenHandedOver, "whenHandedOver", site)
    done = done or time_of(resource.whenPrepared, "whenPrepared", site)
    done = done or time_of(resource.recorded, "recorded", site)
    number, unit = number_of(resource.quantity, "quantity.value")
    return _use(resource, "dispense", done, site, number=number, unit=unit)


def medication_statement(resource: MedicationStatement, site: Site) -> Rows:
    """A medication said to be taken, from the start of that, else from when it was said.

    It is known when it is said: what was taken years ago may have been asked about today.
    """
    expect_happened(resource.status, "MedicationStatement")
    expect_not(wasNotTaken=resource.wasNotTaken)
    expect_taken(resource.taken, resource.adherence.code if resource.adherence else None)
    start, end = span_of(
        resource.effectiveDateTime,
        resource.effectivePeriod,
        resource.effectiveTiming,
        "effective",
        site,
    )
    said = time_of(resource.dateAsserted, "dateAsserted", site)
    return _use(resource, "statement", start or said, site, end=end, known=said)


def _use(
    resource: MedicationUse,
    category: str,
    time: Time | None,
    site: Site,
    *,
    number: float | None = None,
    unit: str | None = None,
    end: Time | None = None,
    known: Time | None = None,
) -> Rows:
    """The one event of a use of a medication; `known`: available not before that."""
    patient_id = patient_of(resource.subject or resource.patient, site)
    concept, medication_id = _medication_of(resource, site)
    when = expect_time(time)
    event = Event(
        time=when.start,
        category=category,
        concept=concept,
        numeric_value=number,
        unit=unit,
        end_time=end.last if end else None,
        available_time=max(when.last, known.last) if known else when.last,
        encounter_id=id_of(resource.encounter or resource.context, site),
        medication_id=medication_id,
    )
    return Rows(patient_id, (event,))


def _medication_of(use: MedicationUse, site: Site) -> tuple[Concept | None, str | None]:
    """The medication[x]: its Concept, or the id of the Medication resource that has it.

    A reference that names nothing but a display is a concept with that text.
    """
    concept, reference = use.medicationCodeableConcept, use.medicationReference
    if use.medication is not None:
        concept, reference = use.medication.concept, use.medication.reference
    found = _concept_of(concept, site)
    if found is not None:
        return found, None
    if reference is None or not (reference.reference or reference.display):
        raise Reject("medication[x]", "a coded concept or a reference", "neither")
    if not reference.reference:
        text = CodeableConcept(text=reference.display)
        return code_of(text, site, "medicationReference"), None
    target = target_of(reference.reference, "medicationReference", site)
    if target is None:
        raise Reject("medicationReference.reference", "a reference with an id", "one without")
    if target.type == "#":
        return _contained_medication(use, target.id, site), None
    if target.type not in (None, "Medication"):
        raise NotUsed("medicationReference is not to a Medication")
    return None, target.id


def _contained_medication(use: MedicationUse, wanted: str, site: Site) -> Concept:
    for raw in use.contained or ():
        try:
            medication = _contained.decode(raw)
        except msgspec.ValidationError:
            continue  # contained resources of other types have other kinds of `code`
        except BROKEN as error:  # the bytes of what is decoded later were only skipped so far
            raise broken(error, "contained") from None
        if medication.id == wanted:
            ingredients = _ingredients_of(medication.ingredient or (), site)
            concepts = [found for found in ingredients if isinstance(found, Concept)]
            found = _concept_of(medication.code, site) or _mixture(concepts)
            return found or code_of(medication.code, site, "contained.code")
    raise NotUsed("unresolved medicationReference")


def _concept_of(
    concept: CodeableConcept | list[CodeableConcept] | None, site: Site
) -> Concept | None:
    """The Concept of what may be one or, as in MIMIC, a list of which all say the same."""
    if isinstance(concept, list):
        codings = [coding for one in concept for coding in one.coding or ()]
        text = next((one.text for one in concept if one.text), None)
        concept = CodeableConcept(coding=codings, text=text)
    return site.book.concept(concept) if concept is not None else None


def _with_identifiers(medication: Medication, site: Site) -> Concept | None:
    """The Concept of the code and of the identifiers that are codes of a known system.

    MIMIC-IV on FHIR has one of a drug's codes in `code`, its name and the others as identifiers.
    """
    codes = [
        Coding(system=identifier.system, code=identifier.value)
        for identifier in medication.identifier or ()
        if identifier.system and site.book.system(identifier.system).known
    ]
    own = medication.code or CodeableConcept()
    return site.book.concept(CodeableConcept(coding=[*(own.coding or ()), *codes], text=own.text))


def _ingredients_of(ingredients: Iterable[Ingredient], site: Site) -> tuple[Concept | str, ...]:
    found = (_ingredient(ingredient, site) for ingredient in ingredients)
    return tuple(one for one in found if one is not None)


def _ingredient(ingredient: Ingredient, site: Site) -> Concept | str | None:
    """Its Concept, or the id of the Medication resource that has it."""
    concept, reference = ingredient.itemCodeableConcept, ingredient.itemReference
    if ingredient.item is not None:
        concept, reference = ingredient.item.concept, ingredient.item.reference
    found = _concept_of(concept, site)
    if found is not None or reference is None:
        return found
    if not reference.reference:
        return site.book.concept(CodeableConcept(text=reference.display))
    target = target_of(reference.reference, "ingredient.itemReference", site)
    return target.id if target and target.type in (None, "Medication") else None


def _mixture(concepts: Sequence[Concept]) -> Concept | None:
    """The code of the first, and the codings of all."""
    if not concepts:
        return None
    codings = dict.fromkeys(coding for one in concepts for coding in one.codings)
    unknown = dict.fromkeys(url for one in concepts for url in one.unknown_systems)
    return Concept(concepts[0].code, tuple(codings), concepts[0].display, tuple(unknown))
