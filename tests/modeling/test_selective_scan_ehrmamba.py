"""The scan of every backend against a sequential one in float64: values, states, gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ehrmamba_hf import native
from ehrmamba_hf.modeling import (
    chunked_scan_ehrmamba,
    cuda_kernels_ehrmamba,
    selective_scan,
    selective_scan_ehrmamba,
)

NAMES = ("x", "delta", "A", "B", "C", "D", "initial_state")
TIMED = ("x", "delta", "B", "C")
Inputs = dict[str, Tensor]


def sequential_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    state, outputs = initial_state, []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        if resets is not None:
            decay = decay * ~resets[:, t, None, None]
        state = decay * state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, dim=1), state


def stock_selective_scan_fn(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What mamba_ssm's function does: (batch, channels, length), from a zero state, no resets."""
    x, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))
    state = torch.zeros(u.shape[0], *A.shape)
    return sequential_scan(x, delta, A, B, C, torch.zeros(u.shape[1]), state)[0].transpose(1, 2)


@pytest.fixture(params=["torch", "native", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and not native.available():
        pytest.skip("no C++ compiler on this machine")
    if request.param == "cuda":
        stand_in = lambda: stock_selective_scan_fn  # noqa: E731
        monkeypatch.setattr(cuda_kernels_ehrmamba, "_selective_scan_fn", stand_in)

    def choose(device: str, dtype: torch.dtype, states: int) -> str:
        return request.param if dtype == torch.float32 else "torch"

    monkeypatch.setattr(selective_scan_ehrmamba, "backend_name", choose)
    return request.param


def make_inputs(batch: int, length: int, channels: int, states: int, step: float = 0.1) -> Inputs:
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


def run(
    function: Callable, inputs: Inputs, dtype: torch.dtype, resets: Tensor | None = None
) -> list[Tensor]:
    leaves = [inputs[name].clone().to(dtype).requires_grad_() for name in NAMES]
    y, state = function(*leaves, resets)
    torch.manual_seed(1)
    weights_y, weights_state = torch.randn(y.shape), torch.randn(state.shape)
    ((y * weights_y.to(dtype)).sum() + (state * weights_state.to(dtype)).sum()).backward()
    return [y, state, *(leaf.grad for leaf in leaves)]


def assert_like_reference(
    inputs: Inputs, resets: Tensor | None = None, tolerance: float = 1e-5
) -> None:
    ours = run(selective_scan, inputs, torch.float32, resets)
    reference = run(sequential_scan, inputs, torch.float64, resets)
    for name, found, expected in zip(("y", "state", *NAMES), ours, reference, strict=True):
        scale = expected.abs().max().clamp(min=1.0)
        worst = ((found - expected).abs().max() / scale).item()
        assert worst < tolerance, f"{name} is off by {worst:.1e}"
    with torch.no_grad():
        y, state = selective_scan(**inputs, resets=resets)
    torch.testing.assert_close(y, ours[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(state, ours[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 37])
def test_values_states_and_gradients_equal_the_float64_reference(
    batch: int, length: int, backend: str
) -> None:
    assert_like_reference(make_inputs(batch, length, channels=5, states=3))


@pytest.mark.parametrize("length", [1, 9, 37])
@pytest.mark.parametrize("elements", [15, 75, 360])
def test_small_chunks_and_groups_of_rows_change_nothing(
    length: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selective_scan_ehrmamba, "backend_name", lambda *_: "torch")
    monkeypatch.setattr(chunked_scan_ehrmamba, "CHUNK_ELEMENTS", elements)
    resets = torch.rand(3, length, generator=torch.Generator().manual_seed(0)) < 0.3
    assert_like_reference(make_inputs(3, length, channels=5, states=3), resets)


@pytest.mark.parametrize("step", [0.0, 1e-6, 10.0, 100.0])
def test_extreme_step_sizes_stay_exact_and_finite(step: float, backend: str) -> None:
    assert_like_reference(make_inputs(2, 33, channels=4, states=16, step=step))


@pytest.mark.parametrize("at", range(12))
def test_a_reset_at_every_position(at: int, backend: str) -> None:
    resets = torch.zeros(2, 12, dtype=torch.bool)
    resets[0, at] = True
    assert_like_reference(make_inputs(2, 12, channels=5, states=3), resets)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_many_resets(share: float, backend: str) -> None:
    resets = torch.rand(3, 29, generator=torch.Generator().manual_seed(1)) < share
    assert_like_reference(make_inputs(3, 29, channels=5, states=3, step=5.0), resets)


def test_a_reset_is_a_new_beginning(backend: str) -> None:
    """Bit for bit where the arithmetic is the same, and without a trace of what came before."""
    inputs = make_inputs(1, 20, 4, 3)
    resets = torch.zeros(1, 20, dtype=torch.bool)
    resets[0, 8] = True
    y, state = selective_scan(**inputs, resets=resets)
    alone = {name: t[:, 8:] if name in TIMED else t for name, t in inputs.items()}
    alone["initial_state"] = torch.zeros(1, 4, 3)
    expected, expected_state = selective_scan(**alone)
    torch.testing.assert_close(y[:, 8:], expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=2e-6)
    other = inputs | {"x": torch.cat([inputs["x"][:, :8] * 1e3, inputs["x"][:, 8:]], 1)}
    again, _ = selective_scan(**other, resets=resets)
    assert torch.equal(again[:, 8:], y[:, 8:])


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


def test_no_initial_state_is_a_zero_state(backend: str) -> None:
    inputs = make_inputs(2, 9, 4, 3)
    inputs["initial_state"] = torch.zeros(2, 4, 3)
    expected = selective_scan(**inputs)
    del inputs["initial_state"]
    for found, wanted in zip(selective_scan(**inputs), expected, strict=True):
        assert torch.equal(found, wanted)
    leaves = [t.requires_grad_() for t in inputs.values()]
    y, state = selective_scan(*leaves)
    (y.sum() + state.sum()).backward()
    assert all(leaf.grad is not None for leaf in leaves)


def test_gradcheck_in_float64() -> None:
    inputs = make_inputs(2, 5, 3, 2)
    leaves = tuple(inputs[name].double().requires_grad_() for name in NAMES)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[1, 3] = True
    for cleared in (None, resets):
        assert torch.autograd.gradcheck(lambda *t, c=cleared: selective_scan(*t, c), leaves)


@pytest.mark.parametrize("split", [1, 13, 19])
def test_two_parts_joined_by_the_state_equal_the_whole(split: int, backend: str) -> None:
    inputs = make_inputs(2, 20, 4, 3)
    whole, final = selective_scan(**inputs)
    parts, state = [], inputs["initial_state"]
    for part in (slice(0, split), slice(split, 20)):
        cut = {name: t[:, part] if name in TIMED else t for name, t in inputs.items()}
        y, state = selective_scan(**(cut | {"initial_state": state}))
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-5)


def test_zero_steps_carry_the_state_unchanged(backend: str) -> None:
    inputs = make_inputs(2, 11, 4, 3)
    inputs["delta"][:, 4:] = 0
    cut = {k: v[:, :4] if k in TIMED else v for k, v in inputs.items()}
    torch.testing.assert_close(
        selective_scan(**inputs)[1], selective_scan(**cut)[1], rtol=0, atol=1e-6
    )


def test_bfloat16_inputs_keep_a_float32_state(backend: str) -> None:
    inputs = make_inputs(2, 64, 8, 4)
    narrow = {k: v.bfloat16() for k, v in inputs.items() if k in TIMED}
    y, state = selective_scan(**(inputs | narrow))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    rounded = {k: v.float() for k, v in narrow.items()}
    expected, expected_state = selective_scan(**(inputs | rounded))
    assert torch.equal(state, expected_state), "only the inputs and outputs are rounded"
    assert torch.equal(y, expected.bfloat16())


def test_bfloat16_gradients_are_those_of_float32_rounded(backend: str) -> None:
    inputs = {k: v.bfloat16() for k, v in make_inputs(2, 20, 8, 4).items()}
    for name, grad in zip(NAMES, run(selective_scan, inputs, torch.bfloat16)[2:], strict=True):
        assert grad.dtype == torch.bfloat16, name
    wide = run(selective_scan, inputs, torch.float32)[2:]
    narrow = run(selective_scan, inputs, torch.bfloat16)[2:]
    for name, found, expected in zip(NAMES, narrow, wide, strict=True):
        worst = (found.float() - expected).abs().max() / expected.abs().max()
        assert worst < 0.02, name


def test_autocast_does_not_reach_the_state(backend: str) -> None:
    inputs = make_inputs(2, 32, 8, 4)
    expected = selective_scan(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(**inputs)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_tensors_of_any_layout(backend: str) -> None:
    inputs = make_inputs(3, 10, 5, 3)
    inputs["delta"] = inputs["delta"][:, :, :1].expand(3, 10, 5)
    expected = selective_scan(**(inputs | {"delta": inputs["delta"].contiguous()}))
    odd = {
        k: t.transpose(0, 1).contiguous().transpose(0, 1) for k, t in inputs.items() if t.ndim > 1
    }
    for layout in (inputs, inputs | odd):
        y, state = selective_scan(**layout)
        torch.testing.assert_close(y, expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(state, expected[1], rtol=0, atol=1e-6)


def test_wrong_shapes_and_types_are_named() -> None:
    inputs = make_inputs(2, 9, 4, 3)
    wrong = inputs | {"B": inputs["B"].transpose(1, 2)}
    with pytest.raises(ValueError, match=r"B has shape \(2, 3, 9\), expected \(2, 9, 3\)"):
        selective_scan(**wrong)
    with pytest.raises(ValueError, match=r"resets has shape \(2, 3\), expected \(2, 9\)"):
        selective_scan(**inputs, resets=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"resets are torch.int64, expected torch.bool"):
        selective_scan(**inputs, resets=torch.zeros(2, 9, dtype=torch.long))


@pytest.mark.parametrize("with_resets", [False, True])
def test_torchs_own_checks_of_the_operator(with_resets: bool, backend: str) -> None:
    if backend == "cuda":
        pytest.skip("its gradients are mamba_ssm's, not the operator's")
    inputs = make_inputs(2, 9, 4, 3)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    resets = torch.rand(2, 9) < 0.3 if with_resets else None
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*leaves, resets, 4, True)
    torch.library.opcheck(selective_scan_ehrmamba._scan, arguments, test_utils=checks)
