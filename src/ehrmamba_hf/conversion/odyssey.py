"""Checkpoints of Odyssey, the toolkit of the paper's authors, as it was for the paper.

https://github.com/VectorInstitute/odyssey (Apache-2.0), odyssey/models/embeddings.py
(`MambaEmbeddingsForCEHR`) and odyssey/models/ehr_mamba/ (`MambaPretrain`, `MambaFinetune`). It
embeds a token as

    LayerNorm(dropout(tanh(W [word; sin(w dt + phi); sin(w' age + phi')])
                      + type + visit_order + visit_segment))

and feeds that to transformers' Mamba.

Under `embeddings.`, ours under `backbone.embeddings.`:

    word_embeddings.weight                      concept.weight, rows by the vocabulary
    time_embeddings.w, .phi                     time.w, .phi, (1, n) to (n,)
    age_embeddings.w, .phi                      age.w, .phi, likewise
    scale_back_concat_layer.weight, .bias       fusion.weight, .bias
    token_type_embeddings.weight                token_type.weight, rows by type
    visit_order_embeddings.weight               visit_order.weight
    visit_segment_embeddings.embedding.weight   visit_segment.weight, rows 1 and 2 change places
    LayerNorm.weight, .bias                     norm.weight, .bias

The rest:

    model.backbone.layers.*                     backbone.layers.*
    model.backbone.norm_f.weight                backbone.norm_f.weight
    model.lm_head.weight                        lm_head.weight, rows by the vocabulary

Of a finetuned model, instead of the last:

    pretrained_model.model.lm_head.weight       lm_head.weight, rows by the vocabulary
    model.classifier.dense.weight, .bias        classifier.dense.weight, .bias
    model.classifier.out_proj.weight, .bias     classifier.out_proj.weight, .bias
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ehrmamba_hf.conversion.vocabulary import OdysseyVocabulary
from ehrmamba_hf.conversion.weights import (
    expect_tensors,
    layer_shapes,
    new_config,
    read_checkpoint,
)
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaForCausalLM, EHRMambaForSequenceClassification
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_TOKENS, TOKEN_TYPES

TYPES = ("PAD", "CLS", "VS", "VE", "interval", "lab", "medication", "procedure", "REG")
"""Their token types, in order. There is none for task tokens nor for other codes."""

CLASS_TOKEN_ID = 5
"""Where their vocabulary has [CLS]."""

# What a checkpoint may hold besides, and why it is not needed: the table and the buffers that their
# forward pass never reads, and what a finetuned model holds twice, as its own and as the
# pretrained model's.
IGNORED = re.compile(
    r"model\.backbone\.embeddings\.weight"
    r"|embeddings\.(position_ids|token_type_ids)"
    r"|pretrained_model\.(embeddings|model\.backbone)\..+"
)

_EMBEDDINGS = {
    "word_embeddings.weight": "concept.weight",
    "time_embeddings.w": "time.w",
    "time_embeddings.phi": "time.phi",
    "age_embeddings.w": "age.w",
    "age_embeddings.phi": "age.phi",
    "scale_back_concat_layer.weight": "fusion.weight",
    "scale_back_concat_layer.bias": "fusion.bias",
    "token_type_embeddings.weight": "token_type.weight",
    "visit_order_embeddings.weight": "visit_order.weight",
    "visit_segment_embeddings.embedding.weight": "visit_segment.weight",
    "LayerNorm.weight": "norm.weight",
    "LayerNorm.bias": "norm.bias",
}
_LAYER = re.compile(r"model\.backbone\.layers\.(\d+)\..+")

Converted = EHRMambaForCausalLM | EHRMambaForSequenceClassification


def from_odyssey(source: Path, *, vocabulary: OdysseyVocabulary | None = None) -> Converted:
    """The model of an Odyssey checkpoint: the same logits for the same sequence.

    A finetuned checkpoint becomes a sequence classifier with the authors' two-layer head and as
    many logits as that has: 2 are a softmax, `single_label_classification`; what others are, a
    checkpoint does not tell.

    The columns that it takes are ours, with four rules of theirs, without which the logits are
    not what they would be there:

    - `time_stamps` are differences of weeks from one token to the next, 0 for the first: see
      `time_differences`. Nothing here computes them, so `generate()` is of no use.
    - `ages` are whole years at the visit's start, 0 on [CLS], intervals and padding.
    - an interval token has the visit order of the visit before it.
    - a task token keeps the type of the token in whose place it stands, CLS or REG. Type `task`
      has the row of REG here, and `other`, which they lack, the mean of procedure, medication and
      lab.

    Their segments begin with 2, ours with 1: the rows have changed places.

    Args:
        source: a Lightning checkpoint or a saved `state_dict`.
        vocabulary: gives each of our tokens its row, so that special tokens stand in our places,
            and each token its type. Without it, token ids stay theirs, and all columns have to be
            given, since none can be derived from them.

    Raises:
        InputError: no checkpoint; tensors missing, unknown (a head for each task, for one) or of
            another shape; a vocabulary of another size.
    """
    source = Path(source)
    tensors = read_checkpoint(source)
    fields = _fields(tensors, vocabulary, source)
    finetuned = "num_labels" in fields
    config = new_config(fields, source)
    model: Converted = (
        EHRMambaForSequenceClassification(config) if finetuned else EHRMambaForCausalLM(config)
    )
    names = _names(model)
    expect_tensors(tensors, _expected_shapes(model, names, tensors), IGNORED, source)
    weights = {ours: tensors[theirs] for theirs, ours in names.items()}
    model.load_state_dict(model.state_dict() | _converted(weights, vocabulary))
    if vocabulary is not None:
        types = vocabulary.tokenizer().token_types
        model.set_token_types(types[len(SPECIAL_TOKENS) :])
    return model.eval()


def time_differences(time_stamps: Tensor) -> Tensor:
    """What their time embedding sees of time stamps, (batch, length), in weeks.

    Theirs count from 2020-01-01 to the visit, and are 0 on [CLS] and intervals.

    >>> time_differences(torch.tensor([[0.0, 40.0, 40.0, 0.0, 47.0]])).tolist()
    [[0.0, 40.0, 0.0, -40.0, 47.0]]
    """
    return torch.diff(time_stamps, dim=1, prepend=time_stamps[:, :1])


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Tensors and where they come from."""

    tensors: Mapping[str, Tensor]
    source: Path

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """A tensor's shape; an InputError where there is none of so many dimensions."""
        found = tuple(self.tensors[name].shape) if name in self.tensors else None
        if found is None or len(found) != dimensions:
            raise InputError(
                f"{self.source}: {name}: expected {dimensions} dimensions, found "
                f"{'no such tensor' if found is None else f'shape {found}'}"
            )
        return found


