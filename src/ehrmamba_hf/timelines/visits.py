"""Encounters to visits, as they stood at a moment.

Everything here is a function of what was known at the index time, so an input cannot depend on
what came after it: an encounter that began later does not exist, and the end of one that ended
later is not known.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.timelines.record import DAY, HOUR, NEVER, Encounter

STAY_CLASSES = frozenset({"IMP", "ACUTE", "NONAC"})
DAY_LONG_STAY_CLASSES = frozenset({"EMER", "OBSENC"})
_MERGED = ("encounter_parts_joined", "stays_merged", "encounters_absorbed", "encounters_merged")


class VisitRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as an inpatient stay, and what belongs together."""

    stay_classes: frozenset[str] = STAY_CLASSES
    day_long_stay_classes: frozenset[str] = DAY_LONG_STAY_CLASSES
    day_long_hours: float = 24
    transfer_gap_hours: float = 6
    longest_stay_days: float = 366

    def __post_init__(self) -> None:
        """Raises InputError for a length of time under 0."""
        for name in ("day_long_hours", "transfer_gap_hours", "longest_stay_days"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"visits: {name}: expected at least 0, found {value}")


@dataclass(slots=True)
class Visit:
    """A stay, or other encounters merged.

    ``end`` is None while the visit is open. Where none is known although a later stay has begun
    (or a year has passed), it is a guess: good for placing events, not for an index time or label.
    """

    start: int
    end: int | None
    stay: bool
    encounter_ids: set[str] = field(default_factory=set)
    died: bool = False
    end_is_guess: bool = False


@dataclass(slots=True)
class _Seen:
    """A root encounter as seen at a moment, with its parts. `reach`: how far it is known to go."""

    visit: Visit
    reach: int

    @property
    def length(self) -> int:
        return self.reach - self.visit.start


def build_visits(
    encounters: Sequence[Encounter],
    at: int,
    last_reference: Mapping[str, int],
    rules: VisitRules,
    counts: Counter[str] | None = None,
) -> list[Visit]:
    """The visits that the encounters make, as known at a moment, in order; they never overlap.

    Inpatient stays that overlap, or whose gap is under 6 h, are one stay. Other encounters never
    merge with a stay: one that overlaps a stay is absorbed without moving its ends; others that
    overlap each other merge if each is under 24 h, and a longer one counts as a point at its
    start. Stays of over a year and ends before starts are cut out. All of it is counted, by
    encounters: a part joins its parent, and a family is one.

    Args:
        encounters: of one patient, parts among them.
        at: the moment; nothing later is looked at.
        last_reference: time of the last known event that references an encounter, by its id: the
            guessed end of an encounter without a known one, once a later stay has begun.
        rules: what counts as what.
        counts: is told what was cut out, joined and merged.
    """
    counts = Counter() if counts is None else counts
    counts.update(dict.fromkeys(_MERGED, 0))  # none is told, too
    stays: list[_Seen] = []
    others: list[_Seen] = []
    # Backwards, since it takes a later stay to tell that an encounter without an end is over.
    for root, parts in reversed(_families(encounters, at, counts)):
        counts["encounter_parts_joined"] += len(parts)
        superseded = bool(stays) and root.start < stays[0].visit.start
        seen = _look(root, parts, at, superseded, last_reference, rules)
        if seen.visit.end_is_guess and root.end is None:
            counts["encounter_end_missing"] += 1
        if not seen.visit.stay:
            others.append(seen)
        elif seen.length <= rules.longest_stay_days * DAY:
            stays.append(seen)
        else:
            counts["stay_over_a_year"] += 1
    visits = _merge_stays(stays[::-1], rules)
    counts["stays_merged"] += len(stays) - len(visits)
    visits += _merge_others(others[::-1], visits, counts)
    return sorted(visits, key=lambda v: (v.start, v.stay))


