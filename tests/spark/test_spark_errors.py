"""What a user is told who has no Spark, a wrong master or path, or workers that cannot do it."""

import json
import sys
from pathlib import Path

import pytest

from ehrmamba_hf import spark
from ehrmamba_hf.errors import EHRMambaError, InputError, SchemaError
from ehrmamba_hf.spark.blocks import _expect_shared
from ehrmamba_hf.spark.files import full_path
from ehrmamba_hf.spark.session import _told, spark_session

PATIENT = {"resourceType": "Patient", "id": "p1"}


@pytest.fixture
def fhir(tmp_path: Path) -> Path:
    (tmp_path / "fhir").mkdir()
    (tmp_path / "fhir" / "one.ndjson").write_text(json.dumps(PATIENT))
    return tmp_path / "fhir"


def test_no_pyspark(fhir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(InputError, match=r"pip install 'ehrmamba-hf\[spark\]'"):
        spark.ingest(fhir, tmp_path / "events", master="local[1]")


def test_no_java(fhir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyspark")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(InputError, match="expected Java 17 or later"):
        spark.ingest(fhir, tmp_path / "events", master="local[1]")


@pytest.mark.parametrize(
    ("master", "message"),
    [("nonsense", "expected local"), ("spark://127.0.0.1:9", "expected a Spark master that answ")],
)
def test_no_such_master(
    master: str, message: str, fhir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("pyspark")
    monkeypatch.setattr("shutil.which", lambda name: name)  # whether or not there is Java
    with pytest.raises(InputError, match=message):
        spark.ingest(fhir, tmp_path / "events", master=master)


def test_a_source_that_workers_do_not_see(tmp_path: Path):
    with pytest.raises(InputError, match="expected a place that every worker can read"):
        _expect_shared(tmp_path / "elsewhere")


TRACE = """Job aborted due to stage failure:
Traceback (most recent call last):
  File "worker.py", line 2, in work
    run()
{error}

Driver stacktrace:
"""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("ModuleNotFoundError: No module named 'ehrmamba_hf'", InputError, "on every worker"),
        ("ehrmamba_hf.errors.InputError: /a: expected b, found c", InputError, "^/a: expected b"),
        ("OSError: No space left on device", EHRMambaError, ": OSError: No space left on device$"),
    ],
)
def test_what_failed_on_a_worker(error: str, kind: type[Exception], message: str):
    base = pytest.importorskip("pyspark.errors")
    with pytest.raises(kind, match=message), _told("local[1]"):
        raise base.PySparkException(TRACE.format(error=error))


def test_paths():
    assert full_path(Path("events")) == str(Path.cwd() / "events")
    assert full_path("hdfs://host/events/") == "hdfs://host/events"


@pytest.mark.slow
def test_an_error_of_a_worker_is_ours(master: str):
    def fail(batches):
        raise InputError("block 3: expected FHIR, found poetry")

    message = "^block 3: expected FHIR, found poetry$"
    with (
        pytest.raises(InputError, match=message),
        spark_session(master, progress=False) as session,
    ):
        session.range(1).mapInArrow(fail, "id long").collect()


@pytest.mark.slow
def test_nothing_is_left_of_a_run_that_failed(fhir: Path, tmp_path: Path, master: str):
    out = tmp_path / "events"
    (fhir / "one.ndjson").write_text('{"resourceType": "Device", "id": "d1"}\n{"resourceType": 3')
    with pytest.raises(
        InputError, match="expected FHIR with at least one Patient, found 2 records"
    ):
        spark.ingest(fhir, out, master=master, progress=False)
    out.mkdir()
    (out / "thesis.doc").touch()
    with pytest.raises(InputError, match=r"found thesis\.doc"):
        spark.ingest(fhir, out, master=master, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"fhir", "events"}
    assert [path.name for path in out.iterdir()] == ["thesis.doc"]


@pytest.mark.slow
def test_no_events_folder(tmp_path: Path, master: str):
    (tmp_path / "events").mkdir()
    with pytest.raises(SchemaError, match=r"expected an events folder, found no subjects\.parquet"):
        spark.prepare(tmp_path / "events", tmp_path / "data", master=master, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["events"]
