"""The native scan against a plain sequential one in float64, on each instruction set at hand."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ehrmamba_hf import native
from ehrmamba_hf.native import library, scan

NAMES = ("x", "delta", "A", "B", "C", "D", "initial_state")
LEVELS = tuple(reversed(library.INSTRUCTIONS))  # the least first


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(params=LEVELS, autouse=True)
def level(request, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an instruction set, whose library is the loaded one."""
    if LEVELS.index(request.param) > LEVELS.index(library.capability()):
        pytest.skip(f"this CPU has no {request.param}")
    try:
        library.find_compiler()
    except native.NativeUnavailableError as error:
        pytest.skip(str(error))
    loaded = ctypes.CDLL(str(library.build(request.param, folder)))
    monkeypatch.setattr(library, "load", lambda: loaded)
    return request.param


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch):
    """Sets the number of threads, however little there is to do."""

    def set_threads(count: int) -> None:
        monkeypatch.setattr(scan, "THREAD_ELEMENTS", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)

    return set_threads


def make_inputs(
    batch: int, length: int, channels: int, states: int, step: float = 0.1
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch + length + channels + states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": normal(batch, length, channels),
        "delta": torch.rand(batch, length, channels, generator=generator) * step,
        "A": -torch.rand(channels, states, generator=generator) * states - 0.1,
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
        "initial_state": normal(batch, channels, states),
    }


def random_resets(batch: int, length: int) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) < 0.2


def reference(inputs: dict[str, Tensor], resets: Tensor | None) -> tuple[Tensor, ...]:
    """y, the final state, and the gradients of (y * w).sum() + (state * v).sum(), in float64."""
    leaves = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    x, delta, A, B, C, D, state = (leaves[name] for name in NAMES)
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            state = torch.where(resets[:, t, None, None], 0.0, state)
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1) + D * x[:, t])
    y = torch.stack(outputs, dim=1)
    w, v = weights(y.shape, state.shape)
    grads = torch.autograd.grad((y * w).sum() + (state * v).sum(), list(leaves.values()))
    return y.detach(), state.detach(), *grads


def weights(*shapes: torch.Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]


def run(
    inputs: dict[str, Tensor], resets: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, ...]:
    tensors = [inputs[name] for name in NAMES]
    chunk = chunk or native.chunk_length(*inputs["x"].shape, inputs["A"].shape[1])
    y, state, starts = native.forward(*tensors, resets, chunk, keep=True)
    grads = native.backward(*weights(y.shape, state.shape), *tensors, resets, starts, chunk)
    return y, state, *grads


def assert_like_reference(
    inputs: dict[str, Tensor],
    resets: Tensor | None = None,
    chunk: int | None = None,
    tolerance: float = 2e-6,
) -> None:
    found, expected = run(inputs, resets, chunk), reference(inputs, resets)
    for name, ours, theirs in zip(("y", "state", *NAMES), found, expected, strict=True):
        assert ours.shape == theirs.shape
        scale = theirs.abs().max().clamp(min=1.0)
        worst = ((ours - theirs).abs().max() / scale).item()
        assert worst < tolerance, f"{name} is off by {worst:.1e}"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 37])
@pytest.mark.parametrize("channels", [1, 5, 16, 33])
@pytest.mark.parametrize("states", [1, 3, 16, 20])
def test_values_states_and_gradients_equal_the_float64_reference(
    batch: int, length: int, channels: int, states: int
) -> None:
    inputs = make_inputs(batch, length, channels, states)
    assert_like_reference(inputs)
    assert_like_reference(inputs, random_resets(batch, length), chunk=8)


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_any_chunk_gives_the_same(chunk: int) -> None:
    assert_like_reference(make_inputs(2, 100, 9, 16), random_resets(2, 100), chunk)


@pytest.mark.parametrize("step", [0.0, 1e-6, 10.0, 100.0, 1e6])
def test_extreme_step_sizes_stay_exact_and_finite(step: float) -> None:
    assert_like_reference(make_inputs(2, 33, 4, 16, step), tolerance=4e-6)


def test_the_largest_number_of_states() -> None:
    assert_like_reference(make_inputs(1, 19, 5, scan.MAX_STATES), chunk=4)


