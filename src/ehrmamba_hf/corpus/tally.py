"""What `prepare` counts, in parts that add up, and what prepare.json says of it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ehrmamba_hf.timelines import SPLITS

DISTRIBUTIONS = ("events", "visits", "tokens")


class Tally(Counter[tuple[str, ...]]):
    """Counts by what is counted: a name, and what it is counted by.

    `patients`, `stays`, `tokens` (split); `records` (how events found their visits, and what was
    cut out, mended or merged); `visits` (sizes); `events`, `unknown` (split, code system);
    `numbers`, `unfitted` (split); `distribution` (of what, split, bin); `excluded` (task, split,
    reason); `examples` (task, split, positive or negative).

    >>> parts = [Tally({("patients", "test"): 2}), Tally({("patients", "test"): 3})]
    >>> Tally.sum_of(part.to_rows() for part in parts).by("patients")
    {'test': 5}
    """

    def by(self, *keys: str) -> dict[str, int]:
        """The counts of which the first keys are these, by the one that follows, in order."""
        found = {key[len(keys)]: n for key, n in self.items() if key[: len(keys)] == keys}
        return dict(sorted(found.items(), key=lambda item: _place(item[0])))

    def add_all(self, *keys: str, counts: dict[str, int]) -> None:
        """Add counts by one more key, those of 0 too."""
        for key, n in counts.items():
            self[*keys, key] += n

    def add_distribution(self, what: str, split: str, values: np.ndarray) -> None:
        """Add one number a patient; see `bin_of`."""
        for value, n in zip(*np.unique(values, return_counts=True), strict=True):
            self["distribution", what, split, bin_of(int(value))] += int(n)

    def to_rows(self) -> list[list]:
        """Every key and its count, as JSON holds them."""
        return [[*key, n] for key, n in self.items()]

    @classmethod
    def sum_of(cls, parts: Iterable[Sequence[Sequence[Any]]]) -> "Tally":
        """The sum of parts, each as rows."""
        tally = cls()
        for rows in parts:
            for *key, n in rows:
                tally[tuple(key)] += n
        return tally


def bin_of(value: int) -> str:
    """The bin of a number in a distribution: the largest power of two not above it, or 0.

    >>> [bin_of(n) for n in (0, 1, 2, 3, 4, 1000)]
    ['0', '1', '2', '2', '4', '512']
    """
    return str(1 << (value.bit_length() - 1) if value else 0)


def _place(key: str) -> tuple[int, int, str]:
    """Splits in their order, numbers by size, then names."""
    number = int(key) if key.isdecimal() else -1
    return (SPLITS.index(key) if key in SPLITS else len(SPLITS), number, key)


def summary(tally: Tally, tasks: Sequence[str]) -> dict[str, Any]:
    """The counts of prepare.json.

    Args:
        tally: of all parts.
        tasks: their names, in order.
    """
    splits = list(tally.by("patients"))
    rates = {
        split: {
            system: {"events": n, "unknown": tally["unknown", split, system]}
            for system, n in tally.by("events", split).items()
        }
        for split in SPLITS
    }
    return {
        **{name: tally.by(name) for name in ("patients", "stays", "tokens", "records", "visits")},
        "distributions": {
            what: {split: tally.by("distribution", what, split) for split in splits}
            for what in DISTRIBUTIONS
        },
        "unknown_by_system": rates,
        "unfitted_units": {
            split: {"numbers": tally["numbers", split], "unfitted": tally["unfitted", split]}
            for split in splits
        },
        "tasks": {
            task: {
                split: {
                    "examples": tally.by("examples", task, split),
                    "excluded": tally.by("excluded", task, split),
                }
                for split in splits
            }
            for task in tasks
        },
    }
