"""Sorted events to a shard's file, row group by row group.

What a file holds byte for byte depends on its rows alone: each row group's dictionaries have the
texts of its own rows, sorted.
"""

import base64
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrmamba_hf.events.fhir.columns import SEPARATOR
from ehrmamba_hf.events.ordering import sorted_words
from ehrmamba_hf.events.schema import EVENT_SCHEMA, ROW_GROUP

_WORD: Final = pa.dictionary(pa.int32(), pa.string())
_CODINGS: Final = pa.list_(_WORD)
_WORDS: Final = ("code", "text_value", "unit", "category", "encounter_id", "resource_type")
_TYPES: Final = dict.fromkeys(_WORDS, _WORD) | {"codings": _CODINGS}
_WRITTEN: Final = pa.schema(
    [field.with_type(_TYPES.get(field.name, field.type)) for field in EVENT_SCHEMA]
)
_OPTIONS: Final[dict[str, Any]] = {
    "compression": "lz4",
    "use_dictionary": [*_WORDS, "codings.list.element", "numeric_value"],
    "write_statistics": [f.name for f in EVENT_SCHEMA if f.name not in _TYPES],
    "store_schema": False,
}


class ShardFile:
    """Writes EVENT_SCHEMA as Parquet; the file has its name once it is whole.

    `with ShardFile(file) as writer: writer.write(events, order)`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        # A worker of a run that was killed may for a moment be at the same shard.
        self._temporary = file.with_suffix(f".{os.getpid()}")

    def __enter__(self) -> "ShardFile":
        self._file.parent.mkdir(exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, _WRITTEN, **_OPTIONS)
        # Parquet itself does not tell string from large_string, which MEDS does, and a reader need
        # not know of the dictionaries.
        arrow = base64.b64encode(EVENT_SCHEMA.serialize()).decode()
        self._writer.add_key_value_metadata({"ARROW:schema": arrow})
        return self

    def write(self, events: pa.RecordBatch, order: np.ndarray) -> None:
        """Write rows in some order, a multiple of ROW_GROUP but for the last time.

        Args:
            events: the columns of EVENT_SCHEMA in any order; texts but `source_id` as dictionaries,
                `codings` joined by SEPARATOR, or null where the code is the only one.
            order: which rows, sorted.
        """
        for start in range(0, len(order), ROW_GROUP):
            group = events.take(pa.array(order[start : start + ROW_GROUP]))
            columns = {name: _own_words(group[name]) for name in (*_WORDS, "codings")}
            columns["codings"] = _codings(columns["code"], columns["codings"])
            arrays = [columns.get(f.name, group[f.name]) for f in EVENT_SCHEMA]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=_WRITTEN), ROW_GROUP)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if kind is None:
            self._temporary.replace(self._file)


def _own_words(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """With the words that come in these rows and no others."""
    used = np.zeros(len(column.dictionary), bool)
    used[column.indices.drop_null().to_numpy()] = True
    places = np.cumsum(used, dtype=np.int32) - np.int32(1)
    indices = pa.array(places).take(column.indices)
    return pa.DictionaryArray.from_arrays(indices, column.dictionary.filter(pa.array(used)))


def _codings(code: pa.DictionaryArray, joined: pa.DictionaryArray) -> pa.Array:
    """Each row's list of codings."""
    codes = code.dictionary.to_pylist()
    lists = [[word] for word in codes]
    lists += [text.split(SEPARATOR) if text else [] for text in joined.dictionary.to_pylist()]
    offsets = np.append(0, np.cumsum([len(words) for words in lists])).astype(np.int32)
    words = pa.array([word for words in lists for word in words], pa.string()).dictionary_encode()
    choices = pa.ListArray.from_arrays(pa.array(offsets), sorted_words(words))
    theirs = pc.add(joined.indices, pa.scalar(len(codes), pa.int32()))
    return choices.take(pc.coalesce(theirs, code.indices))
