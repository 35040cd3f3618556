"""Index times and labels worked by hand, on each side of each boundary."""

import pytest

STAY = "2020-01-01T08:00 2020-01-10T12:00"
OUT = "2020-01-10T12:00"  # its end
DAY_ONE = "2020-01-02T08:00"  # 24 h after its start

DIED = "died in hospital"
NO_END = "the stay has no end"
SHORT = "the stay ended within 24 hours"


# Mortality: at discharge, alive; death within 30 days


@pytest.mark.parametrize(
    ("death", "expected"),
    [
        (None, (OUT, False)),
        ("2020-01-11T00:00", (OUT, True)),
        ("2020-02-09T12:00", (OUT, True)),  # 30 x 24 h exactly
        ("2020-02-09T12:00:00.000001", (OUT, False)),
        ("2020-02-09", (OUT, True)),  # a date alone: 30 calendar days after 10 January
        ("2020-02-10", (OUT, False)),  # 31 days
        ("2020-01-11", (OUT, True)),
        ("2020-01-10", DIED),  # the last day of the stay is the day of death
        ("2020-01-10T12:00", DIED),
        ("2020-01-10T23:59", DIED),
        ("2020-01-10T03:00", DIED),
        ("2020-01-05", DIED),
    ],
)
def test_mortality(ask, death, expected):
    assert ask("mortality", STAY, death=death) == [expected]


def test_thirty_days_are_720_hours_across_the_end_of_february(ask):
    stay = "2020-02-10T08:00 2020-02-15T23:30"
    assert ask("mortality", stay, death="2020-03-16T23:30") == [("2020-02-15T23:30", True)]
    assert ask("mortality", stay, death="2020-03-16T23:30:00.000001") == [
        ("2020-02-15T23:30", False)
    ]
    assert ask("mortality", stay, death="2020-03-16") == [("2020-02-15T23:30", True)]
    assert ask("mortality", stay, death="2020-03-17") == [("2020-02-15T23:30", False)]


def test_a_disposition_of_death_is_an_in_hospital_death(ask):
    died = (STAY, {"died": True})
    assert ask("mortality", died) == [DIED]
    assert ask("mortality", died, death="2020-01-20") == [DIED]  # registered late
    assert ask("readmission", died) == [DIED]
    assert ask("length_of_stay", died) == [(DAY_ONE, True)]


def test_dead_without_a_date_has_no_mortality_label(ask):
    assert ask("mortality", STAY, deceased=True) == ["dead without a date"]
    assert ask("readmission", STAY, deceased=True) == [(OUT, False)]


def test_without_an_end_there_is_no_discharge(ask):
    """A stay without an end that a later one followed once was discharged at a guessed time."""
    last_open = "2020-03-01T08:00"
    assert ask("mortality", STAY, last_open) == [(OUT, False), NO_END]
    assert ask("readmission", "2020-03-01T08:00", "2020-06-01T08:00 2020-06-04T08:00") == [
        ("2020-06-04T08:00", False),
        NO_END,
    ]
    for task in ("length_of_stay", "condition_0"):
        assert ask(task, "2020-03-01T08:00", "2020-06-01T08:00 2020-06-04T08:00") == [
            ("2020-06-02T08:00", False),
            NO_END,
        ]


# Readmission: at discharge, alive; start of the next stay within 30 days


@pytest.mark.parametrize(
    ("start", "readmitted"),
    [
        ("2020-01-10T18:00", True),  # 6 h: the next stay
        ("2020-02-09T12:00", True),  # 30 x 24 h exactly
        ("2020-02-09T12:00:00.000001", False),
        ("2020-02-10T08:00", False),
    ],
)
def test_readmission(ask, start, readmitted):
    first, second = ask("readmission", STAY, f"{start} 2020-02-20T08:00")
    assert first == (OUT, readmitted)
    assert second == ("2020-02-20T08:00", False)


def test_a_next_stay_without_an_end_or_events_is_a_readmission(ask):
    assert ask("readmission", STAY, "2020-01-20T08:00")[0] == (OUT, True)


