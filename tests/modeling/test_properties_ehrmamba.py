"""What must hold at any shape: hypothesis draws lengths, widths, padding, splits and rows."""

import functools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ehrmamba_hf.modeling import ATTRIBUTES, EHRMambaConfig, EHRMambaForCausalLM

CLOSE = {"rtol": 0, "atol": 5e-5}
VOCAB = 60
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)
SHAPES = st.sampled_from([(8, 1, 2, 2), (24, 4, 4, 2), (17, 3, 5, 1), (16, 16, 2, 3)])
each = settings(max_examples=25, deadline=None, derandomize=True)
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def no_gradients():
    with torch.no_grad():
        yield


@functools.cache
def model_of(shape: tuple[int, int, int, int]) -> EHRMambaForCausalLM:
    """A model of (width, states, kernel, expand); two layers, biases that are not zero."""
    width, states, kernel, expand = shape
    torch.manual_seed(sum(shape))
    config = EHRMambaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        state_size=states,
        conv_kernel=kernel,
        expand=expand,
        num_hidden_layers=2,
        use_bias=True,
    )
    model = EHRMambaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "lm_head.weight")):
            weight.data += 0.3 * torch.randn(weight.shape)
    return model


def rows_of(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    rows = []
    for length in lengths:
        ids = [3]
        while len(ids) < length:
            ids += [4, *draw(41, VOCAB, draw(1, 5, 1)[0]), 5, 6, *draw(7, 25, 1)]
        rows.append(torch.tensor(ids[:length]))
    return rows


def alone(model: EHRMambaForCausalLM, rows: list[Tensor]) -> list[Tensor]:
    return [model(row[None]).logits[0] for row in rows]


@each
@given(shape=SHAPES, lengths=LENGTHS, seed=st.integers(0, 99), data=st.data())
def test_padding_and_company_leave_no_trace(shape, lengths, seed, data):
    """Each row padded by its own choice of side, to any width, in a batch of any others."""
    model, rows = model_of(shape), rows_of(lengths, seed)
    width = max(lengths) + data.draw(st.integers(0, 9))
    left = [data.draw(st.booleans()) for _ in rows]
    pads = [
        (width - len(r), 0) if side else (0, width - len(r))
        for r, side in zip(rows, left, strict=True)
    ]
    ids = torch.stack([F.pad(row, pad) for row, pad in zip(rows, pads, strict=True)])
    logits = model(ids).logits
    for index, expected in enumerate(alone(model, rows)):
        torch.testing.assert_close(logits[index, ids[index] != 0], expected, **CLOSE)


@each
@given(shape=SHAPES, lengths=LENGTHS, seed=st.integers(0, 99), padding=st.integers(0, 5))
def test_packed_equals_one_by_one(shape, lengths, seed, padding):
    model, rows = model_of(shape), rows_of(lengths, seed)
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    ids = F.pad(torch.cat(rows), (0, padding))[None]
    packed = model(ids, seq_idx=F.pad(numbers, (0, padding), value=-1)[None]).logits[0]
    expected = torch.cat(alone(model, rows))
    torch.testing.assert_close(packed[: len(expected)], expected, **CLOSE)


@each
@given(shape=SHAPES, length=st.integers(2, 40), seed=st.integers(0, 99), data=st.data())
def test_cut_anywhere_into_any_number_of_parts(shape, length, seed, data):
    model, (row,) = model_of(shape), rows_of([length], seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6)))
    columns = model.backbone.embeddings.derive(row[None]) | {"input_ids": row[None]}
    cache, logits = None, []
    for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
        part = {name: column[:, begin:end] for name, column in columns.items()}
        outputs = model(**part, cache_params=cache, use_cache=True)
        cache = outputs.cache_params
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, 1)[0], alone(model, [row])[0], **CLOSE)


@each
@given(shape=SHAPES, length=st.integers(2, 40), seed=st.integers(0, 99), data=st.data())
def test_no_output_moves_when_a_later_column_changes(shape, length, seed, data):
    model, (row,) = model_of(shape), rows_of([length], seed)
    at = data.draw(st.integers(1, length - 1))
    columns = model.backbone.embeddings.derive(row[None]) | {"input_ids": row[None]}
    name = data.draw(st.sampled_from(["input_ids", *ATTRIBUTES]))
    changed = columns[name].clone()
    changed[:, at] = (changed[:, at] + 1) % 3
    before, after = model(**columns).logits, model(**(columns | {name: changed})).logits
    assert torch.equal(before[:, :at], after[:, :at])