def _fields(
    tensors: Mapping[str, Tensor], vocabulary: OdysseyVocabulary | None, source: Path
) -> dict[str, Any]:
    """The configuration, read off the shapes."""
    checkpoint = _Checkpoint(tensors, source)
    rows, width = checkpoint.shape("embeddings.word_embeddings.weight", 2)
    if vocabulary is not None and vocabulary.size != rows:
        raise InputError(
            f"{source}: expected a vocabulary of {rows} tokens, one for each row of "
            f"embeddings.word_embeddings.weight, found {vocabulary.size}"
        )
    fields = _backbone_fields(checkpoint, width) | {
        "vocab_size": rows if vocabulary is None else len(vocabulary.tokens),
        "hidden_size": width,
        "time_embedding_size": checkpoint.shape("embeddings.time_embeddings.w", 2)[1],
        "max_visit_orders": checkpoint.shape("embeddings.visit_order_embeddings.weight", 2)[0] - 1,
        "embedding_activation": "tanh",
        "learned_zero_rows": True,
    }
    if vocabulary is None:
        fields["bos_token_id"] = CLASS_TOKEN_ID
    if any(name.startswith("model.classifier.") for name in tensors):
        labels = checkpoint.shape("model.classifier.out_proj.weight", 2)[0]
        fields |= {"classifier_hidden": True, "num_labels": labels}
        if labels == 2:
            fields["problem_type"] = "single_label_classification"
    return fields