def test_zero_steps_carry_the_state_and_its_gradient_on_to_the_bit() -> None:
    inputs = make_inputs(2, 200, 5, 16)
    inputs["delta"].zero_()
    y, state, starts = native.forward(*(inputs[name] for name in NAMES), None, 64, True)
    assert torch.equal(state, inputs["initial_state"])
    assert torch.equal(starts[-1].transpose(1, 2), inputs["initial_state"])
    grads = native.backward(
        torch.zeros_like(y), state, *(inputs[name] for name in NAMES), None, starts, 64
    )
    assert torch.equal(grads[-1], state)


@pytest.mark.parametrize("exponent", [0.0, -1e-3, -1.0, -50.0, -86.0])
def test_decay_is_the_exponential_to_one_part_in_a_million(exponent: float) -> None:
    """One state of 1 that nothing is added to: after one step it is the decay."""
    one, none = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    rate = torch.tensor([[exponent]])
    state = native.forward(none, one, rate, none, none, none[0, 0], one, None, 1, False)[1]
    expected = torch.tensor(exponent, dtype=torch.float64).exp().item()
    # A float32 exponent of -86 is itself no better than 86 * 6e-8.
    assert state.item() == pytest.approx(expected, rel=2e-7 + abs(exponent) * 6e-8, abs=0)


@pytest.mark.parametrize("exponent", [-88.0, -1e4, -3e38, -torch.inf])
def test_decay_is_nothing_at_all_where_float32_ends(exponent: float) -> None:
    one, none = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    rate = torch.tensor([[exponent]])
    state = native.forward(none, one, rate, none, none, none[0, 0], one, None, 1, False)[1]
    assert state.item() == 0.0


def test_a_reset_everywhere_leaves_each_position_alone() -> None:
    inputs = make_inputs(2, 70, 17, 16)
    resets = torch.ones(2, 70, dtype=torch.bool)
    assert_like_reference(inputs, resets)
    y, _, *grads = run(inputs, resets)
    x, delta, B, C = (inputs[name] for name in ("x", "delta", "B", "C"))
    alone = delta * x * (B * C).sum(-1, keepdim=True) + inputs["D"] * x
    torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-5)
    assert not grads[2].any() and not grads[6].any(), "no state, no decay, no initial state"


def test_a_reset_stops_even_what_is_not_a_number() -> None:
    inputs = make_inputs(1, 20, 5, 16)
    resets = torch.zeros(1, 20, dtype=torch.bool)
    resets[0, 9] = True
    clean = run(inputs, resets)[0]
    inputs["x"][0, 3] = torch.inf
    y = run(inputs, resets)[0]
    assert torch.equal(y[:, 9:], clean[:, 9:]) and not y[:, 3:9].isfinite().any()


def test_what_is_not_a_number_stays_so() -> None:
    inputs = make_inputs(1, 5, 3, 16)
    inputs["delta"][0, 2, 1] = torch.nan
    bad = native.forward(*(inputs[name] for name in NAMES), None, 5, False)[0].isnan()
    assert bad.nonzero().tolist() == [[0, 2, 1], [0, 3, 1], [0, 4, 1]]


def test_tiny_numbers_are_zero_inside_and_not_outside() -> None:
    tiny = torch.full((1, 1, 1), 1e-39)
    one, none = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    y = native.forward(tiny, one, -one[0], none, none, one[0, 0], none, None, 1, False)[0]
    on_x86 = library.platform.machine() in ("x86_64", "AMD64")
    assert (y.item() == 0) == on_x86
    assert (tiny * 1).item() != 0, "torch's own sums are as they were"


def test_rows_do_not_know_of_each_other() -> None:
    inputs = make_inputs(3, 40, 33, 16)
    whole = run(inputs, random_resets(3, 40))
    one = {k: v[1:2] if k not in ("A", "D") else v for k, v in inputs.items()}
    alone = run(one, random_resets(3, 40)[1:2])
    assert torch.equal(alone[0][0], whole[0][1]) and torch.equal(alone[1][0], whole[1][1])


