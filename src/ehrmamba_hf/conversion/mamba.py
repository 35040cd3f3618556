"""transformers' Mamba as the backbone of an EHRMamba model.

What is taken over: every block and the final norm, `backbone.layers.{i}.*` and
`backbone.norm_f.weight`, under the same names. What is left: the embeddings and the head tied to
them, since what they embed are words.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import MambaConfig, MambaPreTrainedModel

from ehrmamba_hf.conversion.weights import (
    expect_tensors,
    layer_shapes,
    new_config,
    read_safetensors,
)
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForCausalLM
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_TOKENS

CARRIED = (
    *("hidden_size", "num_hidden_layers", "state_size", "conv_kernel", "expand", "hidden_act"),
    *("use_bias", "use_conv_bias", "layer_norm_epsilon", "residual_in_fp32", "time_step_rank"),
    *("time_step_scale", "time_step_min", "time_step_max", "time_step_floor"),
    *("time_step_init_scheme", "rescale_prenorm_residual", "use_cache"),
)
"""The fields of MambaConfig that shape the backbone; they have the same names in ours."""

_OF_WORDS = re.compile(r"(backbone\.)?embeddings?\.weight|lm_head\.weight")


def from_mamba(
    source: str | Path | MambaPreTrainedModel,
    *,
    tokenizer: EHRMambaTokenizer | None = None,
    **fields: Any,
) -> EHRMambaForCausalLM:
    """A language model of patients whose blocks are those of a Mamba model of transformers.

    On `inputs_embeds`, its `backbone` gives what transformers' MambaModel gives. Embeddings and
    head are new, drawn from torch's random generator. Weights become float32.

    Args:
        source: a model folder of transformers' MambaModel or MambaForCausalLM, as of the Hub's
            state-spaces/mamba-*-hf, with one or many safetensors; or such a model itself.
        tokenizer: gives vocabulary size, special ids, token types and context length.
        fields: other fields of `EHRMambaConfig`; not those that the weights decide.

    Raises:
        InputError: a folder without config or safetensors; another kind of model; a
            configuration that EHRMamba cannot express; tensors missing, unknown or of another
            shape; a field that is unknown, or not to be chosen.
    """
    if isinstance(source, MambaPreTrainedModel):
        name, config = type(source).__name__, source.config
        tensors: dict[str, Tensor] = source.state_dict()
    else:
        name, config = str(source), _read_config(Path(source))
        tensors = read_safetensors(Path(source))
    model = EHRMambaForCausalLM(_config(config, tokenizer, fields, name))
    if tokenizer is not None:
        model.set_token_types(tokenizer.token_types[len(SPECIAL_TOKENS) :])
    prefix = "backbone." if any(key.startswith("backbone.") for key in tensors) else ""
    expected = {prefix + key: shape for key, shape in layer_shapes(model.backbone).items()}
    expect_tensors(tensors, expected, _OF_WORDS, name)
    weights = {key.removeprefix(prefix): tensors[key] for key in expected}
    model.backbone.load_state_dict(model.backbone.state_dict() | weights)
    return model.eval()


def _read_config(folder: Path) -> MambaConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder}: expected a model folder with config.json, found none")
    try:
        values, _ = MambaConfig.get_config_dict(str(folder))
        kind = values.get("model_type")
        if kind != MambaConfig.model_type:
            raise InputError(f"{file}: model_type: expected 'mamba', found {kind!r}")
        return MambaConfig.from_dict(values)
    except (StrictDataclassError, ValueError, OSError) as error:
        raise InputError(f"{file}: {error}") from error


def _config(
    mamba: MambaConfig,
    tokenizer: EHRMambaTokenizer | None,
    fields: dict[str, Any],
    name: str,
) -> EHRMambaConfig:
    unknown = sorted(fields.keys() - EHRMambaConfig.__dataclass_fields__.keys())
    if unknown:
        raise InputError(f"from_mamba: expected fields of EHRMambaConfig, found {unknown}")
    decided = sorted(fields.keys() & set(CARRIED))
    if decided:
        raise InputError(f"from_mamba: {decided} come from {name}, expected not to be given")
    width = mamba.expand * mamba.hidden_size
    if mamba.intermediate_size != width:
        raise InputError(
            f"{name}: intermediate_size: expected expand * hidden_size = {width}, found "
            f"{mamba.intermediate_size}"
        )
    of_tokenizer = {}
    if tokenizer is not None:
        of_tokenizer = {
            "vocab_size": tokenizer.vocab_size,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "context_length": tokenizer.model_max_length,
        }
    return new_config({**{f: getattr(mamba, f) for f in CARRIED}, **of_tokenizer, **fields}, name)
