"""The linear layer by oneDNN against torch's own: outputs, gradients, and when it is taken."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from ehrmamba_hf.modeling import linear_ehrmamba
from ehrmamba_hf.modeling.linear_ehrmamba import EHRMambaLinear

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="a torch without oneDNN"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were multiplied by oneDNN, as if MKL were slow here."""
    shapes: list[tuple[int, ...]] = []
    times = linear_ehrmamba._times

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
        shapes.append((*x.shape, weight.shape[0]))
        return times(x, weight, bias)

    monkeypatch.setattr(linear_ehrmamba, "_times", counted)
    monkeypatch.setattr(linear_ehrmamba, "_mkl_is_slow", lambda: True)
    return shapes


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (3, 5, 7), (0, 7)])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple, bias: bool, calls: list) -> None:
    torch.manual_seed(0)
    layer = EHRMambaLinear(7, 11, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    weights = torch.randn(*shape[:-1], 11)

    def gradients(y: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()]))

    expected = F.linear(x, layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected, **CLOSE)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
        assert ours.is_contiguous()
    assert len(calls) == (3 if x.numel() else 0), "one product forward, two backward"


@needs_onednn
def test_parts_of_a_tensor_are_made_contiguous_first(
    calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of a wider tensor, as the step sizes are, took oneDNN a hundred times as long."""
    strides: list[tuple[int, ...]] = []
    times = linear_ehrmamba._times

    def seen(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
        strides.extend(t.stride() for t in (x, weight))
        return times(x, weight, bias)

    monkeypatch.setattr(linear_ehrmamba, "_times", seen)
    layer = EHRMambaLinear(3, 4)
    step, _ = torch.randn(2, 5, 8, requires_grad=True).split([3, 5], dim=-1)
    wide = layer(step).repeat(1, 1, 2)[..., :4]
    torch.testing.assert_close(wide, F.linear(step, layer.weight, layer.bias), **CLOSE)
    wide.transpose(0, 1).sum().backward()
    assert set(strides) <= {(3, 1), (1, 3), (4, 1), (1, 4)}


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of the flags that turn oneDNN off
def test_other_dtypes_and_autocast_are_left_to_torch(calls: list) -> None:
    layer, x = EHRMambaLinear(7, 11), torch.randn(5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        layer.float()(x)
    assert not calls


def test_it_is_for_processors_other_than_intels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(linear_ehrmamba, "CPU_INFO", tmp_path / "cpuinfo")
    decide = linear_ehrmamba._mkl_is_slow.__wrapped__
    assert not decide(), "nothing is known of the processor"
    (tmp_path / "cpuinfo").write_text("vendor_id\t: GenuineIntel\n")
    assert not decide()
    (tmp_path / "cpuinfo").write_text("vendor_id\t: AuthenticAMD\n")
    assert decide() == hasattr(torch.ops.mkldnn, "_linear_pointwise")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not decide()
