"""FHIR dates and times as naive microseconds of the hospital's wall clock.

Offsets. A time stands as it was written, with its own offset, and the offset is dropped:
08:00-05:00 is eight in the morning, and so is 08:00+01:00 in the same record. Sources that write
everything in UTC lose the wall clock; for them a timezone is given, and times written as UTC (Z,
+00:00, -00:00) are converted to it. Any other offset, or none, is a wall clock already, and dates
have no offset: they are never converted.

Daylight saving. The wall clock is what it says. In spring an hour is missing: with a timezone no
time falls into it, and one that is written in it stays there. In autumn an hour comes twice: two
times an hour apart read the same, and of two times within it the later may read as the earlier.
Durations are wall-clock, an hour more or less on these two nights.

Midnight. A time at exactly 00:00:00 may be a date that lost its kind. Where the day is what counts
(a death, a procedure), it is taken for that day: the one that is written, though it be midnight in
UTC, which is not converted then; else the one that starts on the wall clock. Everywhere else it is
a time like any other, and converted: a laboratory result at 00:00:00Z is of the evening before in
New York.

Partial dates. A day, a month (2019-03) or a year (2019) is the span of it: it starts at its first
microsecond and is over with its last.

Limits. Fractions beyond microseconds are cut off. A leap second (:60) is the next minute's first.
24:00 is not a FHIR time. Years go from 0001 to 9999, also on the wall clock that a time is
converted to.
"""

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from ehrmamba_hf.errors import InputError

Precision = Literal["year", "month", "day", "time"]

EPOCH: Final = datetime(1970, 1, 1)
MICROSECOND: Final = timedelta(microseconds=1)
DAY: Final = 86_400_000_000
"""Microseconds of a wall-clock day."""

LAST: Final = (datetime.max - EPOCH) // MICROSECOND
"""The last microsecond of the year 9999: later times are no times."""

# Seconds and the offset are required by FHIR where there is a time; exports often lack them, and
# the wall clock needs neither. https://hl7.org/fhir/R4/datatypes.html#dateTime
_DATE_TIME: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)"
    r"(?:T((?:[01]\d|2[0-3]):[0-5]\d)(?::(\d\d)(\.\d{1,32})?)?(Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)


class Time(NamedTuple):
    """The span that a written date or time stands for; `start` == `last` for a full time."""

    start: int  # first microsecond
    last: int  # last microsecond: what is dated by a day is known for sure when the day is over
    precision: Precision
    midnight: int | None = None  # of a full time at 00:00:00: the day that it may stand for


class Clock:
    """Reads FHIR dates and times of one source, remembering which kinds it met."""

    def __init__(self, timezone: str | None = None) -> None:
        """`timezone`: an IANA name such as "America/New_York", for sources in UTC.

        Raises InputError for a name that is not in the timezone database.
        """
        try:
            self._zone = ZoneInfo(timezone) if timezone else None
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise InputError(
                f"timezone: expected an IANA name such as America/New_York, found {timezone!r}"
            ) from error
        self.met_utc = False
        self.met_other = False
        # A visit's events share their times, so most texts come again.
        self.read = lru_cache(maxsize=1 << 16)(self._read)

    @property
    def converts(self) -> bool:
        """Whether times written as UTC are moved to a timezone."""
        return self._zone is not None

    def _read(self, text: str) -> Time:
        """The Time of a FHIR date, dateTime or instant; ValueError for anything else.

        >>> from datetime import UTC, datetime
        >>> Clock().read("1970-01-02T00:00:00.5-05:00").start
        86400500000
        >>> Clock("America/New_York").read("1970-01-02T05:00:00Z").start == DAY
        True
        >>> Clock().read("1970-01").last == 31 * DAY - 1
        True
        """
        match = _DATE_TIME.fullmatch(text)
        if match is None:
            raise ValueError("not a FHIR dateTime")
        year, month, day, hours, seconds, _, offset = match.groups()
        if hours is not None:
            return self._full(text, leap=seconds == "60", utc=offset in ("Z", "+00:00", "-00:00"))
        first = datetime(int(year), int(month or 1), int(day or 1))
        if day is not None:
            days, precision = 1, "day"
        elif month is not None:
            days, precision = monthrange(first.year, first.month)[1], "month"
        else:
            days, precision = 365 + (monthrange(first.year, 2)[1] == 29), "year"
        start = _micros(first)
        return Time(start, start + days * DAY - 1, precision)  # type: ignore[arg-type]

    def _full(self, text: str, *, leap: bool, utc: bool) -> Time:
        if leap:  # FHIR allows :60, datetime does not
            text = re.sub(r"(T\d\d:\d\d):60", r"\1:59", text)
        written = datetime.fromisoformat(text)
        self.met_utc |= utc
        self.met_other |= not utc
        wall = as_written = written.replace(tzinfo=None)
        if utc and self._zone is not None:
            try:
                wall = written.astimezone(self._zone).replace(tzinfo=None)
            except OverflowError as error:
                raise ValueError("outside the calendar") from error
        start = _micros(wall) + 1_000_000 * leap
        if start > LAST:
            raise ValueError("outside the calendar")
        days = map(_micros, (as_written, wall))
        return Time(start, start, "time", next((day for day in days if day % DAY == 0), None))


def dated(time: Time) -> Time:
    """A time at midnight exactly as the day that it stands for; any other time as it is.

    >>> dated(Clock("America/New_York").read("1970-01-02T00:00:00Z")).start == DAY
    True
    """
    if time.midnight is None:
        return time
    return Time(time.midnight, time.midnight + DAY - 1, "day")


@lru_cache(maxsize=1 << 16)
def instant_of(text: str) -> int | None:
    """Microseconds of a point in real time, to tell a newer version of a record from an older one.

    None where the text is not a time: a record is not refused for its bookkeeping.

    >>> instant_of("1970-01-01T01:00:00+01:00"), instant_of("yesterday")
    (0, None)
    """
    try:
        written = datetime.fromisoformat(text)
    except ValueError:
        return None
    if written.tzinfo is None:
        written = written.replace(tzinfo=UTC)
    return (written - EPOCH.replace(tzinfo=UTC)) // MICROSECOND


def _micros(wall: datetime) -> int:
    return (wall - EPOCH) // MICROSECOND
