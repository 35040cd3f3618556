"""What was found: observations and diagnostic reports."""

from ehrmamba_hf.fhir.codings import Concept
from ehrmamba_hf.fhir.fields import (
    code_of,
    expect_time,
    id_of,
    observation_kind,
    patient_of,
    span_of,
    time_of,
    value_of,
)
from ehrmamba_hf.fhir.resources import DiagnosticReport, Measured, Observation
from ehrmamba_hf.fhir.rows import Event, NotUsed, Rows, Site
from ehrmamba_hf.fhir.statuses import expect_happened
from ehrmamba_hf.fhir.times import Time

_WITHOUT_COLUMN = ("valueSampledData", "valueAttachment", "valueReference")


def observation(resource: Observation, site: Site) -> Rows:
    """One event per coded component, and one of its own where it has a value or no such component.

    At the effective time (a period's start, else its end), else when it was issued; available at
    the latest of these. What has a dataAbsentReason and no value, the Observation itself or a
    component, is no result. One that has neither, such as a panel that names its members
    elsewhere, was made all the same: it is an event without a value.
    """
    expect_happened(resource.status, "Observation")
    patient_id = patient_of(resource.subject, site)
    concept = code_of(resource.code, site)
    start, available, end = _times(resource, site)
    number, text, unit = value_of(resource, concept, site)
    concept = _with_answer(concept, resource, number, site)
    own = Event(
        start,
        observation_kind(resource.category, concept),
        concept,
        number,
        text,
        unit,
        end,
        available,
        id_of(resource.encounter or resource.context, site),
    )
    valued = number is not None or text is not None
    if valued and not resource.component:  # nearly all
        return Rows(patient_id, (own,))
    parts, absent, notes = _components(resource, own, site)
    if valued:
        return Rows(patient_id, (own, *parts), notes=notes)
    notes = (*_notes(resource), *notes)
    if parts:
        return Rows(patient_id, parts, notes=notes)
    if absent or resource.dataAbsentReason:
        raise NotUsed("dataAbsentReason")
    return Rows(patient_id, (own,), notes=notes)


def diagnostic_report(resource: DiagnosticReport, site: Site) -> Rows:
    """That a report was made, by its code, with the times of an Observation.

    Its results are Observations, its conclusions Conditions of their own, its text is not read.
    """
    expect_happened(resource.status, "DiagnosticReport")
    patient_id = patient_of(resource.subject or resource.patient, site)
    concept = code_of(resource.code, site)
    start, available, end = _times(resource, site)
    event = Event(
        time=start,
        category="report",
        concept=concept,
        end_time=end,
        available_time=available,
        encounter_id=id_of(resource.encounter or resource.context, site),
    )
    return Rows(patient_id, (event,))


def _times(resource: Observation | DiagnosticReport, site: Site) -> tuple[int, int, int | None]:
    """(time, available time, end) in microseconds. Raises NotUsed without any."""
    moment, timing = resource.effectiveDateTime, None
    if isinstance(resource, Observation):
        moment, timing = moment or resource.effectiveInstant, resource.effectiveTiming
    start, end = span_of(moment, resource.effectivePeriod, timing, "effective", site)
    issued = time_of(resource.issued, "issued", site)
    first: Time = expect_time(start or issued)
    available = max(t.last for t in (first, end, issued) if t is not None)
    return first.start, available, end.last if end else None


def _components(
    resource: Observation, own: Event, site: Site
) -> tuple[tuple[Event, ...], bool, tuple[str, ...]]:
    """The events of the coded components, whether any of these has no result, and notes."""
    found: list[Event] = []
    notes: list[str] = []
    absent = False
    for index, part in enumerate(resource.component or ()):
        about: Concept | None = site.book.concept(part.code) if part.code is not None else None
        if about is None:
            notes.append("component without a code")
            continue
        number, text, unit = value_of(part, about, site, f"component[{index}].")
        if number is None and text is None:
            if part.dataAbsentReason:
                absent = True
                notes.append("component without a result")
                continue
            notes += _notes(part)
        about = _with_answer(about, part, number, site)
        kind = observation_kind(resource.category, about)
        found.append(
            own._replace(
                category=kind, concept=about, numeric_value=number, text_value=text, unit=unit
            )
        )
    return tuple(found), absent, tuple(notes)


def _with_answer(about: Concept, measured: Measured, number: float | None, site: Site) -> Concept:
    """The Concept that is asked about; of a coded answer, it tells the unknown systems too."""
    if number is not None or measured.valueCodeableConcept is None:
        return about
    return site.book.answered(about, measured.valueCodeableConcept)


def _notes(measured: Measured) -> tuple[str, ...]:
    """The kinds of value that an Observation without a value has, but the events have not."""
    return tuple([f"{name} has no column" for name in _WITHOUT_COLUMN if getattr(measured, name)])
