"""Narrow dtypes, and where `device_map` puts the parts of a model."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
)

Config = Callable[..., EHRMambaConfig]
Ids = Callable[..., Tensor]


@pytest.mark.parametrize("cls", [EHRMambaForCausalLM, EHRMambaForSequenceClassification])
def test_a_bfloat16_autocast_step_is_close_and_finite(
    cls: type, tiny_config: Config, make_ids: Ids
) -> None:
    torch.manual_seed(0)
    still = {"embedding_dropout": 0.0, "classifier_dropout": 0.0, "forecasting_loss_weight": 0.1}
    model = cls(tiny_config(**still)).train()
    ids = torch.stack([make_ids(30, seed) for seed in range(2)])
    ids[0, 20:] = 0
    labels = ids if cls is EHRMambaForCausalLM else torch.tensor([0.0, 1.0])
    expected = model(ids, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=labels).loss
    loss.backward()
    assert loss.dtype == torch.float32 and abs(loss - expected) < 0.02 * expected
    assert all(w.grad.isfinite().all() for w in model.parameters())


def test_a_narrow_folder_loads_narrow_and_keeps_its_tables(
    tiny_config: Config, make_ids: Ids, tmp_path: Path
) -> None:
    model = EHRMambaForSequenceClassification(tiny_config()).eval().to(torch.bfloat16)
    model.set_token_types([9] * 19)
    model.save_pretrained(tmp_path)
    loaded = EHRMambaForSequenceClassification.from_pretrained(
        tmp_path, dtype="auto", device_map="cpu"
    ).eval()
    tables = loaded.backbone.embeddings
    assert loaded.dtype == torch.bfloat16
    assert tables.token_type_table.dtype == torch.int8 and tables.token_type_table[41] == 9
    assert tables.interval_days_table[8] == 10.5
    ids = make_ids(30)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_bfloat16_model_stays_close(tiny_config: Config, make_ids: Ids) -> None:
    torch.manual_seed(0)
    model = EHRMambaForCausalLM(tiny_config()).eval()
    ids = make_ids(30)[None]
    expected = model(ids).logits
    narrow = model.to(torch.bfloat16)(ids)
    assert narrow.logits.dtype == torch.bfloat16
    assert narrow.cache_params.layers[0].recurrent_states[0].dtype == torch.float32
    assert (narrow.logits.float() - expected).abs().mean() < 0.02 * expected.std()


@torch.no_grad()
def test_bfloat16_projections_are_two_of_each_layer(tiny_config: Config, make_ids: Ids) -> None:
    torch.manual_seed(0)
    model = EHRMambaForCausalLM(tiny_config()).eval()
    ids = make_ids(30)[None]
    expected = model(ids)
    narrow = copy.deepcopy(model).bfloat16_projections()
    changed = {name for name, weight in narrow.named_parameters() if weight.dtype != torch.float32}
    assert changed == {
        f"backbone.layers.{layer}.mixer.{name}_proj.weight"
        for layer in (0, 1)
        for name in ("in", "out")
    }
    found = narrow(ids)
    assert found.logits.dtype == torch.float32
    difference = (found.logits - expected.logits).abs().mean()
    assert 0 < difference < 0.01 * expected.logits.std()
    new = narrow.generate(ids, max_new_tokens=3, do_sample=False)
    assert new.shape == (1, 33)


@torch.no_grad()
@pytest.mark.parametrize(
    "device_map",
    [
        "cpu",
        "auto",
        {
            "backbone.embeddings": "cpu",
            "backbone.layers": "disk",
            "backbone.norm_f": "cpu",
            "lm_head": "cpu",
        },
    ],
    ids=["cpu", "auto", "layers on disk"],
)
def test_a_device_map_changes_no_output(
    device_map: object, tiny_config: Config, make_ids: Ids, tmp_path: Path
) -> None:
    """Layers on the disk are read when they are called: nobody may reach for their weights else."""
    model = EHRMambaForCausalLM(tiny_config()).eval()
    model.save_pretrained(tmp_path / "model")
    placed = EHRMambaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk"
    )
    ids = make_ids(20)[None]
    torch.testing.assert_close(placed(ids).logits, model(ids).logits, rtol=0, atol=1e-6)
    found = placed.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, model.generate(ids, max_new_tokens=4, do_sample=False))
