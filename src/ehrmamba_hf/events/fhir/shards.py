"""A shard of patients from all blocks' parts to its file: look-ups, sorting, counting.

Events that need no look-up, nearly all, stay columns of numbers and dictionaries throughout; DuckDB
does the joins of the others. A shard's file depends on nothing but its rows, so that shards can be
made side by side, and kept when a run is killed.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrmamba_hf.events.fhir.columns import CLOSED_SCHEMA, SEPARATOR
from ehrmamba_hf.events.fhir.database import KEPT_TABLES, Parts, count, open_parts
from ehrmamba_hf.events.fhir.parts import part_file
from ehrmamba_hf.events.fhir.shard_file import ShardFile
from ehrmamba_hf.events.ordering import row_order, sorted_words
from ehrmamba_hf.events.schema import DATA_FOLDER, EVENT_SCHEMA, ROW_GROUP
from ehrmamba_hf.events.sql import quoted
from ehrmamba_hf.fhir.identity import SUBJECT_BITS

SHARD_ROWS: Final = 1_000_000
"""Patients are cut into the fewest shards, a power of two, that hold no more on average."""
_ROW_BYTES: Final = 400  # of an event but for its text, as it is read and as it is sorted
_PIECE_BYTES: Final = 1 << 30  # that are sorted at a time: Arrow's texts end at twice as much
_SCHEMA: Final = pa.schema([field for field in CLOSED_SCHEMA if field.name != "updated"])
_NAMES: Final = ", ".join(_SCHEMA.names)
_SUBJECT: Final = CLOSED_SCHEMA.get_field_index("subject_id")
_TEXT: Final = CLOSED_SCHEMA.get_field_index("text_value")

_MINE: Final = """
CREATE VIEW {name}_mine AS SELECT * FROM {name} WHERE subject_id BETWEEN {low} AND {high}
"""
_RESOLVED: Final = """
CREATE VIEW stays AS SELECT * FROM kept_encounters WHERE subject_id BETWEEN {low} AND {high};
CREATE TABLE resolved AS
SELECT
    e.* EXCLUDE (time, code, codings, available_time, fallback_time, after_encounter),
    coalesce(e.time, s."end", e.fallback_time) AS time,
    coalesce(e.code, d.code) AS code,
    CASE WHEN e.code IS NOT NULL THEN e.codings
        WHEN d.codings <> [d.code] THEN array_to_string(d.codings, chr({separator}))
        END AS codings,
    CASE
        WHEN NOT e.after_encounter OR s.encounter_id IS NULL THEN e.available_time
        WHEN s."end" IS NULL THEN NULL
        WHEN e.time > s."end" THEN greatest(e.available_time, e.time + INTERVAL 1 MICROSECOND)
        ELSE s."end" + INTERVAL 1 MICROSECOND
    END AS available_time
FROM (
    FROM open_events_mine ANTI JOIN losers USING (row) SEMI JOIN kept_subjects USING (subject_id)
) AS e
LEFT JOIN stays AS s
    ON e.after_encounter AND e.encounter_id = s.encounter_id AND e.subject_id = s.subject_id
LEFT JOIN kept_medications AS d ON e.medication_id = d.medication_id
"""
_USED: Final = """
SELECT {names} FROM resolved
WHERE code IS NOT NULL AND time IS NOT NULL AND subject_id BETWEEN {low} AND {high}
"""
_NAMED: Final = """
WITH asked AS (
    SELECT DISTINCT medication_id, code IS NOT NULL AS has_code
    FROM resolved WHERE medication_id IS NOT NULL
)
FROM asked
UNION SELECT unnest(ingredients), TRUE FROM kept_medications SEMI JOIN asked USING (medication_id)
"""
_REASONS: Final = "SELECT DISTINCT reason FROM losers ORDER BY reason"
_LOST: Final = """
SELECT row, list_position([{reasons}], reason)::UTINYINT AS reason
FROM losers SEMI JOIN events_mine USING (row) ORDER BY row
"""
# Of the other resources: those of events that need no look-up are counted by `_used`.
_OUTCOMES: Final = """
WITH first AS (
    SELECT row, subject_id, resource_type FROM open_events_mine WHERE place = 0
    UNION ALL SELECT row, subject_id, resource_type FROM resources_mine
), failed AS (
    SELECT row, CASE WHEN code IS NULL THEN 'unresolved medicationReference' ELSE 'no time' END
        AS failure
    FROM resolved WHERE place = 0 AND (code IS NULL OR time IS NULL)
)
SELECT resource_type, coalesce(
    l.reason, CASE WHEN p.subject_id IS NULL THEN '{no_patient}' END, failure
) AS why, count(*)
FROM first LEFT JOIN losers AS l USING (row) LEFT JOIN kept_subjects AS p USING (subject_id)
LEFT JOIN failed USING (row) GROUP BY ALL
"""
_NO_PATIENT: Final = "no Patient resource"
_COUNTS: Final = """
SELECT category, code, year(time) AS year, min(time), max(time), count(*)
FROM read_parquet({file}) GROUP BY ALL
"""


class Shard(NamedTuple):
    """The patients of one data file: those with ids from `low` to `high`."""

    number: int
    low: int
    high: int


def shards_of(events: int) -> list[Shard]:
    """The shards for so many events.

    >>> [shard.number for shard in shards_of(SHARD_ROWS + 1)], shards_of(0)[0].high == 2**63 - 1
    ([0, 1], True)
    """
    return _cut(Shard(0, 0, (1 << SUBJECT_BITS) - 1), events, SHARD_ROWS)


def _cut(whole: Shard, rows: int, most: int) -> list[Shard]:
    """The fewest equal parts, a power of two, that hold `most` rows or less on average."""
    bits = 0
    while rows > most << bits and whole.low + (1 << bits) <= whole.high:
        bits += 1
    width = (whole.high + 1 - whole.low) >> bits
    starts = (whole.low + n * width for n in range(1 << bits))
    return [Shard(n, start, start + width - 1) for n, start in enumerate(starts)]


def shard_file(out: Path, shard: Shard) -> Path:
    """Where a shard's events lie in an events folder."""
    return out / DATA_FOLDER / f"shard-{shard.number:05d}.parquet"


