"""All blocks' parts to one events folder: look-ups, sorting, counting.

DuckDB does the joins and the sort out of core, first what concerns all patients (which there are,
after versions.py has said which records are used), then a shard at a time: the patients whose ids
share their first bits. Nothing here depends on the order of the parts, and a shard's file on
nothing but its rows, so that shards can be made side by side, and kept when a run is killed.
"""

import base64
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.fhir.columns import SEPARATOR
from ehrmamba_hf.events.fhir.database import Parts, count, open_parts, save
from ehrmamba_hf.events.schema import (
    DATA_FOLDER,
    ENCOUNTER_SCHEMA,
    EVENT_SCHEMA,
    ORDER,
    ROW_GROUP,
    SUBJECT_SCHEMA,
)
from ehrmamba_hf.events.sql import quoted

SHARD_ROWS: Final = 2_000_000
"""Patients are cut into the fewest shards, a power of two, that hold no more on average."""
_ID_BITS: Final = 63
_WORDS: Final = 4096  # of a dictionary: ids, of which there are more, are smaller without

_KEPT: Final = """
CREATE TABLE kept_subjects AS SELECT * FROM subjects ANTI JOIN losers USING (row);
CREATE TABLE kept_encounters AS SELECT e.* FROM encounters AS e ANTI JOIN losers USING (row)
    SEMI JOIN kept_subjects USING (subject_id);
CREATE TABLE kept_medications AS
WITH kept AS (SELECT * FROM medications ANTI JOIN losers USING (row)), whole AS (
    SELECT medication_id, code, codings FROM kept WHERE place IS NULL
), ingredients AS (  -- looked up once: a mixture in a mixture has no code
    SELECT k.medication_id, place, ingredient_id, coalesce(k.code, w.code) AS code,
        coalesce(k.codings, w.codings) AS codings
    FROM kept AS k LEFT JOIN whole AS w ON k.ingredient_id = w.medication_id
    WHERE place IS NOT NULL AND coalesce(k.code, w.code) IS NOT NULL
), spread AS (
    SELECT medication_id, (place, generate_subscripts(codings, 1)) AS place,
        unnest(codings) AS coding
    FROM ingredients
), firsts AS (
    SELECT medication_id, coding, min(place) AS place FROM spread GROUP BY medication_id, coding
), merged AS (
    SELECT medication_id, list(coding ORDER BY place) AS codings
    FROM firsts GROUP BY medication_id
)
SELECT *, NULL::VARCHAR[] AS ingredients FROM whole
UNION ALL BY NAME
SELECT medication_id, arg_min(code, place) AS code, any_value(m.codings) AS codings,
    list(ingredient_id) AS ingredients
FROM ingredients JOIN merged AS m USING (medication_id) GROUP BY medication_id
"""
_KEPT_TABLES: Final = ("kept_subjects", "kept_encounters", "kept_medications")

_MINE: Final = """
CREATE VIEW {name}_mine AS
SELECT * FROM {name} WHERE subject_id BETWEEN {low} AND {high};
CREATE VIEW {name}_kept AS
SELECT * FROM {name}_mine ANTI JOIN losers USING (row) SEMI JOIN kept_subjects USING (subject_id)
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
FROM open_events_kept AS e
LEFT JOIN stays AS s
    ON e.after_encounter AND e.encounter_id = s.encounter_id AND e.subject_id = s.subject_id
LEFT JOIN kept_medications AS d ON e.medication_id = d.medication_id;
CREATE VIEW used AS
SELECT * FROM events_kept
UNION ALL BY NAME SELECT * EXCLUDE (medication_id) FROM resolved
    WHERE code IS NOT NULL AND time IS NOT NULL
"""

_NAMED: Final = """
WITH asked AS (
    SELECT DISTINCT medication_id, code IS NOT NULL AS has_code
    FROM resolved WHERE medication_id IS NOT NULL
)
FROM asked
UNION SELECT unnest(ingredients), TRUE FROM kept_medications SEMI JOIN asked USING (medication_id)
"""

# DuckDB writes a column as required where the statistics of its parts say that it has no nulls, and
# a part without rows has none: with nullif, it is optional whatever the parts.
# Texts are split into codings after the sort, which does not carry lists well.
_SORTED: Final = """
SELECT * REPLACE (
    CASE WHEN codings IS NULL THEN [code] WHEN codings = '' THEN []
        ELSE string_split(codings, chr({separator})) END AS codings
) FROM (
    SELECT nullif(subject_id, -1) AS subject_id, time, code, numeric_value, text_value, end_time,
        available_time, unit, category, codings, encounter_id, resource_type, source_id
    FROM used ORDER BY {order}
)
"""

