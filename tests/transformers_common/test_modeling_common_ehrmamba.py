"""transformers' common model tests, run against the three model classes."""

import tempfile
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers.models.auto import modeling_auto

from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    EHRMambaModel,
)

ABSENT = "needs transformers' own tests, which `make transformers-tests` gets, and parameterized"
common = pytest.importorskip("transformers_tests.test_modeling_common", reason=ABSENT)
training = pytest.importorskip("transformers_tests.test_training_mixin", reason=ABSENT)

# As if the classes were transformers' own: from these tables the tests learn what a class is for.
REGISTERED = {
    "MODEL_MAPPING_NAMES": EHRMambaModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": EHRMambaForCausalLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": EHRMambaForSequenceClassification,
}

NOT_APPLICABLE: dict[str, tuple[str, ...]] = {
    "no attention": (
        "test_attention_outputs",
        "test_can_set_attention_dynamically",
        "test_eager_matches_sdpa_inference",
        "test_flash_attn",
        "test_flash_attention",
        "test_flex_attention",
        "test_sdpa_can",
        "test_sliding_window_mask",
    ),
    "no rotary or learned positions": (
        "test_model_rope",
        "test_resize_position_vector_embeddings",
        "test_vision_axial_rope",
    ),
    "no experts": (
        "test_eager_matches_batched_and_grouped_inference",
        "test_moe_models_record_router_logits",
        "test_output_router_logits_from_config",
    ),
    "no decoder that is fed shifted labels": ("test_encoder_decoder_loss_no_double_shift",),
    "no feed-forward layers to chunk": ("test_feed_forward_chunking",),
    "one modality, so no features to get": ("test_get_",),
    "no configuration inside the configuration": (
        "test_attn_implementation_composite_models",
        "test_internal_model_config_and_subconfig_are_same",
    ),
    "no weights are renamed at loading": (
        "test_can_load_from_already_mapped_keys",
        "test_reverse_loading_mapping",
    ),
    "no module is kept in float32: the mixer widens what it needs": ("test_keep_in_fp32_modules",),
    "no plan for tensor parallelism": (
        "test_tied_head_has_a_tp_plan_entry",
        "test_tp_plan_matches_params",
    ),
}


class EHRMambaModelTester:
    """What the common tests ask for: a small model, and a batch padded on both sides."""

    batch_size, seq_length = 13, 7
    vocab_size, hidden_size, num_hidden_layers = 99, 32, 2
    is_training = True
    causal_lm_class = EHRMambaForCausalLM

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def get_config(self) -> EHRMambaConfig:
        return EHRMambaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            state_size=4,
            max_visit_orders=8,
            time_embedding_size=4,
            # The tests compare runs, and know other models' dropouts only by name.
            embedding_dropout=0.0,
            classifier_dropout=0.0,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[EHRMambaConfig, dict[str, Tensor]]:
        config = self.get_config()
        first = config.pad_token_id + 1
        ids = first + common.ids_tensor((self.batch_size, self.seq_length), self.vocab_size - first)
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        mask[2, :3] = 0
        ids = ids.masked_fill(mask == 0, config.pad_token_id)
        return config, {"input_ids": ids, "attention_mask": mask}


class EHRMambaModelTest(
    common.ModelTesterMixin,
    common.GenerationTesterMixin,
    training.TrainingTesterMixin,
    unittest.TestCase,
):
    all_model_classes = tuple(REGISTERED.values())
    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = True  # else skipped for want of a copyright
    not_applicable = NOT_APPLICABLE
    fields: dict[str, Any] = {}

    def setUp(self) -> None:
        self.model_tester = EHRMambaModelTester(**self.fields)
        for table, model in REGISTERED.items():
            names = {EHRMambaConfig.model_type: model.__name__}
            self.enterContext(mock.patch.dict(getattr(modeling_auto, table), names))

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is EHRMambaForCausalLM:
            # The usual labels, all 0, are PAD here, and the loss of no target is NaN.
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs

    def test_inputs_embeds_matches_input_ids(self) -> None:
        """A token's embedding is the sum over its attributes, not a row of one table."""

        def whole(model: EHRMambaModel) -> Callable[[Tensor], Tensor]:
            return lambda ids: model.embeddings(ids, **model.embeddings.derive(ids))

        with mock.patch.object(EHRMambaModel, "get_input_embeddings", whole):
            super().test_inputs_embeds_matches_input_ids()

    def test_can_load_ignoring_mismatched_shapes(self) -> None:
        """The common test takes the first linear layer for the classifier; ours is in a head."""
        config = self.model_tester.get_config()
        config.num_labels = 3
        model = EHRMambaForSequenceClassification(config)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with self.assertRaises(RuntimeError):
                EHRMambaForSequenceClassification.from_pretrained(folder, num_labels=42)
            loaded = EHRMambaForSequenceClassification.from_pretrained(
                folder, num_labels=42, ignore_mismatched_sizes=True
            )
        old = model.state_dict()
        for name, new in loaded.state_dict().items():
            if name.startswith("classifier.out_proj"):
                self.assertEqual(len(new), 42)
                self.assertLess(new.abs().max(), 1)
            else:
                torch.testing.assert_close(new, old[name], rtol=0, atol=0)


class EHRMambaVariantTest(EHRMambaModelTest):
    """Every choice that the defaults do not make."""

    fields = {
        "use_bias": True,
        "use_conv_bias": False,
        "residual_in_fp32": False,
        "rescale_prenorm_residual": False,
        "time_step_init_scheme": "constant",
        "embedding_activation": "tanh",
        "learned_zero_rows": True,
        "classifier_hidden": True,
        "forecasting_loss_weight": 0.5,
        "tie_word_embeddings": True,
    }
