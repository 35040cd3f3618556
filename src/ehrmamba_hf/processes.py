"""What a run may use of the machine: processes that work side by side, and memory."""

import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ehrmamba_hf.errors import EHRMambaError, InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


def results(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """What a function gives for each job, as they finish.

    Jobs are made one ahead of the workers and no sooner, so that however many there are, few of
    them lie in memory. With one worker everything happens in this process.

    Args:
        function: of a module, or a `functools.partial` of one: it travels by name.
        jobs: its arguments.
        workers: how many processes.

    Raises:
        EHRMambaError: a worker was killed, as a system does that runs out of memory.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        waiting: set[Future[Result]] = set()
        try:
            for job in jobs:
                waiting.add(pool.submit(function, job))
                if len(waiting) > workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise EHRMambaError(
                "a worker process was killed (out of memory?): give fewer workers or less memory, "
                "and run again; what is finished is kept"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for its next job for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_count(workers: int | None) -> int:
    """How many workers to use: one for each CPU that this process may use by default.

    Raises:
        InputError: fewer than one.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    return workers


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LEAST = 10**9


def memory_bytes(text: str) -> int:
    """Bytes of an amount such as 4GB.

    Raises:
        InputError: not an amount, or under 1 GB.

    >>> memory_bytes("4GB"), memory_bytes("1.5 gb")
    (4000000000, 1500000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", text.strip().upper())
    amount = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if amount < _LEAST:
        raise InputError(f"memory: expected an amount of at least 1GB, such as 4GB, found {text!r}")
    return amount
