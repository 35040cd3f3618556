"""NDJSON to sorted event Parquet: rate, memory and disk, beside bare decoding and three peers.

The input is made on the fly: the laboratory results of a simulated hospital, an Observation a line.
Every case runs in a process of its own, in turn, round by round; the figures are medians of wall
time. "Bare decoding" decodes each line to the same typed Structs and forgets it: the bar is over
that. Three more cases show what it depends on: a chunk of lines in one call, and lists of 100,000
that are kept until they are whole, without Python's cyclic collector and with it. The peers make
the same columns, sorted by subject and time, without any of the checks.

The simulator writes what the ingestion reads and no more. A hospital's server adds to each record
its version and when that came, an identifier and a reference range: bare decoding and the ingestion
run on such lines too.

    python benchmarks/ingest.py
"""

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

OBSERVATIONS_A_PATIENT = 203
KEPT = 100_000  # records that a loop holds at a time
MEMORY = "4GB"
PACKAGES = ("ehrmamba-hf", "msgspec", "duckdb", "pyarrow", "orjson")
BARE = "bare msgspec, line by line"
BARE_CHUNKS = "bare msgspec, decode_lines of 256 KiB"
BARE_LISTS = "bare msgspec, lists of 100,000"
BARE_COLLECTED = "bare msgspec, lists, with collector"
LOOP, ORJSON = "msgspec loop, pyarrow, DuckDB sort", "orjson loop, pyarrow, DuckDB sort"
READ_JSON = "DuckDB read_json"
SERVED = ", as a server writes it"
ONE, TWO = "ehrmamba ingest, 1 worker", "ehrmamba ingest, 2 workers"

_PROJECTION = """
SELECT subject.reference AS subject, effectiveDateTime AS time, code.coding[1].system AS system,
    code.coding[1].code AS code, valueQuantity.value AS value, valueQuantity.code AS unit,
    issued, encounter.reference AS encounter, id
"""
_COLUMNS = """{resourceType: 'VARCHAR', id: 'VARCHAR', subject: 'STRUCT(reference VARCHAR)',
    encounter: 'STRUCT(reference VARCHAR)', effectiveDateTime: 'TIMESTAMP', issued: 'TIMESTAMP',
    code: 'STRUCT(coding STRUCT(system VARCHAR, code VARCHAR, display VARCHAR)[])',
    valueQuantity: 'STRUCT(value DOUBLE, unit VARCHAR, code VARCHAR)'}"""
_META = (
    b'","meta":{"versionId":"1","lastUpdated":"2026-01-%02dT%02d:%02d:%02d.%03d+00:00","profile":'
    b'["http://hl7.org/fhir/us/core/StructureDefinition/us-core-observation-lab"]},"identifier":'
    b'[{"system":"http://hospital.example/observation","value":"%d"}],"status"'
)
_BOUND = b'{"value":%d,"unit":"mg/dL","system":"http://unitsofmeasure.org","code":"mg/dL"}'
_RANGE = b',"referenceRange":[{"low":%s,"high":%s}]}\n' % (_BOUND % 0, _BOUND % 100)
_COPY = "COPY ({query} ORDER BY subject, time) TO '{out}' (FORMAT parquet, COMPRESSION lz4_raw)"


@dataclass
class Runs:
    """What the rounds of a case measured."""

    seconds: list[float] = field(default_factory=list)
    memory: int = 0  # bytes, the most of any round, of all its processes
    disk: int = 0  # bytes, the most at any moment
    result: int = 0  # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def bare_lines(folder: Path, out: Path) -> None:
    """Decode every record, each forgotten before the next."""
    decode = _decoder().decode
    with _observations(folder) as file:
        for line in file:
            decode(line)


def bare_chunks(folder: Path, out: Path) -> None:
    """Decode every record, some 400 in one call: of larger texts it is slower."""
    gc.disable()
    bytearray(31 << 20)  # what is given back stays with the process, as in the ingestion
    decode_lines = _decoder().decode_lines
    with _observations(folder) as file:
        while text := file.read(1 << 18):
            decode_lines(text + file.readline())


def bare_lists(folder: Path, out: Path) -> None:
    """Decode every record, and keep as many at a time as the loops below."""
    gc.disable()
    bare_collected(folder, out)


def bare_collected(folder: Path, out: Path) -> None:
    """The same; the collector finds nothing to collect, but looks at all records over and over."""
    decode = _decoder().decode
    with _observations(folder) as file:
        while [decode(line) for line in islice(file, KEPT)]:
            pass


def _decoder() -> Any:
    import msgspec

    from ehrmamba_hf.fhir.resources import Bundle, Clinical

    return msgspec.json.Decoder(Clinical | Bundle)


def _observations(folder: Path) -> BinaryIO:
    return (folder / "Observation.ndjson").open("rb")


