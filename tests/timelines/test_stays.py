"""Which encounters are inpatient stays, and which are one stay: worked by hand."""

from collections import Counter

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.timelines import VisitRules


@pytest.fixture(scope="session")
def e(made):
    return made.encounter


# What a stay is


@pytest.mark.parametrize(
    ("kind", "end", "mimic", "is_stay"),
    [
        ("IMP", "2020-01-01T08:01", False, True),
        ("ACUTE", "2020-01-01T08:01", False, True),
        ("NONAC", "2020-01-01T08:01", False, True),
        ("EMER", "2020-01-02T07:59", False, False),  # 23 h 59 min
        ("EMER", "2020-01-02T08:00", False, True),  # 24 h
        ("OBSENC", "2020-01-02T07:59", False, False),
        ("OBSENC", "2020-01-02T08:00", False, True),
        ("AMB", "2020-01-02T07:59", True, False),
        ("AMB", "2020-01-02T08:00", True, True),  # MIMIC: whatever the class
        ("SS", "2020-01-02T08:00", True, True),
        ("AMB", "2020-01-04T08:00", False, False),
        ("HH", "2020-01-04T08:00", False, False),
        ("", "2020-01-04T08:00", False, False),
    ],
)
def test_class_and_length_make_a_stay(e, stays, kind, end, mimic, is_stay):
    found = stays(e("a", kind, "2020-01-01T08:00", end, mimic=mimic))
    assert found == ([("2020-01-01T08:00", end, "a")] if is_stay else [])


def test_an_intensive_care_part_makes_its_parent_a_stay(e, stays):
    parent = e("a", "AMB", "2020-01-01T08:00", "2020-01-01T20:00")
    part = e("b", "ACUTE", "2020-01-01T10:00", "2020-01-01T12:00", part_of="a")
    assert stays(parent) == []
    assert stays(parent, part) == [("2020-01-01T08:00", "2020-01-01T20:00", "ab")]


def test_what_counts_is_set_by_the_rules(e, stays):
    rules = VisitRules(
        stay_classes=frozenset({"SS"}),
        day_long_stay_classes=frozenset({"AMB"}),
        day_long_hours=10,
        transfer_gap_hours=1,
    )
    found = stays(
        e("a", "SS", "2020-01-01T08:00", "2020-01-01T09:00"),
        e("b", "SS", "2020-01-01T10:00", "2020-01-01T11:00"),  # exactly 1 h later
        e("c", "AMB", "2020-01-03T08:00", "2020-01-03T18:00"),
        e("d", "IMP", "2020-01-05T08:00", "2020-01-09T08:00"),
        rules=rules,
    )
    assert [ids for *_, ids in found] == ["a", "b", "c"]


# Parts


def test_parts_never_move_the_ends_of_their_parent(e, stays):
    parent = e("a", "IMP", "2020-01-02T08:00", "2020-01-05T08:00")
    before = e("b", "EMER", "2020-01-01T06:00", "2020-01-02T08:00", part_of="a")
    after = e("c", "ACUTE", "2020-01-04T08:00", "2020-01-07T08:00", part_of="b")  # a part's part
    for order in ((parent, before, after), (after, before, parent)):
        assert stays(*order) == [("2020-01-02T08:00", "2020-01-05T08:00", "abc")]


def test_a_part_whose_parent_is_not_there_stands_alone(e, stays):
    orphan = e("a", "ACUTE", "2020-01-02T08:00", "2020-01-05T08:00", part_of="gone")
    assert stays(orphan) == [("2020-01-02T08:00", "2020-01-05T08:00", "a")]


def test_parts_of_each_other_are_one_stay_of_the_first(e, stays):
    """Each of two encounters that name the other as parent once got the other's id as its own."""
    a = e("a", "IMP", "2020-01-01T08:00", "2020-01-03T08:00", part_of="b")
    b = e("b", "IMP", "2020-01-10T08:00", "2020-01-12T08:00", part_of="a")
    tail = e("c", "ACUTE", "2019-12-31T08:00", "2020-01-02T08:00", part_of="b")
    own = e("d", "IMP", "2020-02-01T08:00", "2020-02-02T08:00", part_of="d")
    for order in ((a, b, tail, own), (own, tail, b, a)):
        assert stays(*order) == [
            ("2020-01-01T08:00", "2020-01-03T08:00", "abc"),
            ("2020-02-01T08:00", "2020-02-02T08:00", "d"),
        ]


# Stays that are one stay


