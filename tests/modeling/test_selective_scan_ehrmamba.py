"""The chunked scan against a plain sequential one in float64: values, states, every gradient."""

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import chunked_scan_ehrmamba, selective_scan

NAMES = ("x", "delta", "A", "B", "C", "D", "initial_state")


def sequential_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, dim=1), state


def make_inputs(
    batch: int, length: int, channels: int, states: int, step: float = 0.1
) -> dict[str, Tensor]:
    torch.manual_seed(length + batch)
    return {
        "x": torch.randn(batch, length, channels),
        "delta": torch.rand(batch, length, channels) * step,
        "A": -torch.rand(channels, states) * states - 0.1,
        "B": torch.randn(batch, length, states),
        "C": torch.randn(batch, length, states),
        "D": torch.randn(channels),
        "initial_state": torch.randn(batch, channels, states),
    }


def run(function, inputs: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [inputs[name].clone().to(dtype).requires_grad_() for name in NAMES]
    y, state = function(*leaves)
    torch.manual_seed(1)
    weights_y, weights_state = torch.randn(y.shape), torch.randn(state.shape)
    ((y * weights_y.to(dtype)).sum() + (state * weights_state.to(dtype)).sum()).backward()
    return [y, state, *(leaf.grad for leaf in leaves)]


def assert_like_reference(inputs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    ours = run(selective_scan, inputs, torch.float32)
    reference = run(sequential_scan, inputs, torch.float64)
    for name, found, expected in zip(("y", "state", *NAMES), ours, reference, strict=True):
        scale = expected.abs().max().clamp(min=1.0)
        worst = ((found - expected).abs().max() / scale).item()
        assert worst < tolerance, f"{name} is off by {worst:.1e}"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 37])
@pytest.mark.parametrize("elements", [15, 75, 360, 1 << 18])
def test_values_states_and_gradients_equal_the_float64_reference(
    batch: int, length: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_scan_ehrmamba, "CHUNK_ELEMENTS", elements)
    assert_like_reference(make_inputs(batch, length, channels=5, states=3))


@pytest.mark.parametrize("step", [0.0, 1e-6, 10.0, 100.0])
def test_extreme_step_sizes_stay_exact_and_finite(step: float) -> None:
    assert_like_reference(make_inputs(2, 33, channels=4, states=16, step=step))


@pytest.mark.parametrize(
    ("batch", "channels", "expected"),
    [
        (1, 1536, (1, 10)),
        (64, 1536, (1, 10)),
        (16, 128, (16, 8)),
        (64, 128, (16, 8)),
        (2, 4, (2, 2048)),
    ],
)
def test_rows_and_chunk_are_chosen_from_batch_and_width(
    batch: int, channels: int, expected: tuple[int, int]
) -> None:
    assert chunked_scan_ehrmamba.group_and_chunk(batch, channels, 16, "cpu") == expected


def test_no_initial_state_is_a_zero_state() -> None:
    inputs = make_inputs(2, 9, 4, 3)
    inputs["initial_state"] = torch.zeros(2, 4, 3)
    expected = selective_scan(**inputs)
    del inputs["initial_state"]
    for found, wanted in zip(selective_scan(**inputs), expected, strict=True):
        assert torch.equal(found, wanted)


def test_gradcheck_in_float64() -> None:
    inputs = make_inputs(2, 5, 3, 2)
    leaves = tuple(inputs[name].double().requires_grad_() for name in NAMES)
    assert torch.autograd.gradcheck(selective_scan, leaves)


def test_two_halves_joined_by_the_state_equal_the_whole() -> None:
    inputs = make_inputs(2, 20, 4, 3)
    whole, final = selective_scan(**inputs)
    timed = ("x", "delta", "B", "C")
    halves, state = [], inputs["initial_state"]
    for part in (slice(0, 13), slice(13, 20)):
        cut = {name: t[:, part] if name in timed else t for name, t in inputs.items()}
        y, state = selective_scan(**(cut | {"initial_state": state}))
        halves.append(y)
    torch.testing.assert_close(torch.cat(halves, 1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-5)


def test_zero_steps_carry_the_state_unchanged() -> None:
    inputs = make_inputs(2, 11, 4, 3)
    inputs["delta"][:, 4:] = 0
    cut = {k: v[:, :4] if k in ("x", "delta", "B", "C") else v for k, v in inputs.items()}
    torch.testing.assert_close(
        selective_scan(**inputs)[1], selective_scan(**cut)[1], rtol=0, atol=1e-6
    )


def test_bfloat16_inputs_keep_a_float32_state() -> None:
    inputs = make_inputs(2, 64, 8, 4)
    narrow = {k: v.bfloat16() for k, v in inputs.items() if k not in ("A", "D", "initial_state")}
    y, state = selective_scan(**(inputs | narrow))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    rounded = {k: v.float() for k, v in narrow.items()}
    expected, expected_state = selective_scan(**(inputs | rounded))
    assert torch.equal(state, expected_state), "only the inputs and outputs are rounded"
    assert torch.equal(y, expected.bfloat16())


def test_autocast_does_not_reach_the_state() -> None:
    inputs = make_inputs(2, 32, 8, 4)
    expected = selective_scan(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(**inputs)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_a_wrong_shape_is_named() -> None:
    inputs = make_inputs(2, 9, 4, 3)
    inputs["B"] = inputs["B"].transpose(1, 2)
    with pytest.raises(ValueError, match=r"B has shape \(2, 3, 9\), expected \(2, 9, 3\)"):
        selective_scan(**inputs)
