"""The tokenizer: a patient's visits in, tokens and their attributes out.

It needs nothing but this file and the grammar beside it, so a model repository alone can encode a
patient.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils import PaddingStrategy

from .grammar_ehrmamba import (
    COLUMNS,
    SPECIAL_ID,
    SPECIAL_TOKENS,
    TYPE_ID,
    Columns,
    EncodedVisit,
    assemble,
    event_token_id,
    fit,
    microseconds,
    special_type,
)

DEFAULT_CATEGORIES = ("procedure", "medication", "lab")
DEFAULT_TASK_TOKENS = {
    "mortality": "[MOR]",
    "length_of_stay": "[LOS]",
    "readmission": "[REA]",
    "condition_0": "[C0]",
    "condition_1": "[C1]",
    "condition_2": "[C2]",
}


class EHRMambaTokenizer(PreTrainedTokenizer):
    """Encodes patients as sequences of tokens with type, age, time, segment and visit order.

    Args:
        vocab_file: `vocab.json`, token to id; the special tokens of the grammar come first.
        codebook_file: `codebook.json` with `types` (token to type name), `bins` (code to unit to
            bin edges) and `names` (code to display name).
        task_tokens: task name to its special token.
        categories: the kinds of event that are part of a sequence; events that state another
            kind are left out.

    >>> tokenizer = EHRMambaTokenizer(vocab={"LOINC/2345-7": 41}, types={"LOINC/2345-7": "lab"})
    >>> visit = {
    ...     "start": "2020-01-01T08:00",
    ...     "end": "2020-01-02T08:00",
    ...     "events": [{"code": "LOINC/2345-7", "time": "2020-01-01T09:00", "value": 5.4}],
    ... }
    >>> columns = tokenizer({"birth": "1950-01-01", "visits": [visit]}, task="mortality")
    >>> tokenizer.convert_ids_to_tokens(columns["input_ids"])
    ['[MOR]', '[VS]', 'LOINC/2345-7', '[VE]', '[MOR]']
    """

    vocab_files_names = {"vocab_file": "vocab.json", "codebook_file": "codebook.json"}
    model_input_names = list(COLUMNS)

    def __init__(
        self,
        vocab_file: str | None = None,
        codebook_file: str | None = None,
        *,
        vocab: Mapping[str, int] | None = None,
        types: Mapping[str, str] | None = None,
        bins: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        names: Mapping[str, str] | None = None,
        task_tokens: Mapping[str, str] | None = None,
        categories: Sequence[str] = DEFAULT_CATEGORIES,
        **kwargs: Any,
    ) -> None:
        codebook = _read_json(codebook_file)
        self.vocab = dict(SPECIAL_ID) | dict(vocab if vocab is not None else _read_json(vocab_file))
        self.types = dict(types if types is not None else codebook.get("types", {}))
        self.bins = dict(bins if bins is not None else codebook.get("bins", {}))
        self.names = dict(names if names is not None else codebook.get("names", {}))
        self.task_tokens = dict(task_tokens or DEFAULT_TASK_TOKENS)
        self.categories = tuple(categories)
        self.tokens = _ordered(self.vocab)
        self.token_types = [special_type(i) for i in range(len(SPECIAL_TOKENS))] + [
            TYPE_ID[self.types.get(token, "other")] for token in self.tokens[len(SPECIAL_TOKENS) :]
        ]
        for name, token in self.task_tokens.items():
            if token not in SPECIAL_ID:
                raise ValueError(
                    f"task {name}: its token {token} is not one of {SPECIAL_TOKENS[25:]}"
                )
        defaults = {f"{k}_token": f"[{k.upper()}]" for k in ("pad", "unk", "mask", "cls")}
        super().__init__(
            **(defaults | kwargs), task_tokens=self.task_tokens, categories=list(categories)
        )

    def __call__(
        self,
        patients: Any,
        task: str | None = None,
        *,
        at: Any = None,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode a patient, or a list of patients.

        Args:
            patients: a dict, or a list of dicts, each either a patient (`birth`, and `visits` in
                order: dicts with `start`, `end` or None, and `events`: dicts with `code`, `time`,
                and for results `value`, a number or text, and `unit`; optionally `category` and
                `available`), or ready columns (`input_ids` and what else there is). Times are
                datetimes, dates, ISO strings, or microseconds. A string is tokenized at white
                space.
            task: the name of a task, or its token: the prompt of Multitask Prompted Finetuning.
            at: the index time: nothing that was known only after it is part of the input.
            padding, return_tensors and the rest: as everywhere in transformers.
            truncation: True, or any strategy of transformers but "do_not_truncate", keeps the most
                recent `max_length` tokens (default: `model_max_length`).

        Returns:
            The columns `input_ids`, `token_type_ids`, `ages` (years), `time_stamps` (weeks),
            `visit_segments`, `visit_orders`, `attention_mask`.

        Raises:
            ValueError: a patient without `visits`, an unknown task, a `max_length` under 4.
        """
        if not isinstance(patients, Iterable):
            found = _kind(patients)
            raise ValueError(f"patients: expected a dict or a list of dicts, found {found}")
        single = isinstance(patients, Mapping)
        batch: list[Any] = [patients] if single else list(patients)
        if isinstance(patients, str) or (batch and isinstance(batch[0], str)):
            return super().__call__(
                patients,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                return_tensors=return_tensors,
                **kwargs,
            )
        limit = None
        if truncation and truncation != "do_not_truncate":
            limit = self.model_max_length if max_length is None else max_length
        rows = [self._columns(patient, task, microseconds(at), limit) for patient in batch]
        names = rows[0] if rows else COLUMNS
        features: Any = rows[0] if single else {name: [r[name] for r in rows] for name in names}
        if return_tensors is not None and single:
            features = {name: [column] for name, column in features.items()}
        if padding == PaddingStrategy.MAX_LENGTH:
            kwargs["max_length"] = max_length
        return self.pad(features, padding=padding, return_tensors=return_tensors, **kwargs)

    def task_token_id(self, task: str) -> int:
        """The id of a task's token, by the task's name or by the token itself."""
        if not isinstance(task, str):
            raise ValueError(f"task: expected a name, found {_kind(task)}")
        token = self.task_tokens.get(task, task)
        if token not in SPECIAL_ID:
            raise ValueError(f"unknown task {task}: expected one of {sorted(self.task_tokens)}")
        return SPECIAL_ID[token]

    def event_id(self, code: str, value: float | None = None, unit: str | None = None) -> int:
        """The id of one event (see the grammar's `event_token_id`)."""
        return event_token_id(code, value, unit, self.vocab, self.bins)

    def encode_visits(
        self,
        visits: Sequence[EncodedVisit],
        birth: int | None,
        *,
        task: str | None = None,
        max_length: int | None = None,
    ) -> Columns:
        """Columns of visits whose events are already ids: the road of large corpora."""
        columns = assemble(visits, birth, self.token_types)
        return fit(columns, max_length, None if task is None else self.task_token_id(task))

    def _columns(
        self, patient: Mapping, task: str | None, at: int | None, max_length: int | None
    ) -> Columns:
        if not isinstance(patient, Mapping):
            raise ValueError(f"a patient: expected a dict, found {_kind(patient)}")
        if "input_ids" in patient:
            task_id = None if task is None else self.task_token_id(task)
            ready = {k: _plain(v) for k, v in patient.items() if k in COLUMNS}
            ready.setdefault("attention_mask", [1] * len(ready["input_ids"]))
            missing = [name for name in COLUMNS if name not in ready]
            if missing and (task_id is not None or max_length is not None):
                raise ValueError(
                    f"ready columns: expected all of {list(COLUMNS)}, {missing} missing"
                )
            return ready if missing else fit(ready, max_length, task_id)
        if "visits" not in patient:
            raise ValueError(f"a patient: expected visits or input_ids, found {sorted(patient)}")
        given = _dicts(patient["visits"], "visits")
        visits = [v for v in (self._visit(v, at) for v in given) if v is not None]
        visits.sort(key=lambda v: v.start)
        birth = microseconds(patient.get("birth"))
        return self.encode_visits(visits, birth, task=task, max_length=max_length)

    def _visit(self, visit: Mapping, at: int | None) -> EncodedVisit | None:
        """A visit as seen at the index time; None where nothing of it was known yet."""
        start, end = microseconds(visit.get("start")), microseconds(visit.get("end"))
        if start is None:
            raise ValueError("a visit: expected a start, found none")
        events = []
        for event in _dicts(visit.get("events") or (), "events"):
            if not isinstance(event.get("code"), str):
                raise ValueError(f"an event: expected a code, found {_kind(event.get('code'))}")
            time = microseconds(event.get("time"))
            time = start if time is None else time
            known = max(time, microseconds(event.get("available")) or time)
            wanted = event.get("category") is None or event["category"] in self.categories
            if wanted and (at is None or known <= at):
                value = event.get("value")
                value = None if isinstance(value, str) else value  # a text result has no bin
                key = (event.get("category") or "", event["code"])
                missing = value is None or math.isnan(value)
                rank = (missing, 0.0 if missing else value)
                events.append((time, *key, rank, self.event_id(key[1], value, event.get("unit"))))
        if not events or (at is not None and start > at):
            return None
        events.sort()
        if at is not None and end is not None and end > at:
            end = None
        return EncodedVisit(start, end, [e[-1] for e in events], [e[0] for e in events])

    def readable(self, token_ids: Iterable[int]) -> list[str]:
        """Each token as a person reads it: the code's name, the code, and a bin's range.

        >>> bins = {"LOINC/2345-7": {"mg/dL": [80.0, 120.0]}}
        >>> vocab = {"LOINC/2345-7//Q2": 41}
        >>> names = {"LOINC/2345-7": "Glucose"}
        >>> EHRMambaTokenizer(vocab=vocab, bins=bins, names=names).readable([4, 41])
        ['[VS]', 'Glucose (LOINC/2345-7) 80-120 mg/dL']
        """
        return [self._readable(self.tokens[int(i)]) for i in token_ids]

    def _readable(self, token: str) -> str:
        code, _, quantile = token.partition("//Q")
        name = self.names.get(code)
        text = f"{name} ({code})" if name else code
        if not quantile:
            return text
        units = self.bins.get(code, {})
        if len(units) != 1:  # one bin token stands for the same bin of every unit
            return f"{text} Q{quantile}"
        ((unit, edges),) = units.items()
        k = int(quantile)
        low, high = edges[: k - 1][-1:], edges[k - 1 : k]
        if not low and not high:
            return text
        span = f"{low[0]:g}-{high[0]:g}" if low and high else ""
        span = span or (f"<={high[0]:g}" if high else f">{low[0]:g}")
        return f"{text} {span} {unit}".strip()

    def _pad(
        self,
        encoded_inputs: Any,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict:
        """Pad every column of one sequence with what [PAD] has there: zeros, nearly everywhere."""
        length = len(encoded_inputs["input_ids"])
        if return_attention_mask is not False and "attention_mask" not in encoded_inputs:
            encoded_inputs["attention_mask"] = [1] * length
        target = length if padding_strategy == PaddingStrategy.LONGEST else (max_length or length)
        if pad_to_multiple_of:
            target = -(-target // pad_to_multiple_of) * pad_to_multiple_of
        missing = target - length
        if padding_strategy == PaddingStrategy.DO_NOT_PAD or missing <= 0:
            return encoded_inputs
        left = (padding_side or self.padding_side) == "left"
        padding = dict.fromkeys(COLUMNS, 0) | {"special_tokens_mask": 1}
        for name in padding.keys() & encoded_inputs.keys():
            column, extra = list(encoded_inputs[name]), [padding[name]] * missing
            encoded_inputs[name] = extra + column if left else column + extra
        return encoded_inputs

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.vocab) | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.vocab.get(token, SPECIAL_ID["[UNK]"])

    def _convert_id_to_token(self, index: int) -> str:
        return self.tokens[index] if 0 <= index < len(self.tokens) else "[UNK]"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write `vocab.json` and `codebook.json`."""
        codebook = {"types": self.types, "bins": self.bins, "names": self.names}
        written = []
        for key, content in (("vocab_file", self.vocab), ("codebook_file", codebook)):
            prefix = f"{filename_prefix}-" if filename_prefix else ""
            path = Path(save_directory) / (prefix + self.vocab_files_names[key])
            path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
            written.append(str(path))
        return tuple(written)


def _kind(value: Any) -> str:
    """What a value is, without showing it: it may be a patient's."""
    return "none" if value is None else type(value).__name__


def _dicts(items: Any, what: str) -> Iterable[Mapping]:
    if isinstance(items, Mapping | str) or not isinstance(items, Iterable):
        raise ValueError(f"{what}: expected a list of dicts, found {_kind(items)}")
    items = list(items)
    for item in items:
        if not isinstance(item, Mapping):
            raise ValueError(f"{what}: expected a list of dicts, found {_kind(item)} in it")
    return items


def _plain(column: Any) -> list:
    """A list of Python numbers, of an array or a tensor too."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _read_json(path: str | None) -> dict:
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _ordered(vocab: Mapping[str, int]) -> list[str]:
    """Tokens by id; the ids must be 0, 1, 2 ... with the grammar's special tokens first."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[t] for t in tokens] != list(range(len(tokens))):
        raise ValueError("vocabulary: expected the ids 0, 1, 2 ... once each")
    if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise ValueError("vocabulary: expected the special tokens of the grammar first")
    return tokens


EHRMambaTokenizer.register_for_auto_class("AutoTokenizer")

__all__ = ["EHRMambaTokenizer"]
