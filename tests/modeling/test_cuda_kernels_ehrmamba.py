"""With mamba_ssm and causal_conv1d installed, tensors on the CPU take the CPU's path."""

import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch

from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    cuda_kernels_ehrmamba,
    selective_scan_ehrmamba,
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins that refuse what the kernels would crash on, or return as garbage."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a CUDA kernel was called with tensors on the CPU")

    for name, function in (
        ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"),
        ("causal_conv1d", "causal_conv1d_fn"),
    ):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(
                sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i]))
            )
        setattr(sys.modules[name], function, refuse)
    caches = cuda_kernels_ehrmamba._selective_scan_fn, cuda_kernels_ehrmamba._causal_conv1d_fn
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_tensors_on_the_cpu_never_reach_a_cuda_kernel(
    installed: None, tiny_config: Callable[..., EHRMambaConfig], make_ids: Callable
) -> None:
    assert cuda_kernels_ehrmamba.has_cuda_scan() and cuda_kernels_ehrmamba.has_cuda_conv(4)
    model = EHRMambaForCausalLM(tiny_config())
    ids = make_ids(12)[None]
    model(ids, labels=ids).loss.backward()
    with torch.no_grad():
        model.eval().generate(ids, max_new_tokens=2)


def test_the_backend_is_chosen_by_device_and_dtype_at_each_call(installed: None) -> None:
    choose = selective_scan_ehrmamba.backend_name
    assert choose("cuda", torch.float32, 16) == "cuda"
    assert choose("cuda", torch.float64, 16) == "torch"
    assert choose("mps", torch.float32, 16) == "torch"
    assert choose("cpu", torch.float32, 16) in ("torch", "native")
    assert choose("cpu", torch.float64, 16) == "torch"
    assert choose("cuda", torch.float32, 257) == choose("cpu", torch.float32, 257) == "torch"


def test_without_them_cuda_takes_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels_ehrmamba, "_selective_scan_fn", lambda: None)
    assert selective_scan_ehrmamba.backend_name("cuda", torch.float32, 16) == "torch"


def test_kernels_of_causal_conv1d_have_two_to_four_columns(installed: None) -> None:
    widths = [cuda_kernels_ehrmamba.has_cuda_conv(width) for width in (1, 2, 3, 4, 5)]
    assert widths == [False, True, True, True, False]