def _families(
    encounters: Sequence[Encounter], at: int, counts: Counter[str]
) -> list[tuple[Encounter, list[Encounter]]]:
    """Each outermost encounter that has begun, in order of start, with the parts inside it."""
    visible: dict[str, Encounter] = {}
    for encounter in encounters:
        if encounter.end is not None and encounter.end < encounter.start <= at:
            counts["encounter_ends_before_start"] += 1
        elif encounter.start <= at:
            visible[encounter.encounter_id] = encounter
    parts: dict[str, list[Encounter]] = {}
    for encounter in visible.values():
        root = _outermost(encounter, visible) if encounter.part_of in visible else encounter
        within = parts.setdefault(root.encounter_id, [])
        if encounter is not root:
            within.append(encounter)
    return sorted(((visible[i], p) for i, p in parts.items()), key=lambda family: _order(family[0]))


def _order(encounter: Encounter) -> tuple[int, str]:
    return encounter.start, encounter.encounter_id


def _outermost(encounter: Encounter, visible: Mapping[str, Encounter]) -> Encounter:
    """The last known parent; of parents in a circle, the first to begin."""
    chain = [encounter]
    while (parent := visible.get(chain[-1].part_of or "")) is not None:
        if parent in chain:
            return min(chain[chain.index(parent) :], key=_order)
        chain.append(parent)
    return chain[-1]


def _look(
    root: Encounter,
    parts: Sequence[Encounter],
    at: int,
    superseded: bool,
    last_reference: Mapping[str, int],
    rules: VisitRules,
) -> _Seen:
    """An encounter as known at the moment: its end, how far it goes, and whether it is a stay.

    An end that has yet to come and an end that never will be written look the same at the moment,
    and are taken the same, or else a view would tell of its future.
    """
    family = (root, *parts)
    end = root.end if root.end is not None and root.end <= at else None
    guess = end is None and (superseded or at - root.start > rules.longest_stay_days * DAY)
    if guess:
        end = max(root.start, *(last_reference.get(e.encounter_id, root.start) for e in family))
    reach = at if end is None else end
    a_day = reach - root.start >= rules.day_long_hours * HOUR
    stay = not rules.stay_classes.isdisjoint([e.kind for e in family]) or (
        a_day and (root.mimic or root.kind in rules.day_long_stay_classes)
    )
    if a_day and not stay:
        end = reach = root.start
    ids = {e.encounter_id for e in family}
    died = end is not None and True in [e.died for e in family]
    return _Seen(Visit(root.start, end, stay, ids, died, guess), reach)


def _merge_stays(seen: Sequence[_Seen], rules: VisitRules) -> list[Visit]:
    stays: list[Visit] = []
    reach = 0
    for s in seen:
        if stays and s.visit.start - reach < rules.transfer_gap_hours * HOUR:
            _join(stays[-1], s.visit)
            reach = max(reach, s.reach)
        else:
            stays.append(s.visit)
            reach = s.reach
    return stays


def _join(into: Visit, visit: Visit) -> None:
    into.end = None if into.end is None or visit.end is None else max(into.end, visit.end)
    into.encounter_ids |= visit.encounter_ids
    into.died |= visit.died
    into.end_is_guess |= visit.end_is_guess


def _merge_others(
    seen: Sequence[_Seen], stays: Sequence[Visit], counts: Counter[str]
) -> list[Visit]:
    others: list[Visit] = []
    reach = 0
    ends = [NEVER if v.end is None else v.end for v in stays]  # ascending, as stays never overlap
    for s in seen:
        stay = _overlapped(s, stays, ends)
        if stay is not None:
            stay.encounter_ids |= s.visit.encounter_ids
            counts["encounters_absorbed"] += 1
        elif others and (s.visit.start < reach or s.visit.start == others[-1].start):
            _join(others[-1], s.visit)
            counts["encounters_merged"] += 1
            reach = max(reach, s.reach)
        else:
            others.append(s.visit)
            reach = s.reach
    return others


def _overlapped(s: _Seen, stays: Sequence[Visit], ends: Sequence[int]) -> Visit | None:
    """The first stay that an encounter shares time with."""
    for position in range(bisect_left(ends, s.visit.start), len(stays)):
        if stays[position].start > s.reach:
            return None
        if _overlap(stays[position], s):
            return stays[position]
    return None


def _overlap(stay: Visit, s: _Seen) -> bool:
    """Whether an encounter shares time with a stay; touching ends do not, a point inside does."""
    start, end = s.visit.start, NEVER if stay.end is None else stay.end
    if not s.length:
        return stay.start <= start <= end
    return stay.start < s.reach and start < max(end, stay.start + 1)
