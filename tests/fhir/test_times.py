"""Times: the wall clock as written, UTC converted on request, and what a partial date spans."""

from datetime import datetime

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.times import DAY, Clock, Time, dated, instant_of

NEW_YORK = "America/New_York"


def micros(*parts: int) -> int:
    return (datetime(*parts) - datetime(1970, 1, 1)) // (datetime.resolution)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-03-04T10:00:00-05:00", (2019, 3, 4, 10)),
        ("2019-03-04T10:00:00+14:00", (2019, 3, 4, 10)),
        ("2019-03-04T10:00:00Z", (2019, 3, 4, 10)),
        ("2019-03-04T10:00:00.123+01:00", (2019, 3, 4, 10, 0, 0, 123000)),
        ("2019-03-04T10:00:00.1234567Z", (2019, 3, 4, 10, 0, 0, 123456)),
        ("2019-03-04T10:00:00", (2019, 3, 4, 10)),
        ("2019-03-04T10:00-05:00", (2019, 3, 4, 10)),
        ("2016-12-31T23:59:60Z", (2017, 1, 1)),
        ("1916-02-29T00:00:00-05:00", (1916, 2, 29)),
    ],
)
def test_a_full_time_keeps_its_wall_clock_and_drops_its_offset(text, expected):
    time = Clock().read(text)
    assert time.start == time.last == micros(*expected)
    assert time.precision == "time"


@pytest.mark.parametrize(
    ("text", "first", "next_one", "precision"),
    [
        ("2019", (2019, 1, 1), (2020, 1, 1), "year"),
        ("2020", (2020, 1, 1), (2021, 1, 1), "year"),
        ("2019-02", (2019, 2, 1), (2019, 3, 1), "month"),
        ("2020-02", (2020, 2, 1), (2020, 3, 1), "month"),
        ("2019-12", (2019, 12, 1), (2020, 1, 1), "month"),
        ("2019-03-04", (2019, 3, 4), (2019, 3, 5), "day"),
    ],
)
def test_a_partial_date_stands_at_its_start_and_ends_with_its_last_microsecond(
    text, first, next_one, precision
):
    for clock in (Clock(), Clock("America/New_York")):  # dates have no offset to convert
        time = clock.read(text)
        assert (time.start, time.last) == (micros(*first), micros(*next_one) - 1)
        assert time.precision == precision


def test_utc_becomes_the_wall_clock_across_daylight_saving():
    # New York, 2019-03-10: clocks go from 02:00 EST to 03:00 EDT, that is at 07:00 UTC.
    clock = Clock("America/New_York")
    assert clock.read("2019-03-10T06:59:59Z").start == micros(2019, 3, 10, 1, 59, 59)
    assert clock.read("2019-03-10T07:00:00Z").start == micros(2019, 3, 10, 3)
    # 2019-11-03: from 02:00 EDT back to 01:00 EST, at 06:00 UTC: one wall-clock hour comes twice.
    assert clock.read("2019-11-03T05:30:00+00:00").start == micros(2019, 11, 3, 1, 30)
    assert clock.read("2019-11-03T06:30:00+00:00").start == micros(2019, 11, 3, 1, 30)
    # Written with an offset, it is the wall clock already.
    assert clock.read("2019-03-10T06:59:59-05:00").start == micros(2019, 3, 10, 6, 59, 59)


