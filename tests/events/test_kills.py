"""Runs that are killed, crossed by another, or out of disk: resumed or refused, never half done."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.errors import OutputError
from ehrmamba_hf.events import ingest
from ehrmamba_hf.simulation import simulate

KILLS = 30
LONGEST = 120
"""Seconds until a run counts as hanging."""

# The command line, with blocks and shards so small that there are dozens of each.
RUN = """
from functools import partial
from ehrmamba_hf.events import ingestion
from ehrmamba_hf.events.fhir import shards, source
from ehrmamba_hf.events.meds import writing
from ehrmamba_hf.fhir.reading import blocks_of

source.blocks_of = partial(blocks_of, block=1 << 20)
shards.SHARD_ROWS = writing.SHARD_ROWS = 4_000
ingestion._POOL_BYTES = 0

from ehrmamba_hf.cli import main

main()
"""


class Command(NamedTuple):
    """A command of the line, and what an undisturbed run of it with one process gives."""

    name: str
    source: Path
    flags: tuple[str, ...]
    expected: dict[str, bytes]
    seconds: float  # of work, once its folder is there

    def start(self, out: Path, workers: int = 2) -> subprocess.Popen:
        return start(self.name, self.source, out, *self.flags, "--workers", workers)


def start(name: str, source: Path, out: Path, *flags: object) -> subprocess.Popen:
    """The command in a process group of its own."""
    arguments = [name, source, "--out", out, *flags]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait until it has done its work; its standard error."""
    _, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, errors[-3000:]
    return errors


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def wait_for_work(process: subprocess.Popen, out: Path) -> None:
    """Until the run has begun to write."""
    partial, end = out.with_name(f".{out.name}.partial"), time.monotonic() + LONGEST
    while not partial.exists() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)


def export(folder: Path, patients: int) -> Path:
    """FHIR of a made hospital, plain and packed, with lines that are rejected."""
    simulate(folder, patients=patients, seed=5)
    with (folder / "Observation.ndjson").open("ab") as lines:
        lines.write(b'{"resourceType":"Observation"}\nnot json\n' * 500)
    subprocess.run(["gzip", "-1", folder / "MedicationRequest.ndjson"], check=True)
    return folder


def undisturbed(name: str, source: Path, out: Path, *flags: str) -> Command:
    process = start(name, source, out, *flags, "--workers", 1)
    wait_for_work(process, out)
    begun = time.monotonic()
    finish(process)
    return Command(name, source, flags, contents(out), time.monotonic() - begun)


@pytest.fixture(scope="module")
def ingestion(tmp_path_factory) -> Command:
    folder = tmp_path_factory.mktemp("large")
    return undisturbed("ingest", export(folder / "fhir", 80), folder / "events")


@pytest.fixture(scope="module")
def meds_ingestion(ingestion, tmp_path_factory) -> Command:
    """Of the five columns that every MEDS dataset has."""
    folder = tmp_path_factory.mktemp("meds")
    finish(ingestion.start(folder / "events", workers=1))
    shutil.copytree(folder / "events" / "metadata", folder / "meds" / "metadata")
    (folder / "meds" / "data").mkdir()
    columns = ["subject_id", "time", "code", "numeric_value", "text_value"]
    for number, file in enumerate((folder / "events" / "data").iterdir()):
        shard = pq.read_table(file, columns=columns)
        pq.write_table(shard, folder / "meds" / "data" / f"{number}.parquet", row_group_size=999)
    return undisturbed("ingest", folder / "meds", folder / "from-meds")


@pytest.fixture(scope="module")
def preparation(ingestion, tmp_path_factory) -> Command:
    folder = tmp_path_factory.mktemp("prepared")
    finish(ingestion.start(folder / "events", workers=1))
    return undisturbed("prepare", folder / "events", folder / "data", "--config", "tiny")