@pytest.mark.parametrize(
    ("start", "merged"),
    [
        ("2020-01-02T12:00", True),  # overlap
        ("2020-01-03T08:00", True),  # touch
        ("2020-01-03T13:59", True),  # 5 h 59 min
        ("2020-01-03T13:59:59.999999", True),
        ("2020-01-03T14:00", False),  # 6 h
    ],
)
def test_stays_with_a_gap_of_under_six_hours_are_one(e, stays, start, merged):
    a = e("a", "IMP", "2020-01-01T08:00", "2020-01-03T08:00")
    b = e("b", "OBSENC", start, "2020-01-06T08:00")
    one = [("2020-01-01T08:00", "2020-01-06T08:00", "ab")]
    two = [("2020-01-01T08:00", "2020-01-03T08:00", "a"), (start, "2020-01-06T08:00", "b")]
    assert stays(a, b) == stays(b, a) == (one if merged else two)


def test_a_stay_inside_another_and_a_chain_of_three(e, stays):
    found = stays(
        e("a", "IMP", "2020-01-01T08:00", "2020-01-10T08:00"),
        e("b", "IMP", "2020-01-02T08:00", "2020-01-03T08:00"),
        e("c", "IMP", "2020-01-10T13:00", "2020-01-12T08:00"),  # 5 h after the longer one's end
        e("d", "IMP", "2020-01-12T14:00", "2020-01-13T08:00"),  # 6 h after
    )
    assert found == [
        ("2020-01-01T08:00", "2020-01-12T08:00", "abc"),
        ("2020-01-12T14:00", "2020-01-13T08:00", "d"),
    ]


# Other encounters


@pytest.mark.parametrize(
    ("start", "end", "absorbed"),
    [
        ("2020-01-01T20:00", "2020-01-02T08:00", False),  # ends as the stay starts
        ("2020-01-01T20:00", "2020-01-02T09:00", True),
        ("2020-01-03T08:00", "2020-01-03T09:00", True),
        ("2020-01-04T20:00", "2020-01-05T19:00", True),
        ("2020-01-05T08:00", "2020-01-05T09:00", False),  # starts as the stay ends
        ("2020-01-05T09:00", "2020-01-05T10:00", False),  # 1 h later: they never merge with a stay
    ],
)
def test_another_encounter_is_absorbed_and_moves_no_end(e, stays, start, end, absorbed):
    stay = e("a", "IMP", "2020-01-02T08:00", "2020-01-05T08:00")
    other = e("b", "AMB", start, end)
    ids = "ab" if absorbed else "a"
    assert stays(stay, other) == [("2020-01-02T08:00", "2020-01-05T08:00", ids)]


def test_another_encounter_is_absorbed_in_the_gap_of_a_merged_stay(e, stays):
    found = stays(
        e("a", "IMP", "2020-01-01T08:00", "2020-01-03T08:00"),
        e("b", "IMP", "2020-01-03T13:00", "2020-01-05T08:00"),
        e("c", "AMB", "2020-01-03T09:00", "2020-01-03T10:00"),
    )
    assert found == [("2020-01-01T08:00", "2020-01-05T08:00", "abc")]


def test_an_encounter_of_decades_joins_no_stay_but_one_that_holds_its_start(e, stays):
    """As a span, it would lend the diagnoses of decades to the first stay after its start."""
    stay = e("a", "IMP", "2012-01-02T08:00", "2012-01-05T08:00")
    assert stays(stay, e("b", "AMB", "1990-05-01T08:00", "2020-05-01T08:00"))[0][2] == "a"
    assert stays(stay, e("b", "AMB", "2012-01-03T08:00", "2020-05-01T08:00"))[0][2] == "ab"


# What is cut out


@pytest.mark.parametrize(
    ("end", "kept"),
    [("2021-01-01T08:00", True), ("2021-01-01T08:01", False), ("2031-01-01T08:00", False)],
)
def test_stays_of_over_a_year_are_cut_out_and_counted(e, stays, end, kept):
    counts = Counter()
    found = stays(
        e("a", "IMP", "2020-01-01T08:00", end),  # 2020 has 366 days
        e("b", "IMP", "2019-01-01T08:00", "2019-01-02T08:00"),
        counts=counts,
    )
    assert [ids for *_, ids in found] == (["b", "a"] if kept else ["b"])
    assert counts["stay_over_a_year"] == (not kept)


def test_an_end_before_its_start_is_cut_out_and_counted(e, stays):
    counts = Counter()
    found = stays(
        e("a", "IMP", "2020-01-02T08:00", "2020-01-01T08:00"),
        e("b", "ACUTE", "2020-01-02T08:00", "2020-01-03T08:00", part_of="a"),
        e("c", "AMB", "2020-02-02T08:00", "2020-02-02T07:59"),
        e("d", "IMP", "2020-03-02T08:00", "2020-03-02T08:00"),  # no length is not a negative one
        counts=counts,
    )
    assert found == [
        ("2020-01-02T08:00", "2020-01-03T08:00", "b"),
        ("2020-03-02T08:00", "2020-03-02T08:00", "d"),
    ]
    assert +counts == {"encounter_ends_before_start": 2}


