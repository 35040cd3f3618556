"""EHRMamba: backbone, causal language model and sequence classifier for patient sequences."""

from typing import Any, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attributes_ehrmamba import ATTRIBUTES, TASK
from .configuration_ehrmamba import EHRMambaConfig
from .continuation_ehrmamba import EHRMambaHistoryMixin, EHRMambaHistoryPredictionMixin
from .embeddings_ehrmamba import EHRMambaEmbeddings, EHRMambaSineFeatures
from .generation_ehrmamba import EHRMambaGenerationMixin
from .linear_ehrmamba import EHRMambaLinear
from .mixer_ehrmamba import EHRMambaMixer
from .outputs_ehrmamba import (
    EHRMambaCausalLMOutput,
    EHRMambaOutput,
    EHRMambaSequenceClassifierOutput,
)
from .packing_ehrmamba import (
    begins_patient,
    last_of_each_patient,
    numbered_patients,
    places_in_row,
)


class EHRMambaRMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Norm the last dimension; the result has the dtype of the weight."""
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, eps=self.eps)
        return self.weight * normed.to(self.weight.dtype)


class EHRMambaBlock(GradientCheckpointingLayer):
    """Pre-norm residual block around a mixer."""

    def __init__(self, config: EHRMambaConfig, layer_idx: int) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = EHRMambaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = EHRMambaMixer(config, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(batch, length, hidden) to the same; see EHRMambaMixer.forward."""
        residual = hidden_states.float() if self.residual_in_fp32 else hidden_states
        mixed = self.mixer(self.norm(hidden_states), cache_params, attention_mask, positions)
        return residual + mixed


