"""Tensors of other programs: read without running any of their code, and checked one by one."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaModel

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder of transformers, in one file or in shards.

    Raises:
        InputError: no safetensors there, only pickles there, a shard missing, a broken file.
    """
    files = [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not files[0].is_file() and index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        files = sorted({folder / name for name in shards.values()})
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise InputError(_missing(folder, file))
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise InputError(f"{file}: expected safetensors, found {error}") from None
    return tensors


def _missing(folder: Path, file: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder}: expected {file.name}, found none"
    return (
        f"{folder}: expected {file.name}, found {pickles[0]}, a pickle, which can run code as it "
        "is read. If you trust it, write it anew: "
        f"transformers.MambaForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(folder)"
    )


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The weights of a torch or Lightning checkpoint: its `state_dict`, or all of it.

    Raises:
        InputError: no such file; one that holds more than tensors and plain values, which would
            run code as it is read; anything else than a `state_dict`.
    """
    if not file.is_file():
        raise InputError(f"{file}: expected a checkpoint file, found none")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what was never a pickle can raise anything
        raise InputError(
            f"{file}: expected a checkpoint of tensors and plain values alone, found "
            f"{type(error).__name__}. If you trust the file, write its weights anew: "
            f"torch.save(torch.load({str(file)!r}, weights_only=False)['state_dict'], new_file)"
        ) from None
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not tensors:
        raise InputError(f"{file}: expected a dict of tensors, found {type(tensors).__name__}")
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{file}: expected a state_dict, or a dict with one under `state_dict`; found "
                f"{name} of type {type(value).__name__}"
            )
    return dict(tensors)


def expect_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    ignored: re.Pattern[str],
    source: str | Path,
) -> None:
    """Check that exactly the expected tensors are there, each of its shape.

    Args:
        tensors: what was read.
        expected: names and shapes.
        ignored: the names, matched whole, that may be there and are left out.
        source: where it was read from.

    Raises:
        InputError: tensors that are missing, not expected, or of another shape; names them all.

    >>> expect_tensors({"a": torch.ones(2)}, {"a": (3,), "b": (1,)}, re.compile("c"), "x.ckpt")
    Traceback (most recent call last):
    ehrmamba_hf.errors.InputError: x.ckpt: a: expected shape (3,), found (2,)
    x.ckpt: b: expected shape (1,), found none
    """
    wrong = [
        f"{name}: expected shape {expected[name]}, found none" for name in expected.keys() - tensors
    ]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in expected:
            if not ignored.fullmatch(name):
                wrong.append(f"{name}: expected no such tensor, found shape {shape}")
        elif shape != tuple(expected[name]):
            wrong.append(f"{name}: expected shape {tuple(expected[name])}, found {shape}")
    if wrong:
        raise InputError("\n".join(f"{source}: {line}" for line in sorted(wrong)))


def new_config(fields: Mapping[str, Any], source: str | Path) -> EHRMambaConfig:
    """A configuration of ours.

    Raises:
        InputError: a value that it refuses.
    """
    try:
        return EHRMambaConfig(**fields)
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def layer_shapes(backbone: EHRMambaModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the blocks and the final norm: they are those of transformers' Mamba."""
    return {
        name: tuple(parameter.shape)
        for name, parameter in backbone.named_parameters()
        if not name.startswith("embeddings.")
    }
