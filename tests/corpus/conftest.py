"""A small synthetic hospital, ingested and prepared once."""

from pathlib import Path

import pytest

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
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
