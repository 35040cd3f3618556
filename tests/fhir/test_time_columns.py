"""Columns of times say what is said of each alone, however they are written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrmamba_hf.fhir.time_columns import NONE, ODD, TimeColumns, instants
from ehrmamba_hf.fhir.times import Clock, instant_of

DAY = 86_400_000_000
ENDS = [
    *("", "Z", "+00:00", "-00:00", "-05:00", "+14:00", "-03:30", ".5Z", ".250Z", ".999-05:00"),
    *(".123456Z", ".000001+05:45", ".1234567Z"),
]


def by_the_clock(texts: list[str | None], clock: Clock) -> list[int]:
    """The rule itself: a time that is neither a date nor broken, one at a time."""
    found = []
    for text in texts:
        try:
            time = clock.read(text) if text else None
        except ValueError:
            found.append(ODD)
        else:
            full = time is None or time.precision == "time"
            found.append(NONE if time is None else time.start if full else ODD)
    return found


def agree(texts: list[str | None], timezone: str | None = None) -> list[int]:
    """What both say, once it is known that they say the same, of UTC too."""
    one_by_one, together = Clock(timezone), Clock(timezone)
    expected = by_the_clock(texts, one_by_one)
    found = TimeColumns(together)(texts)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    assert (together.met_utc, together.met_other) == (one_by_one.met_utc, one_by_one.met_other)
    points = [instant_of(text) if text else None for text in texts]
    assert instants(texts).tolist() == [NONE if point is None else point for point in points]
    return expected


def written(end: str) -> st.SearchStrategy[str]:
    """Full times that end alike, leap years, first and last days and years among them."""
    years = st.sampled_from([1, 1900, 1969, 1970, 2000, 2024, 2100, 9999]) | st.integers(1, 9999)
    return st.builds(
        lambda y, mo, d, h, mi, s: f"{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}{end}",
        years,
        st.integers(1, 12),
        st.integers(1, 31),
        st.integers(0, 23),
        st.integers(0, 59),
        st.integers(0, 59),
    )


@given(st.sampled_from(ENDS).flatmap(lambda end: st.lists(written(end), max_size=6)))
def test_times_that_are_written_alike(texts):
    agree(texts)


@given(st.lists(st.sampled_from(ENDS).flatmap(written) | st.none() | st.text(max_size=3)))
def test_times_that_are_not(texts):
    agree(texts)


@given(st.sampled_from(ENDS).flatmap(lambda end: st.lists(written(end) | st.none(), max_size=6)))
def test_times_that_are_written_alike_with_gaps(texts):
    agree(texts)
    half = len(texts) // 2
    pair = TimeColumns(Clock()).pair(texts[:half], texts[half:])
    assert np.concatenate(pair).tolist() == by_the_clock(texts, Clock())


@given(written("-05:00"), st.integers(0, 24), st.characters())
def test_one_character_that_is_another(text, place, character):
    before = "2019-03-04T11:00:00-05:00"
    agree([before, text[:place] + character + text[place + 1 :], before])


def test_hand_worked_times():
    texts = ["1970-01-02T00:00:01Z", "1969-12-31T23:59:59Z", "1972-03-01T00:00:00Z"]
    # 1972 is a leap year: 2 x 365 + 31 + 29 days after 1970 began.
    assert agree(texts) == [DAY + 1_000_000, -1_000_000, 790 * DAY]
    assert agree(["1970-01-01T05:00:00.250-05:00"]) == [5 * 3_600_000_000 + 250_000]
    assert instants(["1970-01-01T05:00:00.250-05:00"]).tolist() == [10 * 3_600_000_000 + 250_000]
    assert instants(["1970-01-01T05:30:00.000007+05:45"]).tolist() == [-15 * 60_000_000 + 7]


@pytest.mark.parametrize(
    "text",
    [
        *("2019-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2019-04-31T00:00:00Z"),
        *("2019-00-10T00:00:00Z", "2019-13-10T00:00:00Z", "2019-19-10T00:00:00Z"),
        *("2019-01-00T00:00:00Z", "2019-01-32T00:00:00Z", "0000-01-01T00:00:00Z"),
        *("2019-01-01T24:00:00Z", "2019-01-01T29:00:00Z", "2019-01-01T00:60:00Z"),
        *(
            "2019-01-01 00:00:00Z",
            "2019-01-01T00:00:00z",
            "2019-01-01T00:00:0\N{BENGALI DIGIT TWO}Z",
        ),
        *("2019-01-01T00:00:61Z", "2019/01/01T00:00:00Z", "2019-01-01T00:00:00 "),
    ],
)
def test_what_only_looks_like_a_time(text):
    sound = "2019-01-01T00:00:00Z"
    assert agree([sound, text, sound])[1] == ODD
    assert agree([text])[0] == ODD


def test_offsets_between_plus_and_minus_and_beyond_a_day():
    for offset in (",05:00", "+24:00", "+19:60", "+20:00", "-23:59"):
        agree(["2019-01-01T00:00:00-05:00", f"2019-01-01T00:00:00{offset}"])


def test_texts_that_are_as_long_together_as_times_would_be():
    whole = "2019-01-01T00:00:00Z"
    assert agree([whole, whole + whole[:5], whole[5:], whole])[1:3] == [ODD, ODD]
    assert agree([whole, f"{whole}\n{whole[:-1]}", "", whole])[1:3] == [ODD, NONE]
    assert agree([whole, "2019", whole])[1] == ODD
    assert agree([whole, "2019-01-01T00:00:00Z\n" + whole, whole[:-1]])[1:] != [ODD, ODD]
    assert agree([whole[:-2], whole + "\n"])[1] == ODD


@given(st.lists(st.sampled_from(ENDS).flatmap(written), max_size=8), st.sampled_from(ENDS))
def test_times_that_are_written_in_a_few_ways(texts, end):
    agree([*texts, f"2019-01-01T00:00:00{end}", None, f"2019-01-01T00:00:01{end}", "never", *texts])


def test_a_leap_second_among_others():
    found = agree(["2016-12-31T23:59:59Z", "2016-12-31T23:59:60Z"])
    assert found[1] - found[0] == 1_000_000


def test_with_a_timezone_each_time_is_converted():
    assert agree(["1970-01-02T05:00:00Z", "1970-01-02T05:00:00Z"], "America/New_York") == [DAY] * 2


def test_a_pair_is_as_good_as_two():
    times = TimeColumns(Clock())
    alike, others = ["2019-01-01T00:00:00Z"] * 2, ["2019-01-01T00:00:00.5Z", None]
    for second in (alike, others, [None, None], ["never", "2019"]):
        first_found, second_found = times.pair(alike, second)
        assert first_found.tolist() == times(alike).tolist()
        assert second_found.tolist() == times(second).tolist()
    assert [len(column) for column in times.pair([], [])] == [0, 0]


def test_more_times_than_ever_before_and_then_fewer():
    times, text = TimeColumns(Clock()), "2019-01-01T00:00:00Z"
    sizes = (2, 1000, 3)
    assert [len(set(times([text] * n).tolist())) for n in sizes] == [1, 1, 1]
    assert times([text] * 1000).tolist() == by_the_clock([text], Clock()) * 1000
