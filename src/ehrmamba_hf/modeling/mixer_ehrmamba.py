"""The Mamba mixer: gated projection, causal convolution, selective scan, projection back.

Parameter names and shapes are those of transformers' MambaMixer, so that weights convert. Unlike
it, padding on either side leaves no trace in the states, and many tokens can follow a cached state.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from .configuration_ehrmamba import EHRMambaConfig
from .convolution_ehrmamba import causal_conv, last_real_columns, move_state_over_left_padding
from .linear_ehrmamba import EHRMambaLinear
from .selective_scan_ehrmamba import selective_scan


class EHRMambaConv1d(nn.Conv1d):
    """The parameters of a depthwise convolution, applied along time; see `causal_conv`."""

    def forward(self, window: Tensor, positions: Tensor | None = None) -> Tensor:
        """(batch, kernel + length, channels) to (batch, length, channels)."""
        return causal_conv(window, self.weight, self.bias, positions)


class EHRMambaStepProjection(EHRMambaLinear):
    """Step sizes before the softplus, in float32.

    Their bias is some -5, at which bfloat16 has steps of 0.03: a step size would be off by 3 %.
    """

    def forward(self, step: Tensor) -> Tensor:
        """(..., rank) to (..., channels)."""
        return self.product(step, None).float() + self.bias.float()


class EHRMambaMixer(nn.Module):
    """Selective state space layer (Mamba paper, section 3.4 and figure 3).

    Args:
        config: the model's configuration.
        layer_idx: the layer's place in the cache.
    """

    def __init__(self, config: EHRMambaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        channels, states = config.intermediate_size, config.state_size
        self.time_step_rank = int(config.time_step_rank)
        self.in_proj = EHRMambaLinear(config.hidden_size, 2 * channels, bias=config.use_bias)
        self.conv1d = EHRMambaConv1d(
            channels, channels, config.conv_kernel, groups=channels, bias=config.use_conv_bias
        )
        self.act = ACT2FN[config.hidden_act]
        self.x_proj = EHRMambaLinear(channels, self.time_step_rank + 2 * states, bias=False)
        self.dt_proj = EHRMambaStepProjection(self.time_step_rank, channels)
        self.A_log = nn.Parameter(torch.empty(channels, states))
        self.D = nn.Parameter(torch.empty(channels))
        self.out_proj = EHRMambaLinear(channels, config.hidden_size, bias=config.use_bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the Mamba paper does: A is S4D-real, step sizes are log-uniform."""
        config = self.config
        rates = torch.arange(1, config.state_size + 1, dtype=torch.float32)
        init.copy_(self.A_log, rates.log().expand(self.A_log.shape))
        init.ones_(self.D)
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        if config.rescale_prenorm_residual:
            # The residual sum grows with the depth (GPT-2 paper, section 2.3).
            bound = (config.intermediate_size * config.num_hidden_layers) ** -0.5
            init.uniform_(self.out_proj.weight, -bound, bound)
        init.kaiming_uniform_(self.conv1d.weight, a=math.sqrt(5))
        if self.conv1d.bias is not None:
            init.zeros_(self.conv1d.bias)

        spread = self.time_step_rank**-0.5 * config.time_step_scale
        if config.time_step_init_scheme == "constant":
            init.constant_(self.dt_proj.weight, spread)
        else:
            init.uniform_(self.dt_proj.weight, -spread, spread)
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        steps = torch.empty(config.intermediate_size).uniform_(low, high).exp()
        steps = steps.clamp(min=config.time_step_floor)
        # The inverse of the softplus, so that the step sizes start as drawn.
        init.copy_(self.dt_proj.bias, steps + torch.log(-torch.expm1(-steps)))

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Cache | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Mix along time.

        Args:
            hidden_states: (batch, length, hidden).
            cache_params: states to continue from and to update, in place.
            attention_mask: (batch, length), 1 on real tokens; padding on the left or the right.
            positions: each position's place in its own patient's sequence, (batch, length), where
                several share a row; a place 0 sees nothing before it.

        Returns:
            (batch, length, hidden); on padding, values without meaning.
        """
        mask = None if attention_mask is None else attention_mask.unsqueeze(-1).bool()
        x, gate = self._project_in(hidden_states)
        # Before the convolution, so that padding looks like the zeros before a sequence; after it,
        # so that its bias does not put anything into the state.
        x = self._convolve(_blank(x, mask), cache_params, attention_mask, positions)
        x = _blank(x, mask)
        step, B, C = self.x_proj(x).split(
            [self.time_step_rank, self.config.state_size, self.config.state_size], dim=-1
        )
        delta = F.softplus(self.dt_proj(step))
        # A step of zero length carries the state over padding as it is.
        delta = _blank(delta, mask)
        A = -torch.exp(self.A_log.float())
        start = self._cached_state(cache_params)
        resets = None if positions is None else positions == 0
        y, state = selective_scan(x, delta, A, B, C, self.D.float(), start, resets)
        if cache_params is not None:
            cache_params.update_recurrent_state(state, self.layer_idx)
        return self._project_out(y * F.silu(gate))

    def _project_in(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.in_proj(hidden_states.to(self.in_proj.weight.dtype))
        if self.in_proj.weight.dtype != self.x_proj.weight.dtype:
            projected = projected.to(self.x_proj.weight.dtype)
        x, gate = projected.chunk(2, dim=-1)
        return x, gate

    def _project_out(self, mixed: Tensor) -> Tensor:
        return self.out_proj(mixed.to(self.out_proj.weight.dtype))

    def _cached_state(self, cache: Cache | None) -> Tensor | None:
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        # The cache overwrites its buffer in place, which autograd must not see.
        return state.clone() if state is not None and torch.is_grad_enabled() else state

    def _convolve(
        self,
        x: Tensor,
        cache: Cache | None,
        attention_mask: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:
        """Causal depthwise convolution of x, (batch, length, channels), and its activation."""
        kernel = self.config.conv_kernel
        previous = None if cache is None else cache.get_conv_state(self.layer_idx)
        if previous is None:
            window = F.pad(x, (0, 0, kernel, 0))
        else:
            window = torch.cat([previous.transpose(1, 2).to(x.dtype), x], dim=1)
            if attention_mask is not None:
                window = move_state_over_left_padding(window, attention_mask, kernel)
        if cache is not None:
            last = last_real_columns(window, attention_mask, positions, kernel).transpose(1, 2)
            cache.update_conv_state(last, self.layer_idx, conv_kernel_size=kernel)
        return self.act(self.conv1d(window, positions))


def _blank(states: Tensor, mask: Tensor | None) -> Tensor:
    """Exact zeros where the mask, (batch, length, 1), is False."""
    return states if mask is None else states.masked_fill(~mask, 0.0)


__all__ = ["EHRMambaMixer"]
