"""A linear layer that multiplies by oneDNN where torch's default library, MKL, is slow.

On processors that are not Intel's, MKL reaches half of what they can do: on an AMD EPYC, one core,
(2048, 768) times (768, 3072) takes 105 ms by MKL and 43 ms by oneDNN, both in float32, and the two
products of the backward pass 184 and 105 ms. oneDNN is part of torch, and torch takes it for
bfloat16 and on ARM by itself. `torch.backends.mkldnn.flags(enabled=False)` turns it off.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether torch multiplies by MKL, oneDNN is there too, and the processor is not Intel's."""
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    # The operator to which torch.compile itself turns linear layers, and so not quite public.
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not CPU_INFO.is_file():
        return False
    return "GenuineIntel" not in CPU_INFO.read_text()


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.t() + bias, for contiguous matrices or transposes of such.

    With other strides oneDNN falls back to plain loops, a hundred times as slow.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _times(grad, weight.t()) if of_x else None,
            _times(grad.t(), x.t()) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


class EHRMambaLinear(nn.Linear):
    """torch's linear layer, quicker on some processors; the same parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer gives with another bias, or none."""
        if torch.compiler.is_compiling() or not self._by_onednn(x):
            return F.linear(x, self.weight, bias)
        rows = x.reshape(-1, self.in_features).contiguous()
        return _OneDNNLinear.apply(rows, self.weight, bias).view(*x.shape[:-1], -1)

    def _by_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.numel() > 0
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and bool(torch.backends.mkldnn.enabled)
            and _mkl_is_slow()
        )


__all__ = ["EHRMambaLinear"]
