"""One YAML file for all commands, checked field by field before anything runs."""

from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ehrmamba_hf.corpus import PrepareSettings
from ehrmamba_hf.errors import InputError


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sections of a config file; every one may be left out.

    Attributes:
        prepare: see `PrepareSettings`.
        model: fields of `EHRMambaConfig`.
        pretrain: fields of transformers' `TrainingArguments`.
        finetune: likewise, and `forecasting_loss_weight`.
    """

    prepare: PrepareSettings = PrepareSettings()
    model: dict[str, Any] = {}
    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}


def load_config(name: str | None) -> Config:
    """Read a config: a file's path, or the name of a packaged one (`paper`, `tiny`).

    Raises:
        InputError: no such file, or a field that is unknown or has a wrong type.
    """
    if name is None:
        return Config()
    packaged = {p.name.removesuffix(".yaml"): p for p in _packaged() if p.name.endswith(".yaml")}
    source = packaged.get(name) or Path(name)
    if not source.is_file():
        raise InputError(f"config: expected a YAML file or one of {sorted(packaged)}, found {name}")
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
        return msgspec.convert(content, Config)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise InputError(f"{name}: {error}") from None


def _packaged() -> list[Any]:
    return list((resources.files("ehrmamba_hf") / "configs").iterdir())
