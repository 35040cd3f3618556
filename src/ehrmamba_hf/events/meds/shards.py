"""The shards of a MEDS dataset as one SQL query over columns of known names and types.

What is safe is cast: other integers for the subject, other time units and dates for the time,
other numbers for the value, texts of any encoding. A time with a zone is the wall clock of that
zone. MEDS before 0.3.3 calls the subject `patient_id`. Anything else is a SchemaError that names
file, column, expected and found.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zoneinfo import available_timezones

import meds
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.meds.rules import Columns
from ehrmamba_hf.events.schema import DATA_FOLDER, EVENT_SCHEMA
from ehrmamba_hf.events.sql import quoted
from ehrmamba_hf.folders import files_within

SUBJECT_COLUMNS: Final = ("subject_id", "patient_id")
_OWN: Final = tuple(
    name for name in EVENT_SCHEMA.names if name not in meds.DataSchema.schema().names
)
_UTC: Final = ("UTC", "Z", "+00:00")
_NULL: Final = "NULL::VARCHAR"
_TIMES: Final[tuple[str, ...]] = ("time", "end_time", "available_time")
_IN_YEARS: Final = "BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59.999999'"


@dataclass(frozen=True)
class Shards:
    """What the shards of a dataset hold.

    Attributes:
        query: SQL of a row each: `subject_id`, `time`, `code`, `numeric_value`, `text_value`,
            `end_time`, `unit`, `encounter_id`, `stay_id`, `race`, `source_table`, `misfit` (the
            column whose number does not fit a 32-bit float, or whose time is not in years 1 to
            9999), `file` and `row` (from 1); of a dataset with this package's own columns, these
            too.
        own: the dataset has all of this package's own columns.
        files: paths, sorted.
        rows: in all files.
        unused: extension columns that nothing is read from.
        utc: whether a file's times are written in UTC.
    """

    query: str
    own: bool
    files: tuple[Path, ...]
    rows: int
    unused: tuple[str, ...]
    utc: bool


def is_meds(source: Path) -> bool:
    """Whether a folder is a MEDS dataset: Parquet under `data/` that has codes of subjects.

    A dataset whose metadata say so is one even if its columns are wrong: reading it tells how.

    >>> is_meds(Path("no such folder"))
    False
    """
    files = shard_files(source)
    if not files:
        return False
    if "meds_version" in read_about(source):
        return True
    try:
        names = set(pq.read_schema(files[0]).names)
    except (OSError, pa.ArrowInvalid):
        return False
    return {"code", "time"} <= names and bool(names & set(SUBJECT_COLUMNS))


def shard_files(source: Path) -> list[Path]:
    """The data files of a MEDS dataset, sorted; hidden files and folders are something else.

    A link to nothing is found, so that reading it tells. Raises InputError for a folder that cannot
    be read.
    """
    data = Path(source) / DATA_FOLDER
    return sorted(file for file in files_within(data) if file.suffix == ".parquet")


def read_about(source: Path) -> dict[str, Any]:
    """metadata/dataset.json, or nothing where there is none that can be read."""
    try:
        about = json.loads((source / meds.dataset_metadata_filepath).read_bytes())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def read_shards(source: Path, columns: Columns) -> Shards:
    """Look at every shard's columns. Raises SchemaError, and InputError like `shard_files`."""
    files = shard_files(source)
    if not files:
        raise SchemaError(f"{source}: expected {DATA_FOLDER}/**/*.parquet, found no file")
    alike: dict[tuple[tuple[str, pa.DataType], ...], list[Path]] = {}
    rows = 0
    for file in files:
        schema, count = _look(file)
        rows += count
        alike.setdefault(tuple((f.name, f.type) for f in schema), []).append(file)
    own = all({*_OWN} <= {name for name, _ in fields} for fields in alike)
    queries, read = [], set()
    for fields, members in alike.items():
        found = _Fields(dict(fields), members[0])
        chosen = _select(found, columns, own)
        read |= found.read
        queries.append(_query(chosen, members))
    every = {name for fields in alike for name, _ in fields}
    utc = any(getattr(t, "tz", None) in _UTC for fs in alike for _, t in fs)
    query = " UNION ALL ".join(queries)
    return Shards(query, own, tuple(files), rows, tuple(sorted(every - read)), utc)


def _look(file: Path) -> tuple[pa.Schema, int]:
    try:
        with pq.ParquetFile(file) as shard:
            return shard.schema_arrow, shard.metadata.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{file}: expected a Parquet file, found {error}") from None


class _Fields:
    """The columns of files that are alike, and which of them were asked for."""

    def __init__(self, types: dict[str, pa.DataType], file: Path) -> None:
        self.types = {name: _plain(kind) for name, kind in types.items()}
        self.file = file
        self.read: set[str] = set()

    def required(self, names: Sequence[str], expected: str, cast: "_Cast") -> str:
        """SQL of a column that must be there."""
        found = self.optional(names, expected, cast)
        if found is None:
            raise SchemaError(
                f"{self.file}: expected a column {names[0]}, found {sorted(self.types)}"
            )
        return found

    def optional(self, names: Iterable[str], expected: str, cast: "_Cast") -> str | None:
        """SQL of the first of the columns that is there. Raises SchemaError for another type."""
        for name in names:
            if name in self.types:
                kind = self.types[name]
                sql = cast(_name(name), kind)
                if sql is None:
                    raise SchemaError(
                        f"{self.file}: column {name}: expected {expected}, found {kind}"
                    )
                self.read.add(name)
                return sql
        return None

    def extension(self, names: Iterable[str], cast: "_Cast") -> str | None:
        """Like `optional`, but a column of another type means something else."""
        for name in names:
            if name in self.types and (sql := cast(_name(name), self.types[name])) is not None:
                self.read.add(name)
                return sql
        return None


