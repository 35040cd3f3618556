"""A small hospital, run through the whole line once for all tests that need its results."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ehrmamba_hf.config import Config, load_config


@dataclass(frozen=True)
class Line:
    """The folders of one run."""

    fhir: Path
    events: Path
    data: Path
    model: Path
    mpf: Path
    config: Config


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory) -> Line:
    """120 patients and a few steps of training: enough to have every file, not to be good."""
    from ehrmamba_hf.corpus import prepare
    from ehrmamba_hf.events import ingest
    from ehrmamba_hf.simulation import simulate
    from ehrmamba_hf.training import finetune, pretrain

    root = tmp_path_factory.mktemp("line")
    config = load_config("tiny")
    line = Line(*(root / name for name in ("fhir", "events", "data", "model", "mpf")), config)
    simulate(line.fhir, patients=120, seed=3)
    ingest(line.fhir, line.events, workers=1, progress=False)
    prepare(line.events, line.data, config.prepare, progress=False)
    pretrain(line.data, line.model, model=config.model, training=config.pretrain | {"max_steps": 8})
    finetune(line.data, line.model, line.mpf, training=config.finetune | {"max_steps": 8})
    return line
