"""Saved folders load through the Auto classes in a process where the package cannot be imported."""

from collections.abc import Callable
from pathlib import Path

import torch

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
