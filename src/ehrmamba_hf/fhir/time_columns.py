"""Many FHIR times at once, as a column of microseconds.

The times of a file are nearly always written in one way or in a few, each character in its place.
Then those of a chunk that are equally long are checked and added up as one array of characters.
Where one of them is written otherwise, or is no time, each is read alone.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from ehrmamba_hf.fhir.times import DAY, Clock, instant_of

NONE: Final = np.iinfo(np.int64).min
"""Stands for no time."""
ODD: Final = np.iinfo(np.int64).max
"""Stands for what is not a full time: the long way has to look at it."""

_REMEMBERED: Final = 1 << 18
_SECOND: Final = 1_000_000  # microseconds
_MINUTE: Final = 60 * _SECOND
_DAY_SECONDS: Final = 86_400
# The least and the most that each character can be. Leap seconds, hours from 24 on and days that
# a month does not have are left to the Clock.
_LEAST, _MOST = "0000-00-00T00:00:00", "9999-19-39T29:59:59"
_ENDS: Final = (
    ("", ""),
    ("Z", "Z"),
    ("+00:00", "-19:59"),
    (".000Z", ".999Z"),
    (".000+00:00", ".999-19:59"),
    (".000000Z", ".999999Z"),
    (".000000+00:00", ".999999-19:59"),
)
_YEAR: Final = 20  # months, as many as two digits can say of which the first is 0 or 1
_COMMA: Final = ord(",") - ord("+")

Column = npt.NDArray[np.int64]
Offset = npt.NDArray[np.float32]  # minutes east of UTC; NaN for none


class TimeColumns:
    """Reads columns of times of one source.

    >>> TimeColumns(Clock())(["1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z"]).tolist()
    [1000000, 2000000]
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._read = lru_cache(maxsize=_REMEMBERED)(self._single)

    def __call__(self, texts: Sequence[str | None]) -> Column:
        """Their microseconds; NONE for None and "", ODD for what is not a full time."""
        return _by_length(texts, self._alike, self._read)

    def pair(self, first: list[str | None], second: list[str | None]) -> tuple[Column, Column]:
        """The same of two columns, which are often written alike."""
        found = self._alike(first + second)
        if found is None:
            return self(first), self(second)
        return found[: len(first)], found[len(first) :]

    def _alike(self, texts: Sequence[str | None]) -> Column | None:
        """The same, if all are times of one form."""
        found = None if self._clock.converts else _read_alike(texts)
        if found is None:
            return None
        wall, offset = found
        utc = int(np.count_nonzero(offset == 0))
        self._clock.met_utc |= utc > 0
        self._clock.met_other |= utc < len(texts)
        return wall

    def _single(self, text: str | None) -> int:
        if not text:
            return NONE
        try:
            found = self._clock.read(text)
        except ValueError:
            return ODD
        return found.start if found.precision == "time" else ODD


def instants(texts: Sequence[str | None]) -> Column:
    """What `instant_of` says of each; NONE where there is no text, or none that is a time.

    >>> instants(["1970-01-01T00:00:01+01:00", None, "yesterday"]).tolist() == [
    ...     -3_599_000_000, NONE, NONE
    ... ]
    True
    """
    return _by_length(texts, _instants_alike, _instant)


def _instant(text: str | None) -> int:
    found = instant_of(text) if text else None
    return NONE if found is None else found


def _instants_alike(texts: Sequence[str | None]) -> Column | None:
    found = _read_alike(texts)
    if found is None:
        return None
    wall, offset = found
    return wall - np.nan_to_num(offset).astype(np.int64) * _MINUTE


def _by_length(
    texts: Sequence[str | None],
    alike: Callable[[Sequence[str | None]], Column | None],
    single: Callable[[str | None], int],
) -> Column:
    """All of them at once if they are alike, else those that are equally long, else one by one."""
    found = alike(texts)
    if found is not None:
        return found
    if None in texts:
        given = np.array([text is not None for text in texts])
        found = np.full(len(texts), NONE)
        found[given] = _by_length([text for text in texts if text is not None], alike, single)
        return found
    places: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(len(text or ""), []).append(place)
    found = np.empty(len(texts), np.int64)
    for rows in places.values():
        some = [texts[row] for row in rows]
        times = alike(some)
        found[rows] = list(map(single, some)) if times is None else times
    return found


