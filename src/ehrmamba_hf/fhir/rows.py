"""What a resource becomes: rows of the three tables, or the reason why it gives none."""

from collections.abc import Mapping
from typing import NamedTuple

from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.codings import Concept
from ehrmamba_hf.fhir.times import Clock


class Event(NamedTuple):
    """One event, with what still has to be looked up in other resources.

    Times are microseconds of the wall clock. Once all files are read, `medication_id` gives the
    code, a missing `time` is the encounter's end (else `fallback_time`), and with `after_encounter`
    the event is available just after the later of the encounter's end and its time; where the
    encounter is not in the data, `available_time` stands.
    """

    time: int | None
    category: str
    concept: Concept | None = None  # None: see medication_id
    numeric_value: float | None = None
    text_value: str | None = None
    unit: str | None = None
    end_time: int | None = None
    available_time: int | None = None
    encounter_id: str | None = None
    medication_id: str | None = None
    after_encounter: bool = False
    fallback_time: int | None = None


class EncounterRow(NamedTuple):
    """A row of encounters.parquet, less its two ids."""

    part_of: str | None
    start: int
    end: int | None
    class_code: str | None
    disposition: str | None
    source: str  # "mimic" or ""


class SubjectRow(NamedTuple):
    """A row of subjects.parquet, less its two ids."""

    birth: int | None
    death: int | None
    death_is_date: bool
    deceased: bool
    sex: str | None
    race: str | None


class Rows(NamedTuple):
    """All that one resource gives."""

    patient_id: str | None  # None: of no patient (Medication)
    events: tuple[Event, ...] = ()
    encounter: EncounterRow | None = None
    subject: SubjectRow | None = None
    medication: Concept | None = None
    ingredients: tuple[Concept | str, ...] = ()  # of a mixture; a text: the id of a Medication
    notes: tuple[str, ...] = ()  # fields that the record is used without: counted, each by its text


class Site(NamedTuple):
    """What the reading of a resource depends on besides the resource itself."""

    clock: Clock
    aliases: Mapping[str, str] = {}  # in a Bundle: fullUrl -> id, where they differ
    book: Codebook = Codebook()


class Reject(Exception):  # noqa: N818 - an outcome, not a fault of ours
    """The record breaks a rule: it is counted and listed. The texts hold no content of it."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"{field or 'record'}: expected {expected}, found {found}")
        self.field, self.expected, self.found = field, expected, found
        self.resource_type: str | None = None  # where it could still be told


class NotUsed(Exception):  # noqa: N818
    """The record is sound, but is no event: it is counted by this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
