"""Encounters to visits, as they stood at a moment.

Everything here is a function of what was known at the index time, so an input cannot depend on
what came after it: an encounter that began later does not exist, and the end of one that ended
later is not known.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ehrmamba_hf.timelines.record import DAY, HOUR, Encounter

STAY_CLASSES = frozenset({"IMP", "ACUTE", "NONAC"})
DAY_LONG_STAY_CLASSES = frozenset({"EMER", "OBSENC"})


class VisitRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as an inpatient stay, and what belongs together."""

    stay_classes: frozenset[str] = STAY_CLASSES
    day_long_stay_classes: frozenset[str] = DAY_LONG_STAY_CLASSES
    day_long_hours: float = 24
    transfer_gap_hours: float = 6
    longest_stay_days: float = 366


@dataclass(slots=True)
class Visit:
    """A stay, or other encounters merged. ``end`` is None while it is open or not known."""

    start: int
    end: int | None
    stay: bool
    encounter_ids: set[str] = field(default_factory=set)
    died: bool = False


@dataclass(slots=True)
class _Seen:
    """A root encounter as seen at a moment. `reach`: how far it is known to extend."""

    encounter: Encounter
    end: int | None
    reach: int
    stay: bool


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
    start. Stays of over a year and ends before starts are cut out and counted.

    Args:
        encounters: of one patient, parts among them.
        at: the moment; nothing later is looked at.
        last_reference: time of the last known event that references an encounter, by its id: the
            end of an encounter without one, once a later stay has begun.
        rules: what counts as what.
        counts: is told what was cut out.
    """
    counts = Counter() if counts is None else counts
    members, roots = _roots(encounters, at)
    seen = [s for s in (_seen(r, members, at, rules, counts) for r in roots) if s is not None]
    latest_stay = max((s.encounter.start for s in seen if s.stay), default=at)
    for s in seen:  # an end that is missing in the source, not one that has yet to come
        if s.encounter.end is None and s.encounter.start < latest_stay:
            start = s.encounter.start
            s.end = s.reach = max(start, last_reference.get(s.encounter.encounter_id, start))
            counts["encounter_end_missing"] += 1
    stays = _merge_stays([s for s in seen if s.stay], members, rules)
    others = _merge_others([s for s in seen if not s.stay], stays, members, rules)
    return sorted(stays + others, key=lambda v: (v.start, v.stay))


def _roots(
    encounters: Sequence[Encounter], at: int
) -> tuple[dict[str, list[Encounter]], list[Encounter]]:
    """Group visible encounters under their outermost known parent, in order of start."""
    visible = {e.encounter_id: e for e in encounters if e.start <= at}
    members: dict[str, list[Encounter]] = {}
    for encounter in visible.values():
        root, passed = encounter, {encounter.encounter_id}
        while root.part_of in visible and root.part_of not in passed:
            passed.add(root.part_of)
            root = visible[root.part_of]
        members.setdefault(root.encounter_id, []).append(encounter)
    roots = sorted((visible[i] for i in members), key=lambda e: (e.start, e.encounter_id))
    return members, roots


def _seen(
    root: Encounter,
    members: Mapping[str, list[Encounter]],
    at: int,
    rules: VisitRules,
    counts: Counter[str],
) -> _Seen | None:
    end = root.end if root.end is not None and root.end <= at else None
    if end is not None and end < root.start:
        counts["encounter_ends_before_start"] += 1
        return None
    reach = at if end is None else end
    duration = reach - root.start
    parts = [p for p in members[root.encounter_id] if p is not root]
    stay = (
        root.kind in rules.stay_classes
        or any(p.kind in rules.stay_classes for p in parts)
        or (
            (root.mimic or root.kind in rules.day_long_stay_classes)
            and duration >= rules.day_long_hours * HOUR
        )
    )
    if stay and duration > rules.longest_stay_days * DAY:
        counts["stay_over_a_year" if end is not None else "stay_without_end_over_a_year"] += 1
        return None
    return _Seen(root, end, reach, stay)


def _visit(s: _Seen, members: Mapping[str, list[Encounter]]) -> Visit:
    group = members[s.encounter.encounter_id]
    return Visit(
        s.encounter.start,
        s.end,
        s.stay,
        {e.encounter_id for e in group},
        any(e.died for e in group) if s.end is not None else False,
    )


def _merge_stays(
    seen: Sequence[_Seen], members: Mapping[str, list[Encounter]], rules: VisitRules
) -> list[Visit]:
    stays: list[Visit] = []
    reach = 0
    for s in seen:
        visit = _visit(s, members)
        if stays and s.encounter.start - reach < rules.transfer_gap_hours * HOUR:
            _join(stays[-1], visit)
            reach = max(reach, s.reach)
        else:
            stays.append(visit)
            reach = s.reach
    return stays


def _join(into: Visit, visit: Visit) -> None:
    into.end = None if into.end is None or visit.end is None else max(into.end, visit.end)
    into.encounter_ids |= visit.encounter_ids
    into.died |= visit.died


def _merge_others(
    seen: Sequence[_Seen],
    stays: Sequence[Visit],
    members: Mapping[str, list[Encounter]],
    rules: VisitRules,
) -> list[Visit]:
    others: list[Visit] = []
    reach = 0
    for s in seen:
        visit = _visit(s, members)
        stay = next((v for v in stays if _overlap(v, s)), None)
        if stay is not None:
            stay.encounter_ids |= visit.encounter_ids
            continue
        far = s.reach
        if s.reach - s.encounter.start >= rules.day_long_hours * HOUR:
            visit.end = far = s.encounter.start
        if others and (s.encounter.start < reach or s.encounter.start == others[-1].start):
            _join(others[-1], visit)
            reach = max(reach, far)
        else:
            others.append(visit)
            reach = far
    return others


def _overlap(stay: Visit, s: _Seen) -> bool:
    """Whether an encounter shares time with a stay; touching ends do not, a point inside does."""
    if s.reach == s.encounter.start:
        return stay.start <= s.encounter.start and (stay.end is None or s.reach <= stay.end)
    return s.reach > stay.start and (stay.end is None or s.encounter.start < stay.end)
