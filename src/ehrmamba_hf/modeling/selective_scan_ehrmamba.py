"""The selective scan of Mamba: one op, exact, whose backend is chosen by the tensors at each call.

The recurrence (Mamba paper, section 3.2 and algorithm 2), for each channel d and state n:

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * x[t] * B[t]
    y[t] = sum over n of C[t] * h[t]  +  D * x[t]

The backend in plain torch is always there (chunked_scan_ehrmamba, which states the contract). A
native library on the CPU is optional, and so is mamba_ssm on CUDA, which brings gradients of its
own. Another kernel is another entry of `BACKENDS`, and a line in `backend_name`.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunked_scan_ehrmamba import chunk_length, chunked_scan, chunked_scan_backward
from .cuda_kernels_ehrmamba import cuda_scan, has_cuda_scan

try:
    from ehrmamba_hf import native
except ImportError:  # a copy of this file that came with a model, without the package
    native = None  # type: ignore[assignment]
# Such a copy can also meet a package of another time, whose functions are called otherwise.
if getattr(native, "INTERFACE", None) != 1:
    native = None  # type: ignore[assignment]

# What mamba_ssm and the native library take; plain torch takes any number.
MOST_STATES = 256


class Backend(NamedTuple):
    """One way to compute the scan.

    Attributes:
        forward: see `chunked_scan`.
        backward: see `chunked_scan_backward`.
        chunk: the number of positions between two kept states, for x and A.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, ...]]
    chunk: Callable[[Tensor, Tensor], int]


def _native_chunk(x: Tensor, A: Tensor) -> int:
    batch, length, channels = x.shape
    return native.chunk_length(batch, length, channels, A.shape[1])


BACKENDS = {"torch": Backend(chunked_scan, chunked_scan_backward, chunk_length)}
if native is not None:
    BACKENDS["native"] = Backend(native.forward, native.backward, _native_chunk)