_Cast = Callable[[str, pa.DataType], str | None]


def _select(found: _Fields, columns: Columns, own: bool) -> dict[str, str]:
    """SQL of each column of `Shards.query`, by its name."""
    number = found.optional(["numeric_value"], "a number", _number) or "NULL::FLOAT"
    chosen = {
        "subject_id": found.required(SUBJECT_COLUMNS, "int64", _subject),
        "time": found.required(["time"], "timestamp[us]", _time),
        "code": found.required(["code"], "string", _text),
        # Adding zero makes -0.0 plain zero: two spellings of one number must not sort apart.
        "numeric_value": f"TRY_CAST({number} AS FLOAT) + 0::FLOAT",
        "text_value": found.optional(["text_value"], "string", _any_text) or _NULL,
        "end_time": found.extension(columns.end_time, _time) or "NULL::TIMESTAMP",
        "unit": found.extension(columns.unit, _text) or _NULL,
        "encounter_id": found.extension(columns.encounter_id, _id) or _NULL,
        "stay_id": found.extension(columns.stay_id, _id) or _NULL,
        "race": found.extension(columns.race, _text) or _NULL,
        "source_table": f"coalesce({found.extension(columns.source_table, _text) or _NULL}, '')",
    }
    if own:
        for name in _OWN:
            kind = EVENT_SCHEMA.field(name).type
            cast = _texts if pt.is_list(kind) else _time if pt.is_timestamp(kind) else _text
            chosen[name] = found.required([name], str(kind), cast)
    misfits = {name: f"NOT {chosen[name]} {_IN_YEARS}" for name in _TIMES if name in chosen}
    misfits["numeric_value"] = f"{number} IS NOT NULL AND TRY_CAST({number} AS FLOAT) IS NULL"
    cases = " ".join(f"WHEN {wrong} THEN {quoted(name)}" for name, wrong in misfits.items())
    return chosen | {"misfit": f"CASE {cases} END"}


def _query(chosen: dict[str, str], files: list[Path]) -> str:
    columns = ", ".join(f"{sql} AS {name}" for name, sql in chosen.items())
    return (
        f"SELECT {columns}, _file AS file, file_row_number + 1 AS row "
        f"FROM read_parquet({file_list(files)}, filename = '_file', file_row_number = true, "
        "hive_partitioning = false)"
    )


def _subject(name: str, kind: pa.DataType) -> str | None:
    return f"TRY_CAST({name} AS BIGINT)" if pt.is_integer(kind) else None


def _time(name: str, kind: pa.DataType) -> str | None:
    if pt.is_timestamp(kind) and kind.tz is not None:
        zone = "UTC" if kind.tz in _UTC else kind.tz
        known = zone in available_timezones()
        return f"timezone({quoted(zone)}, {name})::TIMESTAMP" if known else None
    if pt.is_date(kind):  # one too far off for a timestamp is as good as infinite
        cast = f"coalesce(TRY_CAST({name} AS TIMESTAMP), 'infinity')"
        return f"CASE WHEN {name} IS NOT NULL THEN {cast} END"
    return f"{name}::TIMESTAMP" if pt.is_timestamp(kind) else None


def _number(name: str, kind: pa.DataType) -> str | None:
    return name if pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) else None


def _text(name: str, kind: pa.DataType) -> str | None:
    return name if _is_text(kind) or pt.is_null(kind) else None


def _any_text(name: str, kind: pa.DataType) -> str | None:
    return f"{name}::VARCHAR" if not pt.is_nested(kind) and not pt.is_binary(kind) else None


def _id(name: str, kind: pa.DataType) -> str | None:
    if pt.is_floating(kind):  # whole numbers, some of which are missing
        return f"TRY_CAST({name} AS BIGINT)::VARCHAR"
    return f"nullif(trim({name}::VARCHAR), '')" if _is_text(kind) or pt.is_integer(kind) else None


def _texts(name: str, kind: pa.DataType) -> str | None:
    is_list = pt.is_list(kind) or pt.is_large_list(kind)
    return name if is_list and _is_text(kind.value_type) else None


def _is_text(kind: pa.DataType) -> bool:
    return pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind


def file_list(files: Iterable[Path]) -> str:
    """An SQL list of files, which DuckDB would else take as patterns.

    >>> file_list([Path("data [v2]/0*.parquet")])
    "['data [[]v2]/0[*].parquet']"
    """
    plain = (re.sub(r"[\[*?]", r"[\g<0>]", str(file)) for file in files)
    return f"[{', '.join(map(quoted, plain))}]"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
