"""Reading the fields that many resources share: references, times, codes, values and categories."""

from functools import lru_cache
from typing import Final

import numpy as np

from ehrmamba_hf.fhir.codings import TEXT, Concept
from ehrmamba_hf.fhir.identity import Target, parse_reference
from ehrmamba_hf.fhir.resources import (
    CodeableConcept,
    Measured,
    Period,
    Quantity,
    Reference,
    Timing,
)
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Site
from ehrmamba_hf.fhir.times import Time

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_LONGEST_REFERENCE: Final = 2048
"""URLs are shorter, ids have 64 characters at most; so look-ups of references stay small."""
_VITAL_SIGNS: Final = {"vital-signs", "vital-sign", "vital signs", "routine vital signs"}
_LAB: Final = {"laboratory", "lab"}
_OUTPUT: Final = {"output"}


def patient_of(subject: Reference | None, site: Site, field: str = "subject") -> str:
    """The Patient id of a `subject`. Raises Reject without one, NotUsed for groups and the like."""
    if subject is None or subject.reference is None:
        raise Reject(f"{field}.reference", "a reference to a Patient", "nothing")
    target = target_of(subject.reference, field, site)
    if target is None:
        raise Reject(f"{field}.reference", "a reference with an id", "one without")
    if target.type not in (None, "Patient"):
        raise NotUsed(f"{field} is not a Patient")
    return target.id


def id_of(reference: Reference | None, site: Site, field: str = "encounter") -> str | None:
    """The id of the Encounter that an optional reference names, if any.

    A `context` may be an EpisodeOfCare instead. `convert` notes a reference that names none.
    """
    if reference is None or reference.reference is None:
        return None
    target = target_of(reference.reference, field, site)
    return target.id if target and target.type in (None, "Encounter") else None


def target_of(reference: str, field: str, site: Site) -> Target | None:
    """Where a reference points. Raises Reject where it is longer than any is."""
    if len(reference) > _LONGEST_REFERENCE:
        raise Reject(
            f"{field}.reference", f"at most {_LONGEST_REFERENCE:,} characters", "a longer reference"
        )
    alias = site.aliases.get(reference)
    return Target(None, alias) if alias is not None else parse_reference(reference)


def time_of(text: str | None, field: str, site: Site) -> Time | None:
    """The Time of an optional date or time, None for an empty one. Raises Reject for other text."""
    if not text:
        return None
    try:
        return site.clock.read(text)
    except ValueError:
        raise Reject(field, "a FHIR date or dateTime", "text that is not one") from None


def expect_time(time: Time | None) -> Time:
    """The time. Raises NotUsed without one."""
    if time is None:
        raise NotUsed("no time")
    return time


def span_of(
    moment: str | None, period: Period | None, timing: Timing | None, field: str, site: Site
) -> tuple[Time | None, Time | None]:
    """Start and end of `{field}DateTime`, `{field}Period` or `{field}Timing`, the first there is.

    A moment has no end; a period without a start stands at its end. A Timing goes from the first to
    the last of the times that it lists, else over its bounds: what it repeats is a plan.
    """
    if moment:
        return time_of(moment, f"{field}DateTime", site), None
    if period is not None:
        return _bounds(period, f"{field}Period", site)
    if timing is None:
        return None, None
    listed = [time_of(text, f"{field}Timing.event", site) for text in timing.event or ()]
    times = sorted(time for time in listed if time is not None)
    if times:
        return times[0], times[-1] if len(times) > 1 else None
    if timing.repeat is None or timing.repeat.boundsPeriod is None:
        return None, None
    return _bounds(timing.repeat.boundsPeriod, f"{field}Timing.repeat.boundsPeriod", site)


def code_of(concept: CodeableConcept | None, site: Site, field: str = "code") -> Concept:
    """The Concept of a required code. Raises Reject where there is none."""
    found = site.book.concept(concept) if concept is not None else None
    if found is None:
        what = "nothing" if concept is None else "neither"
        raise Reject(field, "a coding with a code, or a text", what)
    return found


