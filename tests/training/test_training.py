"""Two steps of pretraining and finetuning: what is learnt, what is saved, what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.corpus.collation import PackingCollator
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.modeling import EHRMambaForCausalLM, EHRMambaForSequenceClassification
from ehrmamba_hf.timelines import SplitRules
from ehrmamba_hf.training import finetune, pretrain
from ehrmamba_hf.training.pretrain import new_model

LOADER = """
import json, sys
import torch
from transformers import (
    AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
)

folder, patient = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(patient, task="mortality", return_tensors="pt")
results = {}
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification):
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        output = model(**inputs)
    results[auto.__name__] = output[0].flatten().tolist()
print(json.dumps(results))
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_pretrained_folder(model: Path, data: Path) -> None:
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "vocab.json", "codebook.json"} <= names
    assert {"tokenizer_config.json", "training.json", "modeling_ehrmamba.py"} <= names
    history = json.loads((model / "training.json").read_text())
    assert history["steps"] == 2
    config = json.loads((model / "config.json").read_text())
    tokenizer = load_tokenizer(data)
    assert config["vocab_size"] == tokenizer.vocab_size == load_tokenizer(model).vocab_size
    assert config["context_length"] == load_tokenizer(model).model_max_length == 48
    types = weights(model)["backbone.embeddings.token_type_table"]
    assert types.tolist() == tokenizer.token_types


def test_a_model_folder_generates_with_states(model: Path, mpf: Path) -> None:
    # The trainer turns the cache off for training; saved so, every forecast would start anew.
    for folder in (model, mpf):
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True


def test_workers_load_the_same_batches(
    data: Path, model: Path, mpf: Path, steps: dict[str, Any], tmp_path: Path
) -> None:
    out = finetune(data, model, tmp_path / "mpf", training={**steps, "dataloader_num_workers": 2})
    for name, tensor in weights(mpf).items():
        assert torch.equal(weights(out)[name], tensor), name


def test_the_text_classification_pipeline_takes_a_patient_and_a_task(mpf: Path) -> None:
    tokenizer = load_tokenizer(mpf)
    network = EHRMambaForSequenceClassification.from_pretrained(mpf).eval()
    event = {"code": "LOINC/2345-7", "time": "2020-01-01T09:00"}
    patient = {"birth": "1950-01-01", "visits": [{"start": "2020-01-01", "events": [event]}]}
    with torch.no_grad():
        logits = network(**tokenizer([patient], task="mortality", return_tensors="pt")).logits
    classify = pipeline("text-classification", model=network, tokenizer=tokenizer)
    found = classify({"patients": patient, "task": "mortality"})
    assert found["score"] == pytest.approx(torch.sigmoid(logits).item(), abs=1e-6)


def test_a_model_folder_holds_no_pickle_and_no_path(model: Path, mpf: Path) -> None:
    for folder in (model, mpf):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json", ".safetensors", ".py"}
        for path in files:
            assert str(folder.parent).encode() not in path.read_bytes(), path.name
    names = {path.name for path in model.parent.iterdir() if not path.name.startswith("fhir")}
    assert names == {"events", "data", "model", "mpf"}  # nothing unfinished is left


def test_pretraining_moves_the_weights(model: Path, data: Path, tiny: dict[str, Any]) -> None:
    untrained = new_model(load_tokenizer(data), tiny).state_dict()
    trained = weights(model)
    assert set(trained) == set(untrained)
    moved = [name for name in trained if not torch.equal(trained[name], untrained[name])]
    assert {"lm_head.weight", "backbone.embeddings.concept.weight"} <= set(moved)
    assert torch.count_nonzero(trained["backbone.embeddings.concept.weight"][0]) == 0  # [PAD]


def test_a_finetuned_folder_starts_from_the_pretrained_one(model: Path, mpf: Path) -> None:
    before, after = weights(model), weights(mpf)
    assert set(after) == set(before) | {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert after["classifier.out_proj.weight"].shape == (1, 16)
    for name, tensor in before.items():  # two steps from it, not from a new start
        if tensor.is_floating_point():
            assert (after[name] - tensor).abs().max() < 0.05, name
    config = json.loads((mpf / "config.json").read_text())
    assert config["architectures"] == ["EHRMambaForSequenceClassification"]
    assert config["forecasting_loss_weight"] == 0.1


def test_a_finetuned_folder_loads_by_the_auto_classes_alone(
    mpf: Path, without_package: Callable[..., str]
) -> None:
    code = next(t for t in load_tokenizer(mpf).tokens if t.startswith("LOINC/"))
    event = {"code": code, "time": "2020-01-01T09:00"}
    visit = {"start": "2020-01-01T08:00", "end": "2020-01-03T08:00", "events": [event]}
    patient = {"birth": "1950-01-01", "visits": [visit]}
    found = json.loads(without_package(LOADER, mpf, json.dumps(patient)))
    inputs = load_tokenizer(mpf)(patient, task="mortality", return_tensors="pt")
    classifier = EHRMambaForSequenceClassification.from_pretrained(mpf).eval()
    forecaster = EHRMambaForCausalLM.from_pretrained(mpf).eval()
    with torch.no_grad():
        expected = {
            "AutoModel": classifier.backbone(**inputs).last_hidden_state,
            "AutoModelForCausalLM": forecaster(**inputs).logits,
            "AutoModelForSequenceClassification": classifier(**inputs).logits,
        }
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), tensor.flatten())


