"""Patients written by hand, and what a task makes of their stays."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ehrmamba_hf.tasks import Task, label_stays, registered
from ehrmamba_hf.timelines import Diagnosis, Encounter, Record, stays_of


def us(text: str | None) -> int | None:
    """Microseconds of a wall-clock time such as "2020-01-01T08:00"; None stays None."""
    return None if text is None else int(np.datetime64(text, "us").astype(np.int64))


def encounter(text: str, kind: str, name: str, part_of: str | None, **more: bool) -> Encounter:
    start, _, end = text.partition(" ")
    return Encounter(name, us(start), us(end or None), kind, part_of, **more)


def patient(
    *stays: Any, codes: tuple = (), death: str | None = None, deceased: bool = False
) -> Record:
    """A patient without events.

    A stay is a text, "start end" or "start" alone, or a tuple of it and fields of Encounter; it is
    an inpatient one, named s0, s1 ..., unless these say otherwise. `codes`: (time, encounter id or
    None, coding ...). A death with a T in it is a time, else a date.
    """
    encounters = []
    for i, stay in enumerate(stays):
        text, fields = (stay, {}) if isinstance(stay, str) else stay
        encounters.append(
            encounter(text, **({"kind": "IMP", "name": f"s{i}", "part_of": None} | fields))
        )
    none = np.empty(0, dtype=np.int64)
    return Record(
        subject_id=1,
        birth=us("1950-01-01"),
        death=us(death),
        death_is_date=death is not None and "T" not in death,
        deceased=deceased or death is not None,
        encounters=encounters,
        diagnoses=[Diagnosis(us(time), within, tuple(codings)) for time, within, *codings in codes],
        time=none,
        available=none,
        encounter=none,
        code=[],
        value=np.empty(0),
        unit=[],
        category=[],
    )


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[tuple[str, bool] | str]]:
    """For each stay of a patient in order, (index time, label), or the reason for neither."""

    def of(
        task: str | Task, *stays: Any, follow_up_end: str | None = None, **more: Any
    ) -> list[tuple[str, bool] | str]:
        record = patient(*stays, **more)
        (task,) = registered([task]) if isinstance(task, str) else (task,)
        found = stays_of(record)
        excluded: Counter[str] = Counter()
        examples = list(label_stays(record, found, task, us(follow_up_end), excluded))
        assert len(examples) + excluded.total() == len(found)
        labels = [(_text(e.prediction_time), e.label) for e in examples]
        return [*labels, *excluded.elements()]

    return of


def _text(moment: int) -> str:
    exact = np.datetime64(moment, "us")
    minute = exact.astype("datetime64[m]")
    return str(minute if minute == exact else exact)
