"""A killed run goes on from its checkpoint, to the same end; another run starts anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.training import finetune, pretrain

FOUR_STEPS = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
}
Counted = Callable[..., int]


class Killed(BaseException):
    """What a run dies of here."""


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Runs a training, killed as it begins a step; how many steps it took."""

    def count(run: Callable[[], Any], killed_at: int | None = None) -> int:
        taken = 0
        step = Trainer.training_step

        def counted(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            if taken + 1 == killed_at:
                raise Killed
            taken += 1
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", counted)
            if killed_at is None:
                run()
            else:
                with pytest.raises(Killed):
                    run()
        return taken

    return count


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def run(data: Path, tiny: dict[str, Any]) -> Callable[..., Path]:
    def train(out: Path, packing: bool = True, **changed: Any) -> Path:
        training = {**FOUR_STEPS, **changed}
        return pretrain(data, out, model=tiny, training=training | {"packing": packing})

    return train


def test_a_killed_run_goes_on_to_the_same_end(
    run: Callable[..., Path], steps_of: Counted, tmp_path: Path
) -> None:
    straight, out = tmp_path / "straight", tmp_path / "killed"
    assert steps_of(lambda: run(straight)) == 4
    assert steps_of(lambda: run(out), killed_at=4) == 3
    assert not out.exists()
    assert steps_of(lambda: run(out)) == 2  # from the checkpoint at step 2
    assert same(out, straight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "straight"]
    assert steps_of(lambda: run(out)) == 4  # a finished run is not gone on with


def test_a_killed_finetuning_goes_on_too(
    data: Path, model: Path, steps_of: Counted, tmp_path: Path
) -> None:
    def run(name: str) -> Path:
        return finetune(data, model, tmp_path / name, training=FOUR_STEPS)

    assert steps_of(lambda: run("straight")) == 4
    assert steps_of(lambda: run("killed"), killed_at=3) == 2
    assert steps_of(lambda: run("killed")) == 2
    assert same(tmp_path / "killed", tmp_path / "straight")


def test_a_run_killed_before_its_model_is_in_place_keeps_it(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("ehrmamba_hf.training.run.put_in_place", die)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    assert same(run(tmp_path / "killed"), run(tmp_path / "straight"))


def test_other_settings_start_anew(
    run: Callable[..., Path], steps_of: Counted, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    assert steps_of(lambda: run(out), killed_at=4) == 3
    assert steps_of(lambda: run(out, learning_rate=2e-2), killed_at=4) == 3
    assert steps_of(lambda: run(out, packing=False), killed_at=4) == 3
    assert steps_of(lambda: run(out)) == 4


def test_newer_data_start_anew(data: Path, model: Path, steps_of: Counted, tmp_path: Path) -> None:
    """The folder's name alone told data apart: a run resumed on sequences that it never saw."""
    events, out = data.parent / "events", tmp_path / "mpf"
    settings = PrepareSettings(min_patients=2, context_length=48)

    def prepared() -> Path:
        return prepare(events, tmp_path / "data", settings, progress=False)

    def run() -> Path:
        return finetune(tmp_path / "data", model, out, training=FOUR_STEPS)

    prepared()
    assert steps_of(run, killed_at=4) == 3
    prepared()
    assert steps_of(run) == 4


def test_a_mistyped_setting_costs_no_checkpoint(
    run: Callable[..., Path], data: Path, steps_of: Counted, tmp_path: Path
) -> None:
    """Checkpoints were cleared away for other settings before these were even read."""
    out = tmp_path / "model"
    assert steps_of(lambda: run(out), killed_at=4) == 3
    for mistyped in ({"learning_rat": 1}, {"eval_strategy": "often"}):
        with pytest.raises(InputError):
            run(out, **mistyped)
    with pytest.raises(InputError):
        pretrain(data, out, model={"hiden_size": 16}, training=FOUR_STEPS)
    assert steps_of(lambda: run(out)) == 2


def test_a_terminal_or_none_is_the_same_run(
    run: Callable[..., Path],
    steps_of: Counted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run begun in a terminal started anew in the background: the progress bar was a setting."""
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr.isatty", lambda: True)
        assert steps_of(lambda: run(out), killed_at=4) == 3
    assert steps_of(lambda: run(out)) == 2


def test_a_checkpoint_cut_off_in_writing_is_passed_over(
    run: Callable[..., Path], steps_of: Counted, tmp_path: Path
) -> None:
    """A kill while a checkpoint is written left one without its last file, which cannot be read."""
    out = tmp_path / "model"
    assert steps_of(lambda: run(out), killed_at=4) == 3
    cut = tmp_path / "model.part" / "checkpoints" / "checkpoint-3"
    cut.mkdir()
    (cut / "config.json").write_text("{}")
    assert steps_of(lambda: run(out)) == 2


def test_an_earlier_model_stays_until_the_next_is_whole(
    run: Callable[..., Path], steps_of: Counted, model: Path, tmp_path: Path
) -> None:
    out = run(tmp_path / "model", max_steps=1)
    before = weights(out)
    assert steps_of(lambda: run(out), killed_at=4) == 3
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in before.items())
    assert steps_of(lambda: run(out)) == 2
    assert not torch.equal(weights(out)["lm_head.weight"], before["lm_head.weight"])