# Missing ends


def test_the_last_stay_without_an_end_is_open(e, stays):
    open_stay = e("a", "IMP", "2020-01-02T08:00", None)
    assert stays(open_stay, events=[("2020-01-04T08:00", "a")]) == [("2020-01-02T08:00", None, "a")]


def test_a_later_stay_shows_that_an_end_is_missing_and_it_is_guessed(e, made):
    from ehrmamba_hf.timelines import stays_of

    encounters = (
        e("a", "IMP", "2015-01-02T08:00", None),
        e("p", "ACUTE", "2015-01-03T08:00", None, part_of="a"),
        e("b", "IMP", "2019-01-02T08:00", "2019-01-05T08:00"),
    )
    events = [("2015-01-02T09:00", "a"), ("2015-01-04T09:00", "p"), ("2015-01-09T09:00", None)]
    counts = Counter()
    first, second = stays_of(made.record(encounters, events), counts=counts)
    assert (made.text(first.end), first.end_is_guess) == ("2015-01-04T09:00", True)
    assert (made.text(second.end), second.end_is_guess) == ("2019-01-05T08:00", False)
    assert +counts == {"encounter_end_missing": 1, "encounter_parts_joined": 1}


def test_of_two_stays_that_began_together_without_ends_both_are_over(e, stays):
    a = e("a", "IMP", "2015-01-02T08:00", None)
    b = e("b", "IMP", "2015-01-02T08:00", None)
    later = e("c", "IMP", "2015-06-02T08:00", "2015-06-05T08:00")
    found = stays(a, b, later, events=[("2015-01-03T08:00", "a"), ("2015-01-04T08:00", "b")])
    assert found[0] == ("2015-01-02T08:00", "2015-01-04T08:00", "ab")


def test_an_emergency_visit_without_an_end_is_as_long_as_it_is_known_to_be(e, stays):
    """Its length was once counted until the record's last moment, years later."""
    visit = e("a", "EMER", "2015-01-02T08:00", None)
    stay = e("b", "IMP", "2015-06-02T08:00", "2015-06-05T08:00")
    assert [s[2] for s in stays(visit, stay, events=[("2015-01-02T12:00", "a")])] == ["b"]
    assert [s[2] for s in stays(visit, stay, events=[("2015-01-03T09:00", "a")])] == ["a", "b"]
    assert [s[2] for s in stays(visit, at="2015-01-03T07:59")] == []
    assert [s[2] for s in stays(visit, at="2015-01-03T08:00")] == ["a"]  # still there after 24 h


def test_a_stay_without_an_end_is_no_endless_one(e, stays):
    """It was once cut out as a stay of over a year, and a readmission lost with it."""
    a = e("a", "IMP", "2015-01-02T08:00", None)
    found = stays(a, events=[("2015-01-04T08:00", "a"), ("2019-06-01T08:00", None)])
    assert found == [("2015-01-02T08:00", "2015-01-04T08:00", "a")]


def test_what_is_joined_and_merged_is_counted(e, stays):
    counts = Counter()
    stays(
        e("a", "IMP", "2020-01-01T08:00", "2020-01-03T08:00"),
        e("p", "ACUTE", "2020-01-02T08:00", "2020-01-02T09:00", part_of="a"),
        e("b", "IMP", "2020-01-03T09:00", "2020-01-05T08:00"),  # an hour later
        e("c", "EMER", "2020-01-01T02:00", "2020-01-01T09:00"),
        e("d", "AMB", "2020-02-01T08:00", "2020-02-01T10:00"),
        e("f", "AMB", "2020-02-01T09:00", "2020-02-01T11:00"),
        e("g", "AMB", "2020-02-02T09:00", "2020-02-02T11:00"),
        counts=counts,
    )
    assert counts == {
        "encounter_parts_joined": 1,
        "stays_merged": 1,
        "encounters_absorbed": 1,
        "encounters_merged": 1,
    }


@pytest.mark.parametrize("name", ["day_long_hours", "transfer_gap_hours", "longest_stay_days"])
def test_a_length_of_time_under_0_is_refused(name):
    with pytest.raises(InputError, match=f"{name}: expected at least 0, found -1"):
        VisitRules(**{name: -1})


def test_order_of_encounters_is_of_no_account(e, stays):
    encounters = [
        e("a", "IMP", "2020-01-01T08:00", "2020-01-03T08:00"),
        e("b", "IMP", "2020-01-03T09:00", None),
        e("c", "EMER", "2020-01-01T02:00", "2020-01-01T09:00"),
        e("d", "IMP", "2020-03-03T09:00", "2020-03-05T09:00"),
        e("p", "ACUTE", "2020-03-04T09:00", "2020-03-06T09:00", part_of="d"),
    ]
    assert stays(*encounters) == stays(*encounters[::-1])