def orjson_loop(folder: Path, out: Path) -> None:
    """The loop that everybody writes first: dicts, row tuples, one sort at the end."""
    import orjson

    def row(line: bytes) -> tuple[object, ...]:
        o = orjson.loads(line)
        coding, quantity = o["code"]["coding"][0], o["valueQuantity"]
        return (
            *(o["subject"]["reference"], o["effectiveDateTime"], coding["system"], coding["code"]),
            *(quantity["value"], quantity["code"], o["issued"], o["encounter"]["reference"]),
            o["id"],
        )

    _sorted_rows(folder, out, row)


def msgspec_loop(folder: Path, out: Path) -> None:
    """The same loop over typed Structs."""
    import msgspec

    from ehrmamba_hf.fhir.resources import Observation

    decode = msgspec.json.Decoder(Observation).decode

    def row(line: bytes) -> tuple[object, ...]:
        o: Any = decode(line)
        coding, quantity = o.code.coding[0], o.valueQuantity
        return (
            *(o.subject.reference, o.effectiveDateTime, coding.system, coding.code),
            *(quantity.value, quantity.code, o.issued, o.encounter.reference, o.id),
        )

    _sorted_rows(folder, out, row)


def _sorted_rows(folder: Path, out: Path, row: Callable[[bytes], tuple[object, ...]]) -> None:
    import duckdb
    import pyarrow as pa

    names = ("subject", "time", "system", "code", "value", "unit", "issued", "encounter", "id")
    tables = []
    with _observations(folder) as file:
        while rows := [row(line) for line in islice(file, KEPT)]:
            tables.append(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))))
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("rows", pa.concat_tables(tables))
        cast = "* REPLACE (time::TIMESTAMP AS time, issued::TIMESTAMP AS issued)"
        database.execute(_COPY.format(query=f"SELECT {cast} FROM rows", out=out))


def read_json(folder: Path, out: Path) -> None:
    """DuckDB alone, told the columns so that it need not look for them."""
    import duckdb

    source = f"read_json('{folder}/Observation.ndjson', format='newline_delimited', "
    with duckdb.connect(config={"threads": 1}) as database:
        query = f"{_PROJECTION} FROM {source} columns={_COLUMNS})"
        database.execute(_COPY.format(query=query, out=out))


def ours(folder: Path, out: Path, workers: int) -> None:
    """The whole of an ingestion: checks, versions, references, report and all."""
    from ehrmamba_hf.events import ingest

    ingest(folder, out, workers=workers, memory=MEMORY, progress=False)