class EHRMambaPreTrainedModel(EHRMambaHistoryMixin, PreTrainedModel):
    """Weight initialisation, loading and vocabulary handling that all EHRMamba models share."""

    config: EHRMambaConfig
    config_class = EHRMambaConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EHRMambaBlock", "EHRMambaEmbeddings"]
    _is_stateful = True
    _can_record_outputs = {"hidden_states": EHRMambaBlock}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EHRMambaMixer | EHRMambaEmbeddings | EHRMambaSineFeatures):
            module.reset_parameters()

    def set_token_types(self, types: list[int]) -> None:
        """Set the types of the ordinary tokens, from which missing `token_type_ids` are derived.

        Args:
            types: one for each token from id 41 on: 7 procedure, 8 medication, 9 lab, 10 other.

        Raises:
            ValueError: another number of types, or another type.
        """
        self._embeddings().set_token_types(types)

    def bfloat16_projections(self) -> Self:
        """Hold each layer's two large projections in bfloat16: quicker inference on a CPU.

        The convolution, the scan, the norms and the heads stay as they are. Not the default, since
        the roundings add up over the layers. Returns the model itself, changed.
        """
        for module in self.modules():
            if isinstance(module, EHRMambaMixer):
                module.in_proj.to(torch.bfloat16)
                module.out_proj.to(torch.bfloat16)
        return self

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize the vocabulary, and with it the tables of token types and intervals."""
        concept = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self._embeddings().resize_tables(concept.num_embeddings)
        return concept

    def _next_tokens(
        self,
        labels: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        seq_idx: Tensor | None,
    ) -> Tensor:
        """The labels, without padding and what would be predicted from it or another patient."""
        pad = self.config.pad_token_id
        labels = labels.long().masked_fill(labels == pad, -100)
        if seq_idx is not None:
            labels = labels.masked_fill(begins_patient(seq_idx), -100)
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != pad
        if attention_mask is None:
            return labels
        padding = attention_mask[:, -labels.shape[1] :] == 0
        return labels.masked_fill(F.pad(padding[:, :-1], (1, 0)) | padding, -100)

    def _embeddings(self) -> EHRMambaEmbeddings:
        return cast(EHRMambaEmbeddings, self.base_model.embeddings)


class EHRMambaModel(EHRMambaPreTrainedModel):
    """The backbone: embeddings, Mamba blocks and a final norm."""

    def __init__(self, config: EHRMambaConfig) -> None:
        super().__init__(config)
        self.embeddings = EHRMambaEmbeddings(config)
        self.layers = nn.ModuleList(
            [EHRMambaBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm_f = EHRMambaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The concept table, (vocab, hidden)."""
        return self.embeddings.concept

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the concept table."""
        self.embeddings.concept = cast(nn.Embedding, value)

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        ages: Tensor | None = None,
        time_stamps: Tensor | None = None,
        visit_segments: Tensor | None = None,
        visit_orders: Tensor | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> EHRMambaOutput:
        """Encode patient sequences.

        Attributes that are not given are derived from the ids (see derive_attributes).

        Args:
            input_ids: token ids, (batch, length).
            token_type_ids: kinds of token, (batch, length).
            ages: years at the event, (batch, length).
            time_stamps: weeks since the patient's first event, (batch, length).
            visit_segments: 1, 2 alternating by visit, 0 outside, (batch, length).
            visit_orders: 1, 2, 3 ... by visit, 0 outside, (batch, length).
            attention_mask: 1 on real tokens, on the left or the right of padding, (batch, length)
                or longer, of which the last columns are taken; by default, ids other than PAD.
            seq_idx: where several patients share a row, the number of each position's patient,
                (batch, length): a new one begins wherever it changes, and sees nothing of those
                before it. As transformers' DataCollatorWithFlattening gives it; its `position_ids`
                alone, 0 where a patient begins, do too.
            inputs_embeds: embedded tokens, (batch, length, hidden), instead of `input_ids` and all
                attributes, as `model.embeddings` gives them.
            cache_params: states to continue from; they are updated in place.
            use_cache: return states; by default the configuration's, but never in training.
            output_hidden_states: return each layer's output.
            return_dict: a tuple instead of named outputs if False.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`; or attributes missing
                where a sequence is continued from states, which do not hold them; or states given
                in training with gradient checkpointing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        columns = (token_type_ids, ages, time_stamps, visit_segments, visit_orders)
        attributes = dict(zip(ATTRIBUTES, columns, strict=True))
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache = False
            if cache_params is not None:
                raise ValueError(
                    "cache_params cannot be used in training with gradient checkpointing: the "
                    "recomputation would update the states a second time"
                )
        if use_cache and cache_params is None:
            cache_params = DynamicCache(config=self.config)

        seq_idx = numbered_patients(seq_idx, kwargs.get("position_ids"))
        inputs = cast(Tensor, inputs_embeds if input_ids is None else input_ids)
        mask = self._mask(inputs, attention_mask)
        positions = (
            None if seq_idx is None else places_in_row(seq_idx, mask, self.config.conv_kernel)
        )
        hidden_states = inputs
        if input_ids is not None:
            hidden_states = self._embed(input_ids, mask, positions, attributes, cache_params)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, cache_params=cache_params, attention_mask=mask, positions=positions
            )
        return EHRMambaOutput(
            last_hidden_state=self.norm_f(hidden_states),
            cache_params=cache_params if use_cache else None,
        )

    def _mask(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """1 on real tokens, (batch, length); None where all are."""
        if attention_mask is not None:
            mask = attention_mask[:, -inputs.shape[1] :]
        elif inputs.ndim == 2:
            mask = inputs != self.config.pad_token_id
        else:
            return None
        if not torch.compiler.is_compiling() and bool(mask.all()):
            return None
        return mask.long()

    def _embed(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        attributes: dict[str, Tensor | None],
        cache: Cache | None,
    ) -> Tensor:
        if cache is not None and cache.has_previous_state():
            _expect_attributes(attributes, input_ids.shape[1])
        columns = self.embeddings.derive(input_ids, mask, positions, **attributes)
        return self.embeddings(input_ids, **columns)


def _expect_attributes(given: dict[str, Tensor | None], length: int) -> None:
    """Refuse to derive the attributes of tokens that come after cached ones, which are not here."""
    columns = [(name, given[name]) for name in ("ages", "time_stamps", "visit_orders")]
    missing = [name for name, column in columns if column is None or column.shape[1] < length]
    if missing:
        raise ValueError(
            "continuing from cache_params needs the new tokens alone, and their attributes, which "
            f"cannot be derived without the tokens before them: expected {', '.join(missing)}"
        )


class EHRMambaForCausalLM(EHRMambaGenerationMixin, EHRMambaPreTrainedModel, GenerationMixin):
    """Next-token prediction over patient sequences: the pretraining task, and forecasting."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.concept.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # of a finetuned model's folder

    def __init__(self, config: EHRMambaConfig) -> None:
        super().__init__(config)
        self.backbone = EHRMambaModel(config)
        self.lm_head = EHRMambaLinear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        ages: Tensor | None = None,
        time_stamps: Tensor | None = None,
        visit_segments: Tensor | None = None,
        visit_orders: Tensor | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> EHRMambaCausalLMOutput:
        """Score the next tokens; see EHRMambaModel.forward for the columns and the cache.

        Args:
            input_ids: see EHRMambaModel.
            token_type_ids: see EHRMambaModel.
            ages: see EHRMambaModel.
            time_stamps: see EHRMambaModel.
            visit_segments: see EHRMambaModel.
            visit_orders: see EHRMambaModel.
            attention_mask: see EHRMambaModel.
            seq_idx: see EHRMambaModel.
            inputs_embeds: see EHRMambaModel.
            cache_params: see EHRMambaModel.
            use_cache: see EHRMambaModel.
            labels: (batch, length), usually `input_ids`; shifted inside. -100, PAD and the first
                token of a patient, before which there is nothing to predict it from, are ignored.
            output_hidden_states: see EHRMambaModel.
            return_dict: see EHRMambaModel.
            logits_to_keep: score only the last so many positions (0: all), or those given.
        """
        seq_idx = numbered_patients(seq_idx, kwargs.get("position_ids"))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.backbone(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            ages=ages,
            time_stamps=time_stamps,
            visit_segments=visit_segments,
            visit_orders=visit_orders,
            attention_mask=attention_mask,
            seq_idx=seq_idx,
            inputs_embeds=inputs_embeds,
            cache_params=cache_params,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        kept = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            labels = self._next_tokens(labels, input_ids, attention_mask, seq_idx)
            vocab_size = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return EHRMambaCausalLMOutput(
            loss=loss,
            logits=logits,
            cache_params=outputs.cache_params,
            hidden_states=outputs.hidden_states,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Derive the new tokens' attributes from the prompt's, and slice all columns alike.

        The attribute columns among `kwargs` stay the prompt's through the whole generation; that
        beams of one prompt are reordered therefore does not matter to them.
        """
        if kwargs.get("seq_idx") is not None:
            raise ValueError("generate() continues rows of one patient each: seq_idx is not taken")
        prompt = {name: kwargs.pop(name, None) for name in ATTRIBUTES}
        cache = kwargs.get("cache_params")
        if is_first_iteration and cache is not None and cache.has_previous_state():
            _expect_attributes(prompt, input_ids.shape[1])
        model_inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        model_inputs["attention_mask"] = attention_mask
        if model_inputs["input_ids"] is None:
            return model_inputs
        whole = input_ids if attention_mask is None else attention_mask
        if inputs_embeds is not None and whole.shape[1] > input_ids.shape[1]:
            raise ValueError(
                "more than one token can be generated from inputs_embeds only beside the input_ids "
                "that they embed, since the attributes of new tokens follow from the ids before"
            )
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        columns = self.backbone.embeddings.derive(input_ids, mask, **prompt)
        current = model_inputs["input_ids"].shape[1]
        return model_inputs | {name: column[:, -current:] for name, column in columns.items()}

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Keep the prompt's token types: transformers would repeat the last one for new tokens."""
        types = model_kwargs.pop("token_type_ids", None)
        updated = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        return updated | {"token_type_ids": types}


class EHRMambaClassificationHead(nn.Module):
    """Dropout and linear (paper), or the two-layer head of the authors' code."""

    def __init__(self, config: EHRMambaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(width, width) if config.classifier_hidden else None
        self.out_proj = nn.Linear(width, config.num_labels or 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, hidden) to (batch, num_labels)."""
        if self.dense is not None:
            pooled = F.silu(self.dense(self.dropout(pooled)))
        return self.out_proj(self.dropout(pooled))


class EHRMambaForSequenceClassification(EHRMambaHistoryPredictionMixin, EHRMambaPreTrainedModel):
    """A label for a whole sequence, read at its last real token.

    Under multitask prompted finetuning that is the task's token, and one logit serves all tasks
    (paper, section 3.3). The language model's head stays beside the classifier's, so that one
    folder holds a model that predicts and forecasts; `forecasting_loss_weight` keeps it in use.
    """

    _tied_weights_keys = {"lm_head.weight": "backbone.embeddings.concept.weight"}

    # The loss is a mean over the batch and takes no num_items_in_batch: without this flag, the
    # Trainer would multiply gradients by gradient_accumulation_steps.
    accepts_loss_kwargs = False

    def __init__(self, config: EHRMambaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 1
        self.backbone = EHRMambaModel(config)
        self.classifier = EHRMambaClassificationHead(config)
        self.lm_head = EHRMambaLinear(config.hidden_size, config.vocab_size, bias=False)
        self._freeze_unused_head()
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers; a language head without a loss stays frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading replaces the parameters by ones that all want a gradient.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze_unused_head()
        return loaded

    def _freeze_unused_head(self) -> None:
        # Distributed training complains of parameters that want a gradient and never get one.
        if not self.config.forecasting_loss_weight and not self.config.tie_word_embeddings:
            self.lm_head.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        ages: Tensor | None = None,
        time_stamps: Tensor | None = None,
        visit_segments: Tensor | None = None,
        visit_orders: Tensor | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: Cache | None = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> EHRMambaSequenceClassifierOutput:
        """Classify sequences; see EHRMambaModel.forward for the columns and the cache.

        Args:
            input_ids: see EHRMambaModel.
            token_type_ids: see EHRMambaModel.
            ages: see EHRMambaModel.
            time_stamps: see EHRMambaModel.
            visit_segments: see EHRMambaModel.
            visit_orders: see EHRMambaModel.
            attention_mask: see EHRMambaModel; the last attended position is read.
            seq_idx: see EHRMambaModel.
            inputs_embeds: see EHRMambaModel.
            cache_params: see EHRMambaModel.
            use_cache: return states; not by default.
            labels: (batch,) or (batch, num_labels). With one label and no problem type, 0 or 1
                for binary cross-entropy; otherwise as in transformers. With `seq_idx`, there is a
                row of labels, and of logits, a patient: row by row, from left to right.
            output_hidden_states: see EHRMambaModel.
            return_dict: see EHRMambaModel.
        """
        seq_idx = numbered_patients(seq_idx, kwargs.get("position_ids"))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.backbone(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            ages=ages,
            time_stamps=time_stamps,
            visit_segments=visit_segments,
            visit_orders=visit_orders,
            attention_mask=attention_mask,
            seq_idx=seq_idx,
            inputs_embeds=inputs_embeds,
            cache_params=cache_params,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        if attention_mask is None and input_ids is not None:
            attention_mask = input_ids != self.config.pad_token_id
        pooled = last_of_each_patient(hidden_states, attention_mask, seq_idx)
        logits = self.classifier(pooled)
        loss = None if labels is None else self._loss(logits, labels)
        if loss is not None and self.training and input_ids is not None:
            targets = self._next_tokens(input_ids, input_ids, attention_mask, seq_idx)
            loss = loss + self._forecasting_loss(hidden_states, input_ids, targets)
        return EHRMambaSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            cache_params=outputs.cache_params,
            hidden_states=outputs.hidden_states,
        )

    def _forecasting_loss(
        self, hidden_states: Tensor, input_ids: Tensor, targets: Tensor
    ) -> Tensor | float:
        """The weighted next-token loss; the task's own token is not forecast."""
        if not self.config.forecasting_loss_weight:
            return 0.0
        types = self._embeddings().token_type_table[input_ids.long()]
        targets = targets.masked_fill(types == TASK, -100)[:, 1:].flatten()
        logits = self.lm_head(hidden_states[:, :-1]).float().flatten(0, 1)
        # Not the built-in mean, which is NaN where patients without events leave no target.
        total = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        return self.config.forecasting_loss_weight * total / (targets != -100).sum().clamp(min=1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.num_labels == 1 and self.config.problem_type is None:
            targets = labels.to(logits.device, torch.float32).view_as(logits)
            return F.binary_cross_entropy_with_logits(logits.float(), targets)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


EHRMambaConfig.register_for_auto_class()
EHRMambaModel.register_for_auto_class("AutoModel")
EHRMambaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
EHRMambaForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "EHRMambaForCausalLM",
    "EHRMambaForSequenceClassification",
    "EHRMambaModel",
    "EHRMambaPreTrainedModel",
]
