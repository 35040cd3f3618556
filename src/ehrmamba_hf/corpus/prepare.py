"""Events to training data: splits, tokenizer, labels and Arrow sequences."""

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrmamba_hf.corpus.encode import RecordEncoder, sample_stays
from ehrmamba_hf.corpus.storage import DATASETS, SequenceWriter, save_datasets
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import CATEGORIES, DATA_FOLDER
from ehrmamba_hf.events.table import read_encounters, read_subjects
from ehrmamba_hf.folders import staged
from ehrmamba_hf.tasks import Example, Task, label_stays, registered, with_options
from ehrmamba_hf.tasks.conditions import read_more_codes
from ehrmamba_hf.timelines import (
    SPLITS,
    Record,
    SplitRules,
    VisitRules,
    iter_records,
    split_of,
    stays_of,
)
from ehrmamba_hf.timelines.record import DAY
from ehrmamba_hf.timelines.visits import Visit
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.fitting import fit_tokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import SHORTEST_LENGTH
from ehrmamba_hf.tokenization.tokenization_ehrmamba import DEFAULT_CATEGORIES

LABELS_FILE = "labels.parquet"
REPORT_FILE = "prepare.json"
TOKENIZER_FOLDER = "tokenizer"
CONTENTS = frozenset({LABELS_FILE, REPORT_FILE, TOKENIZER_FOLDER, *DATASETS})

LABEL_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("task", pa.string()),
        ("split", pa.string()),
    ]
)
"""The label table: the MEDS label columns (https://github.com/Medical-Event-Data-Standard/meds),
task and split; every example of every task and split, uncapped."""


class PrepareSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events become training data.

    Attributes:
        categories: the kinds of event that become tokens; the paper's are procedures, medication
            requests and laboratory results (appendix B.1).
        context_length: sequences keep their most recent tokens, up to this many.
        min_patients: patients of the pretraining split that a token needs to enter the vocabulary.
        train_stays: stays with an example that finetuning sees at most of a patient, drawn by
            seed; evaluation sees all.
        follow_up_end: the last moment that the source tells of: a time, `complete`, or `auto`
            (the latest time in the data; complete for MIMIC, whose dates are shifted).
        new_onset: the condition tasks leave out stays with an earlier mention.
        more_codes: a YAML file of more codes for the condition tasks.
        splits, visits: see `SplitRules` and `VisitRules`.
    """

    categories: tuple[str, ...] = DEFAULT_CATEGORIES
    context_length: int = 2048
    min_patients: int = 10
    train_stays: int = 4
    follow_up_end: str = "auto"
    new_onset: bool = False
    more_codes: str | None = None
    splits: SplitRules = SplitRules()
    visits: VisitRules = VisitRules()

    def __post_init__(self) -> None:
        """Check what the types cannot. Raises InputError."""
        others = sorted(set(self.categories) - set(CATEGORIES))
        shares = (self.splits.pretrain, self.splits.finetune, self.splits.validation)
        rules = {
            f"categories: expected some of {CATEGORIES}, found {others}": not others,
            f"context_length: expected at least {SHORTEST_LENGTH}, found {self.context_length}": (
                self.context_length >= SHORTEST_LENGTH
            ),
            f"min_patients: expected at least 1, found {self.min_patients}": self.min_patients >= 1,
            f"train_stays: expected at least 1, found {self.train_stays}": self.train_stays >= 1,
            f"splits: expected shares from 0 to 1, pretrain and finetune together too, "
            f"found {self.splits}": min(shares) >= 0 and max(sum(shares[:2]), shares[2]) <= 1,
        }
        for sentence, holds in rules.items():
            if not holds:
                raise InputError(f"prepare: {sentence}")


@dataclass
class _Tally:
    """What `prepare` counts on its way, for the report."""

    excluded: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Counter))
    )
    labels: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Counter))
    )
    unknown: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    events: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    patients: Counter[str] = field(default_factory=Counter)
    stays: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    record: Counter[str] = field(default_factory=Counter)


def prepare(
    events: Path,
    out: Path,
    settings: PrepareSettings | None = None,
    *,
    tokenizer: EHRMambaTokenizer | None = None,
    progress: bool = True,
) -> Path:
    """Write splits, labels, tokenizer and Arrow sequences of an events folder.

    `out` gets `labels.parquet` (LABEL_SCHEMA), `pretrain/` (a data set of whole records, a row a
    patient), `finetune/` (a data set of records as they stood at an index time, a row a patient
    and index time), `tokenizer/` and `prepare.json` (counts, exclusions, unknown rates).

    Args:
        events: an events folder.
        out: the folder to be; written under a temporary name and renamed.
        settings: see `PrepareSettings`.
        tokenizer: a fitted tokenizer to use as it is, for data that a model has never seen.
        progress: show a progress bar.

    Raises:
        InputError: no usable patients, or settings that do not fit.
        SchemaError: `events` is not an events folder.
    """
    events, out = Path(events), Path(out)
    settings = settings or PrepareSettings()
    tasks = _tasks(settings)
    subjects = read_subjects(events)
    if not subjects.num_rows:
        raise InputError(f"{events}: expected patients, found none")
    if tokenizer is None:
        tokenizer = fit_tokenizer(
            events,
            _pretraining_patients(subjects, settings.splits),
            categories=settings.categories,
            task_tokens={task.name: task.token for task in tasks},
            min_patients=settings.min_patients,
            context_length=settings.context_length,
        )
    follow_up_end = _follow_up_end(events, subjects, settings.follow_up_end)
    tally = _Tally()
    with staged(out, marker=REPORT_FILE, contents=CONTENTS) as folder:
        writer = SequenceWriter(folder)
        labels: list[tuple] = []
        records = iter_records(events, tokenizer.categories)
        bar = {"desc": "prepare", "unit": " patients", "leave": False, "disable": not progress}
        for record in tqdm(records, total=subjects.num_rows, **bar):
            _prepare_record(
                record, tasks, tokenizer, settings, follow_up_end, writer, labels, tally
            )
        save_datasets(folder, writer)
        _write_labels(folder / LABELS_FILE, labels)
        tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
        report = _report(tally, tokenizer, settings, follow_up_end)
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return out


def _prepare_record(
    record: Record,
    tasks: list[Task],
    tokenizer: EHRMambaTokenizer,
    settings: PrepareSettings,
    follow_up_end: int | None,
    writer: SequenceWriter,
    labels: list[tuple],
    tally: _Tally,
) -> None:
    split = split_of(record.subject_id, settings.splits)
    encoder = RecordEncoder(record, tokenizer, settings.visits)
    encoder.unknown(tally.unknown[split], tally.events[split])
    tally.patients[split] += 1
    tally.record.update(record.counts)
    tally.record["without_birth_date"] += record.birth is None
    cut: Counter[str] = Counter()
    placed: Counter[str] = Counter()
    stays = stays_of(record, settings.visits, cut)
    whole = encoder.columns(None, placed)
    tally.record.update({**placed, **cut})  # what is cut out of the visits is told by both
    tally.record["without_any_event"] += len(whole["input_ids"]) == 1
    tally.stays[split] += len(stays)
    if split.startswith("pretrain") and len(whole["input_ids"]) > 1:
        writer.add("pretrain", split, record.subject_id, None, whole)
        tally.tokens[split] += len(whole["input_ids"])
    examples = _examples(record, stays, tasks, follow_up_end, tally, split)
    labels += [(record.subject_id, e.prediction_time, e.label, e.task, split) for e in examples]
    if split.startswith("pretrain"):
        return
    if split.startswith("finetune"):
        examples = _sampled(examples, stays, record.subject_id, settings)
    for at in sorted({e.prediction_time for e in examples}):
        columns = encoder.columns(at)
        writer.add("finetune", split, record.subject_id, at, columns)
        tally.tokens[split] += len(columns["input_ids"])


def _examples(
    record: Record,
    stays: list[Visit],
    tasks: Iterable[Task],
    follow_up_end: int | None,
    tally: _Tally,
    split: str,
) -> list[Example]:
    result = []
    for task in tasks:
        found = list(
            label_stays(record, stays, task, follow_up_end, tally.excluded[task.name][split])
        )
        tally.labels[task.name][split].update("positive" if e.label else "negative" for e in found)
        result += found
    return result


def _sampled(
    examples: list[Example], stays: list[Visit], subject_id: int, settings: PrepareSettings
) -> list[Example]:
    """The examples of the stays that are drawn from those that give any."""
    starts = [stay.start for stay in stays]
    position = [bisect_right(starts, e.prediction_time) for e in examples]
    asked = sorted(set(position))
    drawn = sample_stays(subject_id, len(asked), settings.train_stays, settings.splits.seed)
    kept = {asked[i] for i in drawn}
    return [e for e, p in zip(examples, position, strict=True) if p in kept]


def _tasks(settings: PrepareSettings) -> list[Task]:
    more = read_more_codes(Path(settings.more_codes)) if settings.more_codes else None
    return with_options(registered(), new_onset=settings.new_onset, more_codes=more)


def _pretraining_patients(subjects: pa.Table, rules: SplitRules) -> pa.Table:
    """The patients on whom bins and vocabulary are fitted, with their last moment alive."""
    fitted = [split_of(i, rules) == "pretrain" for i in subjects["subject_id"].to_pylist()]
    subjects = subjects.filter(pa.array(fitted, type=pa.bool_()))
    death = subjects["death"].cast(pa.int64()).to_pylist()
    is_date = subjects["death_is_date"].to_pylist()
    last = [
        (d // DAY + 1) * DAY - 1 if d is not None and date else d
        for d, date in zip(death, is_date, strict=True)
    ]
    columns = [subjects["subject_id"], pa.array(last, type=pa.int64()).cast(pa.timestamp("us"))]
    return pa.table(columns, names=["subject_id", "last_time"])


def _follow_up_end(events: Path, subjects: pa.Table, setting: str) -> int | None:
    """The last moment that the source tells of, in microseconds; None where it is complete."""
    encounters = read_encounters(events)
    if setting == "complete" or (
        setting == "auto" and pc.any(pc.equal(encounters["source"], "mimic")).as_py()
    ):
        return None
    if setting != "auto":
        try:
            moment = datetime.fromisoformat(setting).replace(tzinfo=None)
        except ValueError:
            raise InputError(
                f"follow_up_end: expected auto, complete or an ISO time, found {setting}"
            ) from None
        return pa.scalar(moment, type=pa.timestamp("us")).value
    files = str(events / DATA_FOLDER / "**" / "*.parquet")
    with duckdb.connect() as db:
        row = db.execute("select max(time) from read_parquet(?)", [files]).fetchone()
    moments = [row[0] if row else None, pc.max(subjects["death"]).as_py()]
    moments += [pc.max(encounters[name]).as_py() for name in ("start", "end")]
    latest = max((m for m in moments if m is not None), default=None)
    return None if latest is None else pa.scalar(latest, type=pa.timestamp("us")).value


def _write_labels(file: Path, labels: list[tuple]) -> None:
    columns = list(zip(*labels, strict=True)) or [()] * len(LABEL_SCHEMA)
    arrays = [
        pa.array(column, type=pa.int64()).cast(schema.type)
        if pa.types.is_timestamp(schema.type)
        else pa.array(column, type=schema.type)
        for column, schema in zip(columns, LABEL_SCHEMA, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=LABEL_SCHEMA)
    order = [("task", "ascending"), ("subject_id", "ascending"), ("prediction_time", "ascending")]
    pq.write_table(table.sort_by(order), file)


def _report(
    tally: _Tally, tokenizer: EHRMambaTokenizer, settings: PrepareSettings, end: int | None
) -> dict:
    rates = {
        split: {
            system: {"events": total, "unknown": tally.unknown[split][system]}
            for system, total in sorted(tally.events[split].items())
        }
        for split in SPLITS
    }
    tasks = {
        name: {
            split: {"examples": dict(counts), "excluded": dict(tally.excluded[name][split])}
            for split, counts in sorted(by_split.items())
        }
        for name, by_split in tally.labels.items()
    }
    return {
        "vocabulary": tokenizer.vocab_size,
        "binned_codes": len(tokenizer.bins),
        "context_length": tokenizer.model_max_length,
        "follow_up_end": "complete" if end is None else str(pa.scalar(end, pa.timestamp("us"))),
        "min_patients": settings.min_patients,
        "patients": dict(tally.patients),
        "stays": dict(tally.stays),
        "tokens": dict(tally.tokens),
        "records": dict(tally.record),
        "unknown_by_system": rates,
        "tasks": tasks,
    }
