"""Events to visits: which events a sequence shows at an index time, visit by visit."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ehrmamba_hf.timelines.record import DAY, NEVER, Record
from ehrmamba_hf.timelines.visits import Visit, VisitRules, build_visits

DEFAULT_RULES = VisitRules()
FAR = NEVER // 2  # after every time, and still far from overflow when a time is taken from it


@dataclass(slots=True)
class TimelineVisit:
    """A visit with at least one event; ``events`` are positions in the record's arrays."""

    start: int
    end: int | None
    events: np.ndarray


def stays_of(
    record: Record,
    rules: VisitRules = DEFAULT_RULES,
    counts: Counter[str] | None = None,
    at: int = NEVER,
) -> list[Visit]:
    """All inpatient stays as known at a moment (the whole record by default), in order.

    Stays without any event are among them.
    """
    return [v for v in _visits(record, at, _shown(record, at), rules, counts) if v.stay]


def timeline(
    record: Record,
    at: int | None = None,
    rules: VisitRules = DEFAULT_RULES,
    counts: Counter[str] | None = None,
) -> list[TimelineVisit]:
    """The visits that an input shows, in order, each with its events.

    An event belongs to the visit whose time holds it; else to the encounter that it references,
    or the next stay, if it lies within 24 h before that one's start and after the previous
    visit's end; else to an implicit visit of its calendar day. Visits without events are left out.

    Args:
        record: the patient.
        at: the index time: only events available by then, encounters begun by then, and ends
            passed by then are looked at. None: the whole record.
        rules: what counts as a visit.
        counts: is told how events found their visits.
    """
    at = NEVER if at is None else at
    shown = _shown(record, at)
    if not len(shown):
        return []
    visits = _visits(record, at, shown, rules, counts)
    time = record.time[shown]
    visit, gap, ways = _place(record, visits, shown, time)
    if counts is not None:
        counts.update(ways)
    # The gap before the first visit is slot 0, that visit slot 1, the gap after it slot 2 ...
    slot = np.where(visit < 0, 2 * gap + 2, 2 * visit + 1)
    day = np.where(visit < 0, time // DAY, 0)
    # An event before its visit's start can come before one that keeps to the gap, so that times
    # alone would cut the visit in two.
    order = np.lexsort((day, slot))
    key = np.stack((slot, day))[:, order]
    cuts = np.flatnonzero((key[:, 1:] != key[:, :-1]).any(axis=0)) + 1
    result = []
    for events in np.split(order, cuts):
        index = int(visit[events[0]])
        if index >= 0:
            start, end = visits[index].start, visits[index].end
        else:
            start, end = int(time[events[0]]), int(time[events[-1]])
        result.append(TimelineVisit(start, end, shown[events]))
    return result


def _shown(record: Record, at: int) -> np.ndarray:
    """The positions of the events known at a moment; of all events at NEVER."""
    if at == NEVER:
        return np.arange(len(record.time))
    return np.flatnonzero((record.available <= at) & (record.time <= at))


def _visits(
    record: Record, at: int, shown: np.ndarray, rules: VisitRules, counts: Counter[str] | None
) -> list[Visit]:
    if at == NEVER:  # the whole record: its last moment is now
        at = record.last_time or 0
    last = np.full(len(record.encounters) + 1, np.iinfo(np.int64).min)  # -1: no encounter
    np.maximum.at(last, record.encounter[shown], record.time[shown])
    references = {e.encounter_id: int(t) for e, t in zip(record.encounters, last, strict=False)}
    return build_visits(record.encounters, at, references, rules, counts)


def _place(
    record: Record, visits: list[Visit], shown: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The visit of each event (-1: none), the gap between visits it lies in, and a count."""
    starts = np.array([v.start for v in visits] + [FAR], dtype=np.int64)
    ends = np.array([FAR if v.end is None else v.end for v in visits], dtype=np.int64)
    stay = np.array([v.stay for v in visits] + [False])
    holder = np.searchsorted(starts[:-1], time, side="right") - 1
    inside = (holder >= 0) & (time <= ends[holder] if len(visits) else False)
    following = holder + 1
    owner = {i: k for k, v in enumerate(visits) for i in v.encounter_ids}
    of_encounter = np.array([owner.get(e.encounter_id, -1) for e in record.encounters] + [-1])
    near = ~inside & (starts[following] - time <= DAY)
    referenced = near & (of_encounter[record.encounter[shown]] == following)
    before_stay = near & ~referenced & stay[following]
    visit = np.where(inside, holder, np.where(referenced | before_stay, following, -1))
    ways = {
        "inside_a_visit": int(inside.sum()),
        "before_the_encounter_it_references": int(referenced.sum()),
        "before_the_next_stay": int(before_stay.sum()),
        "implicit_visit": int((visit < 0).sum()),
    }
    return visit, holder, ways
