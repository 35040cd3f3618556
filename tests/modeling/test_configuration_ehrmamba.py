"""Configuration: validated values, derived sizes, labels through saving and loading."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from ehrmamba_hf.modeling import EHRMambaConfig


def test_the_default_is_the_papers_model() -> None:
    config = EHRMambaConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.state_size) == (768, 32, 16)
    assert (config.intermediate_size, config.time_step_rank) == (1536, 48)
    assert config.layer_types == ["linear_attention"] * 32


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 0, "hidden_size: expected a positive number, found 0"),
        ("state_size", -1, "state_size: expected a positive number, found -1"),
        ("conv_kernel", 0, "conv_kernel: expected a positive number, found 0"),
        ("max_visit_orders", 0, "max_visit_orders: expected a positive number"),
        ("hidden_size", "768", "hidden_size"),
        ("embedding_activation", "relu", "embedding_activation"),
        ("embedding_dropout", 1.0, r"embedding_dropout: expected a probability in \[0, 1\)"),
        ("time_step_rank", 0, "time_step_rank: expected positive"),
        ("time_step_max", 0.0005, "time_step_max: expected at least time_step_min = 0.001"),
        ("hidden_act", "sillu", "hidden_act: expected an activation"),
        ("pad_token_id", 60, "pad_token_id: expected an id of the vocabulary, 0 to 59, found 60"),
        ("long_interval_days", 0.0, "long_interval_days: expected a positive number"),
    ],
)
def test_each_wrong_value_fails_with_its_own_sentence(
    field: str, value: object, message: str
) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        EHRMambaConfig(**({"vocab_size": 60} | {field: value}))


@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_the_number_of_labels_survives_saving(num_labels: int, tmp_path: Path) -> None:
    EHRMambaConfig(num_labels=num_labels).save_pretrained(tmp_path)
    assert EHRMambaConfig.from_pretrained(tmp_path).num_labels == num_labels


def test_label_names_are_kept_and_unnamed_ones_give_way(tmp_path: Path) -> None:
    EHRMambaConfig().save_pretrained(tmp_path)
    assert EHRMambaConfig.from_pretrained(tmp_path, num_labels=3).num_labels == 3
    named = EHRMambaConfig(id2label={0: "low", 1: "high"}, label2id={"low": 0, "high": 1})
    named.save_pretrained(tmp_path)
    assert EHRMambaConfig.from_pretrained(tmp_path).id2label == {0: "low", 1: "high"}


def test_the_saved_file_names_all_four_auto_classes(tmp_path: Path) -> None:
    EHRMambaConfig().save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    }


def test_every_field_survives_a_round_trip(tmp_path: Path) -> None:
    config = EHRMambaConfig(
        vocab_size=99, time_step_rank=7, embedding_activation="tanh", learned_zero_rows=True
    )
    config.save_pretrained(tmp_path)
    assert EHRMambaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
