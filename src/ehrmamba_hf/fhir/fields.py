"""Reading the fields that many resources share: status, references, times, codes and values."""

from functools import lru_cache

import msgspec

from ehrmamba_hf.fhir.codings import TEXT, Concept, concept_of
from ehrmamba_hf.fhir.identity import Target, parse_reference
from ehrmamba_hf.fhir.resources import (
    CodeableConcept,
    Contained,
    Measured,
    MedicationUse,
    Period,
    Quantity,
    Reference,
)
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Site
from ehrmamba_hf.fhir.times import Time

_FLOAT32_MAX = 3.4028234e38
_VITAL_SIGNS = {"vital-signs", "vital-sign", "vital signs", "routine vital signs"}
_LAB = {"laboratory", "lab"}
_contained = msgspec.json.Decoder(Contained)


def expect_happened(status: str | None, excluded: frozenset[str]) -> None:
    """Raise NotUsed for a status that says that it did not happen or is not true."""
    if status in excluded:
        raise NotUsed(f"status {status}")


def patient_of(subject: Reference | None, site: Site) -> str:
    """The Patient id of a `subject`. Raises Reject without one, NotUsed for groups and the like."""
    if subject is None or subject.reference is None:
        raise Reject("subject.reference", "a reference to a Patient", "nothing")
    target = _target(subject.reference, site)
    if target is None:
        raise Reject("subject.reference", "a reference with an id", "one without")
    if target.type not in (None, "Patient"):
        raise NotUsed("subject is not a Patient")
    return target.id


def id_of(reference: Reference | None, site: Site) -> str | None:
    """The id that an optional reference names, if any."""
    if reference is None or reference.reference is None:
        return None
    target = _target(reference.reference, site)
    return target.id if target else None


def time_of(text: str | None, field: str, site: Site) -> Time | None:
    """The Time of an optional date or time, None for an empty one. Raises Reject for other text."""
    if not text:
        return None
    try:
        return site.clock.read(text)
    except ValueError:
        raise Reject(field, "a FHIR date or dateTime", "text that is not one") from None


def span_of(
    moment: str | None, period: Period | None, field: str, site: Site
) -> tuple[Time | None, Time | None]:
    """Start and end of `{field}DateTime` or `{field}Period`; a moment has no end."""
    if moment:
        return time_of(moment, f"{field}DateTime", site), None
    if period is None:
        return None, None
    return (
        time_of(period.start, f"{field}Period.start", site),
        time_of(period.end, f"{field}Period.end", site),
    )


def code_of(concept: CodeableConcept | None, field: str = "code") -> Concept:
    """The Concept of a required code. Raises Reject where there is none."""
    found = concept_of(concept) if concept is not None else None
    if found is None:
        what = "nothing" if concept is None else "neither"
        raise Reject(field, "a coding with a code, or a text", what)
    return found


def medication_of(use: MedicationUse, site: Site) -> tuple[Concept | None, str | None]:
    """The medication[x]: its Concept, or the id of the Medication resource that has it.

    A reference that names nothing but a display is a concept with that text.
    """
    concept, reference = use.medicationCodeableConcept, use.medicationReference
    if use.medication is not None:
        concept, reference = use.medication.concept, use.medication.reference
    found = concept_of(concept) if concept is not None else None
    if found is not None:
        return found, None
    if reference is None or not (reference.reference or reference.display):
        raise Reject("medication[x]", "a coded concept or a reference", "neither")
    if not reference.reference:
        return code_of(CodeableConcept(text=reference.display), "medicationReference"), None
    target = _target(reference.reference, site)
    if target is None:
        raise Reject("medicationReference.reference", "a reference with an id", "one without")
    if target.type == "#":
        return _contained_medication(use, target.id), None
    if target.type not in (None, "Medication"):
        raise NotUsed("medicationReference is not to a Medication")
    return None, target.id


