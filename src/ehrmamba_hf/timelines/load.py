"""The events of whole patients, as one record a patient: from a folder, or from tables alone."""

from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.schema import EVENT_SCHEMA
from ehrmamba_hf.events.table import data_files, read_encounters, read_subjects
from ehrmamba_hf.timelines.record import NEVER, Diagnosis, Encounter, Record, last_alive
from ehrmamba_hf.timelines.shards import factorized, iter_shard, plain_list

# Discharge dispositions that mean death: FHIR `exp`, the UB-04 patient status codes, MIMIC `DIED`.
DEATH_DISPOSITIONS = frozenset({"exp", "20", "40", "41", "42"})
DEATH_WORDS = ("died", "expired", "deceased", "death", "dead")

RECORD_COLUMNS = (
    "time",
    "available_time",
    "code",
    "numeric_value",
    "unit",
    "category",
    "codings",
    "encounter_id",
)
"""What of the events a record is made of, beside `subject_id`."""


class RecordBatch(NamedTuple):
    """The records of some patients, and the events that they hold as the columns of one table.

    `events` are those of the wanted kinds; the record at `i` has those from row `first[i]` on, as
    many as its arrays are long.
    """

    records: list[Record]
    events: pa.Table
    first: list[int]


@lru_cache(maxsize=4096)
def is_death(disposition: str | None) -> bool:
    """Whether a discharge disposition, or any of its terms joined by "; ", says death.

    >>> is_death("DIED"), is_death("7; exp"), is_death("home; Home"), is_death(None)
    (True, True, False, False)
    """
    text = (disposition or "").lower()
    terms = {term.strip() for term in text.split(";")}
    return bool(terms & DEATH_DISPOSITIONS) or any(word in text for word in DEATH_WORDS)


def iter_records(
    folder: Path, categories: Collection[str], only: Collection[int] | None = None
) -> Iterator[Record]:
    """Every patient of an events folder, those without any event too, a shard at a time.

    Args:
        folder: an events folder, as `ingest` writes it.
        categories: the kinds of event that become tokens; conditions are read in any case, as
            diagnoses.
        only: read these patients alone.
    """
    subjects = read_subjects(folder)
    if only is not None:
        subjects = rows_of(subjects, pa.array(list(only), pa.int64()))
    encounters = read_encounters(folder)
    seen: list[pa.Array] = []
    for file in data_files(folder):
        for events in iter_shard(file, RECORD_COLUMNS):
            if only is not None:
                events = rows_of(events, subjects["subject_id"])
            ids = events["subject_id"].unique()
            seen.append(ids)
            yield from read_records(
                events, rows_of(encounters, ids), rows_of(subjects, ids), categories
            ).records
    known = pa.chunked_array(seen, pa.int64())
    others = subjects.filter(pc.invert(pc.is_in(subjects["subject_id"], value_set=known)))
    rest = rows_of(encounters, others["subject_id"])
    yield from read_records(EVENT_SCHEMA.empty_table(), rest, others, categories).records


def rows_of(table: pa.Table, subject_ids: pa.Array) -> pa.Table:
    """The rows of some patients."""
    return table.filter(pc.is_in(table["subject_id"], value_set=subject_ids))


def read_records(
    events: pa.Table, encounters: pa.Table, subjects: pa.Table, categories: Collection[str]
) -> RecordBatch:
    """The records of some patients, from their rows alone. No file is read.

    Args:
        events: their events, RECORD_COLUMNS of EVENT_SCHEMA, a run of rows a patient, in order of
            time; strings may be dictionaries.
        encounters: their encounters, ENCOUNTER_SCHEMA.
        subjects: a row each, SUBJECT_SCHEMA; those without events have a record too.
        categories: the kinds of event that become tokens; conditions are read in any case, as
            diagnoses.

    Returns:
        The records, in the order of `subjects`.

    Raises:
        SchemaError: events of somebody else, or a patient in more than one run of rows.
    """
    if events["time"].null_count:
        events = events.filter(pc.is_valid(events["time"]))
    visits = _encounters(encounters)
    diagnoses = _diagnoses(of_categories(events, ("condition",)))
    events = of_categories(events.drop_columns("codings"), categories)
    columns = _event_columns(events)
    places = _Places(columns.pop("encounter_names"))
    runs = _runs(events["subject_id"].to_numpy())
    nothing = slice(0, 0)
    records, first = [], []
    for row in wall_clock(subjects).to_pylist():
        subject_id = row["subject_id"]
        run = runs.pop(subject_id, nothing)
        own = {name: column[run] for name, column in columns.items()}
        records.append(
            _record(row, visits.get(subject_id, []), diagnoses.pop(subject_id, []), own, places)
        )
        first.append(run.start)
    if runs or diagnoses:
        raise SchemaError(
            f"events: expected those of the patients given, found {len(runs | diagnoses)} others"
        )
    return RecordBatch(records, events, first)


def of_categories(events: pa.Table, categories: Collection[str]) -> pa.Table:
    """The events of some categories."""
    codes, names = factorized(events["category"])
    wanted = np.array([name in categories for name in [*names, None]])
    return events.filter(pa.array(wanted[codes]))


