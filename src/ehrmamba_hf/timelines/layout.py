"""The timelines of many patients and index times at once, as arrays.

`lay_out` gives for a whole batch what `timeline` and `stays_of` give of one record: what they work
out an event at a time is a column here. Those two are the definition; a test holds this to them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ehrmamba_hf.timelines.record import DAY, NEVER, Record
from ehrmamba_hf.timelines.timeline import FAR
from ehrmamba_hf.timelines.visits import Visit, VisitRules, build_visits

WAYS = (
    "inside_a_visit",
    "before_the_encounter_it_references",
    "before_the_next_stay",
    "implicit_visit",
)
"""How events find their visits, as `timeline` counts it."""


@dataclass(slots=True)
class Batch:
    """The events of some records end to end; `first` is where each one's begin, and their end."""

    records: Sequence[Record]
    time: np.ndarray
    available: np.ndarray
    encounter: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Batch":
        """Put the events of records end to end."""
        none = [np.empty(0, dtype=np.int64)]
        return cls(
            records,
            np.concatenate([r.time for r in records] or none),
            np.concatenate([r.available for r in records] or none),
            np.concatenate([r.encounter for r in records] or none),
            offsets([len(r.time) for r in records]),
        )


@dataclass(slots=True)
class View:
    """A record, by its position in the batch, as it stood at an index time; None: the whole."""

    record: int
    at: int | None = None


@dataclass(slots=True)
class Layout:
    """The visits that some views show, end to end, and the events of each.

    Attributes:
        visits: of each view, all that its encounters make, those without events too; none where
            it shows no event, unless it is of a whole record.
        ways: (views, ways), how many events found their visits how; see WAYS.
        earliest: of each view, the time of the first event that it shows; 0 where it shows none.
        view: of each visit with events, the view that shows it: in order, and then in order of
            the visits.
        start, end: of each such visit; `FAR` as the end of an open one.
        first: of each such visit, where its events begin in `events`; and their number at the end.
        events: the events shown, visit by visit, as positions in the batch.
    """

    visits: list[list[Visit]]
    ways: np.ndarray
    earliest: np.ndarray
    view: np.ndarray
    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    events: np.ndarray


@dataclass(slots=True)
class _Visits:
    """The visits of views end to end: those of a view from `first` on, with a sentinel at the end.

    `of_encounter` has, for each encounter of each view (from `first_encounter` on), the number of
    its visit within the view, or -1.
    """

    start: np.ndarray
    end: np.ndarray
    stay: np.ndarray
    first: np.ndarray
    of_encounter: np.ndarray
    first_encounter: np.ndarray


