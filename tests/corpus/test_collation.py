"""Packed batches: every patient whole and in one place, and a model that learns the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorForLanguageModeling

from ehrmamba_hf.corpus.collation import PackingCollator, PaddingCollator, best_fit
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
)
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS

TOKENIZER = EHRMambaTokenizer()
VOCAB = 60
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
Example = dict[str, Any]


def make_examples(lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Patients of random tokens and attributes, as the rows of a data set."""
    rng = np.random.default_rng(seed)

    def patient(length: int) -> Example:
        visits = rng.integers(0, 5, length)
        columns = {
            "input_ids": rng.integers(3, VOCAB, length),
            "token_type_ids": rng.integers(1, 11, length),
            "ages": (rng.random(length) * 90).astype(np.float32),
            "time_stamps": (rng.random(length) * 200).astype(np.float32),
            "visit_segments": visits % 2 + (visits > 0),
            "visit_orders": visits,
            "attention_mask": np.ones(length, int),
        }
        return {name: column.tolist() for name, column in columns.items()}

    return [patient(length) for length in lengths]


def unpacked(batch: dict[str, torch.Tensor]) -> list[Example]:
    """The patients of a packed batch, row by row, cut out where seq_idx changes."""
    found = []
    for row in range(len(batch["seq_idx"])):
        for number in batch["seq_idx"][row].unique():
            cells = batch["seq_idx"][row] == number
            if batch["attention_mask"][row][cells].any():
                found.append({name: batch[name][row][cells].tolist() for name in COLUMNS})
    return found


@given(LENGTHS, st.integers(1, 50))
def test_best_fit_places_each_once_and_wastes_little(lengths: list[int], row_length: int) -> None:
    rows = best_fit(lengths, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    for row, tokens in zip(rows, filled, strict=True):
        assert tokens <= row_length or len(row) == 1
    # No two rows could be one, so at most one is half empty.
    assert all(a + b > row_length for i, a in enumerate(filled) for b in filled[i + 1 :])


def test_best_fit_fills_the_fullest_row_that_holds_it() -> None:
    # 6 and 5 open rows with 4 and 5 free; 4 goes where 4 are free, though 5 would do; then 3, 2.
    assert best_fit([2, 6, 4, 3, 5], 10) == [[1, 2], [4, 3, 0]]
    assert best_fit([], 10) == []


def test_long_rows_of_many_patients_are_full() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5, 1, 5000), 4, 2048).astype(int).tolist()
    assert len(best_fit(lengths, 2048)) * 2048 < 1.005 * sum(lengths)


def test_one_row_holds_all_by_default() -> None:
    examples = make_examples([2, 3, 1])
    batch = PackingCollator(TOKENIZER)(examples)
    assert set(batch) == {*COLUMNS, "seq_idx", "labels"}
    for name, kind in COLUMNS.items():
        assert batch[name].tolist() == [[value for one in examples for value in one[name]]]
        assert batch[name].dtype == (torch.float32 if kind == "float32" else torch.int64)
    assert batch["seq_idx"].tolist() == [[0, 0, 1, 1, 1, 2]]
    assert batch["seq_idx"].dtype == torch.int32
    (_, a), (_, b, c), _ = (one["input_ids"] for one in examples)
    assert batch["labels"].tolist() == [[-100, a, -100, b, c, -100]]


def test_rows_of_a_length() -> None:
    examples = make_examples([2, 6, 4, 3])
    batch = PackingCollator(TOKENIZER, row_length=10)(examples)
    two, six, four, three = (one["input_ids"] for one in examples)
    assert batch["input_ids"].tolist() == [six + four, three + two + [0] * 5]
    assert batch["seq_idx"].tolist() == [[0] * 6 + [1] * 4, [0] * 3 + [1] * 2 + [2] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 10, [1] * 5 + [0] * 5]
    assert batch["labels"].tolist() == [
        [-100, *six[1:], -100, *four[1:]],
        [-100, *three[1:], -100, *two[1:], *[-100] * 5],
    ]


