"""One pure function per resource: the resource in, its Rows out, or Reject or NotUsed raised.

Times. `time` is the start of what was written; an end that is only a date stands at its last
microsecond (FHIR: a period's end includes any matching time). `available_time` is when the event
could have been known: never before what it was dated by is over, so that a date without an hour
leaks nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import meds

from ehrmamba_hf.fhir.codings import Concept, concept_of
from ehrmamba_hf.fhir.fields import (
    code_of,
    expect_happened,
    id_of,
    medication_of,
    number_of,
    observation_kind,
    patient_of,
    span_of,
    time_of,
    value_of,
)
from ehrmamba_hf.fhir.resources import (
    Clinical,
    CodeableConcept,
    Coding,
    Condition,
    Disposition,
    Encounter,
    Extension,
    Measured,
    Medication,
    MedicationAdministration,
    MedicationRequest,
    Observation,
    Patient,
    Period,
    Procedure,
)
from ehrmamba_hf.fhir.rows import (
    EncounterRow,
    Event,
    NotUsed,
    Reject,
    Rows,
    Site,
    SubjectRow,
)
from ehrmamba_hf.fhir.times import DAY, Time

# What did not happen, is not true, or is not yet more than an intention. A preliminary result and
# a stopped order or procedure did happen; a registered observation has no result yet.
_NOT_TRUE: Final = frozenset({"entered-in-error", "cancelled", "not-done"})
ENCOUNTER_EXCLUDED: Final = _NOT_TRUE | {"planned"}
CONDITION_EXCLUDED: Final = frozenset({"entered-in-error", "refuted"})
PROCEDURE_EXCLUDED: Final = _NOT_TRUE | {"preparation"}
REQUEST_EXCLUDED: Final = _NOT_TRUE | {"draft"}
ADMINISTRATION_EXCLUDED: Final = _NOT_TRUE
OBSERVATION_EXCLUDED: Final = _NOT_TRUE | {"registered"}
INTENT_EXCLUDED: Final = frozenset({"proposal", "option"})

_RACE: Final = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"
_GERMAN_REASON: Final = "Entlassungsgrund"  # https://simplifier.net/basisprofil-de-r4
_MIMIC: Final = ("http://mimic.mit.edu/", "http://fhir.mimic.mit.edu/")
_BIRTH: Final = Concept(meds.birth_code, ())
_DEATH: Final = Concept(meds.death_code, ())


def patient(resource: Patient, site: Site) -> Rows:
    """A subject, its MEDS_BIRTH and MEDS_DEATH. Rejects a death before the birth.

    A death at midnight exactly is a date that lost its kind. One known only by its month or year
    has no day that a label could be taken from: the patient is dead without a date.
    """
    born = time_of(resource.birthDate, "birthDate", site)
    died = time_of(resource.deceasedDateTime, "deceasedDateTime", site)
    if born and died and died.last < born.start:
        raise Reject("deceasedDateTime", "a time not before birthDate", "an earlier one")
    events = []
    if born:
        events.append(Event(born.start, "birth", concept=_BIRTH, available_time=born.last))
    dated = died if died and died.precision in ("day", "time") else None
    if dated:
        last = _day_over(dated)
        events.append(Event(dated.start, "death", concept=_DEATH, available_time=last))
    return Rows(
        patient_id=None,
        events=tuple(events),
        subject=SubjectRow(
            birth=born.start if born else None,
            death=dated.start if dated else None,
            death_is_date=dated is not None and (dated.precision == "day" or dated.midnight),
            deceased=died is not None or bool(resource.deceasedBoolean),
            sex=resource.gender or None,
            race=_race(resource.extension or []),
        ),
    )


def encounter(resource: Encounter, site: Site) -> Rows:
    """An encounter, as long as it has a start; one that ends before it starts stays as written.

    A month or a year is no start or end that a length of stay could be taken from.
    """
    expect_happened(resource.status, ENCOUNTER_EXCLUDED)
    patient_id = patient_of(resource.subject, site)
    period = resource.period or resource.actualPeriod or Period()
    start = time_of(period.start, "period.start", site)
    end = time_of(period.end, "period.end", site)
    if start is None:
        raise NotUsed("no period.start")
    discharge = resource.hospitalization or resource.admission
    disposition = discharge.dischargeDisposition if discharge else None
    if start.precision not in ("day", "time"):
        raise NotUsed("period.start without a day")
    return Rows(
        patient_id,
        encounter=EncounterRow(
            part_of=id_of(resource.partOf, site),
            start=start.start,
            end=end.last if end and end.precision in ("day", "time") else None,
            class_code=_class_code(resource.class_),
            disposition=_disposition(disposition),
            source="mimic" if _is_mimic(resource) else "",
        ),
    )


def condition(resource: Condition, site: Site) -> Rows:
    """A diagnosis: at recordedDate, else at its encounter's end, else at its onset.

    Codes are assigned after a stay, so with an encounter it is available only after its end.
    """
    expect_happened(_plain_code(resource.verificationStatus), CONDITION_EXCLUDED)
    patient_id = patient_of(resource.subject, site)
    if resource.code is None:
        raise NotUsed("no code")
    recorded = time_of(resource.recordedDate, "recordedDate", site)
    onset, _ = span_of(resource.onsetDateTime, resource.onsetPeriod, "onset", site)
    dated = recorded or onset
    event = Event(
        time=recorded.start if recorded else None,
        category="condition",
        concept=code_of(resource.code),
        available_time=dated.last if dated else None,
        encounter_id=id_of(resource.encounter, site),
        after_encounter=True,
        fallback_time=onset.start if onset else None,
    )
    return Rows(patient_id, (event,))


def procedure(resource: Procedure, site: Site) -> Rows:
    """A procedure, known at its start; one without an hour is known after its encounter."""
    expect_happened(resource.status, PROCEDURE_EXCLUDED)
    patient_id = patient_of(resource.subject, site)
    if resource.code is None:
        raise NotUsed("no code")
    start, end = span_of(resource.performedDateTime, resource.performedPeriod, "performed", site)
    if start is None:
        start, end = span_of(
            resource.occurrenceDateTime, resource.occurrencePeriod, "occurrence", site
        )
    hourless = start is None or start.precision != "time" or start.midnight
    event = Event(
        time=start.start if start else None,
        category="procedure",
        concept=code_of(resource.code),
        end_time=end.last if end else None,
        available_time=_day_over(start) if start else None,
        encounter_id=id_of(resource.encounter, site),
        after_encounter=hourless,
    )
    return Rows(patient_id, (event,))


def medication(resource: Medication, site: Site) -> Rows:
    """What requests and administrations refer to; no event of its own."""
    expect_happened(resource.status, _NOT_TRUE)
    concept = concept_of(resource.code) if resource.code is not None else None
    if concept is None:
        raise NotUsed("no code")
    return Rows(None, medication=concept)


def medication_request(resource: MedicationRequest, site: Site) -> Rows:
    """An order, at authoredOn, else at the start of what may be dispensed."""
    expect_happened(resource.status, REQUEST_EXCLUDED)
    if resource.intent in INTENT_EXCLUDED:
        raise NotUsed(f"intent {resource.intent}")
    if resource.doNotPerform:
        raise NotUsed("doNotPerform")
    patient_id = patient_of(resource.subject, site)
    concept, medication_id = medication_of(resource, site)
    written = time_of(resource.authoredOn, "authoredOn", site)
    if written is None and resource.dispenseRequest is not None:
        validity = resource.dispenseRequest.validityPeriod
        written, _ = span_of(None, validity, "dispenseRequest.validity", site)
    event = Event(
        time=_expect_time(written).start,
        category="medication",
        concept=concept,
        available_time=_expect_time(written).last,
        encounter_id=id_of(resource.encounter, site),
        medication_id=medication_id,
    )
    return Rows(patient_id, (event,))


def medication_administration(resource: MedicationAdministration, site: Site) -> Rows:
    """A dose given, known at its start; the value is the dose."""
    expect_happened(resource.status, ADMINISTRATION_EXCLUDED)
    patient_id = patient_of(resource.subject, site)
    concept, medication_id = medication_of(resource, site)
    start, end = span_of(resource.effectiveDateTime, resource.effectivePeriod, "effective", site)
    if start is None:
        start, end = span_of(
            resource.occurenceDateTime, resource.occurencePeriod, "occurence", site
        )
    dose = resource.dosage.dose if resource.dosage else None
    number, unit = number_of(dose, "dosage.dose.value")
    event = Event(
        time=_expect_time(start).start,
        category="administration",
        concept=concept,
        numeric_value=number,
        unit=unit,
        end_time=end.last if end else None,
        available_time=_expect_time(start).last,
        encounter_id=id_of(resource.encounter or resource.context, site),
        medication_id=medication_id,
    )
    return Rows(patient_id, (event,))


def observation(resource: Observation, site: Site) -> Rows:
    """One event per coded component, and one of its own where it has a value or no such component.

    At the effective time (a period's start, else its end), else when it was issued; available at
    the latest of these.
    """
    expect_happened(resource.status, OBSERVATION_EXCLUDED)
    patient_id = patient_of(resource.subject, site)
    concept = code_of(resource.code)
    start, end = span_of(
        resource.effectiveDateTime or resource.effectiveInstant,
        resource.effectivePeriod,
        "effective",
        site,
    )
    issued = time_of(resource.issued, "issued", site)
    start = _expect_time(start or end or issued)
    available = max(t.last for t in (start, end, issued) if t is not None)
    encounter_id = id_of(resource.encounter, site)
    end_time = end.last if end else None

    def event(measured: Measured, about: Concept, field: str = "") -> Event:
        number, text, unit = value_of(measured, field)
        kind = observation_kind(resource.category, about)
        return Event(
            start.start, kind, about, number, text, unit, end_time, available, encounter_id
        )

    own = event(resource, concept)
    parts = [
        event(part, about, f"component[{index}].")
        for index, part in enumerate(resource.component or ())
        if part.code is not None and (about := concept_of(part.code)) is not None
    ]
    if parts and own.numeric_value is None and own.text_value is None:
        return Rows(patient_id, tuple(parts))
    return Rows(patient_id, (own, *parts))


_CONVERT: Final[dict[type, Callable[[Any, Site], Rows]]] = {
    Patient: patient,
    Encounter: encounter,
    Condition: condition,
    Procedure: procedure,
    Medication: medication,
    MedicationRequest: medication_request,
    MedicationAdministration: medication_administration,
    Observation: observation,
}


def convert(resource: Clinical, site: Site) -> Rows:
    """The Rows of any used resource. Raises Reject or NotUsed."""
    return _CONVERT[type(resource)](resource, site)


def _expect_time(time: Time | None) -> Time:
    if time is None:
        raise NotUsed("no time")
    return time


def _day_over(time: Time) -> int:
    """When a written time is over; midnight exactly is taken for a date that lost its kind."""
    return time.start + DAY - 1 if time.midnight else time.last


def _plain_code(concept: CodeableConcept | None) -> str | None:
    if concept is None:
        return None
    return next((c.code for c in concept.coding or () if c.code), concept.text)


def _disposition(disposition: Disposition | None) -> str | None:
    """Every code, display and text of a discharge disposition, joined by "; ".

    A hospital's own code stands first often enough, and only another term tells what it means. In
    Germany's (paragraph 301 SGB V) 07 is death; in the American code set it is not.
    """
    if disposition is None:
        return None
    codings = [*(disposition.coding or ()), *_codings_within(disposition.extension or [])]
    terms = [term for c in codings for term in (c.code, c.display)]
    if any(_GERMAN_REASON in (c.system or "") and (c.code or "")[:2] == "07" for c in codings):
        terms.append("exp")
    return "; ".join(dict.fromkeys(filter(None, [*terms, disposition.text]))) or None


def _codings_within(extensions: list[Extension]) -> Iterator[Coding]:
    for extension in extensions:
        if extension.valueCoding:
            yield extension.valueCoding
        yield from _codings_within(extension.extension or [])


def _class_code(kind: Coding | list[CodeableConcept] | None) -> str | None:
    """The class's code: of R5's several classes, HL7's before a hospital's own."""
    if isinstance(kind, Coding):
        return kind.code or kind.display
    codings = [c for concept in kind or () for c in concept.coding or () if c.code]
    codings.sort(key=lambda c: not (c.system or "").endswith("v3-ActCode"))
    return codings[0].code if codings else next((c.text for c in kind or () if c.text), None)


def _is_mimic(resource: Encounter) -> bool:
    profiles = resource.meta.profile if resource.meta else None
    systems = [i.system or "" for i in resource.identifier or ()]
    if isinstance(resource.class_, Coding):
        systems.append(resource.class_.system or "")
    return any(url.startswith(_MIMIC) for url in [*(profiles or ()), *systems])


def _race(extensions: list[Extension]) -> str | None:
    """US Core's OMB categories, joined by "; ". http://hl7.org/fhir/us/core/ (us-core-race)"""
    found = {
        part.valueCoding.display
        for race in extensions
        if race.url == _RACE
        for part in race.extension or ()
        if part.url == "ombCategory" and part.valueCoding and part.valueCoding.display
    }
    return "; ".join(sorted(found)) or None
