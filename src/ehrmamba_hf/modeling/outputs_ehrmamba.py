"""What the models return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput


@dataclass
class EHRMambaOutput(ModelOutput):
    """Output of the backbone.

    Args:
        last_hidden_state: after the final norm, (batch, length, hidden).
        cache_params: the states after the last real token of each row.
        hidden_states: embeddings, then each layer's output, the last one normed.
    """

    last_hidden_state: Tensor | None = None
    cache_params: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class EHRMambaCausalLMOutput(ModelOutput):
    """Output of the language model.

    Args:
        loss: mean cross-entropy of the next tokens that are not padding.
        logits: (batch, length, vocab).
        cache_params: the states after the last real token of each row.
        hidden_states: embeddings, then each layer's output, the last one normed.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache_params: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class EHRMambaSequenceClassifierOutput(ModelOutput):
    """Output of the sequence classifier.

    Args:
        loss: by the configured problem type; binary cross-entropy for one label.
        logits: (batch, num_labels), before the sigmoid or softmax; a row a patient where several
            share a row.
        cache_params: the states after the last real token of each row.
        hidden_states: embeddings, then each layer's output, the last one normed.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache_params: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


__all__ = ["EHRMambaCausalLMOutput", "EHRMambaOutput", "EHRMambaSequenceClassifierOutput"]
