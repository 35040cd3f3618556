"""What is done with a part of the patients, as pure functions: the border to any engine.

Whole patients' rows come in as Arrow tables, and what goes out adds up: no file is read or written
here, and arguments and results can be pickled. The local engine calls these on batches of a shard;
another one may call them on any grouping that keeps a patient's rows together, such as Apache
Spark's `mapInArrow` over partitions or `applyInArrow` by subject. In order:

1. `count_values` of every part; `merge_counts`; `fit_bins`.
2. `count_tokens` of every part; `merge_counts`; `build_tokenizer`.
3. `sequences_of` every part: sequences, labels and a tally, to be put together in order of the
   patients.

The first two are those of `tokenization`, for the patients of `pretraining_patients` alone; a
fitted tokenizer takes their place.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehrmamba_hf.corpus.assembly import Sequences
from ehrmamba_hf.corpus.event_ids import EncodedEvents, TokenTable
from ehrmamba_hf.corpus.labels import LABEL_SCHEMA, drawn, examples_of, label_table
from ehrmamba_hf.corpus.settings import PrepareSettings
from ehrmamba_hf.corpus.storage import SEQUENCE_SCHEMA
from ehrmamba_hf.corpus.tally import Tally
from ehrmamba_hf.tasks import Task
from ehrmamba_hf.timelines import SPLITS, SplitRules, Visit, split_of
from ehrmamba_hf.timelines.layout import WAYS, Batch, View, lay_out, spans
from ehrmamba_hf.timelines.load import read_records
from ehrmamba_hf.timelines.record import last_alive
from ehrmamba_hf.tokenization.counting import count_tokens, count_values, merge_counts
from ehrmamba_hf.tokenization.fitting import build_tokenizer, fit_bins
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS

__all__ = [
    "Plan",
    "Prepared",
    "build_tokenizer",
    "count_tokens",
    "count_values",
    "fit_bins",
    "merge_counts",
    "pretraining_patients",
    "sequences_of",
]

MOST_ROWS = 500_000  # events laid out at once: a patient's are laid out for each index time
DatasetSplit = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with every patient alike.

    Attributes:
        tokens: see `TokenTable.of`.
        tasks: see `PrepareSettings.tasks`.
        settings: see `PrepareSettings`.
        follow_up_end: the last moment of which the source tells, in microseconds; None where
            follow-up is complete.
    """

    tokens: TokenTable
    tasks: tuple[Task, ...]
    settings: PrepareSettings
    follow_up_end: int | None


@dataclass(slots=True)
class Prepared:
    """What comes of some patients.

    Attributes:
        sequences: SEQUENCE_SCHEMA, by data set and split, in the order of the patients given and
            then of the index times.
        labels: LABEL_SCHEMA.
        tally: what was counted.
    """

    sequences: dict[DatasetSplit, pa.Table]
    labels: pa.Table
    tally: Tally


def pretraining_patients(subjects: pa.Table, rules: SplitRules) -> pa.Table:
    """The patients on whom bins and vocabulary are fitted, with their last moment alive.

    Args:
        subjects: SUBJECT_SCHEMA.
        rules: the splits.

    Returns:
        `subject_id` and `last_time`, a row each of the pretraining split but its validation part.
    """
    fitted = [split_of(i, rules) == "pretrain" for i in subjects["subject_id"].to_pylist()]
    subjects = subjects.filter(pa.array(fitted, type=pa.bool_()))
    death = subjects["death"].cast(pa.int64()).to_pylist()
    is_date = subjects["death_is_date"].to_pylist()
    last = [last_alive(d, date) for d, date in zip(death, is_date, strict=True)]
    columns = [subjects["subject_id"], pa.array(last, type=pa.int64()).cast(pa.timestamp("us"))]
    return pa.table(columns, names=["subject_id", "last_time"])


def sequences_of(
    events: pa.Table, encounters: pa.Table, subjects: pa.Table, plan: Plan
) -> Prepared:
    """Sequences, labels and counts of some patients.

    Args:
        events: all their events (RECORD_COLUMNS of EVENT_SCHEMA, of any category), a run of rows a
            patient in order of time; strings may be dictionaries.
        encounters: all their encounters, ENCOUNTER_SCHEMA.
        subjects: a row a patient, SUBJECT_SCHEMA; those without events count too.
        plan: what is to be done.

    Raises:
        SchemaError: events of somebody else, or a patient in more than one run of rows.
    """
    found = read_records(events, encounters, subjects, plan.tokens.categories)
    encoded = plan.tokens.encode(found.events)
    members: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(found.records):
        members[split_of(record.subject_id, plan.settings.splits)].append(i)
    prepared = Prepared({}, LABEL_SCHEMA.empty_table(), Tally())
    for split in SPLITS:
        if split in members:
            batch = Batch.of([found.records[i] for i in members[split]])
            first = np.array([found.first[i] for i in members[split]], dtype=np.int64)
            rows = spans(first, np.diff(batch.first))
            _prepare_split(split, batch, encoded.take(rows), plan, prepared)
    return prepared