# torch.compile asks once instead of looking inside, where a library may have to be built.
@torch.compiler.assume_constant_result
def backend_name(device: str, dtype: torch.dtype, states: int) -> str:
    """The backend for tensors where they are now, whatever is installed.

    Args:
        device: the type of the tensors' device.
        dtype: of the state.
        states: for each channel.
    """
    if dtype != torch.float32 or states > MOST_STATES:
        return "torch"
    if device == "cuda" and has_cuda_scan():
        return "cuda"
    if device == "cpu" and native is not None and native.available():
        return "native"
    return "torch"


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the selective state space recurrence over a batch of sequences.

    A position with `delta` 0 carries the state on unchanged, which is how padding is passed over.
    A position with a reset sees no state before it, which is how several patients share a row.

    Args:
        x: inputs, (batch, length, channels).
        delta: step sizes after the softplus, at least 0, (batch, length, channels).
        A: negative decay rates, (channels, states).
        B: input weights, (batch, length, states).
        C: output weights, (batch, length, states).
        D: skip weights, (channels,).
        initial_state: state before the first position, (batch, channels, states); None is zero.
        resets: True where a position begins anew from a zero state, (batch, length) bool.

    Returns:
        y, (batch, length, channels) in the dtype of `x`, and the final state, (batch, channels,
        states). The state is float32 whatever the inputs are (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or resets that are not boolean.

    Example:
        >>> ones = torch.ones(1, 3, 1)
        >>> y, state = selective_scan(ones, ones, -torch.ones(1, 1), ones, ones, torch.zeros(1))
        >>> [round(value, 4) for value in y.flatten().tolist()]  # 1, 1 + 1/e, 1 + 1/e + 1/e^2
        [1.0, 1.3679, 1.5032]
        >>> state.shape
        torch.Size([1, 1, 1])
    """
    _check(x, delta=delta, A=A, B=B, C=C, D=D, initial_state=initial_state, resets=resets)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], *A.shape, dtype=dtype)
    initial_state = initial_state.to(dtype)
    name = backend_name(x.device.type, dtype, A.shape[1])
    if x.shape[1] == 1 and not torch.is_grad_enabled():
        if name == "native" and resets is None and not torch.compiler.is_compiling():
            return _native_step(x, delta, A, B, C, D, initial_state)
        return _one_step(x, delta, A, B, C, D, initial_state, resets)
    if name == "cuda":
        return cuda_scan(x, delta, A, B, C, D, initial_state, resets)
    chunk = BACKENDS[name].chunk(x, A)
    keep = torch.is_grad_enabled()
    y, state, _ = _scan(x, delta, A, B, C, D, initial_state, resets, chunk, keep)
    return y, state


def _check(x: Tensor, **tensors: Tensor | None) -> None:
    batch, length, channels = x.shape
    A = tensors["A"]
    states = A.shape[-1] if A is not None else 0
    shapes = {
        "delta": (batch, length, channels),
        "A": (channels, states),
        "B": (batch, length, states),
        "C": (batch, length, states),
        "D": (channels,),
        "initial_state": (batch, channels, states),
        "resets": (batch, length),
    }
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shapes[name]:
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(tensor.shape)}, expected {shapes[name]} "
                f"for x of shape {tuple(x.shape)}"
            )
    resets = tensors["resets"]
    if resets is not None and resets.dtype != torch.bool:
        raise ValueError(f"selective_scan: resets are {resets.dtype}, expected torch.bool")


def _native_step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position, by the native library, which writes the new state over the old one."""
    state = state.clone(memory_format=torch.contiguous_format)
    y = native.step(state, x.squeeze(1), delta.squeeze(1), A, B.squeeze(1), C.squeeze(1), D)
    return y.unsqueeze(1), state


def _one_step(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One position, as when decoding: the recurrence as it is written."""
    with torch.autocast(x.device.type, enabled=False):
        wide, step, B, C, A, D = (t.to(state.dtype) for t in (x, delta, B, C, A, D))
        wide, step = wide.transpose(1, 2), step.transpose(1, 2)
        decay = torch.exp(step * A)
        if resets is not None:
            decay = decay.masked_fill(resets.unsqueeze(-1), 0.0)
        state = torch.addcmul((step * wide) * B, decay, state)
        y = torch.matmul(state, C.transpose(1, 2)) + D.unsqueeze(-1) * wide
    return y.transpose(1, 2).to(x.dtype), state


# Operators are known by name in the whole process. Each copy of this file (the package's, and that
# of every model that was loaded with its own code) gets a name of its own, and so its own code.
_NAMESPACE = f"ehrmamba_{zlib.crc32(__name__.encode()):08x}"


@torch.library.custom_op(f"{_NAMESPACE}::selective_scan", mutates_args=())
def _scan(
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
    dtype = torch.promote_types(x.dtype, torch.float32)
    backend = BACKENDS[backend_name(x.device.type, dtype, A.shape[1])]
    with torch.autocast(x.device.type, enabled=False):
        return backend.forward(x, delta, A, B, C, D, initial_state, resets, chunk, keep)


@_scan.register_fake
def _(x: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, chunk, keep = others
    batch, length, channels = x.shape
    dtype, states = torch.promote_types(x.dtype, torch.float32), A.shape[1]
    chunks = -(-length // chunk) if keep else 0
    return (
        x.new_empty(x.shape),
        x.new_empty(batch, channels, states, dtype=dtype),
        x.new_empty(chunks, batch, states, channels, dtype=dtype),
    )


@torch.library.custom_op(f"{_NAMESPACE}::selective_scan_backward", mutates_args=())
def _scan_backward(
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
    backend = BACKENDS[backend_name(x.device.type, starts.dtype, A.shape[1])]
    inputs = (x, delta, A, B, C, D, initial_state, resets, starts, chunk)
    with torch.autocast(x.device.type, enabled=False):
        return backend.backward(grad_y, grad_state, *inputs)  # type: ignore[return-value]


@_scan_backward.register_fake
def _(grad_y: Tensor, grad_state: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, chunk, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.chunk = chunk


def _gradients(ctx: Any, grad_y: Tensor, grad_state: Tensor, _: Tensor) -> tuple[Any, ...]:
    *tensors, starts = ctx.saved_tensors
    grads = _scan_backward(grad_y, grad_state, *tensors, starts, ctx.chunk)
    return *grads, None, None, None


_scan.register_autograd(_gradients, setup_context=_setup_context)

__all__ = ["selective_scan"]
