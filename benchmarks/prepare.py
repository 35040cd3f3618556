"""Events to Arrow: rate and memory of `prepare`, and what they mean for all of MIMIC-IV.

The synthetic hospital is written and ingested on the fly. Every run is a process of its own, in
turn with the others, timed from the call of `prepare` to the finished folder: bins, vocabulary,
labels, sequences and saving, all but the import of the libraries (a pool's processes import them
within that time; under a million events there is no pool). The figures are medians; those of a
core are of CPU time, as other programs may be at work. The rate counts the events of the wanted
categories alone; a case that reads all events and wants none tells what the others take. Memory is
the resident set of a run's processes together, sampled.

    python benchmarks/prepare.py [--quick]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from measure import Bar, header, shown, table
from rich.console import Console

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
from ehrmamba_hf.events.table import data_files
from ehrmamba_hf.simulation import simulate
from ehrmamba_hf.timelines.load import RECORD_COLUMNS, of_categories
from ehrmamba_hf.timelines.shards import iter_shard
from ehrmamba_hf.tokenization.counting import FITTED_COLUMNS

PACKAGES = ("ehrmamba-hf", "pyarrow", "numpy", "duckdb", "datasets")
BAR = 200  # thousand events a second of a core

# MIMIC-IV 2.1 has 431,088 admissions. Rows of its tables, as mimic-code checks that it was loaded:
# https://github.com/MIT-LCP/mimic-code/blob/main/mimic-iv/buildmimic/postgres/validate.sql
MIMIC_WANTED = {
    "labevents": 118_057_948,
    "prescriptions": 15_399_811,
    "procedures_icd": 668_993,
    "procedureevents": 696_191,
}
MIMIC_OTHERS = {
    "chartevents": 314_035_266,
    "emar": 26_743_071,
    "inputevents": 8_989_135,
    "datetimeevents": 7_117_467,
    "diagnoses_icd": 4_752_265,
    "outputevents": 4_234_697,
    "microbiologyevents": 3_223_345,
}
PEER = (
    "Beside it: the MEDS route's own ETL reports 32 minutes and 20.3 GB, from the raw files of "
    "MIMIC-IV 3.1 to MEDS (https://github.com/Medical-Event-Data-Standard/MIMIC_IV_MEDS/pull/69)"
)


class Case(NamedTuple):
    """A hospital, how many processes work, and whether any of its events are wanted."""

    patients: int
    workers: int
    wanted: bool = True


@dataclass
class Runs:
    """What the rounds of a case measured."""

    wanted: int  # events
    others: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # seconds of all its processes
    memory: int = 0  # bytes, the most of any round

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def core(self) -> float:
        """Seconds of a core, also where other programs are at work."""
        return statistics.median(self.cpu)


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    options = _options()
    if options.case:
        _run(options)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        runs: dict[Case, Runs] = {}
        for patients in options.patients:
            rows = _rows(_hospital(Path(scratch), patients))
            wanted = sum(rows[name] for name in PrepareSettings().categories)
            for workers in options.workers:
                runs[Case(patients, workers)] = Runs(wanted, sum(rows.values()) - wanted)
            runs[Case(patients, 1, False)] = Runs(0, sum(rows.values()))
        for _ in range(options.rounds):
            for case, found in runs.items():
                _measure(case, Path(scratch), found)
    _report(runs)


def _hospital(scratch: Path, patients: int) -> Path:
    """The events of a simulated hospital."""
    fhir = simulate(scratch / "fhir", patients=patients, seed=1, progress=False)
    ingest(fhir, _events(scratch, patients), progress=False)
    shutil.rmtree(fhir)
    return _events(scratch, patients)


def _events(scratch: Path, patients: int) -> Path:
    return scratch / f"events-{patients}"


def _rows(events: Path) -> dict[str, int]:
    """The events of each category."""
    shards = sorted((events / "data").rglob("*.parquet"))
    column = pq.ParquetDataset(shards).read(columns=["category"])["category"]
    return {count["values"]: count["counts"] for count in column.value_counts().to_pylist()}


def _measure(case: Case, scratch: Path, runs: Runs) -> None:
    """Run a case once more, watching its processes."""
    command = [sys.executable, __file__, "--scratch", str(scratch), "--patients"]
    command += [str(case.patients), "--workers", str(case.workers)]
    command += ["--case", "prepare" if case.wanted else "read"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None:
        runs.memory = max(runs.memory, _memory_of(process.pid))
        time.sleep(0.05)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{case}: exit code {process.returncode}")
    seconds, cpu = json.loads(process.stdout.read())
    runs.seconds.append(seconds)
    runs.cpu.append(cpu)
    print(f"{case}: {seconds:.2f} s", file=sys.stderr, flush=True)


def _run(options: argparse.Namespace) -> None:
    """Be a run; say how many seconds it took, of the clock and of all CPUs."""
    (patients,), (workers,) = options.patients, options.workers
    events, out = _events(options.scratch, patients), options.scratch / "data"
    start, used = time.perf_counter(), _cpu_seconds()
    if options.case == "read":
        _read(events)
    else:
        prepare(events, out, workers=workers, progress=False)
    print(json.dumps([time.perf_counter() - start, _cpu_seconds() - used]))
    shutil.rmtree(out, ignore_errors=True)


def _read(events: Path) -> None:
    """The three passes of `prepare` over the events, to leave all of them out."""
    for columns in (FITTED_COLUMNS, FITTED_COLUMNS, RECORD_COLUMNS):
        for file in data_files(events):
            for batch in iter_shard(file, columns):
                of_categories(batch, ())


def _cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))


def _memory_of(pid: int) -> int:
    """Resident bytes of a process and all that it started; shared pages count for each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return 0
    return pages * resource.getpagesize() + sum(_memory_of(int(child)) for child in children)