@pytest.mark.parametrize(
    ("text", "instant", "day"),
    [
        # New York puts its clocks on an hour on 10 March 2019, and back on 3 November.
        ("2019-03-10T00:00:00Z", (2019, 3, 9, 19), (2019, 3, 10)),
        ("2019-03-11T00:00:00Z", (2019, 3, 10, 20), (2019, 3, 11)),
        ("2019-11-03T00:00:00Z", (2019, 11, 2, 20), (2019, 11, 3)),
        ("2019-11-04T00:00:00+00:00", (2019, 11, 3, 19), (2019, 11, 4)),
        # Midnight in New York, which is 05:00 UTC in winter and 04:00 in summer.
        ("2019-03-10T05:00:00Z", (2019, 3, 10), (2019, 3, 10)),
        ("2019-03-11T04:00:00Z", (2019, 3, 11), (2019, 3, 11)),
        ("2019-11-03T04:00:00Z", (2019, 11, 3), (2019, 11, 3)),
        ("2019-11-04T05:00:00Z", (2019, 11, 4), (2019, 11, 4)),
        ("2019-03-11T00:00:00-04:00", (2019, 3, 11), (2019, 3, 11)),
        ("2019-03-11T00:00:00+01:00", (2019, 3, 11), (2019, 3, 11)),
        # No midnight
        ("2019-03-11T05:00:00Z", (2019, 3, 11, 1), None),
        ("2019-11-04T04:00:00Z", (2019, 11, 3, 23), None),
        ("2018-12-31T23:59:60Z", (2018, 12, 31, 19), None),
        ("2019-03-10T00:00:00.1Z", (2019, 3, 9, 19, 0, 0, 100000), None),
    ],
)
def test_midnight_is_an_instant_or_the_day_that_is_written(text, instant, day):
    time = Clock(NEW_YORK).read(text)
    assert time.start == time.last == micros(*instant)
    assert time.midnight == (micros(*day) if day else None)
    expected = Time(micros(*day), micros(*day) + DAY - 1, "day") if day else time
    assert dated(time) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "2019-13", "2019-02-29", "2019-3-4", "20190304", "2019-W10", "0000", "tomorrow"),
        *("2019-03-04 10:00:00Z", "2019-03-04T25:00:00Z", "2019-03-04T24:00:00Z", "2019-03-04T10"),
        "٢٠١٩",
    ],
)
def test_what_is_not_a_fhir_datetime_is_refused(text):
    with pytest.raises(ValueError):
        Clock().read(text)


def test_a_time_pushed_off_the_calendar_is_refused():
    with pytest.raises(ValueError):
        Clock("America/New_York").read("0001-01-01T00:00:00Z")


def test_the_clock_remembers_whether_all_was_utc():
    clock = Clock()
    clock.read("2019-03-04")
    assert (clock.met_utc, clock.met_other) == (False, False)
    clock.read("2019-03-04T10:00:00+00:00")
    assert (clock.met_utc, clock.met_other) == (True, False)
    clock.read("2019-03-04T10:00:00+01:00")
    assert (clock.met_utc, clock.met_other) == (True, True)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "/etc"])
def test_an_unknown_timezone_is_named(name):
    with pytest.raises(InputError, match="IANA"):
        Clock(name)


def test_versions_compare_in_real_time():
    earlier = instant_of("2019-03-04T10:00:00+01:00")
    later = instant_of("2019-03-04T09:30:00Z")
    assert earlier is not None and later is not None and earlier < later
    assert instant_of("2019-03-04T09:30:00") == later


