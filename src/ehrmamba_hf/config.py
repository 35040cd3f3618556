"""One YAML file for all commands, checked field by field before anything runs."""

from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from ehrmamba_hf.corpus import PrepareSettings
from ehrmamba_hf.errors import InputError


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section whose fields are a command's flags; a flag that is given wins."""


class SimulateSettings(_Section, frozen=True):
    patients: int = 2000
    seed: int = 1


class IngestSettings(_Section, frozen=True):
    timezone: str | None = None
    systems: Path | None = None
    mappings: tuple[Path, ...] = ()
    units: str | None = None
    meds_rules: Path | None = None
    workers: int | None = None
    memory: str = "4GB"


class EvaluateSettings(_Section, frozen=True):
    resamples: int = 500


class ForecastSettings(_Section, frozen=True):
    tokens: int = 32
    weeks: float | None = None
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sections of a config file; every one may be left out.

    Attributes:
        simulate, ingest, evaluate, forecast: flags of these commands.
        prepare: see `PrepareSettings`; `visits` holds for predict and forecast too.
        model: fields of `EHRMambaConfig`.
        pretrain: fields of transformers' `TrainingArguments`, and `packing`.
        finetune: likewise, and `forecasting_loss_weight`.
    """

    simulate: SimulateSettings = SimulateSettings()
    ingest: IngestSettings = IngestSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    forecast: ForecastSettings = ForecastSettings()
    prepare: PrepareSettings = PrepareSettings()
    model: dict[str, Any] = {}
    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}


Section = TypeVar("Section", bound=_Section)


def with_flags(section: Section, **flags: Any) -> Section:
    """A section with the flags that were given in place of its own values.

    >>> with_flags(SimulateSettings(patients=10), patients=None, seed=3)
    SimulateSettings(patients=10, seed=3)
    """
    return msgspec.structs.replace(section, **{k: v for k, v in flags.items() if v is not None})


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
        return msgspec.convert(content, Config, dec_hook=_path)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise InputError(f"{name}: {error}") from None


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError


def _packaged() -> list[Any]:
    return list((resources.files("ehrmamba_hf") / "configs").iterdir())
