"""Examples: each label joined with its input, each input prompted for its task."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import TaskExamples, load_examples, load_sequences
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, REG, VE, VS

SPLITS = ("finetune", "finetune_validation", "test")


@pytest.fixture(scope="module")
def labels(data: Path) -> pa.Table:
    return pq.read_table(data / "labels.parquet")


@pytest.mark.parametrize("split", SPLITS)
def test_each_label_meets_its_input(data: Path, split: str) -> None:
    examples, tokenizer = load_examples(data, split), load_tokenizer(data)
    stored = datasets.load_from_disk(str(data / "finetune"))[split]
    assert len(examples) == examples.table.num_rows > 30
    for index, row in enumerate(examples.table.to_pylist()):
        source = stored[row["row"]]
        moment = pa.scalar(row["prediction_time"], pa.timestamp("us")).value
        assert (source["subject_id"], source["prediction_time"]) == (row["subject_id"], moment)
        example = examples[index]
        assert list(example) == [*COLUMNS, "labels"]
        assert example["labels"] == [float(row["boolean_value"])]
        task = tokenizer.task_token_id(row["task"])
        ids = example["input_ids"]
        assert ids[0] == ids[-1] == task and task not in ids[1:-1]
        assert len(ids) <= tokenizer.model_max_length
        assert -2 <= len(ids) - source["length"] <= 1
        # What the prompt left out of the stored input is [CLS], [REG], or what no longer fits.
        inner = (
            source["input_ids"][1:-1] if source["input_ids"][-1] == REG else source["input_ids"][1:]
        )
        assert ids[2:-1] == inner[len(inner) - len(ids[2:-1]) :]
        assert ids[1] == VS and ids[-2] != REG


def test_discharge_closes_a_visit_and_24_hours_leave_it_open(data: Path) -> None:
    examples = load_examples(data, "test")
    for index, task in enumerate(examples.table["task"].to_pylist()):
        closed = examples[index]["input_ids"][-2] == VE
        assert closed == (task in ("mortality", "readmission"))


def test_every_label_of_the_test_split_has_an_input(data: Path, labels: pa.Table) -> None:
    assert len(load_examples(data, "test")) == pc.sum(pc.equal(labels["split"], "test")).as_py()
    for split in SPLITS:
        examples = load_examples(data, split)
        of_split = labels.filter(pc.equal(labels["split"], split)).to_pylist()
        kept = examples.table.drop_columns(["row"]).to_pylist()
        wanted: Iterator[dict] = iter(of_split)
        assert all(row in wanted for row in kept)  # a subsequence: the label table's order stays


def test_chosen_tasks(data: Path) -> None:
    both = load_examples(data, "test", tasks=["readmission", "condition_1"])
    assert set(both.table["task"].to_pylist()) == {"readmission", "condition_1"}
    every = load_examples(data, "test")
    assert len(load_examples(data, "test", tasks=[])) == len(every)
    counts = [
        len(load_examples(data, "test", tasks=[t])) for t in set(every.table["task"].to_pylist())
    ]
    assert sum(counts) == len(every) and min(counts) > 0


def test_a_task_that_nobody_knows(data: Path) -> None:
    with pytest.raises(InputError, match=r"expected tasks .* found \['sepsis'\]"):
        load_examples(data, "test", tasks=["mortality", "sepsis"])
    tokenizer = load_tokenizer(data)
    del tokenizer.task_tokens["mortality"]
    with pytest.raises(InputError, match=r"the tokenizer knows, .* found \['mortality'\]"):
        load_examples(data, "test", tokenizer=tokenizer)
    left = load_examples(data, "test", tasks=["readmission"], tokenizer=tokenizer)
    assert len(left) > 0


def test_a_shorter_context_of_the_tokenizer_counts(data: Path) -> None:
    tokenizer = load_tokenizer(data)
    tokenizer.model_max_length = 12
    examples = load_examples(data, "test", tokenizer=tokenizer)
    lengths = [len(examples[i]["input_ids"]) for i in range(len(examples))]
    assert max(lengths) == 12


def test_a_split_without_rows_is_empty(data: Path) -> None:
    assert len(load_sequences(data, "test")) == 0
    examples = load_examples(data, "pretrain")
    assert isinstance(examples, TaskExamples) and len(examples) == 0


def test_folders_of_something_else(data: Path, events: Path, tmp_path: Path) -> None:
    for folder in (events, tmp_path):
        with pytest.raises(InputError, match=r"expected a tokenizer with vocab.json"):
            load_tokenizer(folder)
        with pytest.raises(InputError, match=r"expected a data folder with prepare.json"):
            load_sequences(folder, "pretrain")
        with pytest.raises(InputError, match="expected"):
            load_examples(folder, "test")
