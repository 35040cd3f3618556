"""Which visit an event belongs to, and what a timeline shows at an index time: worked by hand."""

import time
from collections import Counter

import numpy as np
import pytest

STAY = ("2020-01-10T08:00", "2020-01-14T12:00")


@pytest.fixture(scope="session")
def e(made):
    return made.encounter


def test_each_way_to_a_visit_and_its_count(e, made, visits):
    record = made.record(
        [
            e("a", "AMB", "2020-01-08T10:00", "2020-01-08T11:00"),
            e("s", "IMP", *STAY),
            e("c", "AMB", "2020-01-20T10:00", "2020-01-20T11:00"),
        ],
        [
            ("2020-01-08T10:00", None),  # at the very start
            ("2020-01-08T11:00", None),  # at the very end
            ("2020-01-08T11:01", None),  # a minute after, and more than 24 h before the stay
            ("2020-01-09T07:59", "s"),  # 24 h and a minute before the stay
            ("2020-01-09T08:00", None),  # 24 h before
            ("2020-01-10T07:59", None),
            ("2020-01-10T08:00", None),
            ("2020-01-14T12:00", "c"),  # inside by time, whatever it references
            ("2020-01-14T12:01", "s"),  # after the stay that it references
            ("2020-01-14T23:59", None),
            ("2020-01-15T00:00", None),
            ("2020-01-19T09:59", "c"),  # 24 h and a minute before the encounter it references
            ("2020-01-19T10:00", "c"),
            ("2020-01-19T11:00", None),  # no stay follows, and no reference
        ],
    )
    counts = Counter()
    assert visits(record, counts=counts) == [
        ("2020-01-08T10:00", "2020-01-08T11:00", ["2020-01-08T10:00", "2020-01-08T11:00"]),
        ("2020-01-08T11:01", "2020-01-08T11:01", ["2020-01-08T11:01"]),
        ("2020-01-09T07:59", "2020-01-09T07:59", ["2020-01-09T07:59"]),
        (
            *STAY,
            [
                *("2020-01-09T08:00", "2020-01-10T07:59"),
                *("2020-01-10T08:00", "2020-01-14T12:00"),
            ],
        ),
        ("2020-01-14T12:01", "2020-01-14T23:59", ["2020-01-14T12:01", "2020-01-14T23:59"]),
        ("2020-01-15T00:00", "2020-01-15T00:00", ["2020-01-15T00:00"]),
        ("2020-01-19T09:59", "2020-01-19T11:00", ["2020-01-19T09:59", "2020-01-19T11:00"]),
        ("2020-01-20T10:00", "2020-01-20T11:00", ["2020-01-19T10:00"]),
    ]
    assert +counts == {
        "inside_a_visit": 4,
        "before_the_encounter_it_references": 1,
        "before_the_next_stay": 2,
        "implicit_visit": 7,
    }


def test_a_visit_is_never_cut_in_two_by_events_before_its_start(e, made, visits):
    """Events in time order once opened the visit, then a day of their own, then the visit again."""
    record = made.record(
        [e("a", "AMB", "2020-01-09T10:00", "2020-01-09T11:00")],
        [
            ("2020-01-08T20:00", "a"),
            ("2020-01-08T21:00", None),
            ("2020-01-08T22:00", "a"),
            ("2020-01-09T10:30", "a"),
        ],
    )
    assert visits(record) == [
        ("2020-01-08T21:00", "2020-01-08T21:00", ["2020-01-08T21:00"]),
        (
            *("2020-01-09T10:00", "2020-01-09T11:00"),
            ["2020-01-08T20:00", "2020-01-08T22:00", "2020-01-09T10:30"],
        ),
    ]