def test_a_patient_longer_than_the_rows_makes_them_longer() -> None:
    batch = PackingCollator(TOKENIZER, row_length=10)(make_examples([5, 13, 6, 2]))
    assert batch["seq_idx"].shape == (2, 13)
    assert batch["seq_idx"][1].tolist() == [0] * 6 + [1] * 5 + [2] * 2


def test_labels_of_patients_follow_them() -> None:
    examples = make_examples([2, 6, 4, 3])
    for example, label in zip(examples, (0.0, 1.0, 2.0, 3.0), strict=True):
        example["labels"] = [label]
    assert PackingCollator(TOKENIZER)(examples)["labels"].tolist() == [[0], [1], [2], [3]]
    labels = PackingCollator(TOKENIZER, row_length=10)(examples)["labels"]
    assert labels.tolist() == [[1], [2], [3], [0]] and labels.dtype == torch.float32
    for example in examples:
        example["labels"] = int(example["labels"][0])
    labels = PackingCollator(TOKENIZER, row_length=10)(examples)["labels"]
    assert labels.tolist() == [1, 2, 3, 0] and labels.dtype == torch.int64


@given(
    LENGTHS,
    st.none() | st.integers(1, 60),
    st.none() | st.integers(1, 16),
    st.integers(0, 100),
)
def test_patients_are_whole_and_in_the_order_of_their_labels(
    lengths: list[int], row_length: int | None, multiple: int | None, seed: int
) -> None:
    examples = make_examples(lengths, seed)
    for number, example in enumerate(examples):
        example["labels"] = number
    batch = PackingCollator(TOKENIZER, row_length, multiple)(examples)
    width = batch["seq_idx"].shape[1]
    assert width % (multiple or 1) == 0
    assert width >= max(row_length or 0, *lengths)
    found = unpacked(batch)
    assert [{**one, "labels": int(n)} for one, n in zip(found, batch["labels"], strict=True)] == [
        examples[number] for number in batch["labels"]
    ]
    padding = batch["attention_mask"] == 0
    assert int((~padding).sum()) == sum(lengths)
    assert all(not batch[name][padding].any() for name in COLUMNS)
    last = batch["seq_idx"].masked_fill(padding, -1).amax(1, keepdim=True)
    assert (batch["seq_idx"] == last + 1)[padding].all()


def test_padding_is_what_the_tokenizer_makes() -> None:
    examples = make_examples([2, 6, 4, 3])
    batch = PaddingCollator(TOKENIZER)(examples)
    stock = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)(examples)
    assert set(batch) == {*COLUMNS, "labels"}
    for name in COLUMNS:
        assert torch.equal(batch[name], stock[name]), name
    # The model shifts labels: what it predicts is all but the first.
    assert torch.equal(batch["labels"][:, 1:], stock["labels"][:, 1:])
    assert PaddingCollator(TOKENIZER, row_length=16)(examples)["input_ids"].shape == (4, 16)


def test_arrays_do_as_well_as_lists_and_other_columns_are_left_out() -> None:
    examples = make_examples([5, 3, 7])
    arrays: list[Example] = [
        {name: np.asarray(one[name], kind) for name, kind in COLUMNS.items()}
        | {"subject_id": 1, "prediction_time": None, "length": 0, "note": "text"}
        for one in examples
    ]
    expected = PackingCollator(TOKENIZER, row_length=8)(examples)
    batch = PackingCollator(TOKENIZER, row_length=8)(arrays)
    assert set(batch) == set(expected)
    for name, column in expected.items():
        assert torch.equal(batch[name], column) and batch[name].dtype == column.dtype


