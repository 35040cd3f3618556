"""Processes side by side: all results, few jobs in memory, and a clear end where one is killed."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ehrmamba_hf.errors import EHRMambaError, InputError
from ehrmamba_hf.processes import crew, memory_bytes, no_collector, worker_count


def doubled(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_gives_its_result(workers):
    with crew(workers) as run:
        assert list(run(doubled, range(20))) == list(range(0, 40, 2))
        assert list(run(lambda a, b: a + b, [1, 2], 10)) == [11, 12]
        assert list(run(doubled, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_are_made_as_they_are_needed(workers):
    made = 0

    def jobs() -> Iterator[int]:
        nonlocal made
        for number in range(50):
            made += 1
            yield number

    with crew(workers) as run:
        for done, _ in enumerate(run(doubled, jobs()), start=1):
            assert made <= done + 2 * workers


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    with pytest.raises(EHRMambaError, match=r"killed .* fewer workers"), crew(2) as run:
        list(run(doubled, [1, -1, 2]))


ORPHANS = """
import os, time
from ehrmamba_hf.processes import crew

def pid(_):
    return os.getpid()

if __name__ == "__main__":
    with crew(2) as run:
        for found in run(pid, range(100)):
            print(found, flush=True)
            time.sleep(0.5)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        time.sleep(0.1)
        try:
            state = Path(f"/proc/{worker}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":  # ended, and nobody has asked how
            return
    pytest.fail("a worker is still there 10 s after its parent was killed")


@pytest.mark.parametrize("text", ["", "4", "4 gigabytes", "-1GB", "10MB", "GB"])
def test_an_amount_of_memory_that_is_none(text):
    with pytest.raises(InputError, match="memory"):
        memory_bytes(text)


def test_workers():
    assert worker_count(3) == 3
    assert worker_count(None) >= 1
    with pytest.raises(InputError, match="workers"):
        worker_count(0)


def test_the_collector_comes_back_even_after_a_fault_and_stays_away_where_it_was():
    assert gc.isenabled()
    with pytest.raises(ValueError, match="a fault"), no_collector():
        assert not gc.isenabled()
        raise ValueError("a fault")
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
