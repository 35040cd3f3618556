"""What the templates are filled by: an environment, numbers as text, histograms as columns.

Pages load nothing: the style is inside them and the charts are boxes of HTML, whose text keeps its
size on a phone, where that of a scaled picture would not.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import jinja2
from markupsafe import Markup

_MOST_YEARS: Final = 120
"""Columns that a phone's width still tells apart."""
_MOST_LABELS: Final = 8


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a histogram; `label` is empty where there is no room for one."""

    label: str
    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the reader should know first. `level`: good, look (at the points) or bad."""

    level: str
    sentence: str
    points: list[str]


def environment() -> jinja2.Environment:
    """Templates of the package, by their path inside it; text put in is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("ehrmamba_hf", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"thousands": thousands, "short": short, "breakable": breakable}
    made.globals |= {"percent": percent}
    return made


def thousands(count: int) -> str:
    """A count with separators.

    >>> thousands(1234567)
    '1,234,567'
    """
    return f"{count:,}"


def short(count: int) -> str:
    """A count in at most four characters, for the narrow columns of a chart.

    >>> [short(n) for n in (0, 999, 1024, 9960, 54953, 999_999, 1_250_000)]
    ['0', '999', '1k', '10k', '55k', '1M', '1.2M']
    """
    size = float(count)
    for unit in ("", "k", "M", "G"):
        if round(size) < 1000 or unit == "G":
            break
        size /= 1000
    digits = f"{size:.1f}" if unit and round(size, 1) < 10 else f"{size:.0f}"
    return digits.removesuffix(".0") + unit


def percent(part: int, whole: int) -> str:
    """A share to a tenth; 0 % and 100 % are kept for none and all.

    >>> percent(1, 8), percent(0, 8), percent(8, 8), percent(1, 9999), percent(9998, 9999)
    ('12.5 %', '0 %', '100 %', 'under 0.1 %', 'over 99.9 %')
    >>> percent(0, 0)
    'none'
    """
    if not whole:
        return "none"
    if part in (0, whole):
        return f"{100 * part // whole} %"
    share = 100 * part / whole
    if share < 0.1:
        return "under 0.1 %"
    return "over 99.9 %" if share > 99.9 else f"{share:.1f} %"


def breakable(name: str) -> Markup:
    """A name in camel case that a narrow cell can break.

    >>> str(breakable("CarePlan<"))
    'Care<wbr>Plan&lt;'
    """
    return Markup("<wbr>").join(re.findall("[A-Z]?[^A-Z]+|[A-Z]", name))


def by_power(series: Mapping[str, Mapping[str, int]]) -> dict[str, list[Column]]:
    """Histograms on one axis, without holes, of counts by the largest power of two not above.

    Args:
        series: name to {"0", "1", "2", "4", "8" ...: how many}; "0" is for none.

    >>> for column in by_power({"test": {"1": 5, "4": 2}})["test"]:
    ...     print(column.label, column.name, column.count, sep=" | ")
    1 | 1 | 5
    2 | 2 to 3 | 0
    4 | 4 to 7 | 2
    """
    found = {int(key) for counts in series.values() for key, count in counts.items() if count}
    powers = [power for power in found if power]
    axis = [0] if 0 in found else []
    if powers:
        ends = min(powers).bit_length(), max(powers).bit_length()
        axis += [1 << place - 1 for place in range(1 if 0 in found else ends[0], ends[1] + 1)]
    return {
        name: [
            Column(_binary(low), _span(low, 2 * low - 1, ","), counts.get(str(low), 0))
            for low in axis
        ]
        for name, counts in series.items()
    }


def by_year(years: Mapping[str, int]) -> list[Column]:
    """A histogram by year without holes; of more than 120 years, by spans of years.

    >>> [(column.label, column.count) for column in by_year({"2019": 3, "2021": 1})]
    [('2019', 3), ('2020', 0), ('2021', 1)]
    """
    counts = {int(year): count for year, count in years.items() if count}
    if not counts:
        return []
    first, last = min(counts), max(counts)
    width = _round_step(last - first + 1, _MOST_YEARS)
    starts = range(first - first % width, last + 1, width)
    held = dict.fromkeys(starts, 0)
    for year, count in counts.items():
        held[year - year % width] += count
    step = width * _round_step(len(starts), _MOST_LABELS)
    return [
        Column(
            str(low) if low % step == 0 or len(starts) == 1 else "", _span(low, low + width - 1), n
        )
        for low, n in held.items()
    ]


def _round_step(length: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that cuts a length into at most so many steps."""
    steps: Iterable[int] = (m * 10**power for power in itertools.count() for m in (1, 2, 5))
    return next(step for step in steps if step * most >= length)


def _binary(count: int) -> str:
    """A power of two with k for 1,024 and M for 1,048,576."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if count >= size:
            return f"{count // size}{unit}"
    return str(count)


def _span(low: int, high: int, separator: str = "") -> str:
    return str(low) if high <= low else f"{low:{separator}} to {high:{separator}}"