def test_an_event_before_a_stay_but_within_the_previous_visit_stays_there(e, made, visits):
    record = made.record(
        [e("a", "AMB", "2020-01-10T06:00", "2020-01-10T07:00"), e("s", "IMP", *STAY)],
        [("2020-01-10T05:00", "s"), ("2020-01-10T06:30", "s"), ("2020-01-10T07:30", None)],
    )
    # 05:00 lies before the previous visit's end, so it belongs to no stay that follows that visit.
    assert [events for *_, events in visits(record)] == [
        ["2020-01-10T05:00"],
        ["2020-01-10T06:30"],
        ["2020-01-10T07:30"],
    ]


def test_others_under_a_day_merge_and_a_longer_one_is_a_point(e, made, visits):
    record = made.record(
        [
            e("a", "AMB", "2020-01-01T08:00", "2020-01-01T12:00"),
            e("b", "AMB", "2020-01-01T11:00", "2020-01-02T10:59"),  # 23 h 59 min
            e("c", "AMB", "2020-01-02T10:59", "2020-01-02T12:00"),  # touches: a visit of its own
            e("d", "AMB", "2020-02-01T08:00", "2020-02-02T08:00"),  # 24 h: a point
            e("f", "AMB", "2020-02-01T09:00", "2020-02-01T10:00"),
        ],
        [
            ("2020-01-01T08:30", "a"),
            ("2020-01-02T09:00", "b"),
            ("2020-01-02T11:00", "c"),
            ("2020-02-01T07:00", "d"),
            ("2020-02-01T08:00", "d"),
            ("2020-02-01T09:30", "d"),
            ("2020-02-01T20:00", "d"),
        ],
    )
    assert visits(record) == [
        ("2020-01-01T08:00", "2020-01-02T10:59", ["2020-01-01T08:30", "2020-01-02T09:00"]),
        ("2020-01-02T10:59", "2020-01-02T12:00", ["2020-01-02T11:00"]),
        ("2020-02-01T08:00", "2020-02-01T08:00", ["2020-02-01T07:00", "2020-02-01T08:00"]),
        ("2020-02-01T09:00", "2020-02-01T10:00", ["2020-02-01T09:30"]),
        ("2020-02-01T20:00", "2020-02-01T20:00", ["2020-02-01T20:00"]),
    ]


def test_visits_without_events_are_left_out_and_a_record_without_any_is_empty(e, made, visits):
    assert visits(made.record([e("s", "IMP", *STAY)])) == []
    assert visits(made.record()) == []
    assert visits(made.record(), "2020-01-01") == []
    assert visits(made.record([], [("2020-01-01T08:00", None)])) == [
        ("2020-01-01T08:00", "2020-01-01T08:00", ["2020-01-01T08:00"])
    ]


def test_dates_before_1970(e, made, visits):
    record = made.record(
        [e("s", "IMP", "1969-12-30T08:00", "1970-01-02T08:00")],
        [
            ("1949-03-01T00:00", None),
            ("1949-03-01T23:59", None),
            ("1949-03-02T00:00", None),
            ("1949-03-02T23:59", None),
            ("1969-12-29T08:00", None),
            ("1969-12-31T23:59", None),
            ("1970-01-01T00:01", None),
        ],
    )
    assert [(start, len(events)) for start, _, events in visits(record)] == [
        ("1949-03-01T00:00", 2),
        ("1949-03-02T00:00", 2),
        ("1969-12-30T08:00", 3),
    ]


# As known at an index time


