"""Tasks that work differently are told apart, and the same ones never are."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType
from typing import Any

import pytest

from ehrmamba_hf.corpus.identity import identity_of
from ehrmamba_hf.corpus.parts import key_of
from ehrmamba_hf.tasks import registered, with_options

SOURCE = """
DAYS = 30
def soon(days): return days < DAYS
class Over:
    def __init__(self, days): self.days = days
    def __call__(self, days): return days > self.days
def label(days, *, most=7):
    return soon(days) or any(days == d for d in {"a", "b", "c"}) or days > most
over = Over(7)
def again(days): return again(days - 1) if days else 0
"""


def made(source: str, name: str = "label") -> Any:
    known: dict[str, Any] = {"__name__": "own_tasks"}
    exec(source, known)
    return known[name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("label", ("days > most", "days < most")),
        ("label", ("most=7", "most=8")),
        ("label", ("DAYS = 30", "DAYS = 31")),
        ("label", ("days < DAYS", "days <= DAYS")),
        ("label", ('"c"', '"d"')),
        ("over", ("Over(7)", "Over(8)")),
        ("over", ("days > self", "days < self")),
        ("again", ("days - 1", "days - 2")),
    ],
)
def test_what_a_function_does_counts_and_nothing_else(name: str, change: tuple[str, str]) -> None:
    first = key_of(identity_of(made(SOURCE, name)))
    assert key_of(identity_of(made("# a comment\n" + SOURCE, name))) == first
    assert key_of(identity_of(made(SOURCE.replace(*change), name))) != first


def test_what_a_function_closes_over_counts() -> None:
    def after(days: object) -> Callable[[int], bool]:
        return lambda index: index == days

    @dataclass(frozen=True)
    class Rule:
        days: int

    values = [7, 7.0, "7", [7], {7: "7"}, Rule(7), Rule(8), partial(max, 7), partial(max, 8)]
    keys = [key_of(identity_of(after(value))) for value in values]
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(identity_of(after(value))) for value in values]


def test_tasks_of_the_package_are_the_same_in_every_process() -> None:
    code = (
        "from ehrmamba_hf.corpus.identity import identity_of\n"
        "from ehrmamba_hf.corpus.parts import key_of\n"
        "from ehrmamba_hf.tasks import registered\n"
        "print(key_of([identity_of(task) for task in registered()]))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    tasks = registered()
    assert found == key_of([identity_of(task) for task in tasks])
    others = with_options(tasks, new_onset=True)
    assert [identity_of(a) == identity_of(b) for a, b in zip(tasks, others, strict=True)] == [
        *[True] * 3,
        *[False] * 3,
    ]
    assert isinstance(tasks[0].label, FunctionType)
    changed = replace(tasks[0], label=lambda case, index: True)
    assert identity_of(changed) != identity_of(tasks[0])