def _prepare_split(
    split: str, batch: Batch, events: EncodedEvents, plan: Plan, prepared: Prepared
) -> None:
    """Add the sequences, labels and counts of the patients of one split."""
    views = [View(i) for i in range(len(batch.records))]
    cut: Counter[str] = Counter()
    layout = lay_out(batch, views, plan.settings.visits, cut)
    whole = Sequences(batch, views, layout)
    _count(split, batch, events, whole, prepared.tally)
    prepared.tally.add_all("records", counts=cut)
    stays = [[v for v in visits if v.stay] for visits in layout.visits]
    asked = _label(split, batch, stays, plan, prepared)
    if split.startswith("pretrain"):
        table = _table(whole, events.ids, plan.tokens)
        tables, dataset = [table.filter(pc.greater(table["length"], 1))], "pretrain"
    else:
        tables, dataset = [], "finetune"
        for chunk in _chunks(asked, batch):
            shown = Sequences(batch, chunk, lay_out(batch, chunk, plan.settings.visits))
            tables.append(_table(shown, events.ids, plan.tokens))
    table = pa.concat_tables([SEQUENCE_SCHEMA.empty_table(), *tables])
    if len(table):
        prepared.sequences[dataset, split] = table
        prepared.tally["tokens", split] += pc.sum(table["length"]).as_py()


def _label(
    split: str, batch: Batch, stays: list[list[Visit]], plan: Plan, prepared: Prepared
) -> list[View]:
    """Add the labels of all examples; the views that the examples to be kept are asked at."""
    settings = plan.settings
    rows, asked = [], []
    for i, (record, own) in enumerate(zip(batch.records, stays, strict=True)):
        subject_id = record.subject_id
        examples = examples_of(record, own, plan.tasks, plan.follow_up_end, split, prepared.tally)
        rows += [(subject_id, e.prediction_time, e.label, e.task, split) for e in examples]
        if split.startswith("finetune"):
            most, seed = settings.train_stays, settings.splits.seed
            examples = drawn(examples, own, subject_id, most, seed)
        asked += [View(i, at) for at in sorted({e.prediction_time for e in examples})]
    prepared.labels = pa.concat_tables([prepared.labels, label_table(rows)])
    return asked


def _count(split: str, batch: Batch, events: EncodedEvents, whole: Sequences, tally: Tally) -> None:
    """Count the patients of a split, their events and their visits."""
    layout, records = whole.layout, batch.records
    stays = [v for visits in layout.visits for v in visits if v.stay]
    others = [v for visits in layout.visits for v in visits if not v.stay]
    tally["patients", split] += len(records)
    tally["stays", split] += len(stays)
    for record in records:
        tally.add_all("records", counts=record.counts)
    tally["records", "without_birth_date"] += sum(record.birth is None for record in records)
    tally["records", "without_any_event"] += int((whole.orders == 0).sum())
    ways = dict(zip(WAYS, layout.ways.sum(axis=0).tolist(), strict=True))
    tally.add_all("records", counts=ways)
    sizes = {
        "encounters": sum(len(record.encounters) for record in records),
        "stays": len(stays),
        "encounters_in_stays": sum(len(v.encounter_ids) for v in stays),
        "other_visits": len(others),
        "encounters_in_other_visits": sum(len(v.encounter_ids) for v in others),
    }
    tally.add_all("visits", counts=sizes)
    tally.add_all("events", split, counts=events.by_system())
    tally.add_all("unknown", split, counts=events.by_system(events.unknown))
    tally["numbers", split] += int(events.number.sum())
    tally["unfitted", split] += int(events.unfitted.sum())
    tokens = np.where(whole.orders > 0, whole.lengths, 0)
    for what, values in (
        ("events", np.diff(batch.first)),
        ("visits", whole.orders),
        ("tokens", tokens),
    ):
        tally.add_distribution(what, split, values)


def _chunks(views: list[View], batch: Batch) -> Iterator[list[View]]:
    """Views in order, as many at once as MOST_ROWS events allow, but at least one."""
    sizes = np.diff(batch.first)
    chunk: list[View] = []
    rows = 0
    for view in views:
        rows += int(sizes[view.record])
        if chunk and rows > MOST_ROWS:
            yield chunk
            chunk, rows = [], int(sizes[view.record])
        chunk.append(view)
    if chunk:
        yield chunk


def _table(sequences: Sequences, ids: np.ndarray, tokens: TokenTable) -> pa.Table:
    """Sequences as rows of SEQUENCE_SCHEMA."""
    columns, first = sequences.columns(ids, tokens.types, tokens.context_length)
    records = [sequences.batch.records[view.record] for view in sequences.views]
    starts = pa.array(first, pa.int32())
    arrays = [
        pa.array([record.subject_id for record in records], pa.int64()),
        pa.array([view.at for view in sequences.views], pa.int64()),
        pa.array(np.diff(first), pa.int32()),
        *(pa.ListArray.from_arrays(starts, pa.array(columns[name])) for name in COLUMNS),
    ]
    return pa.Table.from_arrays(arrays, schema=SEQUENCE_SCHEMA)