def value_of(
    measured: Measured, about: Concept, site: Site, field: str = ""
) -> tuple[float | None, str | None, str | None]:
    """(numeric value, text value, unit) of a value[x]; all None without one.

    A comparator ("<") goes to the text beside the number. Concepts become their code with its
    system, or their text; ranges "low-high", ratios "a:b", both with their comparators ("<1:20");
    periods "start/end", booleans "true" or "false", dates and times as written. Where the site
    converts the unit of what is measured, the number is the converted one. Sampled data,
    attachments and references have no column.

    The reference range has no column either, nor has the interpretation made from it: it is the
    laboratory's, not the patient's, and values are binned by their own quantiles.
    """
    if measured.valueQuantity is not None:
        quantity, where = measured.valueQuantity, f"{field}valueQuantity.value"
        number, unit = number_of(quantity, where)
        conversion = site.book.conversion(about.code, unit)
        if conversion is not None and number is not None:
            number, unit = _float32(conversion(number), where), conversion.unit
        return number, quantity.comparator or None, unit
    if measured.valueInteger is not None:
        return _float32(measured.valueInteger, f"{field}valueInteger"), None, None
    unit = None
    if measured.valueRange is not None:
        unit = unit_of(measured.valueRange.low) or unit_of(measured.valueRange.high)
    return None, _text_value(measured, site), unit


def number_of(quantity: Quantity | None, field: str) -> tuple[float | None, str | None]:
    """Value and unit of a Quantity as written. Raises Reject beyond float32."""
    if quantity is None:
        return None, None
    value = quantity.value
    return None if value is None else _float32(value, field), unit_of(quantity)


def unit_of(quantity: Quantity | None) -> str | None:
    """The unit of a Quantity: its code where given, else its text, without outer spaces.

    The code is mostly UCUM's, but Quantity.system is not looked at. Neither case nor spelling is
    changed: in UCUM, "mg" and "Mg" are nine powers of ten apart.
    """
    if quantity is None:
        return None
    unit = quantity.code or quantity.unit
    return unit.strip() or None if unit else None


def observation_kind(categories: list[CodeableConcept] | None, concept: Concept) -> str:
    """The event category of an Observation: lab, vital_sign, output or observation.

    By the code, display or text of its categories, whatever their system and case; MIMIC's output
    events by their code system too.
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
    if words & _VITAL_SIGNS:
        return "vital_sign"
    return "output" if words & _OUTPUT else None


def _bounds(period: Period, field: str, site: Site) -> tuple[Time | None, Time | None]:
    end = time_of(period.end, f"{field}.end", site)
    return time_of(period.start, f"{field}.start", site) or end, end


def _float32(value: float, field: str) -> float:
    if abs(value) > _FLOAT32_MAX:
        raise Reject(field, "a number that fits a 32-bit float", "a larger one")
    # Adding zero makes -0.0 plain zero: two spellings of one number must not sort apart.
    return value + 0.0


def _text_value(measured: Measured, site: Site) -> str | None:
    if measured.valueCodeableConcept is not None:
        return _coded_value(measured.valueCodeableConcept, site)
    if measured.valueBoolean is not None:
        return "true" if measured.valueBoolean else "false"
    if measured.valueRange is not None:
        return _pair(_digits(measured.valueRange.low), "-", _digits(measured.valueRange.high))
    if measured.valueRatio is not None:
        ratio = measured.valueRatio
        return _pair(_digits(ratio.numerator), ":", _digits(ratio.denominator))
    if measured.valuePeriod is not None:
        return _pair(measured.valuePeriod.start or "", "/", measured.valuePeriod.end or "")
    return measured.valueString or measured.valueTime or measured.valueDateTime or None


def _coded_value(value: CodeableConcept, site: Site) -> str | None:
    concept = site.book.concept(value)
    if concept is None or not concept.code.startswith(f"{TEXT}/"):
        return concept.code if concept else None
    return value.text or next((c.display for c in value.coding or () if c.display), None)


def _pair(first: str, sign: str, second: str) -> str | None:
    return f"{first}{sign}{second}" if first or second else None


def _digits(quantity: Quantity | None) -> str:
    """A number as short as it can be told in full, after its comparator."""
    if quantity is None or quantity.value is None:
        return ""
    return f"{quantity.comparator or ''}{quantity.value + 0.0!r}".removesuffix(".0")
