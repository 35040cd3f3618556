"""EHRMamba for Hugging Face: health records in, a clinical foundation model out.

The public names, each imported when it is first asked for, so that the command line stays quick.

>>> from ehrmamba_hf import EHRMambaConfig
>>> EHRMambaConfig(vocab_size=100).model_type
'ehrmamba'
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "errors": ("EHRMambaError", "InputError", "SchemaError"),
    "events": ("ingest",),
    "tasks": ("Task", "register", "registered"),
    "tokenization": ("EHRMambaTokenizer",),
    "corpus": ("PrepareSettings", "load_examples", "load_sequences", "prepare"),
    "modeling": (
        *("EHRMambaConfig", "EHRMambaHistory", "EHRMambaModel"),
        *("EHRMambaForCausalLM", "EHRMambaForSequenceClassification"),
    ),
    "training": ("finetune", "pretrain"),
    "evaluation": ("evaluate", "predict"),
    "forecasting": ("forecast", "forecasts"),
    "simulation": ("simulate",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_ROOM_OF)  # noqa: PLE0605 (a list of strings, made above)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
