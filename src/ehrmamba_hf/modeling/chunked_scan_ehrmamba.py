"""The selective scan in plain torch: chunked, linear in time and memory, on every device.

States exist for one chunk of positions at a time. The forward pass keeps only the state at the
start of each chunk; the backward pass rebuilds a chunk's states from it (Mamba paper, section
3.3.2, which recomputes for the same reason).
"""

import torch
from torch import Tensor

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


def chunk_length(x: Tensor, A: Tensor) -> int:
    """Positions in a chunk, for x of (batch, length, channels) and A of (channels, states)."""
    batch, _, channels = x.shape
    return group_and_chunk(batch, channels, A.shape[1], x.device.type)[1]


def group_and_chunk(batch: int, channels: int, states: int, device: str) -> tuple[int, int]:
    """Rows per group and positions per chunk, such that a chunk's states stay in the cache."""
    elements = CHUNK_ELEMENTS * (1 if device == "cpu" else ACCELERATOR_FACTOR)
    rows = max(1, min(batch, elements // (MIN_CHUNK * channels * states)))
    return rows, max(1, elements // (rows * channels * states))


def chunked_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan forward; shapes as in `selective_scan`, and the initial state in the dtype of the state.

    Returns:
        y, the final state, and the state before each chunk of `chunk` positions, (chunks, batch,
        states, channels), or none of them, (0, batch, states, channels), if not `keep`.
    """
    dtype = initial_state.dtype
    batch, length, channels = x.shape
    states = A.shape[1]
    y, final = x.new_empty(x.shape, dtype=dtype), torch.empty_like(initial_state)
    chunks = -(-length // chunk) if keep else 0
    starts = x.new_empty(chunks, batch, states, channels, dtype=dtype)
    rates, skip = A.t().to(dtype).contiguous(), D.to(dtype)
    rows = group_and_chunk(batch, channels, states, x.device.type)[0]
    for begin in range(0, batch, rows):
        group = slice(begin, begin + rows)
        parts = _time_first(x[group], delta[group], B[group], C[group], dtype=dtype)
        cleared = _cleared(resets, group, chunk, length)
        ys = y[group].transpose(0, 1)
        kept = starts[:, group] if keep else None
        final[group] = _group_forward(parts, rates, initial_state[group], cleared, ys, kept, chunk)
        ys.addcmul_(parts[0], skip)
    return y.to(x.dtype), final, starts


def _group_forward(
    parts: tuple[Tensor, ...],
    rates: Tensor,
    state: Tensor,
    cleared: "list[Places]",
    ys: Tensor,
    starts: Tensor | None,
    chunk: int,
) -> Tensor:
    """Scan a group of rows into `ys`, (length, rows, channels); the final state."""
    xs, deltas, Bs, Cs = parts
    state = state.transpose(1, 2).contiguous()
    for index, places in enumerate(cleared):
        here = slice(index * chunk, (index + 1) * chunk)
        if starts is not None:
            starts[index] = state
        _, history = _chunk_states(xs[here], deltas[here], rates, Bs[here], state, places)
        ys[here] = torch.matmul(Cs[here].unsqueeze(2), history).squeeze(2)
        # A copy, since a view would keep the whole chunk's states alive.
        state = history[-1].clone()
    return state.transpose(1, 2)


def chunked_scan_backward(
    grad_y: Tensor,
    grad_state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
    starts: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, A, B, C, D and the initial state, from those of y and the final state.

    `starts` are the kept states of `chunked_scan`. Each gradient has the dtype of its input.
    """
    dtype = starts.dtype
    batch, length, channels = x.shape
    rates, skip = A.t().to(dtype).contiguous(), D.to(dtype)
    grad_timed = [torch.empty_like(t, dtype=dtype) for t in (x, delta, B, C)]
    grad_rates, grad_D = torch.zeros_like(rates), torch.zeros_like(skip)
    grad_start = torch.empty_like(grad_state, dtype=dtype)
    rows = group_and_chunk(batch, channels, A.shape[1], x.device.type)[0]
    for begin in range(0, batch, rows):
        group = slice(begin, begin + rows)
        parts = _time_first(x[group], delta[group], B[group], C[group], dtype=dtype)
        cleared = _cleared(resets, group, chunk, length)
        grads = tuple(t[group].transpose(0, 1) for t in grad_timed)
        (grad_ys,) = _time_first(grad_y[group], dtype=dtype)
        carried = grad_state[group].transpose(1, 2).to(dtype)
        for index in reversed(range(len(cleared))):
            here = slice(index * chunk, (index + 1) * chunk)
            chunk_parts = tuple(t[here] for t in parts)
            found, more_rates, carried = _chunk_backward(
                chunk_parts, rates, starts[index, group], grad_ys[here], carried, cleared[index]
            )
            for grad, values in zip(grads, found, strict=True):
                grad[here] = values
            grad_rates += more_rates
        grads[0].addcmul_(grad_ys, skip)
        grad_D += (grad_ys * parts[0]).sum((0, 1))
        grad_start[group] = carried.transpose(1, 2)
    timed = [g.to(t.dtype) for g, t in zip(grad_timed, (x, delta, B, C), strict=True)]
    weights = grad_rates.t().contiguous().to(A.dtype), grad_D.to(D.dtype)
    return timed[0], timed[1], weights[0], timed[2], timed[3], weights[1], grad_start


# Positions of one chunk, and the rows, at which the state is cleared; None where there are none.
Places = tuple[Tensor, Tensor] | None


def _cleared(resets: Tensor | None, group: slice, chunk: int, length: int) -> list[Places]:
    """The places of each chunk; few, so that decays are not multiplied by a mask throughout."""
    chunks = -(-length // chunk)
    if resets is None:
        return [None] * chunks
    places = resets[group].t().nonzero()
    counts = torch.bincount(places[:, 0] // chunk, minlength=chunks).tolist()
    parts = places.split(counts)
    return [(p[:, 0] % chunk, p[:, 1]) if len(p) else None for p in parts]


def _time_first(*tensors: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(batch, length, ...) to (length, batch, ...), in the dtype of the state.

    Time first and channels last make each step of the recurrence one contiguous (B, N, D).
    """
    return tuple(t.transpose(0, 1).to(dtype) for t in tensors)


def _chunk_states(
    x: Tensor, delta: Tensor, rates: Tensor, B: Tensor, state: Tensor, places: Places
) -> tuple[Tensor, Tensor]:
    """Decays and states of one chunk, each (T, B, N, D), from the state (B, N, D) before it."""
    decay = (delta.unsqueeze(2) * rates).exp_()
    if places is not None:
        decay[places] = 0
    history = (delta * x).unsqueeze(2) * B.unsqueeze(3)
    for position in range(history.shape[0]):
        state = history[position].addcmul_(decay[position], state)
    return decay, history


def _chunk_backward(
    parts: tuple[Tensor, ...],
    rates: Tensor,
    start: Tensor,
    grad_y: Tensor,
    carried: Tensor,
    places: Places,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Gradients of a chunk's parts x, delta (T, B, D) and B, C (T, B, N), of rates and start.

    `carried` is the gradient that reaches the chunk's last state from the chunk after it.
    """
    x, delta, B, C = parts
    decay, history = _chunk_states(x, delta, rates, B, start, places)
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
    return (grad_input * delta, grad_delta, grad_B, grad_C), grad_rates, carried


__all__ = ["chunk_length", "chunked_scan", "chunked_scan_backward"]
