"""The six tasks of the paper (section 4.1), asked prospectively.

Every eligible stay gives an index time; choosing only a patient's last stay would be choosing by
the future. Labels are computed from times alone. "Within 30 days" is at most 30 x 24 h, and for a
death known only as a date, at most 30 calendar days after the index date. Exactly 7 days is not
over 7 days.
"""

from collections.abc import Callable
from functools import lru_cache

from ehrmamba_hf.tasks.conditions import CodeGroup
from ehrmamba_hf.tasks.task import Case, Excluded, Task
from ehrmamba_hf.timelines.record import DAY, HOUR

WINDOW_DAYS = 30
LONG_STAY_DAYS = 7


def _end(case: Case) -> int:
    if case.stay.end is None or case.stay.end_is_guess:
        raise Excluded("the stay has no end")
    return case.stay.end


def at_discharge(case: Case) -> int:
    """The end of a stay that the patient left alive.

    A stay with a discharge disposition of death, or whose last day is the day of death or later,
    is an in-hospital death.
    """
    end = _end(case)
    death = case.record.death
    if case.stay.died or (death is not None and end // DAY >= death // DAY):
        raise Excluded("died in hospital")
    return end


def after_24_hours(case: Case) -> int:
    """24 h after a stay's start, where its end is later than that, or has yet to come."""
    index = case.stay.start + 24 * HOUR
    if case.stay.end is not None and _end(case) <= index:
        raise Excluded("the stay ended within 24 hours")
    last_alive = case.record.last_alive
    if last_alive is not None and last_alive < index:  # whatever the stay's end says
        raise Excluded("died within 24 hours")
    return index


def died_within_30_days(case: Case, index: int) -> bool:
    """Death within 30 days of the index time."""
    record = case.record
    if record.death is None:
        if record.deceased:
            raise Excluded("dead without a date")
        return False
    if record.death_is_date:
        return record.death // DAY - index // DAY <= WINDOW_DAYS
    return record.death - index <= WINDOW_DAYS * DAY


def stayed_over_7_days(case: Case, index: int) -> bool:
    """The whole stay, from its start, lasts longer than 7 days."""
    return _end(case) - case.stay.start > LONG_STAY_DAYS * DAY


def readmitted_within_30_days(case: Case, index: int) -> bool:
    """The next stay starts within 30 days of the index time."""
    following = case.next_stay
    return following is not None and following.start - index <= WINDOW_DAYS * DAY


def coded_in_stay(group: CodeGroup, *, new_onset: bool = False) -> Callable[[Case, int], bool]:
    """A diagnosis of the group is coded in the stay: by its encounters' ids, else by its time.

    Args:
        group: the codes.
        new_onset: exclude stays with an earlier mention.
    """

    matches = lru_cache(maxsize=1 << 16)(group.matches)  # the same few codes come again and again

    def label(case: Case, index: int) -> bool:
        stay, end = case.stay, _end(case)
        known = {e.encounter_id for e in case.record.encounters}
        found = earlier = False
        for diagnosis in case.record.diagnoses:
            if not matches(diagnosis.codings):
                continue
            if diagnosis.encounter_id in known:
                inside = diagnosis.encounter_id in stay.encounter_ids
            else:
                inside = stay.start <= diagnosis.time <= end
            found |= inside
            earlier |= not inside and diagnosis.time < stay.start
        if new_onset and earlier:
            raise Excluded("mentioned before")
        return found

    return label


def condition_task(name: str, token: str, group: CodeGroup, *, new_onset: bool = False) -> Task:
    """A task that asks, at 24 h, whether a group of diagnoses will be coded in the stay."""
    label = coded_in_stay(group, new_onset=new_onset)
    return Task(name, token, group.title, after_24_hours, label)


MORTALITY = Task(
    "mortality",
    "[MOR]",
    "Death within 30 days of discharge",
    at_discharge,
    died_within_30_days,
    WINDOW_DAYS,
)
LENGTH_OF_STAY = Task(
    "length_of_stay", "[LOS]", "A stay of over 7 days", after_24_hours, stayed_over_7_days
)
READMISSION = Task(
    "readmission",
    "[REA]",
    "Readmission within 30 days of discharge",
    at_discharge,
    readmitted_within_30_days,
    WINDOW_DAYS,
)
