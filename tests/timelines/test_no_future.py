"""Whatever a record holds: a view tells nothing of what came after it, and dates are relative."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrmamba_hf.timelines import Encounter, Record, timeline
from ehrmamba_hf.timelines.record import DAY, HOUR, NEVER

AT = 10_000 * HOUR  # over a year
KINDS = st.sampled_from(["IMP", "EMER", "OBSENC", "AMB", "ACUTE"])
PAST = st.one_of(st.integers(0, 10_000), st.integers(9_700, 10_000)).map(lambda h: h * HOUR)
FUTURE = st.integers(10_000, 20_000).map(lambda hours: hours * HOUR + 1)
LENGTH = st.one_of(st.integers(-5, 60), st.integers(-5, 9_000)).map(lambda hours: hours * HOUR)
NAMES = "abcdef"

encounters = st.lists(
    st.tuples(
        st.one_of(PAST, FUTURE),
        st.none() | LENGTH,
        KINDS,
        st.sampled_from([None] * 20 + [*NAMES, "gone"]),
        st.booleans(),
    ),
    max_size=len(NAMES),
)
events = st.lists(
    st.tuples(
        st.one_of(PAST, PAST, PAST, FUTURE),
        st.none() | st.one_of(st.just(0), st.integers(0, 300)).map(lambda h: h * HOUR),
        st.sampled_from([-1, *range(len(NAMES))]),
    ),
    max_size=20,
)


def record(made_encounters, made_events) -> Record:
    made = [
        Encounter(name, start, None if length is None else start + length, kind, part_of, mimic=m)
        for name, (start, length, kind, part_of, m) in zip(NAMES, made_encounters, strict=False)
    ]
    rows = sorted((time, NEVER if d is None else time + d, e) for time, d, e in made_events)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    references = np.where(columns[:, 2] < len(made), columns[:, 2], -1)
    return _with_events(made, columns[:, 0], columns[:, 1], references)


def _with_events(made, time, available, references) -> Record:
    n = len(time)
    return Record(
        subject_id=1,
        birth=None,
        death=None,
        death_is_date=False,
        deceased=False,
        encounters=made,
        diagnoses=[],
        time=time,
        available=available,
        encounter=references,
        code=["LOINC/1"] * n,
        value=np.full(n, np.nan),
        unit=[None] * n,
        category=["lab"] * n,
    )


def view(record: Record, at: int | None) -> list[tuple]:
    """What an input is made of: visits with the times and availabilities of their events."""
    return [
        (v.start, v.end, list(zip(record.time[v.events], record.available[v.events], strict=True)))
        for v in timeline(record, at)
    ]


def without_future(record: Record) -> Record:
    """The record as somebody would have exported it at AT."""
    kept = [i for i, e in enumerate(record.encounters) if e.start <= AT]
    place = {i: k for k, i in enumerate(kept)} | {-1: -1}
    made = [record.encounters[i] for i in kept]
    made = [replace(e, end=None) if e.end is not None and e.end > AT else e for e in made]
    known = (record.time <= AT) & (record.available <= AT)
    references = np.array([place.get(i, -1) for i in record.encounter[known]], dtype=np.int64)
    return _with_events(made, record.time[known], record.available[known], references)


def other_future(record: Record, ends: list, more_events: list, more_encounters: list) -> Record:
    """The record's past with other ends, events and encounters after AT."""
    past = without_future(record)
    made = [
        replace(e, end=end) if e.end is None else e
        for e, end in zip(past.encounters, ends, strict=False)
    ]
    made += [Encounter(f"new{i}", s, s + HOUR, kind) for i, (s, kind) in enumerate(more_encounters)]
    rows = [*zip(past.time, past.available, past.encounter, strict=True)]
    rows += [(time, time, e if e < len(made) else -1) for time, e in more_events]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    columns = columns[np.argsort(columns[:, 0], kind="stable")]
    return _with_events(made, *columns.T)


FUTURES = st.tuples(
    st.lists(st.none() | FUTURE, min_size=len(NAMES), max_size=len(NAMES)),
    st.lists(st.tuples(FUTURE, st.integers(-1, len(NAMES))), max_size=4),
    st.lists(st.tuples(FUTURE, KINDS), max_size=3),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(encounters, events, FUTURES)
def test_nothing_after_the_index_time_changes_a_view(made_encounters, made_events, future):
    whole = record(made_encounters, made_events)
    expected = view(without_future(whole), AT)
    assert view(whole, AT) == expected
    assert view(other_future(whole, *future), AT) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(encounters, events, st.integers(-40_000, 40_000))
def test_a_shift_by_whole_days_shifts_the_view_and_no_more(made_encounters, made_events, days):
    whole = record(made_encounters, made_events)
    by = days * DAY
    shifted = _with_events(
        [
            replace(e, start=e.start + by, end=None if e.end is None else e.end + by)
            for e in whole.encounters
        ],
        whole.time + by,
        np.where(whole.available == NEVER, NEVER, whole.available + by),
        whole.encounter,
    )
    for at in (None, AT):
        here = timeline(whole, at)
        there = timeline(shifted, None if at is None else at + by)
        assert [v.events.tolist() for v in there] == [v.events.tolist() for v in here]
        assert [v.start - by for v in there] == [v.start for v in here]
        ends = [None if v.end is None else v.end - by for v in there]
        assert ends == [v.end for v in here]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(encounters, events)
def test_every_event_is_in_one_visit_and_visits_are_in_order(made_encounters, made_events):
    whole = record(made_encounters, made_events)
    counts = Counter()
    for at in (None, AT):
        visits = timeline(whole, at, counts=counts)
        known = np.ones(len(whole.time), bool)
        if at is not None:
            known = (whole.time <= at) & (whole.available <= at)
            assert all(v.start <= at and (v.end is None or v.end <= at) for v in visits)
        shown = [i for v in visits for i in v.events.tolist()]
        assert sorted(shown) == np.flatnonzero(known).tolist()
        assert all(v.events.tolist() == sorted(v.events.tolist()) for v in visits)
        for visit, following in itertools.pairwise(visits):
            assert visit.start <= following.start
            assert visit.end is not None and visit.end <= following.start
