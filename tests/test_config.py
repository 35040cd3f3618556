"""Configs are checked field by field; the packaged ones say what they promise."""

import pytest

from ehrmamba_hf.config import Config, load_config
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaConfig


def test_the_paper_s_config_is_its_table_4():
    config = load_config("paper")
    model = EHRMambaConfig(vocab_size=100, **config.model)
    assert (model.hidden_size, model.num_hidden_layers) == (768, 32)
    assert (model.state_size, model.conv_kernel, model.time_embedding_size) == (16, 4, 32)
    assert model.context_length == config.prepare.context_length == 2048
    assert (model.embedding_dropout, model.classifier_dropout) == (0.1, 0.1)
    assert config.pretrain["per_device_train_batch_size"] == 44
    assert config.pretrain["num_train_epochs"] == 15
    assert config.finetune["per_device_train_batch_size"] == 64
    assert config.finetune["num_train_epochs"] == 6
    for section in (config.pretrain, config.finetune):
        assert section["learning_rate"] == 5e-5 and section["warmup_steps"] == 0.1
        assert section["lr_scheduler_type"] == "linear"


def test_no_config_is_the_default():
    assert load_config(None) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prepare: {contxt_length: 5}", "contxt_length"),
        ("prepare: {context_length: long}", "context_length"),
        ("simulate: {patients: [1]}", "patients"),
        ("- a list", "object"),
        ("prepare: {", "while parsing"),
    ],
    ids=["unknown", "type", "list", "no mapping", "no yaml"],
)
def test_a_wrong_config_names_its_field(tmp_path, text, message):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(str(file))


def test_a_name_that_is_no_file_lists_the_packaged_ones():
    with pytest.raises(InputError, match=r"\['paper', 'tiny'\], found huge"):
        load_config("huge")