def test_without_a_forecasting_loss_the_language_head_stays(
    data: Path, model: Path, steps: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {**steps, "forecasting_loss_weight": 0}
    out = finetune(data, model, tmp_path / "mpf", training=plain)
    assert torch.equal(weights(out)["lm_head.weight"], weights(model)["lm_head.weight"])
    assert json.loads((out / "config.json").read_text())["forecasting_loss_weight"] == 0

    def one_step(out: Path, **given: Any) -> Path:
        network = given["build"]().train()
        batch = PackingCollator(given["tokenizer"])([given["train"][n] for n in range(4)])
        network(**batch).loss.backward()
        without = [name for name, p in network.named_parameters() if p.grad is None]
        assert without == ["lm_head.weight"]
        # Distributed training would wait for the gradient of a parameter that wants one.
        assert not network.lm_head.weight.requires_grad
        return out

    monkeypatch.setattr(sys.modules[finetune.__module__], "run_training", one_step)
    finetune(data, model, tmp_path / "none", training=plain)


def test_with_a_forecasting_loss_the_language_head_learns(model: Path, mpf: Path) -> None:
    assert not torch.equal(weights(mpf)["lm_head.weight"], weights(model)["lm_head.weight"])


def test_the_same_seed_gives_the_same_model(
    data: Path, model: Path, tiny: dict[str, Any], steps: dict[str, Any], tmp_path: Path
) -> None:
    again = pretrain(data, tmp_path / "again", model=tiny, training=steps)
    for name, tensor in weights(model).items():
        assert torch.equal(weights(again)[name], tensor), name
    other = pretrain(data, tmp_path / "again", model=tiny, training={**steps, "seed": 1})
    assert not torch.equal(weights(other)["lm_head.weight"], weights(model)["lm_head.weight"])


def test_chosen_tasks_only(
    data: Path, model: Path, steps: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def look(out: Path, **given: Any) -> Path:
        seen.append(set(given["train"].table["task"].to_pylist()))
        return out

    module = sys.modules[finetune.__module__]
    monkeypatch.setattr(module, "run_training", look)
    finetune(data, model, tmp_path / "mpf", tasks=["readmission"], training=steps)
    finetune(data, model, tmp_path / "mpf", training=steps)
    assert seen[0] == {"readmission"} and len(seen[1]) == 6


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"learning_rat": 1e-3}, r"training arguments: .*learning_rat"),
        ({"learning_rate": "quick"}, r"training arguments: .*quick"),
        ({"eval_strategy": "often"}, r"training arguments: .*often"),
        ({"output_dir": "elsewhere"}, r"training arguments: .*output_dir"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: expected 0, found 0.1"),
    ],
)
def test_training_arguments_that_cannot_be(
    data: Path, tiny: dict[str, Any], tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        pretrain(data, tmp_path / "model", model=tiny, training=fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hiden_size": 16}, r"expected fields of EHRMambaConfig, found \['hiden_size'\]"),
        ({"hidden_size": "wide"}, r"model: .*hidden_size"),
        ({"hidden_size": -4}, "hidden_size: expected a positive number, found -4"),
        ({"vocab_size": 50}, r"model: .*vocab_size"),
    ],
)
def test_models_that_cannot_be(
    data: Path, tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=f"(?s){sentence}"):
        pretrain(data, tmp_path / "model", model=fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weight", [-0.1, "much", None])
def test_a_forecasting_weight_that_cannot_be(
    data: Path, model: Path, tmp_path: Path, weight: Any
) -> None:
    training = {"forecasting_loss_weight": weight}
    with pytest.raises(InputError, match="expected a number from 0"):
        finetune(data, model, tmp_path / "mpf", training=training)


def test_a_folder_of_something_else_is_left_alone(
    data: Path, tiny: dict[str, Any], steps: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(InputError, match="expected a new or empty folder, or a model"):
            pretrain(data, out, model=tiny, training=steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_folders_that_do_not_fit(
    data: Path, model: Path, steps: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="expected a tokenizer"):
        pretrain(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="expected a tokenizer"):
        finetune(data, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"expected a .* with config\.json"):
        finetune(data, data, tmp_path / "out")
    changed = tmp_path / "changed"
    shutil.copytree(data, changed)
    book = changed / "tokenizer" / "codebook.json"
    content = json.loads(book.read_text())
    code, units = next(iter(content["bins"].items()))
    content["bins"][code] = {unit: [edge + 1 for edge in edges] for unit, edges in units.items()}
    book.write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected the vocabulary and bins"):
        finetune(changed, model, tmp_path / "out", training=steps)
    settings = PrepareSettings(min_patients=4, context_length=48)
    other = prepare(data.parent / "events", tmp_path / "other", settings, progress=False)
    with pytest.raises(InputError, match="prepare the events with this model's tokenizer"):
        finetune(other, model, tmp_path / "out", training=steps)
    assert not (tmp_path / "out").exists()


def test_no_examples(data: Path, model: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = PrepareSettings(splits=SplitRules(pretrain=0.0, finetune=0.0))
    tokenizer, out = load_tokenizer(model), tmp_path / "empty"
    events = data.parent / "events"
    empty = prepare(events, out, settings, tokenizer=tokenizer, progress=False)
    for train in (
        lambda: pretrain(empty, tmp_path / "out", model=tiny),
        lambda: finetune(empty, model, tmp_path / "out"),
    ):
        with pytest.raises(InputError, match="expected at least one example, found none"):
            train()
