"""A small hospital, run through the whole line once for all tests that need its results."""

import os
import subprocess
import sys
from collections.abc import Callable
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


BLOCK_PACKAGE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ehrmamba_hf":
            raise ImportError("the package is not to be needed")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def without_package(tmp_path_factory) -> Callable[..., str]:
    """Runs a script in a fresh process where the package cannot be imported; gives its output."""

    def run(script: str, *arguments: object) -> str:
        home = tmp_path_factory.mktemp("home")
        done = subprocess.run(
            [sys.executable, "-c", BLOCK_PACKAGE + script, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=home,
            env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
