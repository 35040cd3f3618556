"""Saved folders load through the Auto classes in a process where the package cannot be imported."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ehrmamba_hf import native
from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    modeling_ehrmamba,
)

SOURCES = Path(modeling_ehrmamba.__file__).parent

LOADER = """
import sys
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
)

folder, ids_file, again = sys.argv[1:]
ids = torch.load(ids_file)
print(AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type)
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification):
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    model(ids)
    if auto is AutoModelForCausalLM:
        torch.save(model(ids).logits, ids_file + ".logits")
        print(model.generate(ids, max_new_tokens=3, do_sample=False).shape[1])
        model.save_pretrained(again)
        auto.from_pretrained(again, trust_remote_code=True)
print("loaded")
"""


def test_saved_models_need_no_package(
    tiny_config: Callable[..., EHRMambaConfig],
    make_ids: Callable[..., torch.Tensor],
    without_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    model = EHRMambaForCausalLM(tiny_config()).eval()
    model.save_pretrained(tmp_path / "model")
    ids = make_ids(12)[None]
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [tmp_path / "model", tmp_path / "ids.pt", tmp_path / "again"]
    output = without_package(LOADER, *arguments)
    assert output.split() == ["ehrmamba", "15", "loaded"]
    logits = torch.load(tmp_path / "ids.pt.logits")
    torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-6)
    copied = {path.name for path in (tmp_path / "model").glob("*.py")}
    assert copied == {path.name for path in SOURCES.glob("*_ehrmamba.py")}
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == copied


def test_a_saved_classifier_carries_its_code_too(
    tiny_config: Callable[..., EHRMambaConfig], tmp_path: Path
) -> None:
    EHRMambaForSequenceClassification(tiny_config()).save_pretrained(tmp_path)
    copied = {path.name for path in tmp_path.glob("*.py")}
    assert copied == {path.name for path in SOURCES.glob("*_ehrmamba.py")}


def test_the_package_and_two_copies_run_in_one_process(
    tiny_config: Callable[..., EHRMambaConfig],
    make_ids: Callable[..., torch.Tensor],
    tmp_path: Path,
) -> None:
    """Operators are known by name in a process: each copy has to have its own."""
    torch.manual_seed(0)
    model = EHRMambaForCausalLM(tiny_config(embedding_dropout=0.0))
    classes, ids = [EHRMambaForCausalLM], make_ids(12)[None]
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        reference = "modeling_ehrmamba.EHRMambaForCausalLM"
        classes.append(get_class_from_dynamic_module(reference, str(tmp_path / name)))
    assert len(set(classes)) == 3
    scans = {sys.modules[c.__module__.replace("modeling_", "selective_scan_")] for c in classes}
    assert len({scan._scan._qualname for scan in scans}) == 3
    gradients = []
    for model_class in classes:
        copy = model_class.from_pretrained(tmp_path / "first").train()
        copy(ids, labels=ids).loss.backward()
        gradients.append(copy.backbone.embeddings.concept.weight.grad)
        with torch.no_grad():
            copy.eval().generate(ids, max_new_tokens=2)
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=0, atol=1e-6)


def test_loading_a_copy_again_changes_nothing(
    tiny_config: Callable[..., EHRMambaConfig],
    make_ids: Callable[..., torch.Tensor],
    tmp_path: Path,
) -> None:
    """Its operator is registered a second time, under the name that it has."""
    EHRMambaForCausalLM(tiny_config()).save_pretrained(tmp_path)
    ids, reference = make_ids(12)[None], "modeling_ehrmamba.EHRMambaForCausalLM"
    losses = []
    for _ in range(2):
        loaded = get_class_from_dynamic_module(reference, str(tmp_path), force_download=True)
        for name in [name for name in sys.modules if "selective_scan" in name and "transf" in name]:
            importlib.reload(sys.modules[name])
        losses.append(loaded.from_pretrained(tmp_path).eval()(ids, labels=ids).loss)
    assert torch.equal(*losses)


def test_a_copy_does_without_a_native_library_of_another_interface(
    tiny_config: Callable[..., EHRMambaConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "INTERFACE", 2)
    EHRMambaForCausalLM(tiny_config()).save_pretrained(tmp_path)
    reference = "modeling_ehrmamba.EHRMambaForCausalLM"
    loaded = get_class_from_dynamic_module(reference, str(tmp_path))
    scan = sys.modules[loaded.__module__.replace("modeling_", "selective_scan_")]
    assert scan.native is None and set(scan.BACKENDS) == {"torch"}