def test_a_transfer_is_no_readmission(ask):
    transfer = "2020-01-10T17:59 2020-01-15T08:00"  # 5 h 59 min later
    assert ask("readmission", STAY, transfer) == [("2020-01-15T08:00", False)]


def test_only_a_stay_is_a_readmission(ask):
    clinic = ("2020-01-12T08:00 2020-01-12T10:00", {"kind": "AMB"})
    emergency = ("2020-01-13T08:00 2020-01-14T07:59", {"kind": "EMER"})
    assert ask("readmission", STAY, clinic, emergency) == [(OUT, False)]
    longer = ("2020-01-13T08:00 2020-01-14T08:00", {"kind": "EMER"})
    assert ask("readmission", STAY, clinic, longer)[0] == (OUT, True)


def test_a_part_never_moves_the_discharge(ask):
    part = ("2020-01-03T08:00 2020-01-12T12:00", {"kind": "ACUTE", "part_of": "s0"})
    assert ask("mortality", STAY, part, death="2020-02-09T12:00") == [(OUT, True)]


# Follow-up


@pytest.mark.parametrize("task", ["mortality", "readmission"])
@pytest.mark.parametrize(
    ("end", "kept"), [("2020-02-09T12:00", True), ("2020-02-09T11:59:59.999999", False)]
)
def test_thirty_days_of_follow_up_outcome_seen_or_not(ask, task, end, kept):
    for more in ({}, {"death": "2020-01-15T08:00"}):
        found = ask(task, STAY, follow_up_end=end, **more)
        label = task == "mortality" and bool(more)
        assert found == ([(OUT, label)] if kept else ["under 30 days of follow-up"])
    seen = ask(task, STAY, "2020-01-15T08:00 2020-01-16T08:00", follow_up_end=end)
    assert ((OUT, task == "readmission") in seen) == kept


@pytest.mark.parametrize("task", ["length_of_stay", "condition_0"])
def test_the_other_tasks_need_no_follow_up(ask, task):
    assert ask(task, STAY, follow_up_end=OUT)[0][0] == DAY_ONE


# Length of stay: at 24 h, the stay's end later than that; over 7 days


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("2020-01-02T07:59", SHORT),
        ("2020-01-02T08:00", SHORT),  # 24 h exactly
        ("2020-01-02T08:00:00.000001", (DAY_ONE, False)),
        ("2020-01-08T08:00", (DAY_ONE, False)),  # 7 days exactly
        ("2020-01-08T08:00:00.000001", (DAY_ONE, True)),
    ],
)
def test_length_of_stay(ask, end, expected):
    assert ask("length_of_stay", f"2020-01-01T08:00 {end}") == [expected]


def test_length_of_stay_is_that_of_the_merged_stay(ask):
    parts = ("2020-01-01T08:00 2020-01-01T20:00", "2020-01-02T01:59 2020-01-09T08:00")
    assert ask("length_of_stay", *parts) == [(DAY_ONE, True)]


def test_nobody_is_asked_about_after_death(ask):
    stay = "2020-01-01T08:00 2020-01-09T12:00"
    gone = "died within 24 hours"
    assert ask("length_of_stay", stay, death="2020-01-02T07:59") == [gone]
    assert ask("length_of_stay", stay, death="2020-01-02T08:00") == [(DAY_ONE, True)]
    assert ask("length_of_stay", stay, death="2020-01-01") == [gone]
    assert ask("length_of_stay", stay, death="2020-01-02") == [(DAY_ONE, True)]
    assert ask("condition_1", stay, death="2020-01-02T07:59") == [gone]


def test_every_stay_is_asked(ask):
    stays = ("2020-01-01T08:00 2020-01-03T08:00", "2020-05-01T08:00 2020-05-10T08:00")
    assert ask("length_of_stay", *stays) == [
        ("2020-01-02T08:00", False),
        ("2020-05-02T08:00", True),
    ]
