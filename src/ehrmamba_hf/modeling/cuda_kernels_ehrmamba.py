"""Kernels of mamba_ssm and causal_conv1d, used when they are installed and the tensors on CUDA.

Stock kernels know neither an initial state nor resets, and give no gradient through the final
state. All three are had exactly, from a few positions with chosen step sizes.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# A step so short that exp(step * A) is 1 in float32, and a power of two, so that dividing the
# input by it and multiplying again loses nothing.
SHORT = 2.0**-40
# exp(-x) is 0 in float32 from 104 on.
CLEARING = 128.0
# A decay rate that underflowed to 0 never forgets, and would need an endless step.
SLOWEST = 1e-30
KERNEL_WIDTHS = (2, 3, 4)


@functools.cache
def _selective_scan_fn() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


@functools.cache
def _causal_conv1d_fn() -> Callable[..., Tensor] | None:
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        return None
    return causal_conv1d_fn


def has_cuda_scan() -> bool:
    """Whether mamba_ssm is installed."""
    return _selective_scan_fn() is not None


def has_cuda_conv(kernel_width: int) -> bool:
    """Whether causal_conv1d is installed and has a kernel of this width."""
    return kernel_width in KERNEL_WIDTHS and _causal_conv1d_fn() is not None


@torch.compiler.disable
def cuda_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The scan by mamba_ssm; arguments and results as of `selective_scan`, gradients included.

    The kernel sees `states` positions before the sequence, each of which writes one column of the
    initial state, and as many after it, each of which reads one column of the final state. At a
    reset, the step is long enough to forget everything, and the input is divided by it. Its
    autograd function is not one that torch.compile can see through.
    """
    states, length = A.shape[1], x.shape[1]
    u, step, A, B, C, D = (t.float() for t in (x, delta, A, B, C, D))
    skipped = u * D
    if resets is not None:
        clearing = CLEARING / A.detach().abs().amin(1).clamp(min=SLOWEST)
        at = resets.unsqueeze(-1)
        u = torch.where(at, u * (step / clearing), u)
        step = torch.where(at, clearing, step)
    columns = torch.eye(states, device=x.device).expand(x.shape[0], -1, -1)
    nothing = torch.zeros_like(columns)
    before = initial_state.transpose(1, 2) / SHORT
    wide = before.new_zeros(before.shape)
    u = torch.cat([before, u, wide], 1)
    step = torch.cat([wide + SHORT, step, wide + SHORT], 1)
    B, C = torch.cat([columns, B, nothing], 1), torch.cat([nothing, C, columns], 1)
    timed = (t.transpose(1, 2).contiguous() for t in (u, step))
    weights = (t.transpose(1, 2).contiguous() for t in (B, C))
    kernel = _selective_scan_fn()
    assert kernel is not None
    y = kernel(*timed, A.contiguous(), *weights).transpose(1, 2)
    y, state = y[:, states : states + length], y[:, states + length :]
    return (y + skipped).to(x.dtype), state.transpose(1, 2).contiguous()


def cuda_conv(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """Causal depthwise convolution by causal_conv1d, over (batch, length, channels).

    Args:
        x: (batch, length, channels).
        weight: (channels, kernel).
        bias: (channels,).
        seq_idx: the patient at each position, (batch, length); nothing crosses a change.
    """
    kernel = _causal_conv1d_fn()
    assert kernel is not None
    # The kernel takes seq_idx only with channels last in memory, which x is.
    mixed = kernel(x.contiguous().transpose(1, 2), weight, bias, seq_idx=seq_idx)
    return mixed.transpose(1, 2)


__all__ = ["cuda_conv", "cuda_scan", "has_cuda_conv", "has_cuda_scan"]
