"""The events folder, read as one record a patient."""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehrmamba_hf.events.table import iter_subject_batches, read_encounters, read_subjects
from ehrmamba_hf.timelines.record import NEVER, Diagnosis, Encounter, Record, last_alive

# Discharge dispositions that mean death: FHIR `exp`, the UB-04 patient status codes, MIMIC `DIED`.
DEATH_DISPOSITIONS = frozenset({"exp", "20", "40", "41", "42"})
DEATH_WORDS = ("died", "expired", "deceased", "death", "dead")

_COLUMNS = (
    "time",
    "available_time",
    "code",
    "numeric_value",
    "unit",
    "category",
    "codings",
    "encounter_id",
)


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
    """Every patient of an events folder, those without any event too.

    Args:
        folder: an events folder, as `ingest` writes it.
        categories: the kinds of event that become tokens; conditions are read in any case, as
            diagnoses.
        only: read these patients alone.
    """
    subjects = {row["subject_id"]: row for row in _wall_clock(read_subjects(folder)).to_pylist()}
    encounters = _encounters(read_encounters(folder))
    waiting = dict.fromkeys(subjects if only is None else [i for i in subjects if i in only])
    for batch in iter_subject_batches(folder, columns=_COLUMNS):
        batch = batch.filter(pc.is_valid(batch["time"]))
        if only is not None:
            batch = batch.filter(
                pc.is_in(batch["subject_id"], value_set=pa.array(list(only), pa.int64()))
            )
        diagnoses = _diagnoses(batch.filter(pc.equal(batch["category"], "condition")))
        wanted = pc.is_in(batch["category"], value_set=pa.array(sorted(categories), pa.string()))
        for subject_id, events in _slices(batch.filter(wanted)):
            waiting.pop(subject_id)
            yield _record(
                subjects[subject_id],
                encounters.get(subject_id, []),
                diagnoses.pop(subject_id, []),
                events,
            )
        for subject_id, known in diagnoses.items():  # patients with diagnoses alone
            waiting.pop(subject_id)
            yield _record(subjects[subject_id], encounters.get(subject_id, []), known, None)
    for subject_id in waiting:
        yield _record(subjects[subject_id], encounters.get(subject_id, []), [], None)


def _wall_clock(table: pa.Table) -> pa.Table:
    """Time stamps as int64 microseconds."""
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.int64()))
    return table


def _encounters(table: pa.Table) -> dict[int, list[Encounter]]:
    result: dict[int, list[Encounter]] = {}
    for row in _wall_clock(table).to_pylist():
        encounter = Encounter(
            row["encounter_id"],
            row["start"],
            row["end"],
            row["class"] or "",
            row["part_of"],
            is_death(row["disposition"]),
            row["source"] == "mimic",
        )
        result.setdefault(row["subject_id"], []).append(encounter)
    return result


def _diagnoses(batch: pa.Table) -> dict[int, list[Diagnosis]]:
    columns = _wall_clock(batch).select(["subject_id", "time", "encounter_id", "codings", "code"])
    result: dict[int, list[Diagnosis]] = {}
    for row in columns.to_pylist():
        codings = tuple(row["codings"] or (row["code"],))
        diagnosis = Diagnosis(row["time"], row["encounter_id"], codings)
        result.setdefault(row["subject_id"], []).append(diagnosis)
    return result


def _slices(batch: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of each subject as plain columns."""
    batch = _wall_clock(batch.drop_columns(["codings"])).combine_chunks()
    columns: dict[str, Any] = {
        "time": batch["time"].to_numpy(),
        "available": pc.fill_null(batch["available_time"], NEVER).to_numpy(),
        "value": pc.fill_null(batch["numeric_value"].cast(pa.float64()), np.nan).to_numpy(),
        "code": batch["code"].to_pylist(),
        "unit": batch["unit"].to_pylist(),
        "category": batch["category"].to_pylist(),
        "encounter_id": batch["encounter_id"].to_pylist(),
    }
    ids = batch["subject_id"].to_numpy()
    if not len(ids):
        return
    cuts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
    for low, high in itertools.pairwise(cuts):
        yield int(ids[low]), {name: column[low:high] for name, column in columns.items()}


def _record(
    subject: dict[str, Any],
    encounters: list[Encounter],
    diagnoses: list[Diagnosis],
    events: dict[str, Any] | None,
) -> Record:
    """Put a record together, and cut out and count whatever lies after death."""
    if events is None:
        empty = np.empty(0, dtype=np.int64)
        events = {"time": empty, "available": empty, "value": np.empty(0), "encounter_id": []}
        events |= {"code": [], "unit": [], "category": []}
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
    index = {e.encounter_id: i for i, e in enumerate(encounters)}
    if last is not None:  # a stay that ended in death is coded after it
        known = [d for d in diagnoses if d.time <= last or d.encounter_id in index]
        counts["diagnoses_after_death"] = len(diagnoses) - len(known)
        diagnoses = known
    references = events.pop("encounter_id")
    return Record(
        subject_id=subject["subject_id"],
        birth=subject["birth"],
        death=death,
        death_is_date=subject["death_is_date"],
        deceased=deceased,
        encounters=encounters,
        diagnoses=diagnoses,
        encounter=np.array([index.get(i, -1) for i in references], dtype=np.int64),
        counts=counts,
        **events,
    )
