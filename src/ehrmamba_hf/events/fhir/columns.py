"""A block's events as columns: numbers for what repeats, and one Arrow table at the end.

Events come as columns (plain Observations, see `ehrmamba_hf.fhir.batch`) or one by one (all
others). Codes, units, encounters and the like are numbered as they come, and become dictionary
columns, so that a text is stored and compared once a block and not once an event.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa

from ehrmamba_hf.events.schema import TIME
from ehrmamba_hf.fhir.batch import Plain
from ehrmamba_hf.fhir.rows import Event
from ehrmamba_hf.fhir.time_columns import NONE
from ehrmamba_hf.fhir.vocabulary import Vocabulary

_WORD: Final = pa.dictionary(pa.int32(), pa.string())
CLOSED_SCHEMA: Final = pa.schema(
    [
        ("row", pa.int64()),  # of the resource, like no other's of the run
        ("place", pa.int16()),  # of the event in its resource, from 0
        ("subject_id", pa.int64()),
        ("time", TIME),
        ("code", _WORD),
        ("numeric_value", pa.float32()),
        ("text_value", _WORD),
        ("end_time", TIME),
        ("available_time", TIME),
        ("unit", _WORD),
        ("category", _WORD),
        ("codings", _WORD),  # joined by SEPARATOR; null where the code is the only one
        ("encounter_id", _WORD),
        ("resource_type", _WORD),
        ("source_id", pa.string()),
        ("updated", pa.int64()),  # meta.lastUpdated, microseconds
    ]
)
"""Events as they are going to be, sorted by subject."""
OPEN_SCHEMA: Final = pa.schema(
    [
        *CLOSED_SCHEMA,
        ("medication_id", _WORD),
        ("after_encounter", pa.bool_()),
        ("fallback_time", TIME),
    ]
)
"""Events whose code or time has to be looked up in other resources, sorted by subject."""
SEPARATOR: Final = "\x1f"

_TIMES: Final = ("time", "end_time", "available_time", "fallback_time", "updated")
_WORDS: Final = ("concept", "text", "unit", "category", "encounter", "type", "medication")
_NUMBERS: Final[dict[str, Any]] = {
    "row": np.int64,
    "place": np.int16,
    "subject": np.int64,
    "value": np.float32,
    "after": np.bool_,
    **dict.fromkeys(_TIMES, np.int64),
    **dict.fromkeys(_WORDS, np.int32),
}
_PLAIN: Final = "Observation"
_OPEN: Final = ("medication", "after", "fallback_time")


class EventColumns:
    """Gathers the events of a block."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words = vocabulary
        self._batches: list[dict[str, np.ndarray]] = []
        self._source_ids: list[pa.Array] = []  # few texts at a time, which lie closer than Python's
        self._single: dict[str, list[Any]] = {name: [] for name in _NUMBERS}
        self._single_ids: list[str] = []

    def __len__(self) -> int:
        return sum(map(len, self._source_ids)) + len(self._single_ids)

    def add_plain(self, plain: Plain, first_row: int) -> None:
        """Add Observations, each a resource with one event, in rows from `first_row` on."""
        n = len(plain.source_id)
        self._source_ids.append(pa.array(plain.source_id, pa.string()))
        self._batches.append(
            {
                "row": np.arange(first_row, first_row + n),
                "subject": plain.subject,
                "time": plain.time,
                "available_time": plain.available,
                "updated": plain.updated,
                "value": plain.value,
                "concept": plain.concept,
                "text": plain.text,
                "unit": plain.unit,
                "category": plain.category,
                "encounter": plain.encounter,
            }
        )

    def add(
        self, event: Event, row: int, place: int, subject: int, kind: str, source: str, updated: int
    ) -> None:
        """Add one event of a resource."""
        words, single = self._words, self._single
        self._single_ids.append(source)
        single["row"].append(row)
        single["place"].append(place)
        single["subject"].append(subject)
        single["time"].append(_or_none(event.time))
        single["end_time"].append(_or_none(event.end_time))
        single["available_time"].append(_or_none(event.available_time))
        single["fallback_time"].append(_or_none(event.fallback_time))
        single["updated"].append(updated)
        single["value"].append(np.nan if event.numeric_value is None else event.numeric_value)
        single["concept"].append(words.concepts[event.concept])
        single["text"].append(words.texts[event.text_value])
        single["unit"].append(words.units[event.unit])
        single["category"].append(words.categories[event.category])
        single["encounter"].append(words.encounters[event.encounter_id])
        single["type"].append(words.types[kind])
        single["medication"].append(words.medications[event.medication_id])
        single["after"].append(event.after_encounter)

    def concept_counts(self) -> np.ndarray:
        """How many events have each concept of the vocabulary."""
        most = len(self._words.concepts.values_)
        counts = np.bincount(self._single["concept"] or [0], minlength=most)
        counts[0] = 0
        for batch in self._batches:
            counts += np.bincount(batch["concept"], minlength=most)
        return counts

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """All events: those of CLOSED_SCHEMA, and those of OPEN_SCHEMA."""
        single = {name: np.array(self._single[name], kind) for name, kind in _NUMBERS.items()}
        is_open = single["after"] | (single["medication"] > 0) | (single["time"] == NONE)
        constant = {"place": 0, "end_time": NONE, "type": self._words.types[_PLAIN]}
        n = sum(map(len, self._source_ids))
        closed = {}
        for name, kind in _NUMBERS.items():
            if name not in _OPEN:
                plain = [b[name] for b in self._batches if name in b]
                if name in constant:
                    plain = [np.full(n, constant[name], kind)]
                closed[name] = np.concatenate(
                    [*plain, single[name][~is_open]], dtype=kind, casting="unsafe"
                )
        opened = {name: column[is_open] for name, column in single.items()}
        ids = [i for i, o in zip(self._single_ids, is_open.tolist(), strict=True) if not o]
        open_ids = [i for i, o in zip(self._single_ids, is_open.tolist(), strict=True) if o]
        return (
            self._table(closed, [*self._source_ids, pa.array(ids, pa.string())], CLOSED_SCHEMA),
            self._table(opened, [pa.array(open_ids, pa.string())], OPEN_SCHEMA),
        )

    def _table(
        self, columns: dict[str, np.ndarray], source_ids: list[pa.Array], schema: pa.Schema
    ) -> pa.Table:
        order = np.argsort(columns["subject"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        words = self._words
        concepts = words.concepts.values_
        arrays = [
            pa.array(columns["row"]),
            pa.array(columns["place"]),
            pa.array(columns["subject"]),
            _times(columns["time"]),
            _words(columns["concept"], [c and c.code for c in concepts]),
            pa.array(columns["value"], mask=np.isnan(columns["value"])),
            _words(columns["text"], words.texts.values_),
            _times(columns["end_time"]),
            _times(columns["available_time"]),
            _words(columns["unit"], words.units.values_),
            _words(columns["category"], words.categories.values_),
            _words(columns["concept"], [c and _joined(c.code, c.codings) for c in concepts]),
            _words(columns["encounter"], words.encounters.values_),
            _words(columns["type"], words.types.values_),
            pa.concat_arrays(source_ids).take(pa.array(order)),
            pa.array(columns["updated"], mask=columns["updated"] == NONE),
        ]
        if schema == OPEN_SCHEMA:
            arrays += [
                _words(columns["medication"], words.medications.values_),
                pa.array(columns["after"]),
                _times(columns["fallback_time"]),
            ]
        return pa.Table.from_arrays(arrays, schema=schema)


def _or_none(time: int | None) -> int:
    return NONE if time is None else time


def _joined(code: str, codings: tuple[str, ...]) -> str | None:
    return None if codings == (code,) else SEPARATOR.join(codings)


def _times(column: np.ndarray) -> pa.Array:
    return pa.array(column, mask=column == NONE).cast(TIME)


def _words(column: np.ndarray, values: list[str | None]) -> pa.Array:
    """A dictionary column of numbers, 0 and those of values that are None being null."""
    nothing = np.array([value is None for value in values])
    indices = pa.array(column - 1, mask=nothing[column])
    known = pa.array(["" if value is None else value for value in values[1:]], pa.string())
    return pa.DictionaryArray.from_arrays(indices, known)