@pytest.mark.parametrize(("batch", "count"), [(1, 2), (3, 2), (3, 4), (5, 3), (2, 64)])
def test_threads_change_nothing_but_the_rounding_of_sums(batch: int, count: int, threads) -> None:
    inputs, resets = make_inputs(batch, 70, 100, 16), random_resets(batch, 70)
    threads(1)
    alone = run(inputs, resets)
    threads(count)
    together, again = run(inputs, resets), run(inputs, resets)
    for name, ours, same, theirs in zip(
        ("y", "state", *NAMES), together, again, alone, strict=True
    ):
        assert torch.equal(ours, same), f"{name} differs from call to call"
        if name not in ("A", "B", "C", "D"):
            assert torch.equal(ours, theirs), name
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_inputs_are_computed_with_in_float32() -> None:
    inputs = make_inputs(2, 64, 8, 4)
    narrow = inputs | {k: inputs[k].bfloat16() for k in ("x", "delta", "B", "C")}
    found = run(narrow)
    assert [t.dtype for t in found[:2]] == [torch.bfloat16, torch.float32]
    assert [t.dtype for t in found[2:]] == [narrow[name].dtype for name in NAMES]
    rounded = run({k: v.float() for k, v in narrow.items()})
    for ours, theirs in zip(found, rounded, strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype))


def test_strides_and_the_default_dtype_do_not_matter() -> None:
    inputs = make_inputs(2, 21, 6, 16)
    resets = random_resets(2, 21)
    expected = run(inputs, resets)
    turned = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in inputs.items()}
    torch.set_default_dtype(torch.float64)
    try:
        found = run(turned, resets.t().contiguous().t())
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs) and ours.is_contiguous()


def test_inputs_are_left_as_they_are() -> None:
    inputs = make_inputs(2, 21, 6, 1)
    before = {k: v.clone() for k, v in inputs.items()}
    run(inputs)
    assert all(torch.equal(inputs[k], before[k]) for k in inputs)


def test_starts_are_the_states_before_each_chunk_and_none_unless_kept() -> None:
    inputs = make_inputs(2, 20, 6, 3)
    tensors = [inputs[name] for name in NAMES]
    y, state, starts = native.forward(*tensors, None, 8, keep=True)
    assert starts.shape == (3, 2, 3, 6)
    cut = [t[:, :16] if t.shape[:2] == (2, 20) else t for t in tensors]
    assert torch.equal(starts[2].transpose(1, 2), native.forward(*cut, None, 8, keep=False)[1])
    bare = native.forward(*tensors, None, 8, keep=False)
    assert torch.equal(bare[0], y) and torch.equal(bare[1], state)
    assert bare[2].shape == (0, 2, 3, 6)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_nothing_in_gives_nothing_out(shape: tuple[int, int, int]) -> None:
    inputs = make_inputs(*shape, states=16)
    y, state, *grads = run(inputs, chunk=4)
    assert y.shape == shape and torch.equal(state, inputs["initial_state"])
    assert all(g.shape == inputs[n].shape for g, n in zip(grads, NAMES, strict=True))
    assert not any(g.any() for g in grads[:-1])


@pytest.mark.parametrize("states", [1, 3, 16, 20])
def test_steps_equal_the_scan(states: int, threads) -> None:
    inputs = make_inputs(3, 12, 33, states)
    tensors = [inputs[name] for name in NAMES]
    y, final, _ = native.forward(*tensors, None, 12, keep=False)
    threads(2)
    state = inputs["initial_state"].clone()
    x, delta, A, B, C, D = tensors[:-1]
    for t in range(12):
        out = native.step(state, x[:, t], delta[:, t], A, B[:, t], C[:, t], D)
        torch.testing.assert_close(out, y[:, t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


def test_wrong_shapes_do_not_reach_the_library() -> None:
    inputs = make_inputs(2, 9, 4, 3)
    tensors = [inputs[name] for name in NAMES]
    with pytest.raises(ValueError, match=r"found shape \(2, 9, 2\), expected \(2, 9, 3\)"):
        native.forward(*tensors[:3], tensors[3][..., :2], *tensors[4:], None, 9, False)
    with pytest.raises(ValueError, match="resets"):
        native.forward(*tensors, torch.ones(2, 8, dtype=torch.bool), 9, False)
    with pytest.raises(ValueError, match="state"):
        native.forward(*tensors[:-1], tensors[-1][:1], None, 9, False)
    y, state, starts = native.forward(*tensors, None, 9, True)
    with pytest.raises(ValueError, match=r"expected \(3, 2, 3, 4\)"):
        native.backward(y, state, *tensors, None, starts, 3)
    x, delta, A, B, C, D = (t[:, 0] if t.shape[:2] == (2, 9) else t for t in tensors[:-1])
    with pytest.raises(ValueError, match="contiguous float32"):
        native.step(state.double(), x, delta, A, B, C, D)