_OUTCOMES: Final = """
WITH first AS (
    SELECT row, subject_id, resource_type FROM events_mine WHERE place = 0
    UNION ALL SELECT row, subject_id, resource_type FROM open_events_mine WHERE place = 0
    UNION ALL SELECT row, subject_id, resource_type FROM resources_mine
), failed AS (
    SELECT row, CASE WHEN code IS NULL THEN 'unresolved medicationReference' ELSE 'no time' END
        AS failure
    FROM resolved WHERE place = 0 AND (code IS NULL OR time IS NULL)
)
SELECT resource_type, coalesce(
    l.reason, CASE WHEN p.subject_id IS NULL THEN 'no Patient resource' END, failure
) AS why, count(*)
FROM first LEFT JOIN losers AS l USING (row) LEFT JOIN kept_subjects AS p USING (subject_id)
LEFT JOIN failed USING (row) GROUP BY ALL
"""
_COUNTS: Final = """
SELECT category, code, year(time) AS year, min(time), max(time), count(*)
FROM read_parquet({file}) GROUP BY ALL
"""
_DANGLING: Final = """
SELECT resource_type || '.encounter', count(*) FROM used ANTI JOIN stays
USING (subject_id, encounter_id) WHERE encounter_id IS NOT NULL AND place = 0 GROUP BY ALL
"""
_OF_NOBODY: Final = """
SELECT resource_type, coalesce(l.reason, r.reason, CASE
    WHEN n.medication_id IS NULL THEN 'nothing refers to it'
    WHEN NOT n.has_code THEN 'no code' END) AS why, count(*)
FROM resources AS r LEFT JOIN losers AS l USING (row)
LEFT JOIN (SELECT DISTINCT * FROM named) AS n
    ON resource_type = 'Medication' AND source_id = n.medication_id
WHERE subject_id IS NULL GROUP BY ALL
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
    bits = 0
    while events > SHARD_ROWS << bits:
        bits += 1
    width = 1 << (_ID_BITS - bits)
    return [Shard(n, n * width, (n + 1) * width - 1) for n in range(1 << bits)]


def shard_file(out: Path, shard: Shard) -> Path:
    """Where a shard's events lie in an events folder."""
    return out / DATA_FOLDER / f"shard-{shard.number:05d}.parquet"


def shard_files(parts: Parts, shard: Shard, out: Path) -> list[Path]:
    """All that `write_shard` writes."""
    return [shard_file(out, shard), _named_file(parts, shard.number)]


def kept_files(parts: Parts) -> list[Path]:
    """All that `versions.find_losers` and `keep` write."""
    return [parts.folder / f"{table}.parquet" for table in ("losers", *_KEPT_TABLES)]


def keep(parts: Parts, threads: int, memory: int) -> dict[str, Any]:
    """Write the patients, encounters and medications that are used; return how many.

    Raises InputError where two patients' ids have one hash. `memory` in bytes.
    """
    with open_parts(parts, threads, memory) as database:
        losers = quoted(parts.folder / "losers.parquet")
        database.execute(f"CREATE VIEW losers AS FROM read_parquet({losers})")
        database.execute(_KEPT)
        ids = "SELECT subject_id FROM kept_subjects GROUP BY subject_id HAVING count(*) > 1"
        collisions = count(database, f"FROM ({ids})")
        if collisions:
            raise InputError(
                f"Patient ids: expected different hashes, found {collisions} collisions"
            )
        for table in _KEPT_TABLES:
            save(database, parts, table)
        orphans = count(
            database,
            "FROM kept_encounters AS e ANTI JOIN kept_encounters AS p "
            "ON e.part_of = p.encounter_id WHERE e.part_of IS NOT NULL",
        )
        return {
            "subjects": count(database, "FROM kept_subjects"),
            "encounters": count(database, "FROM kept_encounters"),
            "orphans": orphans,
        }


