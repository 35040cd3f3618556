"""One patient's record: encounters and events on one time axis.

Times are int64 microseconds of the hospital's wall clock since 1970-01-01, as in the event table.
"""

from dataclasses import dataclass, field

import numpy as np

NEVER = np.iinfo(np.int64).max  # stands for "not known yet" in `available`
MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def last_alive(death: int | None, death_is_date: bool) -> int | None:
    """The moment of a death, or the last one of its day where the hour is not known.

    >>> last_alive(DAY, death_is_date=True) == 2 * DAY - 1
    True
    """
    if death is None or not death_is_date:
        return death
    return (death // DAY + 1) * DAY - 1


@dataclass(slots=True, frozen=True)
class Encounter:
    """An encounter as the source has it. ``end`` is None where the source gives none."""

    encounter_id: str
    start: int
    end: int | None
    kind: str  # Encounter.class: IMP, AMB, EMER ...
    part_of: str | None = None
    died: bool = False  # the discharge disposition says so
    mimic: bool = False


@dataclass(slots=True, frozen=True)
class Diagnosis:
    """A coded condition: all its codings as ``SYSTEM/code``."""

    time: int
    encounter_id: str | None
    codings: tuple[str, ...]


@dataclass(slots=True)
class Record:
    """What is known of one patient; whatever lies after death is already cut out.

    The event arrays have one entry per event that may become a token, sorted by time, category,
    code, value and source id. `available` is when it could have been known (`NEVER`: not yet).
    `encounter` is the index in `encounters` of the one that it references, or -1.
    """

    subject_id: int
    birth: int | None
    death: int | None
    death_is_date: bool
    deceased: bool
    encounters: list[Encounter]
    diagnoses: list[Diagnosis]
    time: np.ndarray
    available: np.ndarray
    encounter: np.ndarray
    code: list[str]
    value: np.ndarray  # float64, NaN where there is none
    unit: list[str | None]
    category: list[str]
    counts: dict[str, int] = field(default_factory=dict)  # what was cut out, by reason

    @property
    def last_alive(self) -> int | None:
        """The last moment at which the patient may have lived; None without a dated death."""
        return last_alive(self.death, self.death_is_date)

    @property
    def last_time(self) -> int | None:
        """The latest moment of which the record says anything."""
        moments = [e.start for e in self.encounters]
        moments += [e.end for e in self.encounters if e.end is not None]
        moments += self.time[-1:].tolist()
        known = self.available[self.available != NEVER]
        moments += [int(known.max())] if len(known) else []
        return max(moments, default=None)
