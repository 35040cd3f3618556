"""Padding and cached states: whatever the way there, the same logits and the same final states."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ehrmamba_hf.modeling import ATTRIBUTES, EHRMambaConfig, EHRMambaForCausalLM

Ids = Callable[..., Tensor]
Pad = Callable[..., tuple[Tensor, Tensor]]
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=[False, True], ids=["plain", "biased"])
def model(
    request: pytest.FixtureRequest, tiny_config: Callable[..., EHRMambaConfig]
) -> EHRMambaForCausalLM:
    torch.manual_seed(0)
    model = EHRMambaForCausalLM(tiny_config(use_bias=request.param)).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "lm_head.weight")):
            weight.data += 0.3 * torch.randn(weight.shape)
    return model


def states_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    return [(layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers]


def assert_same_states(found: DynamicCache, expected: DynamicCache, row: int | slice) -> None:
    for ours, theirs in zip(states_of(found), states_of(expected), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one[row], other, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("extra", [0, 3])
def test_padding_leaves_no_trace(
    side: str, masked: bool, extra: int, model: EHRMambaForCausalLM, make_ids: Ids, pad_batch: Pad
) -> None:
    rows = [make_ids(length, seed=length) for length in (1, 2, 9, 16)]
    ids, mask = pad_batch(rows, side, extra)
    batch = model(ids, attention_mask=mask if masked else None)
    for index, row in enumerate(rows):
        alone = model(row[None])
        real = batch.logits[index, mask[index] == 1]
        torch.testing.assert_close(real, alone.logits[0], **CLOSE)
        assert_same_states(batch.cache_params, alone.cache_params, slice(index, index + 1))


@torch.no_grad()
@pytest.mark.parametrize("split", range(1, 14))
def test_continuing_from_a_state_equals_the_whole(
    split: int, model: EHRMambaForCausalLM, make_ids: Ids
) -> None:
    ids = torch.stack([make_ids(14, seed) for seed in range(3)])
    columns = model.backbone.embeddings.derive(ids)
    whole = model(ids)
    first = model(ids[:, :split])
    rest = {name: column[:, split:] for name, column in columns.items()}
    second = model(ids[:, split:], **rest, cache_params=first.cache_params)
    logits = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(logits, whole.logits, **CLOSE)
    assert_same_states(second.cache_params, whole.cache_params, slice(None))


@torch.no_grad()
def test_one_token_at_a_time_equals_the_whole(model: EHRMambaForCausalLM, make_ids: Ids) -> None:
    ids = torch.stack([make_ids(12, seed) for seed in range(2)])
    columns = model.backbone.embeddings.derive(ids) | {"input_ids": ids}
    cache, logits = None, []
    for t in range(12):
        step = {name: column[:, t : t + 1] for name, column in columns.items()}
        outputs = model(**step, cache_params=cache, use_cache=True)
        cache = outputs.cache_params
        logits.append(outputs.logits)
    whole = model(ids)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, **CLOSE)
    assert_same_states(cache, whole.cache_params, slice(None))


@torch.no_grad()
@pytest.mark.parametrize("first_side", ["left", "right"])
@pytest.mark.parametrize("second_side", ["left", "right"])
def test_padded_batches_continue_from_padded_batches(
    first_side: str, second_side: str, model: EHRMambaForCausalLM, make_ids: Ids, pad_batch: Pad
) -> None:
    rows = [make_ids(18, seed) for seed in range(4)]
    starts, ends = (3, 7, 1, 10), (5, 18, 4, 10)  # the last patient has no new event at all
    columns = [model.backbone.embeddings.derive(row[None]) for row in rows]
    ids, mask = pad_batch([r[:s] for r, s in zip(rows, starts, strict=True)], first_side)
    cache = model(ids, attention_mask=mask).cache_params

    spans = [slice(s, e) for s, e in zip(starts, ends, strict=True)]
    new, new_mask = pad_batch([r[p] for r, p in zip(rows, spans, strict=True)], second_side)
    given = {name: torch.zeros(new.shape, dtype=columns[0][name].dtype) for name in ATTRIBUTES}
    for index, (attributes, span) in enumerate(zip(columns, spans, strict=True)):
        for name in ATTRIBUTES:
            given[name][index, new_mask[index] == 1] = attributes[name][0, span]
    outputs = model(new, **given, attention_mask=new_mask, cache_params=cache)
    for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
        whole = model(row[None, : span.stop])
        real = outputs.logits[index, new_mask[index] == 1]
        torch.testing.assert_close(real, whole.logits[0, span], **CLOSE)
        assert_same_states(outputs.cache_params, whole.cache_params, slice(index, index + 1))


@torch.no_grad()
def test_no_output_moves_when_a_later_token_changes(
    model: EHRMambaForCausalLM, make_ids: Ids
) -> None:
    ids = torch.stack([make_ids(16, seed) for seed in range(2)])
    before = model(ids).logits
    changed = ids.clone()
    changed[:, 9] = 4
    after = model(changed).logits
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@torch.no_grad()
def test_the_state_has_a_fixed_size(model: EHRMambaForCausalLM, make_ids: Ids) -> None:
    for length in (1, 30):
        for conv, state in states_of(model(make_ids(length)[None]).cache_params):
            assert conv.shape == (1, 48, 4) and state.shape == (1, 48, 4)
            assert state.dtype == torch.float32


@torch.no_grad()
def test_a_reset_cache_starts_anew(model: EHRMambaForCausalLM, make_ids: Ids) -> None:
    ids = make_ids(10)[None]
    first = model(ids)
    first.cache_params.reset()
    again = model(ids, cache_params=first.cache_params)
    torch.testing.assert_close(again.logits, first.logits, **CLOSE)


def test_continuing_without_attributes_is_an_error(
    model: EHRMambaForCausalLM, make_ids: Ids
) -> None:
    cache = model(make_ids(6)[None]).cache_params
    with pytest.raises(ValueError, match="expected ages, time_stamps, visit_orders"):
        model(torch.tensor([[41]]), cache_params=cache)


def test_gradients_flow_through_a_continued_state(
    model: EHRMambaForCausalLM, make_ids: Ids
) -> None:
    ids = make_ids(12)[None]
    columns = model.backbone.embeddings.derive(ids)
    model(ids).logits[:, 6:].sum().backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    cache = model(ids[:, :6]).cache_params
    rest = {name: column[:, 6:] for name, column in columns.items()}
    model(ids[:, 6:], **rest, cache_params=cache).logits.sum().backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-4, msg=name)
