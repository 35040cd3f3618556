"""Who and when: patients and encounters."""

from collections.abc import Iterator
from typing import Final

import meds

from ehrmamba_hf.fhir.codings import Concept
from ehrmamba_hf.fhir.fields import id_of, patient_of, time_of
from ehrmamba_hf.fhir.resources import (
    CodeableConcept,
    Coding,
    Disposition,
    Encounter,
    Extension,
    Patient,
    Period,
)
from ehrmamba_hf.fhir.rows import EncounterRow, Event, NotUsed, Reject, Rows, Site, SubjectRow
from ehrmamba_hf.fhir.statuses import expect_happened
from ehrmamba_hf.fhir.times import Time, dated, instant_of

_RACE: Final = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"
_GERMAN_REASON: Final = "Entlassungsgrund"  # https://simplifier.net/basisprofil-de-r4
_MIMIC: Final = ("http://mimic.mit.edu/", "http://fhir.mimic.mit.edu/")
_BIRTH: Final = Concept(meds.birth_code, ())
_DEATH: Final = Concept(meds.death_code, ())
_DATED: Final = ("day", "time")


def patient(resource: Patient, site: Site) -> Rows:
    """A subject, its MEDS_BIRTH and MEDS_DEATH. Rejects a death before the birth.

    A birth or death that cannot be read is left out with a note: without the patient, all of its
    record would be lost. A death at midnight exactly is a date that lost its kind. One known only
    by its month or year has no day that a label could be taken from: the patient is dead without a
    date.
    """
    notes: list[str] = []
    born = _readable(resource.birthDate, "birthDate", site, notes)
    died = _readable(resource.deceasedDateTime, "deceasedDateTime", site, notes)
    died = dated(died) if died else None
    if born and died and died.last < born.start:
        raise Reject("deceasedDateTime", "a time not before birthDate", "an earlier one")
    events = []
    if born:
        events.append(Event(born.start, "birth", concept=_BIRTH, available_time=born.last))
    known = died if died and died.precision in _DATED else None
    if known:
        events.append(Event(known.start, "death", concept=_DEATH, available_time=known.last))
    elif died:
        notes.append("deceasedDateTime without a day")
    return Rows(
        patient_id=None,
        events=tuple(events),
        subject=SubjectRow(
            birth=born.start if born else None,
            death=known.start if known else None,
            death_is_date=known is not None and known.precision == "day",
            deceased=bool(resource.deceasedDateTime or resource.deceasedBoolean),
            sex=resource.gender or None,
            race=_race(resource.extension or []),
        ),
        notes=tuple(notes),
    )


def encounter(resource: Encounter, site: Site) -> Rows:
    """An encounter, as long as it has a start; one that ends before it starts stays as written.

    But where it is only the clock, set back in autumn, that puts the end before the start, the end
    stands at the start. A month or a year is no start or end that a length of stay could be taken
    from. R5's planned dates are plans. Reasons and diagnoses are Conditions of their own.
    """
    expect_happened(resource.status, "Encounter")
    patient_id = patient_of(resource.subject or resource.patient, site)
    period = resource.period or resource.actualPeriod or Period()
    start = time_of(period.start, "period.start", site)
    end = time_of(period.end, "period.end", site)
    if start is None:
        raise NotUsed("no period.start")
    if start.precision not in _DATED:
        raise NotUsed("period.start without a day")
    discharge = resource.hospitalization or resource.admission
    return Rows(
        patient_id,
        encounter=EncounterRow(
            part_of=id_of(resource.partOf, site, "partOf"),
            start=start.start,
            end=_end(period, start, end),
            class_code=_class_code(resource.class_),
            disposition=_disposition(discharge.dischargeDisposition if discharge else None),
            source="mimic" if _is_mimic(resource) else "",
        ),
        notes=("period.end without a day",) if end and end.precision not in _DATED else (),
    )


def _readable(text: str | None, field: str, site: Site, notes: list[str]) -> Time | None:
    try:
        return time_of(text, field, site)
    except Reject:
        notes.append(f"{field} is not a FHIR date")
        return None


def _end(period: Period, start: Time, end: Time | None) -> int | None:
    if end is None or end.precision not in _DATED:
        return None
    if end.last < start.start:
        began, ended = instant_of(period.start or ""), instant_of(period.end or "")
        if began is not None and ended is not None and began <= ended:
            return start.start
    return end.last


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
    found = list(extensions)
    while found:  # no recursion: how deep they nest is the record's choice
        extension = found.pop(0)
        if extension.valueCoding:
            yield extension.valueCoding
        found[:0] = extension.extension or []


def _class_code(kind: Coding | list[CodeableConcept] | None) -> str | None:
    """The class's code: of R5's several classes, HL7's before a hospital's own.

    MIMIC-IV on FHIR 1.0 and 2.0 have admission types here (EW EMER., URGENT, DIRECT OBSERVATION):
    they stay as written, since their stays are known by the source and their length.
    """
    if isinstance(kind, Coding):
        return kind.code or kind.display
    codings = [c for concept in kind or () for c in concept.coding or () if c.code]
    codings.sort(key=lambda c: not (c.system or "").endswith("v3-ActCode"))
    return codings[0].code if codings else next((c.text for c in kind or () if c.text), None)


def _is_mimic(resource: Encounter) -> bool:
    urls = [*((resource.meta.profile if resource.meta else None) or ())]
    urls += [i.system or "" for i in resource.identifier or ()]
    if isinstance(resource.class_, Coding):
        urls.append(resource.class_.system or "")
    else:
        urls += [c.system or "" for k in resource.class_ or () for c in k.coding or ()]
    return any(url.startswith(_MIMIC) for url in urls)


def _race(extensions: list[Extension]) -> str | None:
    """US Core's OMB categories, joined by "; ", else its text.

    http://hl7.org/fhir/us/core/ (us-core-race)
    """
    parts = [part for race in extensions if race.url == _RACE for part in race.extension or ()]
    categories = [p.valueCoding for p in parts if p.url == "ombCategory" and p.valueCoding]
    found = {coding.display or coding.code for coding in categories} - {None, ""}
    found = found or {part.valueString for part in parts if part.url == "text"}
    return "; ".join(sorted(filter(None, found))) or None