def offsets(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of some runs begins that lie end to end, and where the last ends.

    >>> offsets([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def spans(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its size, end to end.

    >>> spans(np.array([5, 1]), np.array([2, 3])).tolist()
    [5, 6, 1, 2, 3]
    """
    first = offsets(sizes)
    return np.arange(first[-1]) + np.repeat(starts - first[:-1], sizes)


def lay_out(
    batch: Batch,
    views: Sequence[View],
    rules: VisitRules,
    counts: Counter[str] | None = None,
) -> Layout:
    """The timelines of views; see `timeline` for the rules.

    Args:
        batch: the records.
        views: in any order, several of a record if need be.
        rules: what counts as a visit.
        counts: is told what was cut out of the visits.
    """
    rows, view = _shown(batch, views)
    visits = _visits_of(batch, views, rows, view, rules, counts)
    flat = _flat(batch, views, visits)
    time = batch.time[rows]
    holder, owner, way = _place(batch, flat, rows, view, time)
    ways = np.bincount(view * len(WAYS) + way, minlength=len(views) * len(WAYS))
    earliest = np.zeros(len(views), dtype=np.int64)
    earliest[view[::-1]] = time[::-1]
    # The gap before the first visit is slot 0, that visit slot 1, the gap after it slot 2 ...
    slot = np.where(owner < 0, 2 * holder + 2, 2 * owner + 1)
    day = np.where(owner < 0, time // DAY, 0)
    # An event before its visit's start can come before one that keeps to the gap, so that times
    # alone would cut the visit in two.
    order = np.lexsort((day, slot, view))
    changes = np.ones(len(order), dtype=bool)
    changes[1:] = False
    for key in (view, slot, day):
        changes[1:] |= np.diff(key[order]) != 0
    begin = np.flatnonzero(changes)
    first = np.append(begin, len(order))
    leading, closing = order[begin], order[first[1:] - 1]
    number = flat.first[view[leading]] + owner[leading]
    implicit = owner[leading] < 0
    return Layout(
        visits=visits,
        ways=ways.reshape(len(views), len(WAYS)),
        earliest=earliest,
        view=view[leading],
        start=np.where(implicit, time[leading], flat.start[number]),
        end=np.where(implicit, time[closing], flat.end[number]),
        first=first,
        events=rows[order],
    )


def _shown(batch: Batch, views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """The events known at each view's time, as positions in the batch, and the view of each."""
    record = np.array([v.record for v in views], dtype=np.int64)
    at = np.array([NEVER if v.at is None else v.at for v in views], dtype=np.int64)
    sizes = np.diff(batch.first)[record]
    rows = spans(batch.first[record], sizes)
    view = np.repeat(np.arange(len(views)), sizes)
    if (at == NEVER).all():
        return rows, view
    moment = at[view]
    known = (batch.available[rows] <= moment) & (batch.time[rows] <= moment)
    return rows[known], view[known]


def _visits_of(
    batch: Batch,
    views: Sequence[View],
    rows: np.ndarray,
    view: np.ndarray,
    rules: VisitRules,
    counts: Counter[str] | None,
) -> list[list[Visit]]:
    """The visits that the encounters of each view make."""
    records = [batch.records[v.record] for v in views]
    first = offsets([len(r.encounters) for r in records])
    last = np.full(first[-1], np.iinfo(np.int64).min)
    encounter = batch.encounter[rows]
    known = encounter >= 0
    np.maximum.at(last, first[view[known]] + encounter[known], batch.time[rows[known]])
    latest, cuts = last.tolist(), first.tolist()
    shows = np.bincount(view, minlength=len(views)).tolist()
    found: list[list[Visit]] = []
    for i, (v, record) in enumerate(zip(views, records, strict=True)):
        if v.at is not None and not shows[i]:
            found.append([])
            continue
        # The whole record: its last moment is now.
        at = (record.last_time or 0) if v.at is None else v.at
        ids = [e.encounter_id for e in record.encounters]
        references = dict(zip(ids, latest[cuts[i] : cuts[i + 1]], strict=True))
        found.append(build_visits(record.encounters, at, references, rules, counts))
    return found


def _flat(batch: Batch, views: Sequence[View], visits: list[list[Visit]]) -> _Visits:
    every = [v for own in visits for v in own]
    of_encounter: list[int] = []
    sizes = []
    for view, own in zip(views, visits, strict=True):
        owner = {i: k for k, v in enumerate(own) for i in v.encounter_ids}
        encounters = batch.records[view.record].encounters
        of_encounter += [owner.get(e.encounter_id, -1) for e in encounters]
        sizes.append(len(encounters))
    return _Visits(
        start=np.array([*(v.start for v in every), FAR], dtype=np.int64),
        end=np.array([*(FAR if v.end is None else v.end for v in every), FAR], dtype=np.int64),
        stay=np.array([*(v.stay for v in every), False]),
        first=offsets([len(own) for own in visits]),
        of_encounter=np.array([*of_encounter, -1], dtype=np.int64),
        first_encounter=offsets(sizes),
    )


def _place(
    batch: Batch, visits: _Visits, rows: np.ndarray, view: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each event the last visit begun by then, the visit it belongs to (-1: none), its way."""
    holder = np.empty(len(rows), dtype=np.int64)
    events = offsets(np.bincount(view, minlength=len(visits.first) - 1)).tolist()
    bounds = visits.first.tolist()
    for i in range(len(bounds) - 1):
        own = visits.start[bounds[i] : bounds[i + 1]]
        low, high = events[i], events[i + 1]
        holder[low:high] = own.searchsorted(time[low:high], side="right")
    holder -= 1
    held = visits.first[view] + holder
    inside = (holder >= 0) & (time <= visits.end[held])
    last = held + 1 == visits.first[view + 1]
    near = ~inside & ~last & (visits.start[held + 1] - time <= DAY)
    encounter = batch.encounter[rows]
    of_encounter = visits.of_encounter[visits.first_encounter[view] + encounter]
    referenced = near & (encounter >= 0) & (of_encounter == holder + 1)
    before_stay = near & ~referenced & visits.stay[held + 1]
    way = np.select([inside, referenced, before_stay], [0, 1, 2], 3)
    owner = np.where(inside, holder, np.where(way < 3, holder + 1, -1))
    return holder, owner, way
