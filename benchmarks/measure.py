"""What the benchmarks share: cases in processes of their own, asked in turn, and their report.

Every case (an implementation at a shape) lives in a process of its own, so that its peak memory is
its own, and those that are compared are run in turn, round by round, so that a busy machine slows
them alike. Time is CPU time with one thread and wall time with more. Memory is the rise of the
process's resident set above its level before the first call at the full shape, after a call at a
tiny one: what the call needs beside its inputs and the weights. Linux with glibc only.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

PACKAGES = ("ehrmamba-hf", "torch", "transformers", "mambapy")
MIB = 1 << 20
PLAIN, NATIVE = "ours, plain torch", "ours, native"
BFLOAT16 = "ours, native, bfloat16 projections"


@dataclass(frozen=True)
class Case:
    """An implementation at a shape.

    Args:
        implementation: its name in the tables.
        kind: what it does; times are only ever compared within a kind.
        prepare: makes inputs and weights and returns the call to measure, which may return the
            seconds of a part of it (see Run). A function of a module, as it travels by name.
        length: tokens a row.
        batch: rows.
        arguments: more arguments of `prepare`, after `batch` and `length`.
        warm: what replaces them in the tiny call before.
    """

    implementation: str
    kind: str
    prepare: Callable[..., Callable[[], float | None]]
    length: int
    batch: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    warm: dict[str, Any] = field(default_factory=lambda: {"batch": 1, "length": 16})

    def __str__(self) -> str:
        return f"{self.kind}, {self.batch} x {self.length}, {self.implementation}"


@dataclass(frozen=True)
class Run:
    """One call: seconds, those of the part that it told, and the rise of memory in bytes."""

    seconds: float
    part: float | None
    rise: int


class Measurement:
    """The runs of a case, or the reason why there are none."""

    def __init__(self, case: Case, reason: str = "") -> None:
        self.case = case
        self.reason = reason
        self.runs: list[Run] = []

    @property
    def timed(self) -> list[Run]:
        """Without the first, which allocates, where there are others."""
        return self.runs[1:] or self.runs

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(run.seconds for run in self.timed)

    @property
    def part(self) -> float:
        """The median of the part."""
        return statistics.median(run.part or 0.0 for run in self.timed)

    @property
    def mib(self) -> float:
        """Memory of the first call, MiB."""
        return self.runs[0].rise / MIB

    @property
    def spread(self) -> str:
        """Fastest and slowest run, as percentages of the median, and how many runs."""
        values = [run.seconds / self.seconds - 1 for run in self.timed]
        return f"{min(values):+.0%} {max(values):+.0%} of {len(values)}"

    def to_dict(self) -> dict[str, Any]:
        """What goes to the JSON file."""
        case = {name: getattr(self.case, name) for name in ("implementation", "kind")}
        shape = {"batch": self.case.batch, "length": self.case.length}
        return case | shape | {"reason": self.reason, "runs": [asdict(run) for run in self.runs]}


@dataclass(frozen=True)
class Bar:
    """A figure that has to be reached: at least `least`, or at most `most`, or just told.

    None: not measured."""

    text: str
    value: float | None
    least: float = -math.inf
    most: float = math.inf

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured  {self.text}"
        if math.isinf(self.least) and math.isinf(self.most):
            return f"        {self.value:7.2f}  {self.text}"
        verdict = "met    " if self.least <= self.value <= self.most else "NOT MET"
        return f"{verdict} {self.value:7.2f}  {self.text}"


class NoResultError(Exception):
    """A case that gave no result, and why."""


class Worker:
    """A process that holds one case and runs it when asked."""

    def __init__(self, case: Case, threads: int) -> None:
        context = get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case, threads), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self, timeout: float) -> Any:
        """The next thing it says: None once it is ready, then a Run for each `ask`."""
        try:
            if not self._connection.poll(timeout):
                raise NoResultError(f"stopped: no result after {timeout:.0f} s")
            said = self._connection.recv()
        except (EOFError, ConnectionError):
            raise NoResultError("the process died (out of memory?)") from None
        if isinstance(said, NoResultError):
            raise said
        return said

    def ask(self, timeout: float) -> Run:
        """Run once."""
        self._connection.send(True)
        return self.answer(timeout)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.terminate()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, case: Case, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clock = clock_of(threads)
    try:
        choose_backend(case.implementation)
        shape = {"batch": case.batch, "length": case.length, **case.arguments}
        case.prepare(**(shape | case.warm))()
        call = case.prepare(**shape)
        # What the preparation freed goes back to the system, so that its reuse hides nothing.
        ctypes.CDLL(None).malloc_trim(0)
        connection.send(None)
        while connection.recv():
            connection.send(_measured(call, clock))
    except EOFError:
        return
    except NoResultError as error:
        connection.send(error)
    except Exception as error:
        connection.send(NoResultError(f"{type(error).__name__}: {error}"))


def choose_backend(implementation: str) -> None:
    """Have this process run ours in plain torch or in the native library.

    Raises:
        NoResultError: there is no native library, and why.
    """
    os.environ["EHRMAMBA_NATIVE"] = "0" if implementation == PLAIN else "1"
    if implementation in (NATIVE, BFLOAT16):
        from ehrmamba_hf import native

        if reason := native.why_not():
            raise NoResultError(f"no native scan: {reason}")


def _measured(call: Callable[[], float | None], clock: Callable[[], float]) -> Run:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident set so far
    before = _resident("VmRSS")
    start = clock()
    part = call()
    seconds = clock() - start
    return Run(seconds, part, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    """A memory figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


def clock_of(threads: int) -> Callable[[], float]:
    """CPU time is the steadier, but counts every thread."""
    return time.process_time if threads == 1 else time.perf_counter


