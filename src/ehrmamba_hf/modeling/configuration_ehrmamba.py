"""EHRMamba configuration: every choice of the architecture as one validated field."""

import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

AUTO_MAP = {
    "AutoConfig": "configuration_ehrmamba.EHRMambaConfig",
    "AutoModel": "modeling_ehrmamba.EHRMambaModel",
    "AutoModelForCausalLM": "modeling_ehrmamba.EHRMambaForCausalLM",
    "AutoModelForSequenceClassification": "modeling_ehrmamba.EHRMambaForSequenceClassification",
}

_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "state_size",
    "conv_kernel",
    "expand",
    "time_step_scale",
    "time_step_min",
    "time_step_floor",
    "layer_norm_epsilon",
    "embedding_layer_norm_eps",
    "initializer_range",
    "type_vocab_size",
    "max_visit_orders",
    "segment_vocab_size",
    "time_embedding_size",
    "context_length",
    "long_interval_days",
)


@strict
class EHRMambaConfig(PreTrainedConfig):
    r"""Architecture of an EHRMamba model (EHRMamba paper, section 3 and appendix C).

    The backbone's fields have the names and meanings of transformers' `MambaConfig`, so that
    weights convert; the defaults are the paper's model (32 layers, width 768). The others:

    Args:
        time_step_rank (`int` or `"auto"`): width of the step size's projection; "auto" is
            `ceil(hidden_size / 16)`, and is replaced by that number.
        type_vocab_size (`int`): kinds of token (padding, visit start, procedure, lab ...).
        max_visit_orders (`int`): highest visit number with an embedding of its own; later visits
            share it.
        segment_vocab_size (`int`): 0 outside visits, then 1 and 2 alternating by visit.
        time_embedding_size (`int`): sine features of the age, and of the time, each (appendix C.2).
        embedding_activation (`"tanh"` or `None`): applied to the fused concept, time and age; None
            is the paper's formula, "tanh" is what the authors' code does.
        learned_zero_rows (`bool`): where the visit order is 0, take rows 0 of the tables and the
            sines of what is given, as the authors' code does, not an exact zero vector.
        classifier_hidden (`bool`): the two-layer head of the authors' code (dropout, linear, SiLU,
            dropout, linear), not the paper's dropout and linear.
        forecasting_loss_weight (`float`): in training, a sequence classifier adds this much of the
            next-token loss on its own inputs, so that the finetuned model still forecasts; 0 is
            the paper's finetuning.
        context_length (`int`): advice to the tokenizer on where to truncate; no limit of the model.
        long_interval_days (`float`): days that time advances at [LT], the interval of a year or
            more; kept to the hour.
        num_labels (`int`): 1 by default: one shared logit for all tasks of multitask prompted
            finetuning (transformers' own default is 2).

    Raises:
        huggingface_hub.errors.StrictDataclassError: a value of the wrong type, or out of its range.

    Example:
        >>> config = EHRMambaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2)
        >>> config.intermediate_size, config.time_step_rank, config.num_labels
        (128, 4, 1)
    """

    model_type = "ehrmamba"
    # The Trainer gathers every other output of an evaluation, and a cache cannot be concatenated.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache_params"]

    vocab_size: int = 20000
    hidden_size: int = 768
    num_hidden_layers: int = 32
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: int | Literal["auto"] = "auto"
    hidden_act: str = "silu"
    use_bias: bool = False
    use_conv_bias: bool = True
    time_step_scale: int | float = 1.0
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    time_step_init_scheme: Literal["random", "constant"] = "random"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    rescale_prenorm_residual: bool = True
    residual_in_fp32: bool = True

    type_vocab_size: int = 11
    max_visit_orders: int = 512
    segment_vocab_size: int = 3
    time_embedding_size: int = 32
    embedding_layer_norm_eps: float = 1e-12
    embedding_dropout: int | float = 0.1
    embedding_activation: Literal["tanh"] | None = None
    learned_zero_rows: bool = False
    long_interval_days: int | float = 365.0

    classifier_dropout: int | float = 0.1
    classifier_hidden: bool = False
    forecasting_loss_weight: int | float = 0.0

    context_length: int = 2048
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int = 0
    bos_token_id: int | None = 3
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        self._forget_default_labels(kwargs.get("num_labels"))
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)

    def _forget_default_labels(self, num_labels: int | None) -> None:
        """Let `from_pretrained(..., num_labels=n)` win over the saved, unnamed labels."""
        unnamed = self.id2label is not None and all(
            str(name) == f"LABEL_{index}" for index, name in self.id2label.items()
        )
        if unnamed and num_labels not in (None, len(self.id2label or {})):
            self.id2label = self.label2id = None

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved: the labels always, since transformers leaves out its own default of 2."""
        return super().to_diff_dict() | {"id2label": self.id2label, "label2id": self.label2id}

    @property
    def intermediate_size(self) -> int:
        """Channels of the mixer: `expand * hidden_size`."""
        return self.expand * self.hidden_size

    @property
    def layer_types(self) -> list[str]:
        """One recurrent state a layer: this is what makes transformers' DynamicCache fit."""
        return ["linear_attention"] * self.num_hidden_layers

    def validate_ranges(self) -> None:
        """Check what the types cannot: signs, probabilities, ids inside the vocabulary."""
        for name in _POSITIVE:
            self._expect(name, getattr(self, name) > 0, "a positive number")
        for name in ("embedding_dropout", "classifier_dropout"):
            self._expect(name, 0 <= getattr(self, name) < 1, "a probability in [0, 1)")
        weight = self.forecasting_loss_weight
        self._expect("forecasting_loss_weight", weight >= 0, "0 or more")
        rank = self.time_step_rank
        self._expect("time_step_rank", isinstance(rank, int) and rank > 0, 'positive or "auto"')
        self._expect(
            "time_step_max",
            self.time_step_max >= self.time_step_min,
            f"at least time_step_min = {self.time_step_min}",
        )
        self._expect("hidden_act", self.hidden_act in ACT2FN, "an activation of transformers")
        self._expect(
            "pad_token_id",
            0 <= self.pad_token_id < self.vocab_size,
            f"an id of the vocabulary, 0 to {self.vocab_size - 1}",
        )

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            found = getattr(self, name)
            raise ValueError(f"EHRMambaConfig.{name}: expected {expected}, found {found!r}")


__all__ = ["EHRMambaConfig"]