def kill(process: subprocess.Popen, *, alone: bool) -> None:
    """Kill a run without a warning, with or without its workers."""
    if alone:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def expect_no_orphans(group: int) -> None:
    """Workers whose parent is gone end by themselves."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("workers of a killed run are still there")


def disturbed(command: Command, out: Path, rng: random.Random) -> int:
    """Run a command, killing it once or more at random moments; how often it was killed.

    At each moment the folder holds an earlier result, or nothing, or all.
    """
    earlier = {"report.json": b"{}"} if command.name == "ingest" and rng.random() < 0.3 else {}
    if earlier:
        out.mkdir(parents=True)
        (out / "report.json").write_bytes(earlier["report.json"])
    kills, groups = 0, []
    while kills == 0 or rng.random() < 0.4:
        process = command.start(out, rng.choice((1, 2, 2)))
        groups.append(process.pid)
        wait_for_work(process, out)
        time.sleep(rng.uniform(0, command.seconds))
        if process.poll() is None:
            kill(process, alone=rng.random() < 0.5)
            kills += 1
        else:
            finish(process)
        if out.exists() or not earlier:  # or killed between the renames; the next run sees to it
            assert contents(out) in (earlier, command.expected)
    finish(command.start(out, rng.choice((1, 2))))
    assert contents(out) == command.expected
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    for group in groups:
        expect_no_orphans(group)
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    [("ingestion", KILLS), ("meds_ingestion", KILLS // 3), ("preparation", KILLS // 3)],
)
def test_kills_at_random_moments_change_nothing(name, kills, request, tmp_path):
    command, rng, number = request.getfixturevalue(name), random.Random(kills), 0
    while kills > 0:
        number += 1
        kills -= disturbed(command, tmp_path / str(number) / "out", rng)


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(ingestion, tmp_path):
    out = tmp_path / "events"
    process = ingestion.start(out)
    parts = tmp_path / ".events.partial" / "parts"
    while len(list(parts.glob("block-*.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    kill(process, alone=False)
    done = {file: file.stat().st_mtime_ns for file in parts.glob("*.parquet")}
    finished = {file for file in done if (parts / f"block-{file.stem[-9:]}.json").exists()}
    assert len(finished) >= 5
    process = ingestion.start(out)
    while not (parts / "kept.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    kill(process, alone=False)
    assert {f: f.stat().st_mtime_ns for f in finished} == {f: done[f] for f in finished}
    finish(ingestion.start(out))
    assert contents(out) == ingestion.expected


@pytest.mark.slow
def test_what_is_left_of_a_run_on_other_input_is_not_used(ingestion, tmp_path):
    other, out = tmp_path / "fhir", tmp_path / "out" / "events"
    shutil.copytree(ingestion.source, other)
    with (other / "Condition.ndjson").open("ab") as lines:
        lines.write(b'{"resourceType":"Patient","id":"one-more"}\n')
    process = start("ingest", other, out, "--workers", 2)
    while not list(out.parent.glob(".events.partial/parts/shard-*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    kill(process, alone=True)
    finish(ingestion.start(out))
    assert contents(out) == ingestion.expected


@pytest.mark.slow
def test_two_runs_at_once(ingestion, tmp_path):
    out = tmp_path / "events"
    first = ingestion.start(out)
    wait_for_work(first, out)
    os.killpg(first.pid, signal.SIGSTOP)
    second = ingestion.start(out)
    _, errors = second.communicate(timeout=LONGEST)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode == 1
    assert errors.strip() == f"error: {out}: expected to be the only writer, found another run"
    finish(first)
    assert contents(out) == ingestion.expected


@pytest.mark.slow
def test_workers_do_not_chatter(ingestion, tmp_path):
    assert finish(ingestion.start(tmp_path / "events")) == ""


# Disks.


def refused(process: subprocess.Popen, out: Path) -> str:
    """What a run says that cannot write; it ends with a sentence, not with a trace."""
    _, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == 1
    assert errors.startswith(f"error: {out}: cannot be written: "), errors[-2000:]
    assert "Traceback" not in errors
    return errors


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own in memory, where the system lets us."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("this system lets nobody mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 40, 300, 800, 1_500])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full(kilobytes, workers, ingestion, tmp_path):
    disk = tmp_path / "disk"
    out = disk / "events"
    with mounted(disk, "size=64m"):
        filler = disk / "filler"
        filler.write_bytes(bytes((64 << 20) - (kilobytes << 10)))
        assert "space" in refused(ingestion.start(out, workers), out)
        assert not out.exists()
        filler.unlink()
        finish(ingestion.start(out, workers))
        assert contents(out) == ingestion.expected
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 8192))
        refused(ingestion.start(out, workers), out)
        assert contents(out) == ingestion.expected  # an earlier result is not touched


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ingestion", "preparation"])
@pytest.mark.parametrize("kilobytes", [1, 20, 60])
def test_a_file_that_may_not_grow(name, kilobytes, request, tmp_path):
    """Full disks for those who may not mount one."""
    command, out = request.getfixturevalue(name), tmp_path / "out"
    most = kilobytes << 10
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))  # is for what is started here
    try:
        process = command.start(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(process, out)
    assert not out.exists()
    finish(command.start(out))
    assert contents(out) == command.expected


def test_a_folder_that_cannot_be_written(write, hospital, tmp_path):
    source = write(tmp_path / "fhir" / "a.ndjson", hospital).parent
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="events: cannot be written: File exists"):
        ingest(source, tmp_path / "file" / "events", progress=False)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ingestion", "preparation"])
def test_a_disk_that_is_read_only(name, request, tmp_path):
    command = request.getfixturevalue(name)
    with mounted(tmp_path / "disk", "ro"):
        out = tmp_path / "disk" / "events"
        assert "Read-only file system" in refused(command.start(out), out)