def test_a_view_shows_no_end_no_encounter_and_no_event_that_was_not_known(e, made, visits):
    record = made.record(
        [
            e("s", "IMP", *STAY),
            e("t", "IMP", "2020-01-14T13:00", "2020-01-20T08:00"),  # a transfer, 1 h later
        ],
        [
            ("2020-01-09T20:00", None),
            ("2020-01-11T08:00", "s", "2020-01-11T09:00"),  # issued an hour after the sample
            ("2020-01-11T08:30", "s"),
            ("2020-01-12T00:00", "s", "2020-01-14T12:00:00.000001"),  # coded after the stay
            ("2020-01-15T08:00", "t"),
            ("2020-01-15T08:00", "t", None),  # never known
        ],
    )
    before = [("2020-01-09T20:00", "2020-01-09T20:00", ["2020-01-09T20:00"])]
    assert visits(record, "2020-01-10T07:59") == before  # the stay has not begun
    assert visits(record, "2020-01-10T08:00") == [(STAY[0], None, ["2020-01-09T20:00"])]
    two = ["2020-01-09T20:00", "2020-01-11T08:30"]
    assert visits(record, "2020-01-11T08:59:59.999999") == [(STAY[0], None, two)]
    three = [two[0], "2020-01-11T08:00", two[1]]
    assert visits(record, "2020-01-11T09:00") == [(STAY[0], None, three)]  # exactly: it is in
    assert visits(record, "2020-01-14T11:59") == [(STAY[0], None, three)]
    assert visits(record, "2020-01-14T12:00") == [(*STAY, three)]
    four = [*three, "2020-01-12T00:00"]
    assert visits(record, "2020-01-14T12:01") == [(*STAY, four)]
    assert visits(record, "2020-01-14T13:00") == [(STAY[0], None, four)]  # one stay, open again
    whole = [(STAY[0], "2020-01-20T08:00", [*four, "2020-01-15T08:00"])]
    assert visits(record, "2020-01-20T08:00") == whole
    assert visits(record) == [(*whole[0][:2], [*whole[0][2], "2020-01-15T08:00"])]


def test_an_event_known_before_its_own_time_is_not_shown_before_it(made, visits):
    record = made.record([], [("2020-01-11T08:00", None, "2020-01-10T08:00")])
    assert visits(record, "2020-01-11T07:59") == []
    assert len(visits(record, "2020-01-11T08:00")) == 1


def test_an_emergency_visit_becomes_a_stay_after_24_hours_and_not_before(e, made, visits):
    record = made.record(
        [e("a", "EMER", "2020-01-02T08:00", "2020-01-03T10:00")], [("2020-01-02T07:00", None)]
    )
    morning = [("2020-01-02T07:00", "2020-01-02T07:00", ["2020-01-02T07:00"])]
    assert visits(record, "2020-01-03T07:59") == morning  # what comes before it is a day's visit
    assert visits(record, "2020-01-03T08:00") == [("2020-01-02T08:00", None, ["2020-01-02T07:00"])]


def test_an_end_to_come_and_a_missing_one_look_the_same(e, made, visits):
    """A stay open at the index time once showed whether its end would ever be written."""
    events = [("2020-01-02T09:00", "a"), ("2020-01-09T09:00", "b")]
    later = e("b", "IMP", "2020-01-09T08:00", None)
    views = [
        visits(made.record([e("a", "IMP", "2020-01-02T08:00", end), later], events), "2020-01-10")
        for end in ("2020-01-20T08:00", "2020-01-12T08:00", None)
    ]
    assert views[0] == views[1] == views[2]
    assert [(start, end) for start, end, _ in views[0]] == [
        ("2020-01-02T08:00", "2020-01-02T09:00"),
        ("2020-01-09T08:00", None),
    ]


def test_thirty_thousand_events_are_quick(e, made):
    from ehrmamba_hf.timelines import timeline

    rng = np.random.default_rng(0)
    begin = made.us("2000-01-01")
    day = 86_400_000_000
    starts = np.sort(rng.choice(7000, 400, replace=False)) * day + begin
    encounters = [
        e(f"e{i}", "IMP" if i % 3 else "AMB", made.text(int(s)), made.text(int(s + day // 2)))
        for i, s in enumerate(starts)
    ]
    record = made.record(encounters)
    record.time = np.sort(begin + rng.integers(0, 7000 * day, 30_000))
    record.available = record.time
    record.encounter = rng.integers(-1, 400, 30_000)
    before = time.perf_counter()
    for at in (None, *record.time[::3000].tolist()):
        shown = timeline(record, at)
        assert sum(len(v.events) for v in shown) == np.sum(record.time <= (at or record.time[-1]))
    assert time.perf_counter() - before < 5  # 11 timelines; it takes about 0.3 s
