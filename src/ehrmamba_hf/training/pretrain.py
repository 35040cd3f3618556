"""Pretraining by next-token prediction (paper, section 2.3.1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrmamba_hf.corpus import load_sequences
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.corpus.prepare import REPORT_FILE
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForCausalLM
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_TOKENS
from ehrmamba_hf.training.run import run_training, written

RECIPE = {"num_train_epochs": 15, "per_device_train_batch_size": 44}


def new_model(tokenizer: EHRMambaTokenizer, fields: Mapping[str, Any]) -> EHRMambaForCausalLM:
    """An untrained model for a tokenizer's vocabulary.

    Args:
        tokenizer: gives vocabulary size, special ids, token types and context length.
        fields: other fields of `EHRMambaConfig`.

    Raises:
        InputError: a field that `EHRMambaConfig` does not have, or a value that it refuses.
    """
    known = set(EHRMambaConfig.__dataclass_fields__)
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InputError(f"model: expected fields of EHRMambaConfig, found {unknown}")
    values = {"context_length": tokenizer.model_max_length, **fields}
    try:
        config = EHRMambaConfig(
            vocab_size=tokenizer.vocab_size,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            **values,
        )
    except Exception as error:  # strict dataclasses raise classes of their own
        raise InputError(f"model: {error}") from error
    model = EHRMambaForCausalLM(config)
    model.set_token_types(tokenizer.token_types[len(SPECIAL_TOKENS) :])
    return model


def pretrain(
    data: Path,
    out: Path,
    *,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Pretrain a model on the whole records of the pretraining split.

    Args:
        data: a data folder, as `prepare` writes it.
        out: the model folder to be.
        model: fields of `EHRMambaConfig`; the paper's by default.
        training: fields of `TrainingArguments`, the paper's by default, and `packing`: see
            `run_training`.

    Raises:
        InputError: `model` has a field that `EHRMambaConfig` does not have or accept; see also
            `run_training`.
    """
    tokenizer = load_tokenizer(data)
    return run_training(
        out,
        build=lambda: new_model(tokenizer, model or {}),
        tokenizer=tokenizer,
        arguments={**RECIPE, **(training or {})},
        train=load_sequences(data, "pretrain"),
        validation=load_sequences(data, "pretrain_validation"),
        fingerprint={"data": written(data, REPORT_FILE), "model": dict(model or {})},
    )