class Bench:
    """Measures groups of cases and keeps the results.

    Args:
        options: of `parser`: threads, rounds, budget, quick.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.measurements: list[Measurement] = []
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it warns that its kernels are not there
        get_context("forkserver").set_forkserver_preload(["torch", "transformers.modeling_utils"])

    def compare(self, cases: Iterable[Case]) -> None:
        """Run the cases in turn, each as often as its budget allows and `rounds` times at most."""
        contest: list[tuple[Measurement, Worker]] = []
        for case in cases:
            measurement = Measurement(case, self._expected_too_long(case))
            self.measurements.append(measurement)
            if not measurement.reason:
                contest.append((measurement, Worker(case, self.options.threads)))
        try:
            for measurement, worker in contest:
                self._attempt(measurement, worker.answer)
            for _ in range(self.options.rounds + 1):
                for measurement, worker in contest:
                    spent = sum(run.seconds for run in measurement.runs)
                    last = measurement.runs[-1].seconds if measurement.runs else 0.0
                    if not measurement.reason and spent + last <= self.options.budget:
                        self._attempt(measurement, worker.ask)
        finally:
            for measurement, worker in contest:
                worker.stop()
                print(f"{measurement.case}: {_told(measurement)}", file=sys.stderr, flush=True)

    def _attempt(self, measurement: Measurement, do: Callable[[float], Run | None]) -> None:
        try:
            # Generous, as the budget counts the case's own seconds and others may use the machine.
            run = None if measurement.reason else do(3 * self.options.budget)
        except NoResultError as stopped:
            measurement.reason = str(stopped)
            return
        if run:
            measurement.runs.append(run)

    def _expected_too_long(self, case: Case) -> str:
        """The reason to skip a case, told by shorter ones; empty if there is none."""
        same = (case.implementation, case.kind)
        alike = [m for m in self.measurements if (m.case.implementation, m.case.kind) == same]
        shorter = [m for m in alike if m.case.length < case.length]
        known = [(m.case.length, m.seconds / m.case.batch) for m in shorter if m.runs]
        if not known:
            return next((f"as at {m.case.length}: {m.reason}" for m in shorter), "")
        (length, seconds), power = known[-1], 1.0
        if len(known) > 1:
            steps = math.log(length / known[-2][0])
            # Past 2 it is a step that the allocator makes, and not a power that goes on.
            power = min(2.0, max(1.0, math.log(seconds / known[-2][1]) / steps))
        expected = seconds * case.batch * (case.length / length) ** power
        if expected <= self.options.budget:
            return ""
        return (
            f"skipped: {seconds:.1f} s a row at {length}; with the power {power:.1f} of the length "
            f"about {expected:.0f} s here, over the budget of {self.options.budget:.0f} s"
        )

    def find(self, implementation: str, kind: str, length: int, batch: int = 1) -> Measurement:
        """The measurement of a case; one that was never planned has a reason that says so."""
        wanted = (implementation, kind, length, batch)
        for m in self.measurements:
            if (m.case.implementation, m.case.kind, m.case.length, m.case.batch) == wanted:
                return m
        missing = Case(implementation, kind, _nothing, length, batch)
        return Measurement(missing, "not part of this run")

    def report(self, tables: Sequence[Table], bars: Sequence[Bar], notes: Sequence[str]) -> None:
        """Print everything, and write the JSON file if one was asked for."""
        facts = header(self.options.threads)
        console = Console(width=200, highlight=False)
        for name, value in facts.items():
            console.print(f"{name}: {value}", markup=False, soft_wrap=True)
        for table in tables:
            # Not as the table's own title, which would be centred.
            console.print(f"\n{table.title}")
            table.title = None
            console.print(table)
        skipped = [f"{m.case}: {m.reason}" for m in self.measurements if m.reason]
        for title, lines in (("Notes", notes), ("Not measured", skipped), ("Bars", bars)):
            if lines:
                console.print(f"\n{title}\n")
            for line in lines:
                console.print(f"- {line}", markup=False, soft_wrap=True)
        if self.options.json:
            content = {
                "facts": facts,
                "measurements": [m.to_dict() for m in self.measurements],
                "bars": [f"{bar}" for bar in bars],
                "notes": list(notes),
            }
            self.options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _nothing(**_: Any) -> Callable[[], None]:
    return lambda: None


def _told(measurement: Measurement) -> str:
    if not measurement.runs:
        return measurement.reason
    return f"{1000 * measurement.seconds:.1f} ms ({measurement.spread}), {measurement.mib:.0f} MiB"


def ratio(over: Measurement, under: Measurement, what: str = "seconds") -> float | None:
    """How many times more seconds or MiB one needs than the other; None if one was not measured."""
    if not over.runs or not under.runs:
        return None
    return getattr(over, what) / max(getattr(under, what), 1e-9)


def shown(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number for a table; a dash if there is none."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A Markdown table: two columns of names to the left, then figures to the right."""
    result = Table(title=title, box=box.MARKDOWN)
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result


def header(threads: int, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The command, the versions and the machine."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": ", ".join(
            [f"Python {platform.python_version()}"] + [f"{p} {_version(p)}" for p in packages]
        ),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "load average at the end": f"{os.getloadavg()[0]:.2f}",
        "threads": str(threads),
        "time": f"{'CPU' if threads == 1 else 'wall'} time, median of the runs in turn",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def parser(description: str, *, rounds: int, budget: float) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--rounds", type=int, default=rounds, help="runs of a case, at most")
    result.add_argument("--budget", type=float, default=budget, help="seconds a case may take")
    result.add_argument("--quick", action="store_true", help="small shapes: does it run at all?")
    result.add_argument("--json", type=Path, help="write the figures to this file too")
    return result
