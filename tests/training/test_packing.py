"""The stock Trainer, packed and padded: the same steps, the same losses, and who may not pack."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from ehrmamba_hf.corpus.collation import PackingCollator, PaddingCollator
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.folders import only_writer
from ehrmamba_hf.training import finetune, pretrain

# Plain gradient descent: Adam makes whole steps out of gradients that are nothing but rounding.
SAME_BATCHES = {
    "optim": "sgd",
    "learning_rate": 0.5,
    "max_steps": 4,
    "logging_steps": 1,
    "per_device_train_batch_size": 5,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 3,
    "train_sampling_strategy": "sequential",
}
Train = Callable[..., Path]


def losses(folder: Path) -> list[float]:
    """Every loss that the Trainer logged, of training and of validation."""
    history = json.loads((folder / "training.json").read_text())["log_history"]
    return [log[key] for log in history for key in ("loss", "eval_loss") if key in log]


def expect_same_weights(one: Path, other: Path) -> None:
    weights = load_file(other / "model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-5, msg=name)


def expect_same(one: Path, other: Path) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=1e-4)
    expect_same_weights(one, other)


@pytest.fixture
def run(data: Path, model: Path, tiny: dict[str, Any], tmp_path: Path) -> Train:
    """Trains by `pretrain` or `finetune`, into a folder of a name."""

    def train(stage: str, name: str, packing: bool = True, **training: Any) -> Path:
        fields = {**SAME_BATCHES, "packing": packing, **training}
        if stage == "pretrain":
            return pretrain(data, tmp_path / name, model=tiny, training=fields)
        return finetune(data, model, tmp_path / name, training=fields)

    return train


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_packed_and_padded_training_are_the_same(run: Train, stage: str) -> None:
    packed, padded = run(stage, "packed"), run(stage, "padded", packing=False)
    assert len(set(losses(packed))) > 4  # a loss a step, and of validation at the end of an epoch
    expect_same(packed, padded)


def test_columns_that_no_model_takes_are_left_out(run: Train) -> None:
    """Identifiers and times were turned into tensors, which failed, and reached the model."""
    for packing in (True, False):
        every = run("pretrain", "every", packing, remove_unused_columns=False)
        expect_same(every, run("pretrain", "needed", packing))


@pytest.fixture
def collators(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, type]]:
    """The sampling and the collator of each training that was begun, and stopped there."""
    chosen: list[tuple[str, type]] = []

    def look(**given: Any) -> None:
        chosen.append((given["args"].train_sampling_strategy, type(given["data_collator"])))
        raise InterruptedError

    monkeypatch.setattr("ehrmamba_hf.training.run.Trainer", look)
    monkeypatch.delitem(SAME_BATCHES, "train_sampling_strategy")
    return chosen


def test_lengths_are_grouped_only_for_padding(run: Train, collators: list) -> None:
    for packing in (True, False):
        with pytest.raises(InterruptedError):
            run("pretrain", "out", packing)
    assert collators == [("random", PackingCollator), ("group_by_length", PaddingCollator)]


def test_batches_that_would_be_torn_are_padded(
    run: Train, collators: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = {"accelerator_config": {"dispatch_batches": True}}
    with pytest.warns(match="dispatch_batches divides"), pytest.raises(InterruptedError):
        run("pretrain", "out", **torn)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.warns(match="one process drives 2 GPUs"), pytest.raises(InterruptedError):
        run("pretrain", "out")
    assert collators == [("group_by_length", PaddingCollator)] * 2


def test_packing_is_on_or_off(run: Train) -> None:
    with pytest.raises(InputError, match="packing: expected true or false, found 'no'"):
        run("pretrain", "out", packing="no")  # type: ignore[arg-type]


def test_a_second_training_into_a_folder_is_refused(run: Train, tmp_path: Path) -> None:
    """Two at a time cleared away each other's checkpoints."""
    with only_writer(tmp_path / "out"):
        with pytest.raises(InputError, match="out: expected to be the only writer, found another"):
            run("pretrain", "out")
        assert not (tmp_path / "out.part").exists()
    run("pretrain", "out")


ONE_OF_TWO = """
import json, sys
from pathlib import Path
from ehrmamba_hf.training import finetune, pretrain

data, model, out = map(Path, sys.argv[1:4])
tiny, training = map(json.loads, sys.argv[4:])
for name, packing in (("packed", True), ("padded", False)):
    given = {"training": training | {"packing": packing}}
    pretrain(data, out / name, model=tiny, **given)
    finetune(data, model, out / f"{name}-mpf", **given)
"""


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(
    run: Train, data: Path, model: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(ONE_OF_TWO)
    # Two steps do not reach the data's end, where patients are repeated for processes to be even.
    steps = {**SAME_BATCHES, "max_steps": 2, "gradient_accumulation_steps": 1, "use_cpu": True}
    halves = {**steps, "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 2}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = [script, data, model, tmp_path, json.dumps(tiny), json.dumps(halves)]
    done = subprocess.run(
        [*launch, *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "packed")) == 2 + 1
    expect_same(tmp_path / "packed", tmp_path / "padded")
    expect_same(tmp_path / "packed-mpf", tmp_path / "padded-mpf")
    alone = {**steps, "per_device_train_batch_size": 8, "eval_strategy": "no"}
    expect_same_weights(tmp_path / "packed", run("pretrain", "whole", **alone))
