"""The blocks of a Mamba model of transformers give the same outputs in ours."""

import json

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MambaModel

from ehrmamba_hf.conversion import from_mamba
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import TYPE_ID

SMALL = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
ODD = [
    {},
    {"state_size": 1, "num_hidden_layers": 1, "conv_kernel": 2},
    {"state_size": 7, "expand": 1, "hidden_size": 10, "conv_kernel": 5},
    {"expand": 3, "time_step_rank": 5, "use_bias": True, "use_conv_bias": False},
    {"hidden_act": "gelu", "layer_norm_epsilon": 1e-2, "residual_in_fp32": False},
    {"hidden_size": 17, "time_step_min": 0.01, "time_step_max": 0.5, "num_hidden_layers": 3},
]


def made(model_class=MambaForCausalLM, **fields):
    torch.manual_seed(0)
    model = model_class(MambaConfig(**(SMALL | fields)))
    with torch.no_grad():  # away from ones and zeros, so that nothing passes by being default
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("fields", ODD, ids=str)
@pytest.mark.parametrize("length", [1, 3, 37])
@torch.no_grad()
def test_outputs_are_those_of_transformers(fields, length):
    theirs = made(**fields)
    ours = from_mamba(theirs)
    inputs = torch.randn(2, length, theirs.config.hidden_size)
    expected = theirs.backbone(inputs_embeds=inputs, output_hidden_states=True)
    found = ours.backbone(inputs_embeds=inputs, output_hidden_states=True)
    torch.testing.assert_close(
        found.last_hidden_state, expected.last_hidden_state, atol=2e-5, rtol=1e-4
    )
    assert len(found.hidden_states) == len(expected.hidden_states)
    for layer in range(theirs.config.num_hidden_layers):
        torch.testing.assert_close(
            found.cache_params.layers[layer].recurrent_states,
            expected.cache_params.layers[layer].recurrent_states,
            atol=2e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize("model_class", [MambaForCausalLM, MambaModel])
@pytest.mark.parametrize("size", ["5GB", "10KB"], ids=["one file", "shards"])
@torch.no_grad()
def test_from_a_folder(tmp_path, model_class, size):
    theirs = made(model_class, use_bias=True)
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists() == (size == "5GB")
    ours = from_mamba(tmp_path)
    inputs = torch.randn(1, 9, 24)
    backbone = getattr(theirs, "backbone", theirs)
    torch.testing.assert_close(
        ours.backbone(inputs_embeds=inputs).last_hidden_state,
        backbone(inputs_embeds=inputs).last_hidden_state,
        atol=1e-5,
        rtol=1e-4,
    )


def test_config_is_carried_and_the_vocabulary_new():
    fields = {"time_step_rank": 5, "time_step_scale": 2.0, "time_step_floor": 1e-3, "expand": 3}
    vocab = {"LOINC/2345-7": 41, "RXNORM/1": 42}
    tokenizer = EHRMambaTokenizer(vocab=vocab, types={"LOINC/2345-7": "lab"}, model_max_length=256)
    ours = from_mamba(made(**fields), tokenizer=tokenizer, embedding_dropout=0.0)
    config = ours.config
    assert {name: getattr(config, name) for name in fields} == fields
    assert (config.vocab_size, config.context_length, config.bos_token_id) == (43, 256, 3)
    assert config.embedding_dropout == 0.0
    assert ours.backbone.embeddings.token_type_table[41:].tolist() == [
        TYPE_ID["lab"],
        TYPE_ID["other"],
    ]
    assert ours.lm_head.weight.shape == (43, 24)
    assert torch.isfinite(ours(input_ids=torch.tensor([[3, 4, 41, 5, 6]])).logits).all()


def test_half_precision_becomes_float32():
    theirs = made().bfloat16()
    ours = from_mamba(theirs)
    assert ours.dtype == torch.float32
    found, expected = ours.backbone.norm_f.weight, theirs.backbone.norm_f.weight
    assert torch.equal(found, expected.float())


def written_config(tmp_path, **fields):
    made().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"intermediate_size": 60},
            r"intermediate_size: expected expand \* hidden_size = 48, found 60",
        ),
        ({"model_type": "falcon_mamba"}, "model_type: expected 'mamba', found 'falcon_mamba'"),
        ({"expand": 1.5}, "'expand' expected int, got float"),
        ({"time_step_max": 1e-4}, "time_step_max: expected at least time_step_min"),
        ({"num_hidden_layers": 3}, r"layers.2.norm.weight: expected shape \(24,\), found none"),
        ({"state_size": 3}, r"layers.0.mixer.A_log: expected shape \(48, 3\), found \(48, 4\)"),
        ({"use_conv_bias": False}, "conv1d.bias: expected no such tensor, found shape"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path, fields, message):
    written_config(tmp_path, **fields)
    with pytest.raises(InputError, match=message):
        from_mamba(tmp_path)


def test_fields_that_are_not_to_be_chosen():
    with pytest.raises(InputError, match=r"\['state_size'\] come from MambaForCausalLM"):
        from_mamba(made(), state_size=8)
    with pytest.raises(InputError, match=r"fields of EHRMambaConfig, found \['colour'\]"):
        from_mamba(made(), colour="blue")


def test_a_pickle_is_refused(tmp_path):
    model = made()
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"expected model.safetensors, found none"):
        from_mamba(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"found pytorch_model.bin, a pickle.*save_pretrained"):
        from_mamba(tmp_path)


def test_the_way_to_convert_a_pickle_that_the_message_tells(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    model = made()
    model.config.save_pretrained(old)
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    MambaForCausalLM.from_pretrained(str(old)).save_pretrained(new)
    assert torch.equal(from_mamba(new).backbone.norm_f.weight, model.backbone.norm_f.weight)


def test_broken_folders(tmp_path):
    with pytest.raises(InputError, match=r"expected a model folder with config.json"):
        from_mamba(tmp_path)
    made().save_pretrained(tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(b"no")
    with pytest.raises(InputError, match=f"{shard.name}: expected safetensors"):
        from_mamba(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=f"expected {shard.name}, found none"):
        from_mamba(tmp_path)