def write_shard(parts: Parts, shard: Shard, out: Path, memory: int) -> dict[str, Any]:
    """Write one shard, and its patients and encounters; return what was counted.

    Args:
        parts: of all blocks, after `keep`.
        shard: which patients.
        out: the folder to be; the shard goes to its data folder.
        memory: bytes for DuckDB, which spills to disk beyond.
    """
    with open_parts(parts, 1, memory) as database:
        for table in (*_KEPT_TABLES, "losers"):
            file = parts.folder / f"{table}.parquet"
            database.execute(f"CREATE VIEW {table} AS FROM read_parquet({quoted(file)})")
        place = {"low": shard.low, "high": shard.high, "separator": ord(SEPARATOR)}
        for name in ("events", "open_events", "resources"):
            database.execute(_MINE.format(name=name, **place))
        database.execute(_RESOLVED.format(**place))
        query, file = _SORTED.format(order=ORDER, **place), shard_file(out, shard)
        copy_sorted(database, query, EVENT_SCHEMA, file)
        named = _named_file(parts, shard.number)
        database.execute(f"COPY ({_NAMED}) TO {quoted(named)} (FORMAT parquet)")
        return {
            "outcomes": database.execute(_OUTCOMES).fetchall(),
            "counts": [
                (*row[:3], *(t.isoformat() for t in row[3:5]), row[5])
                for row in database.execute(_COUNTS.format(file=quoted(file))).fetchall()
            ],
            "dangling": database.execute(_DANGLING).fetchall(),
        }


def write_tables(
    parts: Parts, shards: int, out: dict[str, Path], threads: int, memory: int
) -> list[Any]:
    """Write subjects and encounters, and count the outcomes of resources of no patient."""
    with open_parts(parts, threads, memory) as database:
        for table, schema, order in (
            ("kept_subjects", SUBJECT_SCHEMA, "subject_id"),
            ("kept_encounters", ENCOUNTER_SCHEMA, 'subject_id, "start", encounter_id'),
        ):
            names = ", ".join(f'"{name}"' for name in schema.names)
            kept = quoted(parts.folder / f"{table}.parquet")
            query = f"SELECT {names} FROM read_parquet({kept}) ORDER BY {order}"
            found = database.sql(query).to_arrow_table().cast(schema)
            pq.write_table(found, out[table], compression="zstd")
        losers = quoted(parts.folder / "losers.parquet")
        named = [quoted(_named_file(parts, number)) for number in range(shards)]
        database.execute(f"CREATE VIEW losers AS FROM read_parquet({losers})")
        database.execute(f"CREATE VIEW named AS FROM read_parquet([{', '.join(named)}])")
        return database.execute(_OF_NOBODY).fetchall()


def iter_rejects(parts: Parts, spans: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """The rejects by file and line. `spans`: (file, start, lines) of all that was read."""
    with open_parts(parts, 1, 256 << 20) as database:
        columns = list(zip(*spans, strict=True)) if spans else [(), (), ()]
        kinds = {"file": pa.string(), "start": pa.int64(), "lines": pa.int64()}
        read = pa.table(
            [pa.array(c, k) for c, k in zip(columns, kinds.values(), strict=True)], list(kinds)
        )
        database.register("read", read)
        query = """
        WITH placed AS (
            SELECT file, start, sum(lines) OVER (PARTITION BY file ORDER BY start) - lines AS before
            FROM read
        )
        SELECT file, (line + before)::BIGINT AS line, resource_type, field, expected, found
        FROM rejects JOIN placed USING (file, start)
        ORDER BY file, line, resource_type, field, expected, found
        """
        for batch in database.sql(query).to_arrow_reader(ROW_GROUP):
            yield from batch.to_pylist()


def copy_sorted(
    database: duckdb.DuckDBPyConnection, query: str, schema: pa.Schema, file: Path
) -> None:
    """Write a query's rows in its order as Parquet, with the Arrow types of a schema.

    Parquet itself does not tell string from large_string, which MEDS does: pyarrow reads the
    schema from the file's metadata, where it puts its own.
    """
    arrow = base64.b64encode(schema.serialize()).decode()
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    database.execute(
        f"COPY ({query}) TO {quoted(temporary)} (FORMAT parquet, COMPRESSION lz4_raw, "
        f"ROW_GROUP_SIZE {ROW_GROUP}, DICTIONARY_SIZE_LIMIT {_WORDS}, WRITE_BLOOM_FILTER false, "
        f"KV_METADATA {{'ARROW:schema': '{arrow}'}})"
    )
    temporary.replace(file)


def _named_file(parts: Parts, shard: int) -> Path:
    """The medications that a shard's events refer to, with the ingredients of mixtures."""
    return parts.folder / f"named-{shard:05d}.parquet"
