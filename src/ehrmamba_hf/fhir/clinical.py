"""What a patient has and what was done: conditions, allergies, procedures, immunizations."""

from ehrmamba_hf.fhir.fields import (
    code_of,
    expect_time,
    id_of,
    number_of,
    patient_of,
    span_of,
    time_of,
)
from ehrmamba_hf.fhir.resources import AllergyIntolerance, Condition, Immunization, Procedure
from ehrmamba_hf.fhir.rows import Event, NotUsed, Rows, Site
from ehrmamba_hf.fhir.statuses import expect_happened, expect_not
from ehrmamba_hf.fhir.times import dated


def condition(resource: Condition, site: Site) -> Rows:
    """A diagnosis: at recordedDate, else at its encounter's end, else at its onset.

    Codes are assigned after a stay, so with an encounter it is available only after its end. An
    onset that is an age, a range or a text is no date: it is noted where there is no other. The
    abatement is no event: it says when a problem was over, which nobody knew while it lasted.
    """
    expect_happened(resource.verificationStatus, "Condition")
    patient_id = patient_of(resource.subject or resource.patient, site)
    return _problem(resource, patient_id, "condition", site)


def allergy_intolerance(resource: AllergyIntolerance, site: Site) -> Rows:
    """An allergy, dated like a Condition, but known as soon as it is recorded."""
    expect_happened(resource.verificationStatus, "AllergyIntolerance")
    patient_id = patient_of(resource.patient or resource.subject, site, "patient")
    return _problem(resource, patient_id, "allergy", site)


def procedure(resource: Procedure, site: Site) -> Rows:
    """A procedure, known at its start; one without an hour is known after its encounter.

    One at midnight exactly is taken for a date, and so is its end, where that is at midnight too.
    One that is dated by an age, a range or a text has no date, which is noted: it stands at its
    encounter's end.
    """
    expect_happened(resource.status, "Procedure")
    expect_not(notDone=resource.notDone, notPerformed=resource.notPerformed)
    patient_id = patient_of(resource.subject or resource.patient, site)
    if resource.code is None:
        raise NotUsed("no code")
    start, end = span_of(
        resource.performedDateTime, resource.performedPeriod, None, "performed", site
    )
    if start is None:
        start, end = span_of(
            resource.occurrenceDateTime,
            resource.occurrencePeriod,
            resource.occurrenceTiming,
            "occurrence",
            site,
        )
    if start is not None and start.midnight is not None:
        start, end = dated(start), dated(end) if end else None
    vague = (
        *(resource.performedString, resource.performedAge, resource.performedRange),
        *(resource.occurrenceString, resource.occurrenceAge, resource.occurrenceRange),
    )
    event = Event(
        time=start.start if start else None,
        category="procedure",
        concept=code_of(resource.code, site),
        end_time=end.last if end else None,
        available_time=start.last if start else None,
        encounter_id=id_of(resource.encounter or resource.context, site),
        after_encounter=start is None or start.precision != "time",
    )
    notes = ("performed[x] is not a date",) if start is None and any(vague) else ()
    return Rows(patient_id, (event,), notes=notes)


def immunization(resource: Immunization, site: Site) -> Rows:
    """A vaccine given, at its occurrence; the value is the dose. A text is no time."""
    expect_happened(resource.status, "Immunization")
    expect_not(notGiven=resource.notGiven, wasNotGiven=resource.wasNotGiven)
    patient_id = patient_of(resource.patient or resource.subject, site, "patient")
    concept = code_of(resource.vaccineCode, site, "vaccineCode")
    given = time_of(resource.occurrenceDateTime, "occurrenceDateTime", site)
    given = expect_time(given or time_of(resource.date, "date", site))
    number, unit = number_of(resource.doseQuantity, "doseQuantity.value")
    event = Event(
        time=given.start,
        category="immunization",
        concept=concept,
        numeric_value=number,
        unit=unit,
        available_time=given.last,
        encounter_id=id_of(resource.encounter or resource.context, site),
    )
    return Rows(patient_id, (event,))


def _problem(resource: Condition, patient_id: str, category: str, site: Site) -> Rows:
    if resource.code is None:
        raise NotUsed("no code")
    recorded = time_of(resource.recordedDate, "recordedDate", site)
    recorded = recorded or time_of(resource.assertedDate, "assertedDate", site)
    recorded = recorded or time_of(resource.dateRecorded, "dateRecorded", site)
    onset, _ = span_of(resource.onsetDateTime, resource.onsetPeriod, None, "onset", site)
    dated = recorded or onset
    event = Event(
        time=recorded.start if recorded else None,
        category=category,
        concept=code_of(resource.code, site),
        available_time=dated.last if dated else None,
        encounter_id=id_of(resource.encounter or resource.context, site),
        after_encounter=category == "condition" or recorded is None,
        fallback_time=onset.start if onset else None,
    )
    vague = dated is None and any((resource.onsetAge, resource.onsetRange, resource.onsetString))
    return Rows(patient_id, (event,), notes=("onset[x] is not a date",) if vague else ())
