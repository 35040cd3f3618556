"""What a run may use of the machine: processes that work side by side, and memory."""

import gc
import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from multiprocessing.util import Finalize
from typing import Any

import dill
import pyarrow as pa

from ehrmamba_hf.errors import EHRMambaError, InputError

Run = Callable[..., Iterator[Any]]


@contextmanager
def crew(count: int) -> Iterator[Run]:
    """`run(function, jobs, *common)` gives `function(job, *common)` of each job, in their order.

    Jobs are made a few ahead of the workers and no sooner, so that however many there are, few of
    them lie in memory.

    Args:
        count: processes; with 1, the work is done in this one.

    Raises:
        EHRMambaError: a process was killed, as a system does that runs out of memory.
    """
    if count == 1:
        yield _run_here
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
    pool = ProcessPoolExecutor(count, context, _begin)
    try:
        yield partial(_run_in, pool, count)
    except BrokenProcessPool:
        raise EHRMambaError(
            "a worker process was killed (out of memory?): give fewer workers or less memory, and "
            "run again; what is finished is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep the cyclic garbage collector away.

    It takes up to a quarter of the time, going over the records of thousands of patients again and
    again, of which none is in a cycle.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run_here(function: Callable, jobs: Iterable[Any], *common: Any) -> Iterator[Any]:
    return (function(job, *common) for job in jobs)


def _run_in(
    pool: ProcessPoolExecutor, count: int, function: Callable, jobs: Iterable[Any], *common: Any
) -> Iterator[Any]:
    # Tasks are functions, closures and a user's own among them, which pickle does not take.
    call = partial(_call, dill.dumps((function, common), recurse=True))
    waiting: deque[Future] = deque()
    for job in jobs:
        waiting.append(pool.submit(call, job))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _call(packed: bytes, job: Any) -> Any:
    function, common = _unpacked(packed)
    return function(job, *common)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Any:
    return dill.loads(packed)


def _begin() -> None:
    """A core each, and an end with the parent, for whose next job it would wait for ever."""
    pa.set_cpu_count(1)
    # Python's own end takes the modules apart, of which DuckDB complains on stderr.
    Finalize(None, os._exit, args=(0,), exitpriority=-1)
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