def named_file(parts: Parts, shard: int) -> Path:
    """The medications that a shard's events refer to, with the ingredients of mixtures."""
    return parts.folder / f"named-{shard:05d}.parquet"


def shard_files(parts: Parts, shard: Shard, out: Path) -> list[Path]:
    """All that `write_shard` writes."""
    return [shard_file(out, shard), named_file(parts, shard.number)]


def write_shard(parts: Parts, shard: Shard, out: Path, memory: int) -> dict[str, Any]:
    """Write one shard, and what its events refer to; return what was counted.

    Args:
        parts: of all blocks, after `keep`.
        shard: which patients.
        out: the folder to be; the shard goes to its data folder.
        memory: bytes. Half is DuckDB's, which spills to disk beyond; as many patients are sorted at
            a time as fit in the other half, but always a whole one.
    """
    with open_parts(parts, 1, memory // 2) as database:
        for table in (*KEPT_TABLES, "losers"):
            file = parts.folder / f"{table}.parquet"
            database.execute(f"CREATE VIEW {table} AS FROM read_parquet({quoted(file)})")
        place = {"low": shard.low, "high": shard.high, "separator": ord(SEPARATOR)}
        for name in ("events", "open_events", "resources"):
            database.execute(_MINE.format(name=name, **place))
        database.execute(_RESOLVED.format(**place))
        file = shard_file(out, shard)
        told = _write_events(database, parts, shard, file, memory // 2)
        named = named_file(parts, shard.number)
        database.execute(f"COPY ({_NAMED}) TO {quoted(named)} (FORMAT parquet)")
        outcomes = database.execute(_OUTCOMES.format(no_patient=_NO_PATIENT)).fetchall()
        counts = database.execute(_COUNTS.format(file=quoted(file))).fetchall()
    return {
        "outcomes": [*outcomes, *((*key, n) for key, n in told.outcomes.items())],
        "counts": [(*row[:3], *(t.isoformat() for t in row[3:5]), row[5]) for row in counts],
        "dangling": list(told.dangling.items()),
    }


class _Told(NamedTuple):
    """Counts of events' resources."""

    outcomes: Counter[tuple[str, str | None]]  # by type and why they are not used, None: they are
    dangling: Counter[str]  # references to encounters that there are not, by field


def _write_events(
    database: duckdb.DuckDBPyConnection, parts: Parts, shard: Shard, file: Path, memory: int
) -> _Told:
    told, rest = _Told(Counter(), Counter()), None
    with ShardFile(file) as writer:
        for piece in _pieces(parts, shard, count(database, "FROM resolved"), memory):
            query = _USED.format(names=_NAMES, **piece._asdict())
            tables = [
                _used(database, _closed(parts, piece), piece, told),
                database.sql(query).to_arrow_table().cast(_SCHEMA),
            ]
            events = _one_batch(tables)
            _count_dangling(database, events, piece, told)
            events = events.select(EVENT_SCHEMA.names)
            if rest is not None:
                events = _one_batch([rest, pa.Table.from_batches([events])])
            order, last = row_order(events), 0
            if piece.high < shard.high:  # the last row group waits for more
                last = len(order) % ROW_GROUP
                rest = pa.Table.from_batches([events.take(pa.array(order[len(order) - last :]))])
            writer.write(events, order[: len(order) - last])
    return told


def _pieces(parts: Parts, shard: Shard, others: int, memory: int) -> list[Shard]:
    """The patients that can be sorted at a time; `others`: events that are not in the parts."""
    rows, size = float(others), float(others * _ROW_BYTES)
    for number in parts.numbers:
        with pq.ParquetFile(part_file(parts.folder, "events", number)) as part:
            groups = [part.metadata.row_group(g) for g in range(part.num_row_groups)]
            shares = [(group, _share(group, shard)) for group in groups]
            rows += sum(share * group.num_rows for group, share in shares)
            size += sum(s * group.column(_TEXT).total_uncompressed_size for group, s in shares)
    size += rows * _ROW_BYTES
    most = rows * min(memory, _PIECE_BYTES) / max(1.0, size)
    return _cut(shard, int(rows), max(ROW_GROUP, int(most)))


def _share(group: pq.RowGroupMetaData, piece: Shard) -> float:
    """How much of a part's row group belongs to some patients, whose ids are as good as random."""
    subjects = group.column(_SUBJECT).statistics if group.num_rows else None
    if subjects is None:
        return 0.0
    inside = min(subjects.max, piece.high) + 1 - max(subjects.min, piece.low)
    return max(0.0, inside / (subjects.max + 1 - subjects.min))


def _closed(parts: Parts, piece: Shard) -> pa.Table:
    """The events of some patients that need no look-up."""
    found = [_SCHEMA.empty_table()]
    for number in parts.numbers:
        with pq.ParquetFile(part_file(parts.folder, "events", number)) as part:
            every = range(part.num_row_groups)
            groups = [g for g in every if _share(part.metadata.row_group(g), piece)]
            if not groups:
                continue
            table = part.read_row_groups(groups, _SCHEMA.names, use_threads=False).cast(_SCHEMA)
        subjects = table["subject_id"].to_numpy()
        mine = (subjects >= piece.low) & (subjects <= piece.high)
        found.append(table if mine.all() else table.filter(pa.array(mine)))
    return pa.concat_tables(found)


def _used(
    database: duckdb.DuckDBPyConnection, events: pa.Table, piece: Shard, told: _Told
) -> pa.Table:
    """The events whose record is used; what becomes of each record is counted."""
    query = (
        "SELECT subject_id FROM kept_subjects WHERE subject_id BETWEEN {low} AND {high} ORDER BY 1"
    )
    patients = database.sql(query.format(**piece._asdict())).fetchnumpy()["subject_id"]
    subjects = events["subject_id"].to_numpy()
    why = np.where(_places(patients, subjects) < 0, 1, 0).astype(np.uint8)
    reasons = [row[0] for row in database.execute(_REASONS).fetchall()]
    if reasons:
        lost = database.sql(_LOST.format(reasons=", ".join(map(quoted, reasons)))).fetchnumpy()
        place = _places(lost["row"], events["row"].to_numpy())
        why = np.where(place < 0, why, 1 + np.append(lost["reason"], np.uint8(0))[place])
        del lost, place
    kinds = events["resource_type"].unify_dictionaries().combine_chunks()
    first = events["place"].to_numpy() == 0
    pairs = why[first].astype(np.intp) * len(kinds.dictionary) + kinds.indices.to_numpy()[first]
    whys, types = (None, _NO_PATIENT, *reasons), kinds.dictionary.to_pylist()
    for pair, n in enumerate(np.bincount(pairs).tolist()):
        if n:
            told.outcomes[types[pair % len(types)], whys[pair // len(types)]] += n
    return events.filter(pa.array(why == 0)) if why.any() else events


def _places(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value is among sorted ones, -1 where it is not; none is negative.

    >>> _places(np.array([2, 5]), np.array([5, 4, 9])).tolist()
    [1, -1, -1]
    """
    places = np.searchsorted(known, values)
    return np.where(np.append(known, -1)[places] == values, places, -1)


def _count_dangling(
    database: duckdb.DuckDBPyConnection, events: pa.RecordBatch, piece: Shard, told: _Told
) -> None:
    """Count the references to encounters that the patient does not have."""
    query = "SELECT subject_id, encounter_id FROM stays WHERE subject_id BETWEEN {low} AND {high}"
    stays = database.sql(query.format(**piece._asdict())).to_arrow_table()
    encounters = events["encounter_id"]
    told_of = pc.is_valid(encounters).to_numpy(zero_copy_only=False)
    told_of &= events["place"].to_numpy() == 0
    found = pc.index_in(encounters.dictionary, value_set=stays["encounter_id"].combine_chunks())
    # By the number of the encounter's text.
    owners = np.append(stays["subject_id"].to_numpy(), -1)[found.fill_null(-1).to_numpy()]
    owners = owners[encounters.indices.fill_null(0).to_numpy()[told_of]]
    kinds = events["resource_type"]
    dangling = owners != events["subject_id"].to_numpy()[told_of]
    counts = np.bincount(kinds.indices.to_numpy()[told_of][dangling])
    for kind, n in zip(kinds.dictionary.to_pylist(), counts.tolist(), strict=False):
        if n:
            told.dangling[f"{kind}.encounter"] += n


def _one_batch(tables: list[pa.Table]) -> pa.RecordBatch:
    """All rows as one, the texts of each column in one sorted dictionary. Empties the list."""
    # An empty one would make a copy of the others.
    whole = pa.concat_tables([t for t in tables if len(t)] or tables[:1]).unify_dictionaries()
    tables.clear()  # not to have all of it twice in memory
    schema, columns = whole.schema, []
    while whole.num_columns:
        column = whole.column(0).combine_chunks()
        whole = whole.remove_column(0)
        columns.append(sorted_words(column) if pa.types.is_dictionary(column.type) else column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)
