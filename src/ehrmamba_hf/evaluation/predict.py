"""Score every patient of an events folder for every task."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrmamba_hf.corpus.encode import RecordEncoder, index_time
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.evaluation.scoring import chunks, load_classifier, probabilities
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.folders import staged_file
from ehrmamba_hf.tasks import Case, Excluded, Task, registered
from ehrmamba_hf.timelines import Record, VisitRules, iter_records, stays_of
from ehrmamba_hf.timelines.record import NEVER
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import fit

PATIENT_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("task", pa.string()),
        ("prediction_time", pa.timestamp("us")),
        ("probability", pa.float64()),
        ("asked_at", pa.string()),
    ]
)
"""A row a patient and task. `asked_at` says what `prediction_time` is: the task's `index time` at
the patient's latest stay that has one, or, without such a stay, the `end of record`."""


def predict(
    model: Path,
    events: Path,
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    at: str | None = None,
    rules: VisitRules | None = None,
    progress: bool = True,
) -> pa.Table:
    """Score every task for every patient, and write a Parquet file.

    A task is asked where it was trained to be asked: at its own index time of the patient's
    latest stay that has one, with what was known then; a patient without such a stay is scored
    on the whole record.

    Args:
        model: a finetuned model's folder.
        events: an events folder.
        out: the Parquet file to be (PATIENT_SCHEMA); no patient is left out.
        tasks: names of tasks; all that the model knows by default.
        at: an ISO time; nothing after it is looked at.
        rules: what counts as a visit; as in `prepare`.
        progress: show progress bars.
    """
    classifier, tokenizer = load_classifier(model), load_tokenizer(model)
    names = list(tasks or tokenizer.task_tokens)
    unknown = sorted(set(names) - set(tokenizer.task_tokens))
    if unknown:
        raise InputError(f"tasks: expected some of {list(tokenizer.task_tokens)}, found {unknown}")
    known = {task.name: task for task in registered()}
    asked = [(name, known.get(name)) for name in names]
    given = index_time(at)
    moment = NEVER if given is None else given
    total = read_subjects(Path(events)).num_rows
    bar = {"desc": "predict", "unit": " patients", "leave": False, "disable": not progress}
    records = tqdm(iter_records(Path(events), tokenizer.categories), total=total, **bar)
    tables = [PATIENT_SCHEMA.empty_table()]
    for chunk in chunks(_questions(records, asked, tokenizer, rules or VisitRules(), moment), 1024):
        inputs = [columns for *_, columns in chunk]
        scores = probabilities(classifier, tokenizer, inputs, progress=False)
        keys = list(zip(*[row[:4] for row in chunk], strict=True))
        times = pa.array(keys[2], pa.int64()).cast(pa.timestamp("us"))
        arrays = [pa.array(keys[0]), pa.array(keys[1]), times, pa.array(scores), pa.array(keys[3])]
        tables.append(pa.table(arrays, schema=PATIENT_SCHEMA))
    table = pa.concat_tables(tables)
    with staged_file(out) as file:
        pq.write_table(table, file)
    return table


def _questions(
    records: Any,
    asked: Sequence[tuple[str, Task | None]],
    tokenizer: EHRMambaTokenizer,
    rules: VisitRules,
    at: int,
) -> Iterator[tuple[int, str, int | None, str, dict[str, list]]]:
    """Subject, task, time, kind of time, and prompted input, for each patient and task."""
    for record in records:
        if record.last_alive is not None and record.last_alive > at:
            record = replace(record, death=None, deceased=False)  # not known yet
        encoder = RecordEncoder(record, tokenizer, rules)
        stays = stays_of(record, rules, at=at)
        last = record.last_time if at == NEVER else at
        known: dict[int | None, dict[str, list]] = {}
        for name, task in asked:
            index = None if task is None else _latest_index(record, stays, task, last)
            moment, kind = (last, "end of record") if index is None else (index, "index time")
            if moment not in known:
                known[moment] = encoder.columns(at if moment is None else moment)
            token_id = tokenizer.task_token_id(name)
            columns = fit(known[moment], tokenizer.model_max_length, token_id)
            yield record.subject_id, name, moment, kind, columns


def _latest_index(record: Record, stays: Sequence, task: Task, last: int | None) -> int | None:
    for position in reversed(range(len(stays))):
        try:
            index = task.index(Case(record, stays, position))
        except Excluded:
            continue
        if last is not None and index <= last:
            return index
    return None
