"""A small synthetic hospital, ingested and prepared once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, EVENT_SCHEMA, SUBJECT_SCHEMA
from ehrmamba_hf.simulation import simulate

SETTINGS = PrepareSettings(min_patients=2, context_length=200)


@pytest.fixture(scope="session")
def settings() -> PrepareSettings:
    return SETTINGS


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    simulate(folder / "fhir", patients=80, seed=4)
    ingest(folder / "fhir", folder / "events", workers=1, progress=False)
    return folder / "events"


@pytest.fixture(scope="session")
def data(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(events, tmp_path_factory.mktemp("prepared") / "data", SETTINGS, progress=False)


@pytest.fixture
def write_events(tmp_path: Path) -> Callable[..., Path]:
    """Writes an events folder of rows, the fields that matter given and the rest filled in."""

    def write(
        subjects: Sequence[dict], encounters: Sequence[dict] = (), events: Sequence[dict] = ()
    ) -> Path:
        folder = tmp_path / "made"
        (folder / "data").mkdir(parents=True)
        person = {"death_is_date": False, "deceased": False}
        tables = {
            "subjects.parquet": (SUBJECT_SCHEMA, [{**person, **s} for s in subjects]),
            "encounters.parquet": (ENCOUNTER_SCHEMA, [{"source": "", **e} for e in encounters]),
            "data/0.parquet": (
                EVENT_SCHEMA,
                [{"available_time": e["time"], "category": "lab", **e} for e in events],
            ),
        }
        for name, (schema, rows) in tables.items():
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)
        return folder

    return write
