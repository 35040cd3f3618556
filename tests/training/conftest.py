"""A small synthetic hospital, prepared once, and models of two steps on it."""

from pathlib import Path
from typing import Any

import pytest

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
from ehrmamba_hf.simulation import simulate
from ehrmamba_hf.training import finetune, pretrain

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "state_size": 4,
    "time_embedding_size": 4,
    "embedding_dropout": 0.0,
}
STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return dict(TINY)


@pytest.fixture(scope="session")
def steps() -> dict[str, Any]:
    return dict(STEPS)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    simulate(folder / "fhir", patients=40, seed=5)
    ingest(folder / "fhir", folder / "events", workers=1, progress=False)
    settings = PrepareSettings(min_patients=2, context_length=48)
    return prepare(folder / "events", folder / "data", settings, progress=False)


@pytest.fixture(scope="session")
def model(data: Path) -> Path:
    return pretrain(data, data.parent / "model", model=TINY, training=STEPS)


@pytest.fixture(scope="session")
def mpf(data: Path, model: Path) -> Path:
    return finetune(data, model, data.parent / "mpf", training=STEPS)
