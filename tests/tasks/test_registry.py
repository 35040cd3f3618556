"""The registry of tasks."""

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tasks import Task, register, registered, unregister

SIX = ["mortality", "length_of_stay", "readmission", "condition_0", "condition_1", "condition_2"]


def a_task(name: str, token: str) -> Task:
    return Task(name, token, "a task", index=lambda case: 0, label=lambda case, index: False)


def test_the_six_tasks_of_the_paper_are_there_in_order():
    assert [task.name for task in registered()] == SIX
    assert len({task.token for task in registered()}) == 6
    assert [task.name for task in registered(["readmission", "mortality"])] == [SIX[2], SIX[0]]


def test_an_unknown_name_and_a_name_or_token_that_is_taken(request):
    with pytest.raises(InputError, match="mortalty"):
        registered(["mortalty"])
    for task in (a_task("mortality", "[TASK_0]"), a_task("mine", "[MOR]")):
        with pytest.raises(InputError, match="a name and a token of its own"):
            register(task)
    request.addfinalizer(lambda: unregister("mine"))
    register(a_task("mine", "[TASK_0]"))
    assert [task.name for task in registered()] == [*SIX, "mine"]