class _Places:
    """Finds the encounter that each event references, by the events' positions in `names`."""

    def __init__(self, names: list[str]) -> None:
        self.position = {name: i for i, name in enumerate(names)}
        self.table = np.full(len(names) + 1, -1)  # the last is that of no reference, -1

    def of(self, references: np.ndarray, encounters: list[Encounter]) -> np.ndarray:
        """The index among `encounters` of each reference; -1 where it is none of them."""
        filled = []
        for i, encounter in enumerate(encounters):
            position = self.position.get(encounter.encounter_id)
            if position is not None:
                self.table[position] = i
                filled.append(position)
        found = self.table[references]
        self.table[filled] = -1
        return found


def wall_clock(table: pa.Table) -> pa.Table:
    """Time stamps as int64 microseconds."""
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.int64()))
    return table


def _encounters(table: pa.Table) -> dict[int, list[Encounter]]:
    result: dict[int, list[Encounter]] = {}
    columns = wall_clock(table)
    names = ("subject_id", "encounter_id", "start", "end", "part_of", "class")
    lists = [columns[name].to_pylist() for name in names]
    died = map(is_death, columns["disposition"].to_pylist())
    mimic = pc.equal(columns["source"], "mimic").to_pylist()
    for subject_id, name, start, end, part_of, kind, dead, of_mimic in zip(
        *lists, died, mimic, strict=True
    ):
        encounter = Encounter(name, start, end, kind or "", part_of, dead, of_mimic)
        result.setdefault(subject_id, []).append(encounter)
    return result


def _diagnoses(events: pa.Table) -> dict[int, list[Diagnosis]]:
    result: dict[int, list[Diagnosis]] = {}
    codings = events["codings"].combine_chunks()
    every = plain_list(pa.chunked_array([codings.flatten()]))
    # Of the lengths, since a null has none and may yet span values.
    ends = np.cumsum(pc.fill_null(pc.list_value_length(codings), 0).to_numpy(zero_copy_only=False))
    rows = zip(
        events["subject_id"].to_pylist(),
        events["time"].cast(pa.int64()).to_pylist(),
        plain_list(events["encounter_id"]),
        plain_list(events["code"]),
        pairwise([0, *ends.tolist()]),
        strict=True,
    )
    for subject_id, time, encounter_id, code, (low, high) in rows:
        diagnosis = Diagnosis(time, encounter_id, tuple(every[low:high]) or (code,))
        result.setdefault(subject_id, []).append(diagnosis)
    return result


def _event_columns(events: pa.Table) -> dict[str, Any]:
    references, names = factorized(events["encounter_id"])
    return {
        "time": events["time"].cast(pa.int64()).to_numpy(),
        "available": events["available_time"].cast(pa.int64()).fill_null(NEVER).to_numpy(),
        "value": events["numeric_value"].cast(pa.float64()).fill_null(np.nan).to_numpy(),
        "code": plain_list(events["code"]),
        "unit": plain_list(events["unit"]),
        "category": plain_list(events["category"]),
        "encounter": references,
        "encounter_names": names,
    }


def _runs(ids: np.ndarray) -> dict[int, slice]:
    """The rows of each patient. Raises SchemaError where they are not together."""
    if not len(ids):
        return {}
    cuts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
    runs = {int(ids[low]): slice(low, high) for low, high in pairwise(cuts)}
    if len(runs) < len(cuts) - 1:
        raise SchemaError("events: expected one run of rows a patient, found several of one")
    return runs


def _record(
    subject: dict[str, Any],
    encounters: list[Encounter],
    diagnoses: list[Diagnosis],
    events: dict[str, Any],
    places: _Places,
) -> Record:
    """Put a record together, and cut out and count whatever lies after death."""
    death = subject["death"]
    # Many sites tell of a death in hospital by the disposition alone.
    deceased = subject["deceased"] or death is not None or any(e.died for e in encounters)
    counts: dict[str, int] = {}
    last = last_alive(death, subject["death_is_date"])
    if last is not None:
        alive = [e for e in encounters if e.start <= last]
        counts["encounters_after_death"] = len(encounters) - len(alive)
        encounters = alive
        keep = int(np.searchsorted(events["time"], last, side="right"))
        counts["events_after_death"] = len(events["time"]) - keep
        events = {name: column[:keep] for name, column in events.items()}
    if last is not None:  # a stay that ended in death is coded after it
        ids = {e.encounter_id for e in encounters}
        known = [d for d in diagnoses if d.time <= last or d.encounter_id in ids]
        counts["diagnoses_after_death"] = len(diagnoses) - len(known)
        diagnoses = known
    events["encounter"] = places.of(events["encounter"], encounters)
    return Record(
        subject_id=subject["subject_id"],
        birth=subject["birth"],
        death=death,
        death_is_date=subject["death_is_date"],
        deceased=deceased,
        encounters=encounters,
        diagnoses=diagnoses,
        counts=counts,
        **events,
    )
