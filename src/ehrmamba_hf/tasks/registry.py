"""The tasks that are prepared, finetuned and reported. A new task is one `register` away."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tasks.conditions import (
    FLUID_DISORDERS,
    HYPERTENSION,
    LIPID_DISORDERS,
    extend_group,
)
from ehrmamba_hf.tasks.prospective import (
    LENGTH_OF_STAY,
    MORTALITY,
    READMISSION,
    coded_in_stay,
    condition_task,
)
from ehrmamba_hf.tasks.task import Task

CONDITION_GROUPS = {
    "condition_0": HYPERTENSION,
    "condition_1": FLUID_DISORDERS,
    "condition_2": LIPID_DISORDERS,
}

_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Add a task to those that are prepared, finetuned and reported.

    Raises:
        InputError: its name or its token is another task's.
    """
    for other in _TASKS.values():
        if task.name == other.name or task.token == other.token:
            raise InputError(
                f"task {task.name} {task.token}: expected a name and a token of its own, "
                f"found task {other.name} {other.token}"
            )
    _TASKS[task.name] = task
    return task


def unregister(name: str) -> None:
    """Take a task out again."""
    _TASKS.pop(name, None)


def registered(names: Iterable[str] | None = None) -> list[Task]:
    """The tasks of these names, or all of them, in the order of registration."""
    if names is None:
        return list(_TASKS.values())
    unknown = [name for name in names if name not in _TASKS]
    if unknown:
        raise InputError(f"tasks: expected some of {list(_TASKS)}, found {unknown}")
    return [_TASKS[name] for name in names]


def with_options(
    tasks: Iterable[Task],
    *,
    new_onset: bool = False,
    more_codes: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
) -> list[Task]:
    """The tasks with the condition tasks' options applied.

    Args:
        tasks: tasks to adapt; others than the conditions stay as they are.
        new_onset: leave out stays of patients with an earlier mention of the condition.
        more_codes: task to system to codes, added to the task's group.
    """
    more_codes = more_codes or {}
    unknown = sorted(set(more_codes) - set(CONDITION_GROUPS))
    if unknown:
        raise InputError(f"more codes: expected some of {list(CONDITION_GROUPS)}, found {unknown}")
    result = []
    for task in tasks:
        group = CONDITION_GROUPS.get(task.name)
        if group is not None:
            group = extend_group(group, more_codes.get(task.name, {}))
            task = replace(task, label=coded_in_stay(group, new_onset=new_onset))
        result.append(task)
    return result


for _task in (MORTALITY, LENGTH_OF_STAY, READMISSION):
    register(_task)
for _number, (_name, _group) in enumerate(CONDITION_GROUPS.items()):
    register(condition_task(_name, f"[C{_number}]", _group))
