"""What a task is: a token, an index time and a label for a stay, and the reasons for neither."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ehrmamba_hf.timelines.record import DAY, Record
from ehrmamba_hf.timelines.visits import Visit

MIN_CASES: Final = 20
"""Fewer examples than this of either outcome in the test split, and a task is not judged."""


@dataclass(frozen=True, slots=True)
class Case:
    """One stay of a patient, asked for an index time and a label."""

    record: Record
    stays: Sequence[Visit]
    position: int

    @property
    def stay(self) -> Visit:
        return self.stays[self.position]

    @property
    def next_stay(self) -> Visit | None:
        following = self.position + 1
        return self.stays[following] if following < len(self.stays) else None


class Excluded(Exception):  # noqa: N818 (not an error: a stay that is no part of a cohort)
    """A stay has no index time or no label for a task; the text is the reason, as it is counted."""


@dataclass(frozen=True, slots=True)
class Task:
    """A binary clinical prediction task.

    Attributes:
        name: as in the label table.
        token: the special token that prompts for it, one of the grammar's task tokens.
        title: what it predicts, for reports.
        index: the index time of a stay, in microseconds; raises `Excluded`.
        label: the label of a stay at an index time; raises `Excluded`.
        follow_up_days: days after the index time that must be observed, outcome seen or not.
    """

    name: str
    token: str
    title: str
    index: Callable[[Case], int]
    label: Callable[[Case, int], bool]
    follow_up_days: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled index time."""

    task: str
    prediction_time: int
    label: bool


def label_stays(
    record: Record,
    stays: Sequence[Visit],
    task: Task,
    follow_up_end: int | None,
    excluded: Counter[str],
) -> Iterator[Example]:
    """Every example that a patient gives for a task; every other stay is counted by its reason.

    Args:
        record: the patient.
        stays: all inpatient stays of the record, in order.
        task: the task.
        follow_up_end: the last moment of which the source tells, in microseconds; None where
            follow-up is complete.
        excluded: told the reason of every stay that gives no example.
    """
    for position in range(len(stays)):
        case = Case(record, stays, position)
        try:
            index = task.index(case)
            if follow_up_end is not None and index + task.follow_up_days * DAY > follow_up_end:
                raise Excluded(f"under {task.follow_up_days} days of follow-up")
            label = task.label(case, index)
        except Excluded as reason:
            excluded[str(reason)] += 1
        else:
            yield Example(task.name, index, label)
