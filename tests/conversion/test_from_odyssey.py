"""A converted Odyssey checkpoint gives the logits of the model that it belongs to."""

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.conversion import from_odyssey, read_vocabulary, time_differences
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaForCausalLM, EHRMambaForSequenceClassification
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_ID, TYPE_ID

# Their types to ours: PAD CLS VS VE interval lab medication procedure REG.
OUR_TYPES = torch.tensor([0, 1, 2, 3, 5, 9, 8, 7, 4])
OUR_SEGMENTS = torch.tensor([0, 2, 1])


def our_columns(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "input_ids": theirs["concept_ids"],
        "token_type_ids": OUR_TYPES[theirs["type_ids"]],
        "time_stamps": time_differences(theirs["time_stamps"]),
        "ages": theirs["ages"],
        "visit_orders": theirs["visit_orders"],
        "visit_segments": OUR_SEGMENTS[theirs["visit_segments"]],
    }


@pytest.mark.parametrize("bare", [False, True])
@torch.no_grad()
def test_logits_of_a_pretrained_model(pretrained, saved, sequence, bare):
    _, theirs = sequence
    model = from_odyssey(saved(pretrained, bare=bare))
    assert isinstance(model, EHRMambaForCausalLM)
    real = theirs["concept_ids"][0] != 0
    found = model(**our_columns(theirs)).logits
    torch.testing.assert_close(found[0, real], pretrained(theirs)[0, real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_with_a_vocabulary(pretrained, saved, sequence, vocabulary_file):
    tokens, theirs = sequence
    vocabulary = read_vocabulary(vocabulary_file)
    model = from_odyssey(saved(pretrained), vocabulary=vocabulary)
    named = {
        **{"[MOR_1M]": "[MOR]", "50912_4": "MIMIC_LAB/50912//Q5", "3893": "ICD9PCS/3893"},
        **{"00002821501": "NDC/00002821501", "50912_0": "MIMIC_LAB/50912//Q1"},
    }
    ids = vocabulary.tokenizer().convert_tokens_to_ids([named.get(t, t) for t in tokens])
    columns = our_columns(theirs) | {"input_ids": torch.tensor([ids])}
    real = theirs["concept_ids"][0] != 0
    # Ours to theirs; rows that several of our special tokens share are asked for several times.
    expected = pretrained(theirs)[0, real][:, list(vocabulary.rows)]
    torch.testing.assert_close(model(**columns).logits[0, real], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_of_a_finetuned_model(finetuned, saved, sequence, vocabulary_file):
    _, theirs = sequence
    model = from_odyssey(saved(finetuned))
    assert isinstance(model, EHRMambaForSequenceClassification)
    assert (model.config.num_labels, model.config.problem_type) == (
        2,
        "single_label_classification",
    )
    found = model(**our_columns(theirs)).logits
    torch.testing.assert_close(found, finetuned(theirs), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model.lm_head.weight, finetuned.pretrained_model.model.lm_head.weight
    )
    # A full row has no padding to look for: theirs and ours read its last token.
    full = {name: column[:, :-2] for name, column in theirs.items()}
    torch.testing.assert_close(
        model(**our_columns(full)).logits, finetuned(full), atol=1e-5, rtol=0
    )


def test_config_read_off_the_shapes(pretrained, saved):
    config = from_odyssey(saved(pretrained)).config
    assert (config.hidden_size, config.num_hidden_layers, config.state_size) == (24, 2, 5)
    assert (config.expand, config.conv_kernel, config.time_step_rank) == (3, 3, 2)
    assert (config.use_bias, config.use_conv_bias) == (True, True)
    assert (config.max_visit_orders, config.time_embedding_size) == (19, 6)
    assert (config.embedding_activation, config.learned_zero_rows) == ("tanh", True)
    assert (config.embedding_layer_norm_eps, config.tie_word_embeddings) == (1e-12, False)
    assert config.bos_token_id == 5


def test_type_rows(pretrained, saved):
    rows = from_odyssey(saved(pretrained)).backbone.embeddings.token_type.weight
    theirs = pretrained.embeddings.token_type_embeddings.weight
    for name, index in {"PAD": 0, "lab": 5, "medication": 6, "procedure": 7, "REG": 8}.items():
        assert torch.equal(rows[TYPE_ID[name]], theirs[index])
    assert torch.equal(rows[TYPE_ID["task"]], theirs[8])
    torch.testing.assert_close(rows[TYPE_ID["other"]], theirs[5:8].mean(0))


def test_token_types_are_known_with_a_vocabulary(pretrained, saved, vocabulary_file):
    vocabulary = read_vocabulary(vocabulary_file)
    model = from_odyssey(saved(pretrained), vocabulary=vocabulary)
    table = model.backbone.embeddings.token_type_table.tolist()
    assert table[SPECIAL_ID["[VS]"]] == TYPE_ID["VS"]
    assert table[-6:] == [TYPE_ID[t] for t in ["procedure"] * 2 + ["lab"] * 2 + ["medication"] * 2]


NORM = "embeddings.LayerNorm.weight"
CHANGES = {
    "missing": ({NORM: None}, r"LayerNorm.weight: expected shape \(24,\), found none"),
    "unexpected": (
        {"embeddings.other": torch.ones(2)},
        r"embeddings.other: expected no such tensor, found shape \(2,\)",
    ),
    "wrong shape": ({NORM: torch.ones(7)}, r"weight: expected shape \(24,\), found \(7,\)"),
    "no words": (
        {"embeddings.word_embeddings.weight": None},
        "expected 2 dimensions, found no such",
    ),
    "other types": (
        {"embeddings.token_type_embeddings.weight": torch.ones(4, 24)},
        r"token_type_embeddings.weight: expected shape \(9, 24\), found \(4, 24\)",
    ),
    "three channels a hidden unit and a bit": (
        {"model.backbone.layers.0.mixer.A_log": torch.ones(73, 5)},
        "expected a multiple of the width, 24, of channels, found 73",
    ),
    "a layer too many": (
        {"model.backbone.layers.2.norm.weight": torch.ones(24)},
        r"model.backbone.layers.2.mixer.D: expected shape \(72,\), found none",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_does_not_fit_is_named(pretrained, saved, change, message):
    with pytest.raises(InputError, match=message):
        from_odyssey(saved(pretrained, **change))


def test_buffers_that_are_never_read_are_left(pretrained, saved):
    buffer = torch.arange(4)[None]
    ignored = {"embeddings.position_ids": buffer, "embeddings.token_type_ids": buffer}
    from_odyssey(saved(pretrained, **ignored))


def test_a_head_for_each_task_is_refused(finetuned, saved):
    weight = finetuned.state_dict()["model.classifier.dense.weight"]
    change = {"model.classifier.classifiers.0.dense.weight": weight}
    with pytest.raises(InputError, match=r"classifiers.0.dense.weight: expected no such tensor"):
        from_odyssey(saved(finetuned, **change))


def test_a_vocabulary_of_another_size(pretrained, saved, vocabulary_file):
    smaller = pretrained.state_dict()["embeddings.word_embeddings.weight"][:-8]
    with pytest.raises(InputError, match=r"expected a vocabulary of 31 tokens, .* found 39"):
        from_odyssey(
            saved(pretrained, **{"embeddings.word_embeddings.weight": smaller}),
            vocabulary=read_vocabulary(vocabulary_file),
        )


class Anything:
    pass


def test_only_plain_values_are_read(tmp_path, pretrained):
    file = tmp_path / "x.ckpt"
    with pytest.raises(InputError, match="expected a checkpoint file, found none"):
        from_odyssey(file)
    torch.save({"state_dict": pretrained.state_dict(), "hyper_parameters": Anything()}, file)
    with pytest.raises(InputError, match=r"tensors and plain values alone.*weights_only=False"):
        from_odyssey(file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="tensors and plain values alone"):
        from_odyssey(file)
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="expected a dict of tensors"):
        from_odyssey(file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(InputError, match="found epoch of type int"):
        from_odyssey(file)
