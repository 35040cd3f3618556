"""torch.compile takes every model whole, training and packing included, with the same numbers."""

from collections.abc import Callable

import pytest
import torch

from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    EHRMambaModel,
)

MODELS = [EHRMambaModel, EHRMambaForCausalLM, EHRMambaForSequenceClassification]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model_class", MODELS)
def test_inference_in_one_graph(
    model_class: type, backend: str, tiny_config: Callable[..., EHRMambaConfig], make_ids: Callable
) -> None:
    model = model_class(tiny_config()).eval()
    ids = torch.stack([make_ids(12, 1), make_ids(12, 2)])
    ids[1, 9:] = 0
    with torch.no_grad():
        expected, found = model(ids), torch.compile(model, fullgraph=True, backend=backend)(ids)
    name = "logits" if hasattr(expected, "logits") else "last_hidden_state"
    torch.testing.assert_close(found[name][0], expected[name][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, True])
def test_training_in_one_graph(
    packed: bool, backend: str, tiny_config: Callable[..., EHRMambaConfig], make_ids: Callable
) -> None:
    torch.manual_seed(0)
    model = EHRMambaForCausalLM(tiny_config(embedding_dropout=0.0))
    ids = torch.cat([make_ids(12, 1), make_ids(9, 2)])[None]
    columns = {"input_ids": ids, "labels": ids}
    if packed:
        columns["seq_idx"] = torch.cat([torch.zeros(12), torch.ones(9)]).long()[None]
    expected = model(**columns).loss
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    found = torch.compile(model, fullgraph=True, backend=backend)(**columns).loss
    found.backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)
