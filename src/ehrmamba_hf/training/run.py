"""One training run with the stock Trainer: resumed if it was killed, in place only when whole."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from ehrmamba_hf.corpus.collation import PackingCollator, PaddingCollator
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.folders import only_writer, put_in_place
from ehrmamba_hf.tokenization import EHRMambaTokenizer

# The paper's recipe (appendix C): AdamW, linear warm-up over the first tenth, linear decay.
RECIPE: dict[str, Any] = {
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 50,
    "per_device_eval_batch_size": 64,
    "seed": 0,
    "packing": True,
}


def run_training(
    out: Path,
    *,
    build: Callable[[], PreTrainedModel],
    tokenizer: EHRMambaTokenizer,
    arguments: Mapping[str, Any],
    train: Any,
    validation: Any,
    fingerprint: Mapping[str, Any],
) -> Path:
    """Train, and leave a folder with model, tokenizer and `training.json`.

    Checkpoints go to `{out}.part`, which is removed at the end; a run that was killed goes on
    from the last one there, if its settings and data were the same.

    Args:
        out: the model folder to be.
        build: makes the model; called after the seed is set.
        tokenizer: saved beside the model.
        arguments: fields of `TrainingArguments`, over the paper's recipe; and `packing`: the
            patients of a batch share one row without padding, which changes nothing but the time
            that it takes. Otherwise each has a row, in batches of like lengths.
        train, validation: data sets; without validation examples, none is done.
        fingerprint: what makes two runs the same run, besides the arguments.

    Raises:
        InputError: `out` holds something else than a model, or another training is under way
            there; no training examples; an argument that `TrainingArguments` does not have or
            accept.
    """
    out = Path(out)
    _expect_replaceable(out)
    if not len(train):
        raise InputError("training: expected at least one example, found none")
    part = out.with_name(out.name + ".part")
    settings = {**RECIPE, **arguments}
    if not len(validation):
        settings |= {"eval_strategy": "no"}
    args, packing = _arguments(part / "checkpoints", settings)
    set_seed(args.seed)
    model = build()
    use_cache = model.config.use_cache  # which the trainer turns off, and would save turned off
    # Only now, as a mistyped setting must not clear away the checkpoint of a killed run.
    with only_writer(out) if PartialState().is_main_process else nullcontext():
        checkpoint = _checkpoint(part, {"arguments": settings, **fingerprint})
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            # In validation, the Trainer weighs the loss of a batch by its patients, which it counts
            # by the batch size and the data set's length: that they share a row changes nothing.
            data_collator=(PackingCollator if packing else PaddingCollator)(tokenizer),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)  # quiet where there is no terminal
        trainer.train(resume_from_checkpoint=checkpoint)
        model.config.use_cache = use_cache
        _finish(trainer, part, out)
    return out


def _expect_replaceable(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "config.json").is_file():
        raise InputError(f"{out}: expected a new or empty folder, or a model, found other content")


def _arguments(folder: Path, settings: Mapping[str, Any]) -> tuple[TrainingArguments, bool]:
    """The Trainer's arguments, and whether to pack."""
    if settings.get("label_smoothing_factor"):
        # transformers would smooth the tokens at hand, not the next ones, and no binary labels.
        raise InputError(
            "training arguments: label_smoothing_factor: expected 0, found "
            f"{settings['label_smoothing_factor']}, which is not supported"
        )
    packing = settings["packing"]
    if not isinstance(packing, bool):
        raise InputError(f"packing: expected true or false, found {packing!r}")
    # What depends on the machine and the terminal alone does not make it another run.
    defaults = {
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "group_by_length",
    }
    fractions = {f.name for f in fields(TrainingArguments) if isinstance(f.default, float)}
    try:
        # YAML reads 1e-3, which has no dot, as text.
        read: dict[str, Any] = {
            name: float(value) if name in fractions and isinstance(value, str) else value
            for name, value in settings.items()
            if name != "packing"
        }
        args = TrainingArguments(output_dir=str(folder), **{**defaults, **read})
    except (TypeError, ValueError) as error:
        raise InputError(f"training arguments: {error}") from None
    packing = packing and _batches_stay_whole(args)
    # Batches of like lengths spare padding but are no fair draw, and packing has none to spare.
    if packing and "train_sampling_strategy" not in settings:
        args.train_sampling_strategy = "random"
    return args, packing


def _batches_stay_whole(args: TrainingArguments) -> bool:
    """A packed batch can be one row; what divides batches by rows would tear it from its labels."""
    if getattr(args.accelerator_config, "dispatch_batches", None):
        warnings.warn("no packing: dispatch_batches divides batches by rows", stacklevel=2)
        return False
    if args.n_gpu > 1:
        warnings.warn(
            f"no packing: one process drives {args.n_gpu} GPUs and divides batches by rows; "
            "torchrun or accelerate launch, with a process a GPU, is several times as fast",
            stacklevel=2,
        )
        return False
    return True


def written(folder: Path, file: str) -> str:
    """Where and when a stage wrote its result: tells a resumed run's input from a newer one."""
    path = (Path(folder) / file).resolve()
    if not path.is_file():
        raise InputError(f"{folder}: expected a finished folder with {file}, found none")
    return f"{path} of {path.stat().st_mtime_ns}"


def _checkpoint(part: Path, settings: Mapping[str, Any]) -> str | None:
    """The last checkpoint of an unfinished run with the same settings; others are cleared away."""
    state = PartialState()
    text = json.dumps(settings, default=str, sort_keys=True, indent=1)
    file = part / "settings.json"
    if state.is_main_process and not (file.exists() and file.read_text(encoding="utf-8") == text):
        file.unlink(missing_ok=True)  # first, so that half a clearing cannot pass for this run
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
    state.wait_for_everyone()
    # The trainer's state is the last file of a checkpoint: without it, the save was cut off.
    whole = list((part / "checkpoints").glob(f"checkpoint-*/{TRAINER_STATE_NAME}"))
    steps = {int(file.parent.name.rpartition("-")[2]): file.parent for file in whole}
    return str(steps[max(steps)]) if steps else None


def _finish(trainer: Trainer, part: Path, out: Path) -> None:
    """Save the model in the unfinished folder, then rename."""
    whole = part / "model"
    trainer.save_model(str(whole))
    if trainer.is_world_process_zero():
        (whole / "training_args.bin").unlink(missing_ok=True)  # a pickle, with paths of this site
        history = {"log_history": trainer.state.log_history, "steps": trainer.state.global_step}
        (whole / "training.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        put_in_place(whole, out)
        shutil.rmtree(part)
    PartialState().wait_for_everyone()
