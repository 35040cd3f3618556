"""The selective scan of Mamba in plain torch: exact, chunked, linear in time and memory.

The recurrence (Mamba paper, section 3.2 and algorithm 2), for each channel d and state n:

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * x[t] * B[t]
    y[t] = sum over n of C[t] * h[t]  +  D * x[t]

States exist for one chunk of positions at a time. The forward pass keeps only the state at the
start of each chunk; the backward pass rebuilds a chunk's states from it.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Elements of one chunk's states on a CPU, 1 MiB in float32. A handful of such buffers are alive at
# once: more falls out of a core's L2 cache, less spends the time in Python. Measured on one core of
# an AMD EPYC, forward and backward in ms, with a quarter of this, this, and four times this, for
# (batch, length, channels, states): (16, 128, 128, 16) 33, 30, 30; (64, 128, 128, 16) 127, 101,
# 131; (1, 2048, 1536, 16) 312, 243, 236.
CHUNK_ELEMENTS = 1 << 18
# An accelerator has no such cache to stay in, and pays for each call.
ACCELERATOR_FACTOR = 64
# Rows are cut into groups rather than chunks below this length: the kept states are `states /
# length` times the size of x (twice, for 16 states), and as quick, measured, as longer groups of
# shorter chunks.
MIN_CHUNK = 8


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the selective state space recurrence over a batch of sequences.

    A position with `delta` 0 carries the state on unchanged, which is how padding is passed over.

    Args:
        x: inputs, (batch, length, channels).
        delta: step sizes after the softplus, at least 0, (batch, length, channels).
        A: negative decay rates, (channels, states).
        B: input weights, (batch, length, states).
        C: output weights, (batch, length, states).
        D: skip weights, (channels,).
        initial_state: state before the first position, (batch, channels, states); None is zero.

    Returns:
        y, (batch, length, channels) in the dtype of `x`, and the final state, (batch, channels,
        states). The state is float32 whatever the inputs are (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> ones = torch.ones(1, 3, 1)
        >>> y, state = selective_scan(ones, ones, -torch.ones(1, 1), ones, ones, torch.zeros(1))
        >>> [round(value, 4) for value in y.flatten().tolist()]  # 1, 1 + 1/e, 1 + 1/e + 1/e^2
        [1.0, 1.3679, 1.5032]
        >>> state.shape
        torch.Size([1, 1, 1])
    """
    batch, length, channels = x.shape
    states = A.shape[1]
    expected = {
        "delta": (delta, (batch, length, channels)),
        "A": (A, (channels, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
    }
    if initial_state is None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        initial_state = x.new_zeros(batch, channels, states, dtype=dtype)
    expected["initial_state"] = (initial_state, (batch, channels, states))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(tensor.shape)}, expected {shape} "
                f"for x of shape {tuple(x.shape)}"
            )
    rows, chunk = group_and_chunk(batch, channels, states, x.device.type)
    keep = torch.is_grad_enabled()
    parts = [
        _ChunkedScan.apply(*group[:2], A, *group[2:4], D, group[4], chunk, keep)
        for group in zip(*(t.split(rows) for t in (x, delta, B, C, initial_state)), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    outputs, final_states = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(final_states)


def group_and_chunk(batch: int, channels: int, states: int, device: str) -> tuple[int, int]:
    """Rows per group and positions per chunk, such that a chunk's states stay in the cache."""
    elements = CHUNK_ELEMENTS * (1 if device == "cpu" else ACCELERATOR_FACTOR)
    rows = max(1, min(batch, elements // (MIN_CHUNK * channels * states)))
    return rows, max(1, elements // (rows * channels * states))


class _ChunkedScan(torch.autograd.Function):
    """Layout inside: time first, channels last, so that each step is one contiguous (B, N, D)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        initial_state: Tensor,
        chunk_length: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            xs, deltas, rates, Bs, Cs = _time_first(x, delta, A, B, C, initial_state.dtype)
            state = initial_state.transpose(1, 2).contiguous()
            y = state.new_empty(x.shape)
            ys = y.transpose(0, 1)
            starts = []
            for begin in range(0, xs.shape[0], chunk_length):
                chunk = slice(begin, begin + chunk_length)
                if keep:
                    starts.append(state)
                _, history = _chunk_states(xs[chunk], deltas[chunk], rates, Bs[chunk], state)
                ys[chunk] = torch.matmul(Cs[chunk].unsqueeze(2), history).squeeze(2)
                # A copy, since a view would keep the whole chunk's states alive.
                state = history[-1].clone()
            ys.addcmul_(xs, D.to(y.dtype))
        ctx.save_for_backward(x, delta, A, B, C, D, *starts)
        ctx.dtype, ctx.chunk_length = initial_state.dtype, chunk_length  # type: ignore[attr-defined]
        return y.to(x.dtype), state.transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, D, *starts = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_y, grad_state = grads
        with torch.autocast(x.device.type, enabled=False):
            dtype, step = ctx.dtype, ctx.chunk_length  # type: ignore[attr-defined]
            xs, deltas, rates, Bs, Cs = _time_first(x, delta, A, B, C, dtype)
            grad_ys = grad_y.transpose(0, 1).to(dtype)
            grad_xs, grad_deltas = torch.empty_like(xs), torch.empty_like(deltas)
            grad_Bs, grad_Cs = torch.empty_like(Bs), torch.empty_like(Cs)
            grad_rates = torch.zeros_like(rates)
            grad_D = (grad_ys * xs).sum((0, 1))
            carried = grad_state.transpose(1, 2).to(dtype)
            for index in reversed(range(len(starts))):
                chunk = slice(index * step, (index + 1) * step)
                parts = xs[chunk], deltas[chunk], rates, Bs[chunk], Cs[chunk]
                result = _chunk_backward(*parts, starts[index], grad_ys[chunk], carried)
                grad_xs[chunk], grad_deltas[chunk], grad_Bs[chunk], grad_Cs[chunk] = result[:4]
                grad_rates += result[4]
                carried = result[5]
            grad_xs.addcmul_(grad_ys, D.to(dtype))
        return (
            grad_xs.transpose(0, 1).to(x.dtype),
            grad_deltas.transpose(0, 1).to(delta.dtype),
            grad_rates.t().to(A.dtype),
            grad_Bs.transpose(0, 1).to(B.dtype),
            grad_Cs.transpose(0, 1).to(C.dtype),
            grad_D.to(D.dtype),
            carried.transpose(1, 2),
            None,
            None,
        )


def _time_first(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """x, delta (L, B, D), rates (N, D), B, C (L, B, N), in the dtype of the state."""
    first, step, weights_in, weights_out = (t.transpose(0, 1).to(dtype) for t in (x, delta, B, C))
    return first, step, A.t().to(dtype).contiguous(), weights_in, weights_out


def _chunk_states(
    x: Tensor, delta: Tensor, rates: Tensor, B: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Decays and states of one chunk, each (T, B, N, D), from the state (B, N, D) before it."""
    decay = (delta.unsqueeze(2) * rates).exp_()
    history = (delta * x).unsqueeze(2) * B.unsqueeze(3)
    for position in range(history.shape[0]):
        state = history[position].addcmul_(decay[position], state)
    return decay, history


def _chunk_backward(
    x: Tensor,
    delta: Tensor,
    rates: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor,
    grad_y: Tensor,
    carried: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one chunk: x, delta (T, B, D); B, C (T, B, N); rates (N, D); start (B, N, D).

    `carried` is the gradient that reaches the chunk's last state from the chunk after it.
    """
    decay, history = _chunk_states(x, delta, rates, B, start)
    grad_C = torch.matmul(history, grad_y.unsqueeze(3)).squeeze(3)
    grad_history = grad_y.unsqueeze(2) * C.unsqueeze(3)
    grad_history[-1].add_(carried)
    for position in reversed(range(x.shape[0] - 1)):
        grad_history[position].addcmul_(decay[position + 1], grad_history[position + 1])
    carried = decay[0] * grad_history[0]
    grad_B = torch.matmul(grad_history, (delta * x).unsqueeze(3)).squeeze(3)
    grad_input = torch.matmul(B.unsqueeze(2), grad_history).squeeze(2)
    # What reaches the exponent delta * rates: the decay's gradient times the decay, in its place.
    grad_exponent = decay.mul_(grad_history)
    grad_exponent[1:].mul_(history[:-1])
    grad_exponent[0].mul_(start)
    grad_rates = torch.mul(grad_exponent, delta.unsqueeze(2), out=history).sum((0, 1))
    grad_delta = grad_exponent.mul_(rates).sum(2).addcmul_(grad_input, x)
    return grad_input * delta, grad_delta, grad_B, grad_C, grad_rates, carried


__all__ = ["selective_scan"]