def _report(runs: dict[Case, Runs]) -> None:
    console = Console(width=160, highlight=False)
    for name, value in header(1, PACKAGES).items():
        if name not in ("time", "threads"):
            console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    rows = [
        (
            f"{case.patients:,} patients, {case.workers} workers",
            "prepare" if case.wanted else "reading alone",
            *(f"{found.wanted:,}", f"{found.others:,}", shown(found.median)),
            f"{min(found.seconds) / found.median - 1:+.0%} "
            f"{max(found.seconds) / found.median - 1:+.0%} of {len(found.seconds)}",
            f"{(found.wanted or found.others) / found.median:,.0f}",
            f"{(found.wanted or found.others) / found.core:,.0f}",
            shown(found.memory / 1e9),
        )
        for case, found in runs.items()
    ]
    titles = ("case", "what", "wanted", "others", "s", "spread", "events/s", "a CPU second")
    console.print(table("events to Arrow", (*titles, "peak GB"), rows))
    few, most = (sorted({case.patients for case in runs})[i] for i in (0, -1))
    one = runs[Case(most, 1)]
    small = runs[Case(few, 1)]
    bars = [
        Bar("thousand events a second of a core", one.wanted / one.core / 1e3, least=BAR),
        Bar(f"memory over that of {few:,} patients", one.memory / small.memory, most=2),
    ]
    for bar in bars:
        console.print(f"- {bar}", markup=False)
    _project(console, {case: found for case, found in runs.items() if case.patients == most})


def _project(console: Console, runs: dict[Case, Runs]) -> None:
    """What the rates on the largest data mean for all of MIMIC-IV."""
    by_workers = {case.workers: found for case, found in runs.items() if case.wanted}
    one = by_workers[1]
    reading = next(found for case, found in runs.items() if not case.wanted)
    # A visit here has a ninth of the events that one of MIMIC-IV has, and takes as long, so that
    # this is too slow a rate rather than too fast a one.
    kept, left = one.core / one.wanted, reading.core / reading.others
    wanted, others = sum(MIMIC_WANTED.values()), sum(MIMIC_OTHERS.values())
    minutes = (wanted * kept + others * left) / 60
    console.print(
        f"MIMIC-IV 2.1, 431,088 admissions: {wanted / 1e6:.0f} million events wanted and "
        f"{others / 1e6:.0f} million others are {minutes:.0f} minutes of a core",
        markup=False,
        soft_wrap=True,
    )
    for workers, found in by_workers.items():
        if workers > 1:
            efficiency = one.median / found.median / workers
            told = f"{minutes / workers / efficiency:.0f} minutes of {workers} workers"
            console.print(f"{told}, at the efficiency of this run, {efficiency:.2f}")
    console.print(PEER, markup=False, soft_wrap=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patients", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="whether it runs at all, in no time")
    parser.add_argument("--scratch", type=Path, help="folder for some 4 GB of temporary files")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.patients, options.rounds = [100, 200], 1
    return options


if __name__ == "__main__":
    main()
