"""Timelines of many views at once: the same as those of one record at a time."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrmamba_hf.timelines import Encounter, Record, VisitRules, stays_of, timeline
from ehrmamba_hf.timelines.layout import WAYS, Batch, View, lay_out
from ehrmamba_hf.timelines.record import HOUR, NEVER
from ehrmamba_hf.timelines.timeline import FAR

RULES = VisitRules()
KINDS = ("IMP", "AMB", "EMER", "OBSENC", "ACUTE")
# A few days, many of whose moments coincide; and a year and more, for stays that are cut out.
MOMENTS = st.one_of(st.integers(0, 96), st.integers(0, 30 * 24), st.integers(0, 10_000))
MOMENT = MOMENTS.map(lambda hour: hour * HOUR)


@st.composite
def records(draw: st.DrawFn) -> Record:
    encounters = []
    for i in range(draw(st.integers(0, 6))):
        start = draw(MOMENT)
        end = draw(st.none() | st.integers(-3, 400).map(lambda hours, s=start: s + hours * HOUR))
        part_of = draw(st.none() | st.sampled_from([f"e{k}" for k in range(7)]))
        flags = draw(st.tuples(st.booleans(), st.booleans()))
        encounters.append(
            Encounter(f"e{i}", start, end, draw(st.sampled_from(KINDS)), part_of, *flags)
        )
    rows = sorted(
        draw(st.lists(st.tuples(MOMENT, st.integers(-1, len(encounters) - 1)), max_size=25))
    )
    delays = draw(st.lists(st.integers(0, 60), min_size=len(rows), max_size=len(rows)))
    time = np.array([t for t, _ in rows], dtype=np.int64)
    available = [NEVER if d == 60 else int(t) + d * HOUR for t, d in zip(time, delays, strict=True)]
    return Record(
        subject_id=draw(st.integers(0, 9)),
        birth=draw(st.none() | MOMENT),
        death=None,
        death_is_date=False,
        deceased=False,
        encounters=encounters,
        diagnoses=[],
        time=time,
        available=np.array(available, dtype=np.int64),
        encounter=np.array([e for _, e in rows], dtype=np.int64),
        code=[f"LOINC/{i % 3}" for i in range(len(rows))],
        value=np.full(len(rows), np.nan),
        unit=[None] * len(rows),
        category=["lab"] * len(rows),
    )


@given(st.lists(records(), max_size=4), st.data())
@settings(max_examples=400, deadline=None)
def test_a_layout_is_the_timelines_of_its_views(made: list[Record], data: st.DataObject) -> None:
    asked = st.builds(View, st.integers(0, len(made) - 1), st.none() | MOMENT)
    views = data.draw(st.lists(asked, max_size=6)) if made else []
    batch = Batch.of(made)
    layout = lay_out(batch, views, RULES)
    expected = [timeline(made[v.record], v.at, RULES) for v in views]
    visits = [(i, visit) for i, own in enumerate(expected) for visit in own]
    assert layout.view.tolist() == [i for i, _ in visits]
    assert layout.start.tolist() == [v.start for _, v in visits]
    assert layout.end.tolist() == [FAR if v.end is None else v.end for _, v in visits]
    for place, (i, visit) in enumerate(visits):
        own = layout.events[layout.first[place] : layout.first[place + 1]]
        assert (own - batch.first[views[i].record]).tolist() == visit.events.tolist()
    assert layout.first[-1] == len(layout.events)
    for i, own in enumerate(expected):
        times = [made[views[i].record].time[v.events].min() for v in own]
        assert layout.earliest[i] == min(times, default=0)


@given(st.lists(records(), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_whole_records_give_their_stays_and_what_was_cut_out(made: list[Record]) -> None:
    cut: Counter[str] = Counter()
    layout = lay_out(Batch.of(made), [View(i) for i in range(len(made))], RULES, cut)
    expected: Counter[str] = Counter()
    for record, visits, ways in zip(made, layout.visits, layout.ways, strict=True):
        assert [v for v in visits if v.stay] == stays_of(record, RULES, expected)
        counts: Counter[str] = Counter()
        timeline(record, None, RULES, counts)
        assert dict(zip(WAYS, ways.tolist(), strict=True)) == {way: counts[way] for way in WAYS}
    assert cut == expected


def test_no_views_and_no_events() -> None:
    for views in ([], [View(0), View(0, 5)]):
        empty = Record(
            1, None, None, False, False, [], [], *[np.empty(0, dtype=np.int64)] * 3, [],
            np.empty(0), [], [],
        )  # fmt: skip
        layout = lay_out(Batch.of([empty]), views, RULES)
        assert layout.visits == [[] for _ in views]
        assert not len(layout.view) and layout.first.tolist() == [0]


@pytest.mark.parametrize(("kind", "sizes"), [("IMP", [1, 2]), ("AMB", [1, 1, 1])])
def test_an_event_of_the_day_before_belongs_to_a_stay_alone(
    kind: str, sizes: list[int], made: SimpleNamespace
) -> None:
    record = made.record(
        [made.encounter("a", kind, "2020-01-03T08:00", "2020-01-05T08:00")],
        [("2020-01-01T10:00", None), ("2020-01-02T12:00", None), ("2020-01-04T08:00", None)],
    )
    layout = lay_out(Batch.of([record]), [View(0)], RULES)
    assert np.diff(layout.first).tolist() == sizes