def _backbone_fields(checkpoint: _Checkpoint, width: int) -> dict[str, Any]:
    mixer = "model.backbone.layers.0.mixer."
    channels, states = checkpoint.shape(mixer + "A_log", 2)
    if channels % width:
        raise InputError(
            f"{checkpoint.source}: {mixer}A_log: expected a multiple of the width, {width}, of "
            f"channels, found {channels}"
        )
    layers = map(_LAYER.fullmatch, checkpoint.tensors)
    return {
        "num_hidden_layers": 1 + max(int(m[1]) for m in layers if m),
        "state_size": states,
        "expand": channels // width,
        "conv_kernel": checkpoint.shape(mixer + "conv1d.weight", 3)[2],
        "time_step_rank": checkpoint.shape(mixer + "dt_proj.weight", 2)[1],
        "use_bias": mixer + "in_proj.bias" in checkpoint.tensors,
        "use_conv_bias": mixer + "conv1d.bias" in checkpoint.tensors,
    }


def _names(model: Converted) -> dict[str, str]:
    """Their name of each tensor to ours."""
    names = {f"embeddings.{a}": f"backbone.embeddings.{b}" for a, b in _EMBEDDINGS.items()}
    names |= {f"model.backbone.{a}": f"backbone.{a}" for a in layer_shapes(model.backbone)}
    if isinstance(model, EHRMambaForCausalLM):
        return names | {"model.lm_head.weight": "lm_head.weight"}
    head = {f"model.classifier.{a}": f"classifier.{a}" for a in model.classifier.state_dict()}
    return names | head | {"pretrained_model.model.lm_head.weight": "lm_head.weight"}


def _expected_shapes(
    model: Converted, names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Theirs are ours, but for the tables whose rows are ordered anew, and for w and phi."""
    ours = model.state_dict()
    shapes = {theirs: tuple(ours[name].shape) for theirs, name in names.items()}
    rows = len(tensors["embeddings.word_embeddings.weight"])
    width = model.config.hidden_size
    for theirs, name in names.items():
        if name in ("backbone.embeddings.concept.weight", "lm_head.weight"):
            shapes[theirs] = (rows, width)
        elif name.endswith((".w", ".phi")):
            shapes[theirs] = (1, *shapes[theirs])
    return shapes | {"embeddings.token_type_embeddings.weight": (len(TYPES), width)}


def _converted(
    weights: dict[str, Tensor], vocabulary: OdysseyVocabulary | None
) -> dict[str, Tensor]:
    """Tables with their rows in our order, and w and phi as vectors."""
    place = "backbone.embeddings."
    for name in ("time.w", "time.phi", "age.w", "age.phi"):
        weights[place + name] = weights[place + name].flatten()
    table = weights[place + "token_type.weight"]
    row = {kind: table[index] for index, kind in enumerate(TYPES)}
    row["task"] = row["REG"]
    row["other"] = torch.stack([row["procedure"], row["medication"], row["lab"]]).mean(0)
    weights[place + "token_type.weight"] = torch.stack([row[kind] for kind in TOKEN_TYPES])
    weights[place + "visit_segment.weight"] = weights[place + "visit_segment.weight"][[0, 2, 1]]
    if vocabulary is not None:
        rows = torch.tensor(vocabulary.rows)
        for name in (place + "concept.weight", "lm_head.weight"):
            weights[name] = weights[name][rows]
    return weights
