"""A saved tokenizer loads by AutoTokenizer where the package cannot be imported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ehrmamba_hf.tokenization import EHRMambaTokenizer, tokenization_ehrmamba

SOURCES = Path(tokenization_ehrmamba.__file__).parent

LOADER = """
import json, sys
from transformers import AutoTokenizer

folder, again, request = sys.argv[1:]
request = json.loads(request)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokenizer.save_pretrained(again)
for place in (folder, again):
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    columns = tokenizer(request["patients"], padding=True, **request["options"])
    text = tokenizer.readable(columns["input_ids"][0])
    print(json.dumps([dict(columns), text, tokenizer.vocab, tokenizer.task_tokens]))
"""


def test_a_saved_tokenizer_needs_no_package(
    tokenizer: EHRMambaTokenizer,
    patient: dict[str, Any],
    without_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    tokenizer.task_tokens["sepsis"] = "[TASK_0]"
    own = EHRMambaTokenizer(
        vocab=tokenizer.vocab,
        types=tokenizer.types,
        bins=tokenizer.bins,
        names=tokenizer.names,
        task_tokens=tokenizer.task_tokens,
        categories=("lab", "medication"),
        model_max_length=9,
        padding_side="left",
    )
    own.save_pretrained(tmp_path / "model")
    patients = [patient, {**patient, "visits": patient["visits"][:1]}]
    options = {"task": "sepsis", "truncation": True, "at": "2019-03-20T18:00"}
    expected = dict(own(patients, padding=True, **options))
    text = own.readable(expected["input_ids"][0])
    request = json.dumps({"patients": patients, "options": options})
    output = without_package(LOADER, tmp_path / "model", tmp_path / "again", request)
    first, again = map(json.loads, output.splitlines())
    assert first == again == [expected, text, own.vocab, own.task_tokens]
    assert len(expected["input_ids"][0]) == 9 and expected["attention_mask"][1][0] == 0

    local = EHRMambaTokenizer.from_pretrained(tmp_path / "model")
    assert (local.bins, local.names, local.types) == (own.bins, own.names, own.types)
    assert (local.categories, local.token_types) == (own.categories, own.token_types)
    assert (local.model_max_length, local.padding_side) == (9, "left")


def test_a_saved_tokenizer_holds_nothing_else(tokenizer: EHRMambaTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    sources = {path.name for path in SOURCES.glob("*_ehrmamba.py")}
    tables = {"vocab.json", "codebook.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == sources | tables
