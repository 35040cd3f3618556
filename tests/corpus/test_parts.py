"""Runs of many parts: the same bytes whatever the workers, shards, batches and kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import PrepareSettings, parts, prepare
from ehrmamba_hf.corpus.parts import file_hash, key_of
from ehrmamba_hf.errors import InputError, OutputError, SchemaError
from ehrmamba_hf.tasks import register, registered, unregister
from ehrmamba_hf.timelines.record import DAY
from ehrmamba_hf.tokenization.grammar_ehrmamba import TASK_TOKENS

MODULE = sys.modules["ehrmamba_hf.corpus.prepare"]
SHARDS = 6


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def reshard(events: Path, out: Path, shard_of: Callable[[int, int], str]) -> Path:
    """The same events in other shards: named by each patient's place and id."""
    shutil.copytree(events, out)
    (file,) = (out / "data").iterdir()
    table = pq.read_table(file)
    file.unlink()
    ids = sorted(set(table["subject_id"].to_pylist()))
    shards: dict[str, list[int]] = {}
    for place, subject_id in enumerate(ids):
        shards.setdefault(shard_of(place, subject_id), []).append(subject_id)
    for name, members in shards.items():
        rows = table.filter(pc.is_in(table["subject_id"], value_set=pa.array(members)))
        pq.write_table(rows, out / "data" / f"{name}.parquet")
    return out