def value_of(measured: Measured, field: str = "") -> tuple[float | None, str | None, str | None]:
    """(numeric value, text value, unit) of a value[x]; all None without one.

    A comparator ("<") goes to the text beside the number. Concepts become their code with its
    system, or their text; ranges "low-high", ratios "a:b", periods "start/end", booleans "true" or
    "false", dates and times as written.
    """
    if measured.valueQuantity is not None:
        number, unit = number_of(measured.valueQuantity, f"{field}valueQuantity.value")
        return number, measured.valueQuantity.comparator, unit
    if measured.valueInteger is not None:
        return float(measured.valueInteger), None, None
    unit = None
    if measured.valueRange is not None:
        unit = _unit(measured.valueRange.low) or _unit(measured.valueRange.high)
    return None, _text_value(measured), unit


def number_of(quantity: Quantity | None, field: str) -> tuple[float | None, str | None]:
    """Value and unit (its code where given) of a Quantity. Raises Reject beyond float32."""
    if quantity is None:
        return None, None
    value = quantity.value
    if value is not None and abs(value) > _FLOAT32_MAX:
        raise Reject(field, "a number that fits a 32-bit float", "a larger one")
    # Adding zero makes -0.0 plain zero: two spellings of one number must not sort apart.
    return None if value is None else value + 0.0, _unit(quantity)


def observation_kind(categories: list[CodeableConcept] | None, concept: Concept) -> str:
    """The event category of an Observation: lab, vital_sign, output or observation.

    By the code, display or text of its categories, whatever their system and case; MIMIC's output
    events by their code system.
    """
    if categories:
        terms = tuple(
            [t for c in categories for k in c.coding or () for t in (k.code, k.display)]
            + [c.text for c in categories]
        )
        kind = _kind_by_terms(terms)
        if kind is not None:
            return kind
    return "output" if concept.code.startswith("MIMIC_OUTPUT/") else "observation"


@lru_cache(maxsize=4096)
def _kind_by_terms(terms: tuple[str | None, ...]) -> str | None:
    words = {term.strip().lower() for term in terms if term}
    if words & _LAB:
        return "lab"
    return "vital_sign" if words & _VITAL_SIGNS else None


def _target(reference: str, site: Site) -> Target | None:
    alias = site.aliases.get(reference)
    return Target(None, alias) if alias is not None else parse_reference(reference)


def _contained_medication(use: MedicationUse, wanted: str) -> Concept:
    for raw in use.contained or ():
        try:
            medication = _contained.decode(raw)
        except msgspec.ValidationError:
            continue  # contained resources of other types have other kinds of `code`
        if medication.id == wanted:
            return code_of(medication.code, "contained.code")
    raise NotUsed("unresolved medicationReference")


def _text_value(measured: Measured) -> str | None:
    if measured.valueCodeableConcept is not None:
        return _coded_value(measured.valueCodeableConcept)
    if measured.valueBoolean is not None:
        return "true" if measured.valueBoolean else "false"
    if measured.valueRange is not None:
        return f"{_digits(measured.valueRange.low)}-{_digits(measured.valueRange.high)}"
    if measured.valueRatio is not None:
        ratio = measured.valueRatio
        return f"{_digits(ratio.numerator)}:{_digits(ratio.denominator)}"
    if measured.valuePeriod is not None:
        return f"{measured.valuePeriod.start or ''}/{measured.valuePeriod.end or ''}"
    return measured.valueString or measured.valueTime or measured.valueDateTime


def _coded_value(value: CodeableConcept) -> str | None:
    concept = concept_of(value)
    if concept is None or not concept.code.startswith(f"{TEXT}/"):
        return concept.code if concept else None
    return value.text or next((c.display for c in value.coding or () if c.display), None)


def _digits(quantity: Quantity | None) -> str:
    return "" if quantity is None or quantity.value is None else f"{quantity.value:g}"


def _unit(quantity: Quantity | None) -> str | None:
    return None if quantity is None else quantity.code or quantity.unit or None
