"""Several patients in a row: each as if it were alone, in values, losses, gradients and states."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import DataCollatorWithFlattening

from ehrmamba_hf.modeling import (
    ATTRIBUTES,
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    derive_attributes,
)
from ehrmamba_hf.modeling.packing_ehrmamba import places_in_row

Ids = Callable[..., Tensor]
CLOSE = {"rtol": 0, "atol": 2e-5}
LENGTHS = (5, 1, 17, 2, 30)


@pytest.fixture
def patients(make_ids: Ids) -> list[Tensor]:
    return [make_ids(length, seed=length) for length in LENGTHS]


@pytest.fixture
def lm(tiny_config: Callable[..., EHRMambaConfig]) -> EHRMambaForCausalLM:
    torch.manual_seed(0)
    return EHRMambaForCausalLM(tiny_config(embedding_dropout=0.0)).eval()


@pytest.fixture
def classifier(tiny_config: Callable[..., EHRMambaConfig]) -> EHRMambaForSequenceClassification:
    torch.manual_seed(0)
    plain = {"embedding_dropout": 0.0, "classifier_dropout": 0.0}
    return EHRMambaForSequenceClassification(tiny_config(forecasting_loss_weight=0.3, **plain))


def pack(patients: list[Tensor], padding: int = 0) -> tuple[Tensor, Tensor]:
    """One row of all patients, and the number of each position's patient; padding has its own."""
    ids = torch.cat(patients)
    numbers = torch.cat([torch.full_like(ids, i) for i, ids in enumerate(patients)])
    return F.pad(ids, (0, padding))[None], F.pad(numbers, (0, padding), value=-1)[None]