@pytest.fixture(scope="module")
def sharded(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reshard(
        events, tmp_path_factory.mktemp("sharded") / "events", lambda place, _: f"s{place % SHARDS}"
    )


@pytest.fixture(scope="module")
def undisturbed(
    sharded: Path, settings: PrepareSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "data"
    return prepare(sharded, out, settings, workers=1, progress=False)


def test_several_workers_write_the_same_bytes(
    sharded: Path,
    undisturbed: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "POOL_ROWS", 0)
    out = prepare(sharded, tmp_path / "data", settings, workers=2, memory="1GB", progress=False)
    assert content(out) == content(undisturbed)


@pytest.mark.parametrize("batch", [300, 10**6])
def test_shards_and_batches_change_nothing_but_the_fingerprint(
    events: Path,
    data: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    """Shards of interleaved patients, in an order of names that is not that of the patients."""
    other = reshard(
        events,
        tmp_path / "events",
        lambda place, i: f"{9 - place // 20}-{i % 2 if batch > 1000 else 0}",
    )
    monkeypatch.setattr(MODULE, "ROWS_A_BATCH", batch)
    out = prepare(other, tmp_path / "data", settings, progress=False)
    found, expected = content(out), content(data)
    marked = {name for name in expected if name.endswith(".json") and "tokenizer" not in name}
    marked -= {"pretrain/dataset_dict.json", "finetune/dataset_dict.json"}
    differing = {name for name in found | expected if found.get(name) != expected.get(name)}
    assert differing == marked | {"report.html"} and "prepare.json" in marked
    reports = [json.loads((folder / "prepare.json").read_text()) for folder in (out, data)]
    assert len({report.pop("fingerprint") for report in reports}) == 2
    assert reports[0] == reports[1]


def test_names_of_shards_change_nothing(
    sharded: Path, undisturbed: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    shutil.copytree(sharded, tmp_path / "events")
    for number, file in enumerate(sorted((tmp_path / "events" / "data").iterdir())):
        file.rename(file.with_name(f"{(number * 5) % 7}.parquet"))
    out = prepare(tmp_path / "events", tmp_path / "data", settings, progress=False)
    assert content(out) == content(undisturbed)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the parts that are made."""
    keys: list[str] = []
    finish = parts.finish_part

    def noted(file: Path, key: str, *found: object) -> None:
        keys.append(key)
        finish(file, key, *found)

    monkeypatch.setattr(parts, "finish_part", noted)
    return keys


def test_a_run_goes_on_where_it_failed(
    sharded: Path,
    undisturbed: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "data"

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "save_dataset", fail)
        with pytest.raises(OutputError, match="no space left"):
            prepare(sharded, out, settings, progress=False)
    assert not out.exists() and len(made) == 3 * SHARDS
    with monkeypatch.context() as patch:  # once more, with the data sets written
        patch.setattr(MODULE, "write_labels", fail)
        with pytest.raises(OutputError, match="no space left"):
            prepare(sharded, out, settings, progress=False)
    assert not out.exists() and len(made) == 3 * SHARDS
    prepare(sharded, out, settings, progress=False)
    assert len(made) == 3 * SHARDS  # nothing was made again
    assert content(out) == content(undisturbed)
    assert list(tmp_path.iterdir()) == [out]


def test_parts_of_other_settings_or_events_are_not_taken(
    sharded: Path,
    undisturbed: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, copy = tmp_path / "data", tmp_path / "events"
    shutil.copytree(sharded, copy)
    changed = copy / "data" / "s1.parquet"
    pq.write_table(pq.read_table(changed).slice(3), changed)
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "save_dataset", lambda *_: 1 / 0)
        for events, chosen in (
            (sharded, msgspec.structs.replace(settings, train_stays=1)),
            (copy, settings),
        ):
            with pytest.raises(ZeroDivisionError):
                prepare(events, out, chosen, progress=False)
    assert len(made) == 6 * SHARDS
    prepare(sharded, out, settings, progress=False)
    # Of the changed shard all three; its patient changed is none of those that are fitted on.
    assert len(made) == 6 * SHARDS + 3
    assert content(out) == content(undisturbed)


def cut_off(
    monkeypatch: pytest.MonkeyPatch, events: Path, out: Path, settings: PrepareSettings
) -> None:
    """A run that has made all parts, and fails before they are put together."""
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "save_dataset", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(events, out, settings, progress=False)


def test_labels_of_a_changed_task_are_not_taken(
    sharded: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task of the same name, with another function, was once given the labels of the first."""
    base = next(task for task in registered() if task.name == "readmission")
    own = replace(base, name="own", token=TASK_TOKENS[6])
    out = tmp_path / "data"
    try:
        register(replace(own, label=lambda case, index: True))
        cut_off(monkeypatch, sharded, out, settings)
        unregister("own")
        register(replace(own, label=lambda case, index: False))
        prepare(sharded, out, settings, progress=False)
    finally:
        unregister("own")
    labels = pq.read_table(out / "labels.parquet", filters=[("task", "=", "own")])
    assert labels["boolean_value"].unique().to_pylist() == [False]


def test_a_wrong_file_of_codes_leaves_a_killed_run_alone(
    sharded: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "data"
    cut_off(monkeypatch, sharded, out, settings)
    wrong = msgspec.structs.replace(settings, more_codes=str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"none\.yaml"):
        prepare(sharded, out, wrong, progress=False)
    prepare(sharded, out, settings, progress=False)
    assert len(made) == 3 * SHARDS


def test_a_patient_in_two_shards(sharded: Path, settings: PrepareSettings, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "events")
    shutil.copy(tmp_path / "events/data/s1.parquet", tmp_path / "events/data/twice.parquet")
    with pytest.raises(SchemaError, match="expected each patient in one shard"):
        prepare(tmp_path / "events", tmp_path / "data", settings, progress=False)


@pytest.fixture
def late_task() -> Iterator[None]:
    base = next(task for task in registered() if task.name == "readmission")
    register(
        replace(
            base, name="late", token=TASK_TOKENS[6], index=lambda case: base.index(case) + 3 * DAY
        )
    )
    yield
    unregister("late")


def test_workers_know_the_tasks_of_their_parent(
    late_task: None,
    sharded: Path,
    settings: PrepareSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = prepare(sharded, tmp_path / "one", settings, progress=False)
    assert "late" in json.loads((one / "prepare.json").read_text())["tasks"]
    monkeypatch.setattr(MODULE, "POOL_ROWS", 0)
    two = prepare(sharded, tmp_path / "two", settings, workers=2, progress=False)
    assert content(two) == content(one)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"workers": 0}, "workers: expected at least 1"), ({"memory": "much"}, "memory: expected")],
)
def test_what_a_run_may_use_is_checked(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict, sentence: str
) -> None:
    monkeypatch.setattr(MODULE, "POOL_ROWS", 0)
    with pytest.raises(InputError, match=sentence):
        prepare(sharded, tmp_path / "data", progress=False, **given)
    assert list(tmp_path.iterdir()) == []


def test_events_written_anew_in_the_same_place(
    sharded: Path, undisturbed: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    """Patients were remembered by their folder's path, from one call to the next."""
    place = tmp_path / "events"
    shutil.copytree(sharded, place)
    (place / "subjects.parquet").unlink()
    everybody = pq.read_table(sharded / "subjects.parquet")
    died = everybody.set_column(
        everybody.column_names.index("deceased"), "deceased", pa.array([True] * len(everybody))
    )
    for table in (died, everybody):
        pq.write_table(table, place / "subjects.parquet")
        out = prepare(place, tmp_path / "data", settings, progress=False)
    found, expected = (pq.read_table(folder / "labels.parquet") for folder in (out, undisturbed))
    assert found.equals(expected)


def test_keys_are_of_content(tmp_path: Path) -> None:
    assert key_of([1, "2"]) != key_of([12]) != key_of(["12"])
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    (tmp_path / "b").write_bytes(b"x" * 5_000_000)
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b") != file_hash(tmp_path / "c")


RUN = """
import sys
from pathlib import Path
import msgspec
import ehrmamba_hf.corpus.prepare
from ehrmamba_hf.corpus import PrepareSettings, prepare

if __name__ == "__main__":
    sys.modules["ehrmamba_hf.corpus.prepare"].POOL_ROWS = 0
    events, out, settings, workers = sys.argv[1:]
    settings = msgspec.json.decode(settings, type=PrepareSettings)
    print("go", flush=True)
    prepare(Path(events), Path(out), settings, workers=int(workers), progress=False)
"""


@pytest.mark.slow
def test_killed_at_any_moment(
    sharded: Path, undisturbed: Path, settings: PrepareSettings, tmp_path: Path
) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out" / "data"
    script.write_text(RUN)
    given = msgspec.json.encode(settings).decode()
    rng = random.Random(0)
    killed = 0
    for number in range(45):
        command = [sys.executable, str(script), str(sharded), str(out), given, str(1 + number % 2)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert run.stdout is not None
        run.stdout.readline()
        time.sleep(rng.uniform(0, 4 if number % 2 else 0.8))
        killed += run.poll() is None
        if number % 4 == 1:
            run.kill()  # its workers end by themselves
        elif run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        if out.exists():
            assert content(out) == content(undisturbed)
            shutil.rmtree(out)
    assert killed >= 30
    prepare(sharded, out, settings, progress=False)
    assert content(out) == content(undisturbed)
    assert list(out.parent.iterdir()) == [out]
