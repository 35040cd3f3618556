"""A small synthetic hospital and models of two steps on it, one of them without a forecast loss."""

from pathlib import Path

import pytest

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
from ehrmamba_hf.simulation import simulate
from ehrmamba_hf.training import finetune, pretrain

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "time_embedding_size": 4}
STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    simulate(folder / "fhir", patients=30, seed=6)
    ingest(folder / "fhir", folder / "events", workers=1, progress=False)
    settings = PrepareSettings(min_patients=2, context_length=64)
    prepare(folder / "events", folder / "data", settings, progress=False)
    return folder


@pytest.fixture(scope="session")
def events(place: Path) -> Path:
    return place / "events"


@pytest.fixture(scope="session")
def model(place: Path) -> Path:
    return pretrain(place / "data", place / "model", model=TINY, training=STEPS)


@pytest.fixture(scope="session")
def mpf(place: Path, model: Path) -> Path:
    return finetune(place / "data", model, place / "mpf", training=STEPS)


@pytest.fixture(scope="session")
def forgetful(place: Path, model: Path) -> Path:
    training = {**STEPS, "forecasting_loss_weight": 0}
    return finetune(place / "data", model, place / "forgetful", training=training)