def test_places_are_counted_within_each_patient() -> None:
    """The first goes on from a state of 4 columns; padding at the end belongs to the last."""
    numbers = torch.tensor([[7, 7, 7, 2, 2, 5, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    assert places_in_row(numbers, mask, 4).tolist() == [[4, 5, 6, 0, 1, 0, 1, 2]]


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 3])
def test_logits_and_states_are_those_of_each_patient_alone(
    padding: int, lm: EHRMambaForCausalLM, patients: list[Tensor]
) -> None:
    ids, numbers = pack(patients, padding)
    packed = lm(ids, seq_idx=numbers)
    alone = [lm(row[None]) for row in patients]
    expected = torch.cat([output.logits[0] for output in alone])
    torch.testing.assert_close(packed.logits[0, : len(expected)], expected, **CLOSE)
    layers = zip(packed.cache_params.layers, alone[-1].cache_params.layers, strict=True)
    for ours, theirs in layers:
        torch.testing.assert_close(ours.recurrent_states[0], theirs.recurrent_states[0], **CLOSE)
        torch.testing.assert_close(ours.conv_states[0], theirs.conv_states[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 4, 6, 20, 40])
def test_a_row_can_be_cut_anywhere_and_continued(
    cut: int, lm: EHRMambaForCausalLM, patients: list[Tensor]
) -> None:
    """The first patient of the second part goes on from the states, the others begin anew."""
    ids, numbers = pack(patients)
    whole = lm(ids, seq_idx=numbers).logits
    alone = [lm.backbone.embeddings.derive(row[None]) for row in patients]
    columns = {name: torch.cat([c[name] for c in alone], 1) for name in ATTRIBUTES}
    columns |= {"input_ids": ids, "seq_idx": numbers}
    first = lm(**{name: column[:, :cut] for name, column in columns.items()}, use_cache=True)
    rest = {name: column[:, cut:] for name, column in columns.items()}
    starts_anew = bool(numbers[0, cut] != numbers[0, cut - 1])
    cache = None if starts_anew else first.cache_params
    second = lm(**rest, cache_params=cache).logits
    torch.testing.assert_close(torch.cat([first.logits, second], 1), whole, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("return_seq_idx", [True, False])
def test_transformers_own_packing_collator_is_understood(
    return_seq_idx: bool, lm: EHRMambaForCausalLM, patients: list[Tensor]
) -> None:
    """By default it tells the patients apart by `position_ids` alone, which Mamba ignores."""
    collate = DataCollatorWithFlattening(return_tensors="pt", return_seq_idx=return_seq_idx)
    batch = collate([{"input_ids": row.tolist()} for row in patients])
    assert ("seq_idx" in batch) == return_seq_idx
    alone = [lm(row[None], labels=row[None]) for row in patients]
    found = lm(**batch)
    expected = torch.cat([output.logits[0] for output in alone])
    torch.testing.assert_close(found.logits[0], expected, **CLOSE)
    weighed = [o.loss * (n - 1) for o, n in zip(alone, LENGTHS, strict=True) if n > 1]
    mean = sum(weighed) / (sum(LENGTHS) - len(LENGTHS))
    torch.testing.assert_close(found.loss, mean, **CLOSE)


@torch.no_grad()
def test_padding_between_patients_changes_nothing(
    lm: EHRMambaForCausalLM, patients: list[Tensor]
) -> None:
    """Even where it bears the number of the patient after it."""
    first, second = patients[2], patients[4]
    ids = torch.cat([first, torch.zeros(2, dtype=torch.long), second])[None]
    numbers = torch.cat([torch.zeros(len(first)), torch.ones(2 + len(second))]).long()[None]
    packed = lm(ids, seq_idx=numbers).logits[0, len(first) + 2 :]
    torch.testing.assert_close(packed, lm(second[None]).logits[0], **CLOSE)


def test_the_loss_and_its_gradients_are_those_of_a_padded_batch(
    lm: EHRMambaForCausalLM, patients: list[Tensor], pad_batch: Callable
) -> None:
    padded, mask = pad_batch(patients, "right")
    expected = lm(padded, attention_mask=mask, labels=padded).loss
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in lm.named_parameters()}
    lm.zero_grad()
    ids, numbers = pack(patients, padding=2)
    loss = lm(ids, seq_idx=numbers, labels=ids).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    for name, weight in lm.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_each_patient_has_a_row_of_logits_and_a_label(
    classifier: EHRMambaForSequenceClassification, patients: list[Tensor], pad_batch: Callable
) -> None:
    """In training, where the loss has its forecasting part; over two rows, one padded."""
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    padded, mask = pad_batch(patients, "right")
    expected = classifier(padded, attention_mask=mask, labels=labels)
    first, second = pack(patients[:3]), pack(patients[3:])
    short = first[0].shape[1] - second[0].shape[1]
    short_of = [F.pad(t, (0, max(0, s))) for t, s in zip(first, (-short, -short), strict=True)]
    padded_second = [F.pad(t, (0, max(0, short))) for t in second]
    ids, numbers = (torch.cat(pair) for pair in zip(short_of, padded_second, strict=True))
    packed = classifier(ids, seq_idx=numbers, labels=labels)
    torch.testing.assert_close(packed.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(packed.loss, expected.loss, **CLOSE)


@torch.no_grad()
def test_no_patient_is_seen_by_the_next(lm: EHRMambaForCausalLM, patients: list[Tensor]) -> None:
    """Bit for bit: not even by a rounding."""
    ids, numbers = pack(patients)
    changed = ids.clone()
    changed[:, : sum(LENGTHS[:3])] = 4
    start = sum(LENGTHS[:3])
    before, after = (lm(row, seq_idx=numbers).logits[:, start:] for row in (ids, changed))
    assert torch.equal(before, after)


def test_derived_attributes_begin_anew_with_each_patient(
    lm: EHRMambaForCausalLM, patients: list[Tensor]
) -> None:
    ids, numbers = pack(patients)
    positions = places_in_row(numbers, None, 4)
    packed = lm.backbone.embeddings.derive(ids, None, positions)
    for name in ATTRIBUTES:
        alone = [lm.backbone.embeddings.derive(row[None])[name] for row in patients]
        assert torch.equal(packed[name], torch.cat(alone, 1)), name


def test_derived_attributes_of_packed_patients_written_out() -> None:
    """[CLS] [VS] x [VE] [REG] [W_1] [VS], then [CLS] [VS] x: a week and a half, and from zero."""
    types = torch.zeros(60, dtype=torch.long)
    types[[3, 4, 5, 6, 8, 41]] = torch.tensor([1, 2, 3, 4, 5, 10])
    days = torch.zeros(60)
    days[8] = 10.5
    ids = torch.tensor([[3, 4, 41, 5, 6, 8, 4, 3, 4, 41]])
    positions = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 0, 1, 2]])
    columns = derive_attributes(ids, types, days, positions=positions)
    assert columns["visit_orders"].tolist() == [[0, 1, 1, 1, 1, 0, 2, 0, 1, 1]]
    assert columns["visit_segments"].tolist() == [[0, 1, 1, 1, 1, 0, 2, 0, 1, 1]]
    assert columns["time_stamps"].tolist() == [[0, 0, 0, 0, 0, 0, 1.5, 0, 0, 0]]


def test_part_of_a_column_cannot_be_continued_over_patients(
    lm: EHRMambaForCausalLM, patients: list[Tensor]
) -> None:
    ids, numbers = pack(patients)
    with pytest.raises(ValueError, match=r"ages has shape \(1, 4\), expected that of input_ids"):
        lm(ids, seq_idx=numbers, ages=torch.zeros(1, 4))


def test_generation_wants_a_row_a_patient(lm: EHRMambaForCausalLM, patients: list[Tensor]) -> None:
    ids, numbers = pack(patients)
    with pytest.raises(ValueError, match="seq_idx is not taken"):
        lm.generate(ids, seq_idx=numbers, max_new_tokens=2)