CASES: dict[str, Callable[[Path, Path], None]] = {
    BARE: bare_lines,
    BARE_CHUNKS: bare_chunks,
    BARE_LISTS: bare_lists,
    BARE_COLLECTED: bare_collected,
    LOOP: msgspec_loop,
    ORJSON: orjson_loop,
    READ_JSON: read_json,
    ONE: lambda folder, out: ours(folder, out, 1),
    TWO: lambda folder, out: ours(folder, out, 2),
}


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    options = _options()
    if options.case:
        start = time.perf_counter()
        CASES[options.case](options.folder, options.out)
        print(time.perf_counter() - start)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch, _quiet():
        large = _made(Path(scratch) / "large", options.observations)
        small = _made(Path(scratch) / "small", options.observations // 10)
        names = [ONE, TWO] if options.ours else list(CASES)
        on_served = [] if options.ours else [BARE, ONE]
        served = _served(large, Path(scratch) / "served") if on_served else large
        runs = {name: Runs() for name in [*names, *(name + SERVED for name in on_served)]}
        smaller = {name: Runs() for name in (ONE, TWO)}
        for _ in range(options.rounds):
            for name in names:
                _measure(name, large, Path(scratch) / "out", runs[name])
            for name in on_served:
                _measure(name, served, Path(scratch) / "out", runs[name + SERVED])
        for name, found in smaller.items():
            _measure(name, small, Path(scratch) / "out", found)
        _report(large, runs, smaller)


def _measure(name: str, folder: Path, out: Path, runs: Runs) -> None:
    """Run a case once more, watching its processes and what they write."""
    command = [sys.executable, __file__, "--case", name, "--folder", folder, "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        runs.memory = max(runs.memory, _memory_of(process.pid))
        runs.disk = max(runs.disk, _size(out.parent, out.name))
        time.sleep(0.1)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    runs.seconds.append(float(process.stdout.read()))
    runs.result = _size(out.parent, out.name)
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    print(f"{name}: {runs.seconds[-1]:.1f} s", file=sys.stderr, flush=True)


def _memory_of(pid: int) -> int:
    """Resident bytes of a process and all that it started; shared pages count for each."""
    total = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        total += next(int(x.split()[1]) << 10 for x in status.splitlines() if x[:6] == "VmRSS:")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, StopIteration):
        return total
    return total + sum(_memory_of(int(child)) for child in children)


def _size(folder: Path, name: str) -> int:
    """Bytes of an output, also under the temporary name beside it."""
    total = 0
    for place in folder.glob(f"*{name}*"):
        walk = os.walk(place)  # passes over what is renamed in the meantime
        for file in [place, *(Path(root) / file for root, _, files in walk for file in files)]:
            with suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
    return total


def _made(folder: Path, observations: int) -> Path:
    """A simulated hospital's patients and laboratory results alone."""
    from ehrmamba_hf.simulation import simulate

    whole = folder.with_name(f"{folder.name}-hospital")
    simulate(whole, patients=max(1, observations // OBSERVATIONS_A_PATIENT), seed=1, progress=False)
    folder.mkdir()
    for name in ("Observation.ndjson", "Patient.ndjson"):
        (whole / name).rename(folder / name)
    shutil.rmtree(whole)
    return folder


def _served(plain: Path, folder: Path) -> Path:
    """The same with what a server adds; every record is from a millisecond of its own."""
    folder.mkdir()
    shutil.copy(plain / "Patient.ndjson", folder)
    with _observations(plain) as lines, (folder / "Observation.ndjson").open("wb") as out:
        for number, line in enumerate(lines):
            seconds, milliseconds = divmod(number, 1000)
            minutes, second = divmod(seconds, 60)
            hours, minute = divmod(minutes, 60)
            moment = (1 + hours // 24, hours % 24, minute, second, milliseconds)
            head = line.replace(b'","status"', _META % (*moment, number), 1)
            out.write(head.removesuffix(b"}\n") + _RANGE)
    return folder


def _report(folder: Path, runs: dict[str, Runs], smaller: dict[str, Runs]) -> None:
    # Not at the top, as every worker imports this file, and `measure` imports torch.
    from measure import Bar, header, shown, table
    from rich.console import Console

    file = folder / "Observation.ndjson"
    with file.open("rb") as lines:
        count, raw = sum(1 for _ in lines), file.stat().st_size
    console = Console(width=160, highlight=False)
    for name, value in (header(1, PACKAGES) | {"time": "wall time, median of the rounds"}).items():
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    console.print(f"input: {count:,} Observations, {raw / count:.0f} bytes each\n")
    rows = [
        (
            *(name, f"{count / r.median:,.0f}", shown(r.median, 1)),
            shown(_rate(runs, BARE + SERVED if name.endswith(SERVED) else BARE, r)),
            f"{min(r.seconds) / r.median - 1:+.0%} {max(r.seconds) / r.median - 1:+.0%}",
            *(shown(r.memory / 1e9), shown(r.disk / raw, 3), shown(r.result / raw, 3)),
        )
        for name, r in runs.items()
    ]
    titles = ("case", "resources/s", "s", "of bare", "spread", "peak GB", "peak disk", "result")
    console.print(table("disk and result as parts of the NDJSON", titles, rows))
    one, two = runs[ONE], runs[TWO]
    bars = [
        Bar("rate of bare decoding, 1 worker", _rate(runs, BARE, one), least=0.5),
        Bar(f"the same{SERVED}", _rate(runs, BARE + SERVED, runs.get(ONE + SERVED, one))),
        Bar("the same, decode_lines of 256 KiB", _rate(runs, BARE_CHUNKS, one)),
        Bar("the same, lists that are kept", _rate(runs, BARE_LISTS, one)),
        Bar("the same, lists, with the collector", _rate(runs, BARE_COLLECTED, one)),
        Bar("rate of the msgspec loop, 1 worker", _rate(runs, LOOP, one)),
        Bar("rate of the orjson loop, 1 worker", _rate(runs, ORJSON, one)),
        Bar("rate of DuckDB read_json, 1 worker", _rate(runs, READ_JSON, one)),
        Bar("thousand resources a second, 1 worker", count / one.median / 1e3, least=90),
        Bar("efficiency of 2 workers", one.median / two.median / 2, least=0.7),
        Bar("peak memory, GB, 1 worker", one.memory / 1e9, most=4),
        Bar("peak memory, GB, 2 workers", two.memory / 1e9, most=4),
        Bar("memory over that of a tenth, 1 worker", one.memory / smaller[ONE].memory, most=2),
        Bar("memory over that of a tenth, 2 workers", two.memory / smaller[TWO].memory, most=2),
        Bar("result over the NDJSON", one.result / raw, most=0.1),
        Bar("disk over the NDJSON, at most at any moment", one.disk / raw, most=0.1),
    ]
    for bar in bars:
        console.print(f"- {bar}", markup=False)


def _rate(runs: dict[str, Runs], peer: str, ours: Runs) -> float | None:
    return runs[peer].median / ours.median if peer in runs else None


@contextmanager
def _quiet() -> Iterator[None]:
    os.environ["OMP_NUM_THREADS"] = "1"
    yield


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--observations", type=int, default=5_080_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for some 5 GB of temporary files")
    parser.add_argument("--ours", action="store_true", help="leave the peers out")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
