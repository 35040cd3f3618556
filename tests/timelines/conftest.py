"""Records written by hand: encounters and events with their times as text."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from ehrmamba_hf.timelines import Encounter, Record
from ehrmamba_hf.timelines.record import NEVER

Event = tuple  # (time, encounter id or None, and where it differs, the time of its availability)


def us(text: str | None) -> int | None:
    """Microseconds of a wall-clock time such as "2020-01-01T08:00"; None stays None."""
    return None if text is None else int(np.datetime64(text, "us").astype(np.int64))


def encounter(
    name: str, kind: str, start: str, end: str | None, part_of: str | None = None, **more: bool
) -> Encounter:
    return Encounter(name, us(start), us(end), kind, part_of, **more)


def record(encounters: Sequence[Encounter] = (), events: Sequence[Event] = ()) -> Record:
    """A living patient; each event's code is its number in order of time."""
    rows = sorted((us(time), *rest) for time, *rest in events)
    index = {e.encounter_id: i for i, e in enumerate(encounters)}
    available = [us(row[2]) if len(row) > 2 else row[0] for row in rows]
    return Record(
        subject_id=1,
        birth=us("1950-01-01"),
        death=None,
        death_is_date=False,
        deceased=False,
        encounters=list(encounters),
        diagnoses=[],
        time=np.array([row[0] for row in rows], dtype=np.int64),
        available=np.array([NEVER if a is None else a for a in available], dtype=np.int64),
        encounter=np.array([index.get(row[1], -1) for row in rows], dtype=np.int64),
        code=[f"LOINC/{i}" for i in range(len(rows))],
        value=np.full(len(rows), np.nan),
        unit=[None] * len(rows),
        category=["lab"] * len(rows),
    )


def text(moment: int | np.int64 | None) -> str | None:
    """A time as it is written here: to the minute, or more finely where it has to be."""
    if moment is None:
        return None
    exact = np.datetime64(int(moment), "us")
    minute = exact.astype("datetime64[m]")
    return str(minute if minute == exact else exact)


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(us=us, encounter=encounter, record=record, text=text)


@pytest.fixture(scope="session")
def stays() -> Callable[..., list[tuple]]:
    """(start, end, encounter ids) of the stays that encounters make, `at` a moment or at last."""
    from ehrmamba_hf.timelines import VisitRules, stays_of

    def of(*encounters: Encounter, events=(), counts=None, rules=None, at=None) -> list[tuple]:
        moment = NEVER if at is None else us(at)
        found = stays_of(record(encounters, events), rules or VisitRules(), counts, moment)
        return [(text(v.start), text(v.end), "".join(sorted(v.encounter_ids))) for v in found]

    return of


@pytest.fixture(scope="session")
def visits() -> Callable[..., list[tuple]]:
    """(start, end, times of events) of each visit of a timeline, `at` a moment or at last."""
    from ehrmamba_hf.timelines import timeline

    def of(made: Record, at: str | None = None, counts=None) -> list[tuple]:
        found = timeline(made, us(at), counts=counts)
        return [(text(v.start), text(v.end), [text(t) for t in made.time[v.events]]) for v in found]

    return of
