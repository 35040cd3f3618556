"""Whole model folders of other programs' checkpoints; configuration variants survive them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from ehrmamba_hf.conversion import convert, from_odyssey
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
)
from ehrmamba_hf.tokenization import EHRMambaTokenizer

IDS = torch.tensor([[3, 4, 41, 43, 5, 6, 8, 4, 44, 5, 6]])


@torch.no_grad()
def test_a_pretrained_checkpoint(tmp_path, pretrained, saved, vocabulary_file):
    source = saved(pretrained)
    out = convert(source, tmp_path / "out", vocabulary=vocabulary_file)
    model = EHRMambaForCausalLM.from_pretrained(out)
    assert len(EHRMambaTokenizer.from_pretrained(out)) == model.config.vocab_size == 47
    auto = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(model(IDS).logits, auto(IDS).logits)
    plain = convert(source, tmp_path / "plain")
    assert not (plain / "vocab.json").exists()
    again = EHRMambaForCausalLM.from_pretrained(plain)
    assert torch.equal(again.lm_head.weight, from_odyssey(source).lm_head.weight)


@torch.no_grad()
def test_a_finetuned_checkpoint(tmp_path, finetuned, saved):
    source = saved(finetuned)
    out = convert(source, tmp_path / "out", kind="odyssey")
    model = EHRMambaForSequenceClassification.from_pretrained(out)
    assert model.config.classifier_hidden
    assert model.config.problem_type == "single_label_classification"
    torch.testing.assert_close(model(IDS % 39).logits, from_odyssey(source)(IDS % 39).logits)


@torch.no_grad()
def test_a_mamba_folder(tmp_path):
    fields = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    theirs = MambaForCausalLM(MambaConfig(**fields)).eval()
    theirs.save_pretrained(tmp_path / "mamba")
    vocab = {f"LOINC/{i}": i for i in range(41, 46)}
    EHRMambaTokenizer(vocab=vocab).save_pretrained(tmp_path / "data" / "tokenizer")
    out = convert(tmp_path / "mamba", tmp_path / "out", vocabulary=tmp_path / "data")
    model = EHRMambaForCausalLM.from_pretrained(out)
    assert len(EHRMambaTokenizer.from_pretrained(out)) == model.config.vocab_size == 46
    inputs = torch.randn(1, 8, 16)
    found = model.backbone(inputs_embeds=inputs).last_hidden_state
    expected = theirs.backbone(inputs_embeds=inputs).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # Written anew in the place of itself, the new embeddings are the same.
    again = EHRMambaForCausalLM.from_pretrained(
        convert(tmp_path / "mamba", out, vocabulary=tmp_path / "data")
    )
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_without_the_package(tmp_path, pretrained, saved, vocabulary_file, without_package):
    """A converted folder goes to the Hub as any other."""
    out = convert(saved(pretrained), tmp_path / "out", vocabulary=vocabulary_file)
    script = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.config.embedding_activation, len(tokenizer))
"""
    assert without_package(script, out).strip() == "tanh 47"


def test_what_is_not_to_be_written(tmp_path, pretrained, saved):
    source = saved(pretrained)
    with pytest.raises(InputError, match="kind: expected one of odyssey, mamba, found bert"):
        convert(source, tmp_path / "out", kind="bert")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        convert(source, other)
    with pytest.raises(InputError, match="expected a checkpoint file, found none"):
        convert(tmp_path / "absent.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


VARIANTS = [
    {"embedding_activation": "tanh"},
    {"learned_zero_rows": True},
    {"classifier_hidden": True},
    {"classifier_hidden": True, "num_labels": 2, "problem_type": "single_label_classification"},
    {"expand": 3, "state_size": 7, "num_hidden_layers": 3},
    {"expand": 1, "state_size": 1, "conv_kernel": 2, "time_step_rank": 3},
    {"embedding_activation": "tanh", "learned_zero_rows": True, "context_length": 16},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@torch.no_grad()
def test_variants_survive_save_and_load(tmp_path, fields):
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
    model = EHRMambaForSequenceClassification(EHRMambaConfig(**(small | fields))).eval()
    model.save_pretrained(tmp_path)
    again = EHRMambaForSequenceClassification.from_pretrained(tmp_path)
    assert {name: getattr(again.config, name) for name in fields} == fields
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    plain = EHRMambaForSequenceClassification(EHRMambaConfig(**small)).eval()
    if set(fields) <= {"embedding_activation", "learned_zero_rows", "context_length"}:
        plain.load_state_dict(model.state_dict())  # the field itself changes what is computed
        assert not torch.equal(plain(IDS).logits, model(IDS).logits)
    else:  # or the parameters that there are
        shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (model, plain)]
        assert shapes[0] != shapes[1]
