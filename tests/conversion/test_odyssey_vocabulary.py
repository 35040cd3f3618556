"""Odyssey's vocabulary in our order and with our names."""

import json

import pytest

from ehrmamba_hf.conversion import read_vocabulary
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_ID, SPECIAL_TOKENS


def test_rows_and_names(vocabulary_file):
    vocabulary = read_vocabulary(vocabulary_file)
    row = dict(zip(vocabulary.tokens, vocabulary.rows, strict=True))
    assert vocabulary.tokens[:41] == SPECIAL_TOKENS
    assert vocabulary.size == 39
    assert [row[t] for t in ("[PAD]", "[VS]", "[VE]", "[CLS]", "[REG]")] == [0, 3, 4, 5, 6]
    assert [row[t] for t in ("[W_0]", "[M_0]", "[LT]")] == [7, 11, 24]
    assert [row[t] for t in ("[MOR]", "[LOS]", "[REA]", "[C0]", "[C2]")] == [31, 32, 33, 34, 36]
    assert [row[t] for t in ("[TASK_0]", "[TASK_1]", "[TASK_2]")] == [37, 38, 2]
    assert vocabulary.tokens[41:] == (
        *("ICD9PCS/3893", "ICD10PCS/5A1955Z", "MIMIC_LAB/50912//Q1", "MIMIC_LAB/50912//Q5"),
        *("NDC/00002821501", "123"),
    )
    assert vocabulary.rows[41:] == (25, 26, 27, 28, 29, 30)
    assert vocabulary.types["123"] == "medication"


def test_its_tokenizer(vocabulary_file):
    tokenizer = read_vocabulary(vocabulary_file).tokenizer()
    event = {"code": "MIMIC_LAB/50912//Q5", "time": "2020-01-01T09:00"}
    visit = {"start": "2020-01-01T08:00", "end": "2020-01-02T08:00", "events": [event]}
    ids = tokenizer({"visits": [visit]}, task="condition_4")["input_ids"]
    task = SPECIAL_ID["[TASK_1]"]
    assert ids == [task, SPECIAL_ID["[VS]"], 44, SPECIAL_ID["[VE]"], task]


@pytest.mark.parametrize("shape", ["flat", "tokenizers"])
def test_other_files(vocabulary_file, shape):
    vocab = json.loads(vocabulary_file.read_text())["tokenizer_vocab"]
    content = vocab if shape == "flat" else {"model": {"type": "WordPiece", "vocab": vocab}}
    vocabulary_file.write_text(json.dumps(content))
    vocabulary = read_vocabulary(vocabulary_file)
    assert vocabulary.tokens[41:45] == (
        *("ICD9PCS/3893", "ICD10PCS/5A1955Z", "MIMIC_LAB/50912//Q1", "MIMIC_LAB/50912//Q5"),
    )
    assert vocabulary.types["MIMIC_LAB/50912//Q1"] == "lab"
    # Three digits: without the kind, a procedure by its form.
    assert vocabulary.types["ICD9PCS/123"] == "procedure"


def test_a_vocabulary_of_one_task_has_no_task_tokens(vocabulary_file):
    vocab = json.loads(vocabulary_file.read_text())["tokenizer_vocab"]
    vocabulary_file.write_text(json.dumps({t: i for t, i in vocab.items() if i < 31}))
    vocabulary = read_vocabulary(vocabulary_file)
    assert set(vocabulary.rows[25:41]) == {vocab["[MASK]"]}
    assert vocabulary.size == 31


def test_what_is_no_vocabulary(vocabulary_file):
    with pytest.raises(InputError, match="expected a JSON file with a vocabulary"):
        read_vocabulary(vocabulary_file.with_name("absent.json"))
    vocab = json.loads(vocabulary_file.read_text())["tokenizer_vocab"]
    refused = {
        "expected a JSON file": "{",
        "expected a vocabulary, token to id": '["a"]',
        "expected the ids 0 to 38 once each": json.dumps(vocab | {"[C4]": 99}),
        r"special tokens of Odyssey, \['\[REG\]'\] not found": json.dumps(
            {"[NO]" if token == "[REG]" else token: index for token, index in vocab.items()}
        ),
    }
    for message, content in refused.items():
        vocabulary_file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_vocabulary(vocabulary_file)
