"""The native selective scan on torch tensors: forward, backward, and one step of decoding.

`forward` and `backward` do what the plain torch scan does, chunk by chunk and in float32, with the
states of one vector of channels in registers. Both may be called from any thread; the results
depend on the number of torch's threads only in the rounding of the gradients of A, B, C and D.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from ehrmamba_hf.native import library

MAX_STATES, MAX_THREADS = 256, 256  # the library's own bounds
# Positions between two kept states: these take 1/4 of the memory of x for 16 states, and what the
# backward pass rebuilds of a chunk, four arrays of (chunk, states) vectors, fits the L2 cache.
CHUNK = 64
CHUNK_STATES = 1024
MIN_CHUNK = 8
# Elements of (batch, length, channels, states) that are worth a thread of their own: an AVX-512
# core computes so many in 0.1 ms, and starting a thread takes 0.03 ms.
THREAD_ELEMENTS = 1 << 19


def chunk_length(batch: int, length: int, channels: int, states: int) -> int:
    """The number of positions between two kept states that is quickest.

    >>> chunk_length(1, 2048, 1536, 16), chunk_length(1, 2048, 1536, 64), chunk_length(1, 5, 8, 16)
    (64, 16, 5)
    """
    return max(1, min(length, CHUNK, max(MIN_CHUNK, CHUNK_STATES // states)))


def forward(
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
    """Run the recurrence over a batch of sequences.

    Args:
        x: inputs, (batch, length, channels).
        delta: step sizes, at least 0, (batch, length, channels).
        A: negative decay rates, (channels, states).
        B: input weights, (batch, length, states).
        C: output weights, (batch, length, states).
        D: skip weights, (channels,).
        initial_state: state before the first position, (batch, channels, states).
        resets: True where the state before a position is zero, (batch, length) bool.
        chunk: positions between two kept states.
        keep: whether to keep states, for `backward`.

    Returns:
        y, (batch, length, channels) in the dtype of `x`; the final state, (batch, channels, states)
        float32; and the states at the start of each chunk, (chunks, batch, states, channels)
        float32, of no chunk unless `keep`.

    Raises:
        NativeUnavailableError: the library is not available.
        MemoryError: there is not enough memory.
    """
    batch, length, channels = x.shape
    states = A.shape[1]
    inputs = _inputs(x, delta, A, B, C, D, resets)
    y = _empty(batch, length, channels)
    state = _states_first(initial_state, batch, channels, states)
    starts = _empty(-(-length // chunk) if keep else 0, batch, states, channels)
    _call(
        "ehrmamba_scan_forward",
        (batch, length, channels, states, chunk, _threads(batch * length * channels * states)),
        (*inputs, y, state, starts if keep else None),
    )
    return y.to(x.dtype), state.transpose(1, 2).contiguous(), starts


def backward(
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
) -> tuple[Tensor, ...]:
    """The gradients of `forward`, whose `starts` it takes, and whose `chunk` has to be the same.

    Args:
        grad_y: gradient of y, (batch, length, channels).
        grad_state: gradient of the final state, (batch, channels, states).

    Returns:
        The gradients of x, delta, A, B, C, D and initial_state, each like its input in shape and
        dtype.

    Raises:
        NativeUnavailableError: the library is not available.
        MemoryError: there is not enough memory.
    """
    batch, length, channels = x.shape
    states = A.shape[1]
    inputs = _inputs(x, delta, A, B, C, D, resets)
    given = (_plain(grad_y, *x.shape), _plain(starts, -(-length // chunk), batch, states, channels))
    grad_x, grad_delta = _empty(*x.shape), _empty(*x.shape)
    grad_A, grad_D = _empty(states, channels).zero_(), _empty(channels).zero_()
    grad_B, grad_C = _empty(*B.shape).zero_(), _empty(*C.shape).zero_()
    carried = _states_first(grad_state, batch, channels, states)
    results = (grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D, carried)
    _call(
        "ehrmamba_scan_backward",
        (batch, length, channels, states, chunk, _threads(batch * length * channels * states)),
        (*inputs, *given, *results),
    )
    grads = (grad_x, grad_delta, grad_A.t(), grad_B, grad_C, grad_D, carried.transpose(1, 2))
    of = (x, delta, A, B, C, D, initial_state)
    return tuple(grad.to(t.dtype).contiguous() for grad, t in zip(grads, of, strict=True))


def step(
    state: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Move `state` on by one position, in place, and give that position's y; no gradients.

    Args:
        state: (batch, channels, states), contiguous float32; it is overwritten.
        x: input, (batch, channels).
        delta: step sizes, at least 0, (batch, channels).
        A: negative decay rates, (channels, states).
        B: input weights, (batch, states).
        C: output weights, (batch, states).
        D: skip weights, (channels,).

    Returns:
        y, (batch, channels) in the dtype of `x`.

    Raises:
        ValueError: `state` is not contiguous float32.
        NativeUnavailableError: the library is not available.
    """
    kind = (state.device.type, state.dtype, state.is_contiguous())
    if kind != ("cpu", torch.float32, True):
        raise ValueError(f"native scan: expected a contiguous float32 state on the CPU, not {kind}")
    batch, channels, states = state.shape
    first, rates = (_plain(t, batch, channels) for t in (x, delta)), _plain(A, channels, states)
    weights = (_plain(t, batch, states) for t in (B, C))
    y = _empty(batch, channels)
    _call(
        "ehrmamba_scan_step",
        (batch, channels, states, _threads(state.numel())),
        (*first, rates, *weights, _plain(D, channels), y, state),
    )
    return y.to(x.dtype)


def _empty(*shape: int) -> Tensor:
    # Said outright, for torch's defaults are the user's to change.
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _plain(tensor: Tensor, *shape: int) -> Tensor:
    """As the library reads a tensor, by address: a wrong shape must not get there."""
    if tensor.shape != shape:
        raise ValueError(f"native scan: found shape {tuple(tensor.shape)}, expected {shape}")
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _inputs(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, resets: Tensor | None
) -> tuple[Tensor | None, ...]:
    """As the library reads them: rates (states, channels), resets as bytes."""
    batch, length, channels = x.shape
    states = A.shape[1]
    if resets is not None and resets.shape != (batch, length):
        raise ValueError(f"native scan: resets has shape {tuple(resets.shape)}")
    return (
        *(_plain(t, batch, length, channels) for t in (x, delta)),
        _plain(A.t(), states, channels),
        *(_plain(t, batch, length, states) for t in (B, C)),
        _plain(D, channels),
        None if resets is None else resets.to(torch.uint8).contiguous(),
    )


def _states_first(state: Tensor, batch: int, channels: int, states: int) -> Tensor:
    """A copy, (batch, states, channels), which the library may overwrite."""
    if state.shape != (batch, channels, states):
        raise ValueError(f"native scan: the state has shape {tuple(state.shape)}")
    return _empty(batch, states, channels).copy_(state.detach().transpose(1, 2))


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // THREAD_ELEMENTS, MAX_THREADS))


def _call(name: str, sizes: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> None:
    """Call a function of the library, which takes all its sizes before all its arrays."""
    function: Callable[..., int] = getattr(library.load(), name)
    addresses = (ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors)
    if function(*map(ctypes.c_int64, sizes), *addresses):
        raise MemoryError(f"{name}: not enough memory for sizes {sizes}")