def _read_alike(texts: Sequence[str | None]) -> tuple[Column, Offset] | None:
    """The wall clock's microseconds and the offsets, if all are times of one form."""
    form = _forms().get(len(texts[0] or "") + 1) if texts else None
    if form is None or len(texts[-1] or "") + 1 != form.width:
        return None
    try:
        letters = "\n".join((*texts, "")).encode("ascii")  # type: ignore[arg-type]
    except (TypeError, UnicodeEncodeError):  # with None among them, or other scripts' digits
        return None
    return form.read(np.frombuffer(letters, np.uint8), len(texts))


class _Form:
    """One way to write times, a line each."""

    def __init__(self, least: str, most: str) -> None:
        """`least`, `most`: what may follow the seconds."""
        low, high = (
            np.frombuffer(f"{start}{end}\n".encode(), np.uint8)
            for start, end in ((_LEAST, least), (_MOST, most))
        )
        self.width = len(low)
        self._low, self._range = low, high - low  # for one time, and later for many
        self._utc = 0.0 if least.endswith("Z") else np.nan
        self._sign = len(_LEAST) + least.find("+") if "+" in least else 0
        weights = np.zeros((self.width, 5), np.float32)  # few and short: all sums are exact
        weights[[0, 1, 2, 3, 5, 6], 0] = [_YEAR * 1000, _YEAR * 100, _YEAR * 10, _YEAR, 10, 1]
        weights[[8, 9], 1] = [10, 1]  # days
        weights[[11, 12, 14, 15, 17, 18], 2] = [36_000, 3_600, 600, 60, 10, 1]
        if "." in least:
            digits = least[1:].rstrip("Z").split("+")[0]
            for place in range(len(digits)):
                weights[len(_LEAST) + 1 + place, 3] = 10 ** (5 - place)  # microseconds
        if self._sign:
            weights[[self._sign + i for i in (1, 2, 4, 5)], 4] = [600, 60, 10, 1]
        self._weights = weights

    def read(self, letters: npt.NDArray[np.uint8], n: int) -> tuple[Column, Offset] | None:
        """n times and their offsets; None if one is not of this form, or no time."""
        # A break is nowhere but at the end of a line of this form: with as many lines as times, all
        # breaks are those between the times.
        if len(letters) != n * self.width:
            return None
        digits = self._digits(letters)
        if digits is None:
            return None
        month, day, second, micros, offset = self._weights.T @ digits.astype(np.float32).T
        last_days, lengths = _calendar()
        index = month.astype(np.intp)
        if (day < 1).any() or (day > lengths[index]).any() or (second >= _DAY_SECONDS).any():
            return None
        found = (last_days[index] + day.astype(np.int64)) * DAY
        found += second.astype(np.int64) * _SECOND + micros.astype(np.int64)
        if self._sign:
            return found, offset * (1 - digits[:, self._sign].astype(np.float32))
        return found, np.full(n, self._utc, np.float32)

    def _digits(self, letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        """How far each character is above the least of its place, a row a time."""
        if len(self._low) < len(letters):
            times = len(letters) // self.width
            self._low = np.tile(self._low[: self.width], times)
            self._range = np.tile(self._range[: self.width], times)
        digits = letters - self._low[: len(letters)]  # what is below it wraps around
        if (digits > self._range[: len(letters)]).any():
            return None
        digits = digits.reshape(-1, self.width)
        if self._sign and (digits[:, self._sign] == _COMMA).any():  # it lies between + (0) and -
            return None
        return digits


@cache
def _forms() -> dict[int, _Form]:
    """By their width."""
    return {form.width: form for form in (_Form(*end) for end in _ENDS)}


@cache
def _calendar() -> tuple[Column, npt.NDArray[np.float32]]:
    """By year * _YEAR + month: the day before its first, from 1970 on, and its length.

    Where there is no such month, it has no days.
    """
    months = np.arange(np.datetime64("0001-01"), np.datetime64("9999-12") + 2)
    starts = months.astype("datetime64[D]").astype(np.int64)
    last_days = np.zeros((10_000, _YEAR), np.int64)
    lengths = np.zeros((10_000, _YEAR), np.float32)
    last_days[1:, 1:13] = starts[:-1].reshape(-1, 12) - 1
    lengths[1:, 1:13] = np.diff(starts).reshape(-1, 12)
    return last_days.ravel(), lengths.ravel()
