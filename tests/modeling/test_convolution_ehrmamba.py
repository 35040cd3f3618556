"""The causal convolution against torch's own, and its adapter to causal_conv1d."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ehrmamba_hf.modeling import convolution_ehrmamba, cuda_kernels_ehrmamba
from ehrmamba_hf.modeling.convolution_ehrmamba import causal_conv, last_real_columns


def stock_causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """What causal_conv1d's function does: (batch, channels, length), a position at a time."""
    assert seq_idx is None or (seq_idx.dtype == torch.int32 and x.stride(1) == 1)
    y = torch.zeros_like(x)
    for t in range(x.shape[2]):
        for back in range(min(t + 1, weight.shape[1])):
            term = x[:, :, t - back] * weight[:, -1 - back]
            if seq_idx is not None:
                term = term * (seq_idx[:, t - back] == seq_idx[:, t])[:, None]
            y[:, :, t] += term
        if bias is not None:
            y[:, :, t] += bias
    return y


@pytest.fixture(params=["shifts", "causal_conv1d"])
def convolve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "shifts":
        return causal_conv
    stand_in = lambda: stock_causal_conv1d_fn  # noqa: E731
    monkeypatch.setattr(cuda_kernels_ehrmamba, "_causal_conv1d_fn", stand_in)
    return lambda window, weight, bias, positions=None: convolution_ehrmamba._on_cuda(
        window, weight.squeeze(1), bias, positions
    )


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_torchs_depthwise_convolution(kernel: int, length: int, biased: bool, convolve):
    torch.manual_seed(0)
    window, weight = torch.randn(2, kernel + length, 5), torch.randn(5, 1, kernel)
    bias = torch.randn(5) if biased else None
    expected = F.conv1d(window[:, 1:].transpose(1, 2), weight, bias, groups=5).transpose(1, 2)
    torch.testing.assert_close(convolve(window, weight, bias), expected, rtol=0, atol=1e-5)


def test_nothing_crosses_from_patient_to_patient(convolve):
    """Patients of 3, 1 and 4 positions in a row; the first goes on from the window's start."""
    torch.manual_seed(0)
    window, weight, bias = torch.randn(1, 4 + 8, 5), torch.randn(5, 1, 4), torch.randn(5)
    positions = torch.tensor([[4, 5, 6, 0, 0, 1, 2, 3]])
    found = convolve(window, weight, bias, positions)
    zeros = torch.zeros(1, 4, 5)
    spans = (window[:, :7], window[:, 7:8], window[:, 8:12])
    alone = [spans[0], torch.cat([zeros, spans[1]], 1), torch.cat([zeros, spans[2]], 1)]
    expected = torch.cat([convolve(part, weight, bias) for part in alone], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_columns_of_the_state_written_out():
    """Kernel 3; the columns -3, -2, -1 came before, 0 to 3 are new, the last one is padding."""
    window = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]).view(1, 7, 1)
    mask = torch.tensor([[1, 1, 1, 0]])
    assert last_real_columns(window, None, None, 3).flatten().tolist() == [1.0, 2.0, 3.0]
    assert last_real_columns(window, mask, None, 3).flatten().tolist() == [0.0, 1.0, 2.0]
    new_patient_at_2 = torch.tensor([[3, 4, 0, 1]])
    found = last_real_columns(window, mask, new_patient_at_2, 3)
    assert found.flatten().tolist() == [0.0, 0.0, 2.0]