@pytest.mark.parametrize(
    ("text", "timezone", "wall"),
    [
        # 10 March 2019: at 02:00 EST (07:00 UTC) the clocks go to 03:00 EDT.
        ("2019-03-10T01:59:59-05:00", None, (2019, 3, 10, 1, 59, 59)),
        ("2019-03-10T03:00:00-04:00", None, (2019, 3, 10, 3)),
        ("2019-03-10T06:59:59Z", NEW_YORK, (2019, 3, 10, 1, 59, 59)),
        ("2019-03-10T07:00:00Z", NEW_YORK, (2019, 3, 10, 3)),
        # No clock showed it, but somebody wrote it: it stays.
        ("2019-03-10T02:30:00-05:00", None, (2019, 3, 10, 2, 30)),
        ("2019-03-10T02:30:00-05:00", NEW_YORK, (2019, 3, 10, 2, 30)),
        ("2019-03-10T02:30:00", NEW_YORK, (2019, 3, 10, 2, 30)),
        # Without a timezone, UTC is the wall clock.
        ("2019-03-10T07:00:00Z", None, (2019, 3, 10, 7)),
        # 3 November 2019: at 02:00 EDT (06:00 UTC) the clocks go back to 01:00 EST.
        ("2019-11-03T01:30:00-04:00", None, (2019, 11, 3, 1, 30)),
        ("2019-11-03T01:30:00-05:00", None, (2019, 11, 3, 1, 30)),  # an hour later
        ("2019-11-03T05:30:00Z", NEW_YORK, (2019, 11, 3, 1, 30)),
        ("2019-11-03T06:30:00Z", NEW_YORK, (2019, 11, 3, 1, 30)),  # an hour later
        ("2019-11-03T01:30:00", NEW_YORK, (2019, 11, 3, 1, 30)),
        ("2019-11-03T07:00:00Z", NEW_YORK, (2019, 11, 3, 2)),
        # Another offset than the timezone's is another wall clock: nothing to convert.
        ("2019-07-01T08:00:00+02:00", NEW_YORK, (2019, 7, 1, 8)),
        ("2019-07-01T08:00:00-07:00", NEW_YORK, (2019, 7, 1, 8)),
        ("2019-07-01T08:00:00-00:00", NEW_YORK, (2019, 7, 1, 4)),  # this is UTC
        # A timezone of half hours, across the year.
        ("2018-12-31T20:00:00Z", "Asia/Kolkata", (2019, 1, 1, 1, 30)),
    ],
)
def test_hand_worked_wall_clocks(text, timezone, wall):
    assert Clock(timezone).read(text).start == micros(*wall)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019-03-04T10:00:00.1234569Z", (2019, 3, 4, 10, 0, 0, 123456)),
        ("2019-03-04T23:59:59.99999999Z", (2019, 3, 4, 23, 59, 59, 999999)),
        ("2019-06-30T23:59:60.5Z", (2019, 7, 1, 0, 0, 0, 500000)),
        ("0001-01-01T00:00:00Z", (1, 1, 1)),
        ("9999-12-31T23:59:59.999999Z", (9999, 12, 31, 23, 59, 59, 999999)),
    ],
)
def test_fractions_leap_seconds_and_the_ends_of_the_calendar(text, expected):
    assert Clock().read(text).start == micros(*expected)


def test_the_first_and_the_last_day_of_the_calendar():
    assert Clock().read("0001").start == micros(1, 1, 1)
    last = micros(9999, 12, 31, 23, 59, 59, 999999)
    assert {Clock().read(text).last for text in ("9999", "9999-12", "9999-12-31")} == {last}


@pytest.mark.parametrize(
    "text",
    [
        *("0000-01-01", "10000-01-01", "9999-12-31T23:59:60Z", "2019-03-04T24:00:00-05:00"),
        *("2019-03-04T10:60:00Z", "2019-03-04T10:00:61Z", "2019-03-04T10:00:00+25:00"),
        *("2019-03-04T10:00:00." + "1" * 99 + "Z", "2019-03-04T10:00:00 Z", "2019-03-04\n"),
    ],
)
def test_what_lies_outside_the_calendar_or_the_clock_is_refused(text):
    with pytest.raises(ValueError):
        Clock().read(text)


def test_the_ends_of_the_calendar_on_another_wall_clock():
    with pytest.raises(ValueError):
        Clock("Asia/Tokyo").read("9999-12-31T23:00:00Z")
    assert Clock("Asia/Tokyo").read("9999-12-31T23:00:00+00:30").start == micros(9999, 12, 31, 23)


def test_midnight_is_over_with_its_day():
    assert dated(Clock().read("2019-03-04T00:00:00Z")).last == micros(2019, 3, 5) - 1
    assert dated(Clock().read("2019-03-04T00:00:01Z")).last == micros(2019, 3, 4, 0, 0, 1)
    assert dated(Clock().read("2019-03")).last == micros(2019, 4, 1) - 1