def test_examples_that_cannot_be() -> None:
    def refused(examples: list[Example], sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            PackingCollator(TOKENIZER)(examples)

    def changed(**columns: Any) -> list[Example]:
        return [*make_examples([3]), make_examples([4])[0] | columns]

    without = changed()
    del without[1]["ages"], without[1]["visit_orders"]
    refused(without, r"\['ages', 'visit_orders'\] missing")
    refused(changed(ages=[1.0]), "expected columns of one length over 0, found .*'ages': 1")
    refused([{name: [] for name in COLUMNS}], "one length over 0")
    refused(changed(attention_mask=[1, 1, 1, 0]), "expected examples without padding")
    for name in ("row_length", "pad_to_multiple_of"):
        with pytest.raises(InputError, match=f"{name}: expected at least 1, found 0"):
            PackingCollator(TOKENIZER, **{name: 0})


def config(**fields: Any) -> EHRMambaConfig:
    small = {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 4, "time_embedding_size": 4}
    dropouts = {"embedding_dropout": 0.0, "classifier_dropout": 0.0}
    return EHRMambaConfig(vocab_size=VOCAB, **(small | dropouts | fields))


def losses_and_gradients(
    model: torch.nn.Module, batches: Sequence[tuple[float, dict[str, torch.Tensor]]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The weighted mean loss over batches, in training, and its gradients."""
    model.train().zero_grad()
    total = 0.0
    for weight, batch in batches:
        loss = weight * model(**batch).loss
        loss.backward()
        total += loss.item()
    named = model.named_parameters()
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture
def agree() -> Callable[..., None]:
    """Two lists of weighted batches give one loss and one gradient."""

    def check(model: torch.nn.Module, one: Sequence, other: Sequence) -> None:
        loss, gradients = losses_and_gradients(model, one)
        again, others = losses_and_gradients(model, other)
        assert loss == pytest.approx(again, rel=1e-5)
        assert set(gradients) == set(others)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6, msg=name)

    return check


SETTINGS = [{}, {"pad_to_multiple_of": 64}, {"row_length": 40}]
MODEL_LENGTHS = [5, 23, 1, 9, 2, 30, 14]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_packing_is_the_same_pretraining(settings: dict[str, int], agree: Callable) -> None:
    torch.manual_seed(0)
    model = EHRMambaForCausalLM(config())
    examples = make_examples(MODEL_LENGTHS)
    packed = [(1.0, PackingCollator(TOKENIZER, **settings)(examples))]
    agree(model, packed, [(1.0, PaddingCollator(TOKENIZER)(examples))])
    predicted = sum(MODEL_LENGTHS) - len(MODEL_LENGTHS)
    single = [
        ((len(one["input_ids"]) - 1) / predicted, PaddingCollator(TOKENIZER)([one]))
        for one in examples
        if len(one["input_ids"]) > 1
    ]
    agree(model, packed, single)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("forecasting", [0.0, 0.1])
def test_packing_is_the_same_finetuning(
    settings: dict[str, int], forecasting: float, agree: Callable
) -> None:
    torch.manual_seed(0)
    model = EHRMambaForSequenceClassification(
        config(num_labels=1, forecasting_loss_weight=forecasting)
    )
    examples = make_examples(MODEL_LENGTHS)
    for number, example in enumerate(examples):
        example["labels"] = [float(number % 3 == 0)]
    packed = [(1.0, PackingCollator(TOKENIZER, **settings)(examples))]
    agree(model, packed, [(1.0, PaddingCollator(TOKENIZER)(examples))])
    if not forecasting:
        single = [(1 / len(examples), PaddingCollator(TOKENIZER)([one])) for one in examples]
        agree(model, packed, single)


def test_each_packed_patient_has_its_own_logits() -> None:
    torch.manual_seed(0)
    model = EHRMambaForSequenceClassification(config(num_labels=1)).eval()
    examples = make_examples(MODEL_LENGTHS)
    for number, example in enumerate(examples):
        example["labels"] = number
    batch = PackingCollator(TOKENIZER, row_length=40)(examples)
    numbers = batch.pop("labels").tolist()
    alone = PaddingCollator(TOKENIZER)
    with torch.no_grad():
        logits = model(**batch).logits
        for logit, number in zip(logits, numbers, strict=True):
            single = alone([examples[number]])
            del single["labels"]
            torch.testing.assert_close(logit, model(**single).logits[0], rtol=1e-4, atol=1e-5)
