"""All workers' parts to one events folder: versions, look-ups, sorting, sharding, counting.

DuckDB does the joins and the sort out of core; nothing here depends on the order of the parts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.parts import PART_SCHEMAS
from ehrmamba_hf.events.schema import (
    DATA_FOLDER,
    ENCOUNTER_SCHEMA,
    ENCOUNTERS_FILE,
    EVENT_SCHEMA,
    SUBJECT_SCHEMA,
    SUBJECTS_FILE,
)

ROW_GROUP: Final = 65_536
SHARD_ROWS: Final = 4_000_000
"""A shard is closed at the first new subject after this many rows."""

# Of the records with one type and id, the last updated one is used, then the one with the largest
# digest: a rule that does not see the order of files.
_LOSERS: Final = """
CREATE TABLE losers AS
WITH repeated AS (
    SELECT hash(resource_type, source_id) AS key FROM resources GROUP BY key HAVING count(*) > 1
), rivals AS (
    SELECT row, digest, row_number() OVER best AS place, first_value(digest) OVER best AS winner
    FROM resources WHERE hash(resource_type, source_id) IN (SELECT key FROM repeated)
    WINDOW best AS (
        PARTITION BY resource_type, source_id ORDER BY updated DESC NULLS LAST, digest DESC, row
    )
)
SELECT row, CASE WHEN digest = winner THEN 'duplicate' ELSE 'another version is used' END AS reason
FROM rivals WHERE place > 1
"""

_KEPT: Final = """
CREATE TABLE patients AS SELECT * FROM subjects ANTI JOIN losers USING (row);
CREATE TABLE stays AS
    SELECT * FROM encounters ANTI JOIN losers USING (row) SEMI JOIN patients USING (subject_id);
CREATE TABLE drugs AS SELECT * FROM medications ANTI JOIN losers USING (row);
"""

_RESOLVED: Final = """
CREATE VIEW resolved AS
SELECT
    e.* EXCLUDE (time, code, codings, available_time),
    coalesce(e.time, s."end", e.fallback_time) AS time,
    coalesce(e.code, d.code) AS code,
    coalesce(e.codings, d.codings) AS codings,
    CASE
        WHEN NOT e.after_encounter OR s.encounter_id IS NULL THEN e.available_time
        WHEN s."end" IS NULL THEN NULL
        WHEN e.time > s."end" THEN greatest(e.available_time, e.time + INTERVAL 1 MICROSECOND)
        ELSE s."end" + INTERVAL 1 MICROSECOND
    END AS available_time
FROM (FROM events ANTI JOIN losers USING (row) SEMI JOIN patients USING (subject_id)) AS e
LEFT JOIN stays AS s
    ON e.after_encounter AND e.encounter_id = s.encounter_id AND e.subject_id = s.subject_id
LEFT JOIN drugs AS d ON e.medication_id = d.medication_id
"""

_FAILED: Final = """
CREATE TABLE failed AS
SELECT row, CASE
    WHEN code IS NULL THEN 'unresolved medicationReference' ELSE 'no time' END AS reason
FROM resolved WHERE code IS NULL OR time IS NULL
"""

_OUTCOMES: Final = """
WITH named AS (
    SELECT DISTINCT medication_id FROM resolved WHERE medication_id IS NOT NULL
), outcomes AS (
    SELECT r.resource_type, coalesce(
        l.reason,
        r.reason,
        CASE WHEN r.subject_id IS NOT NULL AND p.subject_id IS NULL THEN 'no Patient resource' END,
        f.reason,
        CASE WHEN r.resource_type = 'Medication' AND n.medication_id IS NULL
            THEN 'no request or administration refers to it' END
    ) AS reason
    FROM resources AS r
    LEFT JOIN losers AS l ON r.row = l.row
    LEFT JOIN patients AS p ON r.subject_id = p.subject_id
    LEFT JOIN failed AS f ON r.row = f.row
    LEFT JOIN named AS n ON r.source_id = n.medication_id
)
SELECT resource_type, reason, count(*) FROM outcomes GROUP BY ALL
"""

# A total order: rows that tie on all of these are the same row.
_ORDER: Final = (
    "subject_id, time NULLS FIRST, category, code, numeric_value, text_value, source_id, end_time, "
    "available_time, unit, encounter_id, resource_type, codings"
)

_CODES: Final = """
WITH ranked AS (
    SELECT code, display, row_number() OVER best AS place FROM displays
    WINDOW best AS (PARTITION BY code ORDER BY count DESC, display)
)
SELECT c.code, r.display AS description, []::VARCHAR[] AS parent_codes
FROM (SELECT DISTINCT code FROM written) AS c LEFT JOIN ranked AS r ON c.code = r.code AND place = 1
ORDER BY c.code
"""


class Assembly:
    """The joined view over a folder of parts. Use as a context manager."""

    def __init__(self, parts: Path, threads: int) -> None:
        self._database = duckdb.connect(
            config={"threads": threads, "temp_directory": str(parts / "spill")}
        )
        self._database.execute("SET preserve_insertion_order = false")
        for name in PART_SCHEMAS:
            files = _quote(parts / f"{name}-*.parquet")
            self._database.execute(f"CREATE VIEW {name} AS FROM read_parquet({files})")
        for step in (_LOSERS, _KEPT, _RESOLVED, _FAILED):
            self._database.execute(step)

    def __enter__(self) -> "Assembly":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def write(self, out: Path) -> None:
        """subjects, encounters and the sorted shards. Raises InputError where two ids collide."""
        collisions = self._count(
            "FROM (SELECT subject_id FROM patients GROUP BY subject_id HAVING count(*) > 1)"
        )
        if collisions:
            raise InputError(
                f"Patient ids: expected different hashes, found {collisions} collisions"
            )
        self._write_table("patients", SUBJECT_SCHEMA, "subject_id", out / SUBJECTS_FILE)
        order = 'subject_id, "start", encounter_id'
        self._write_table("stays", ENCOUNTER_SCHEMA, order, out / ENCOUNTERS_FILE)
        (out / DATA_FOLDER).mkdir()
        names = ", ".join(EVENT_SCHEMA.names)
        events = self._database.sql(
            f"SELECT {names} FROM resolved WHERE code IS NOT NULL AND time IS NOT NULL "
            f"ORDER BY {_ORDER}"
        )
        write_shards(events.to_arrow_reader(ROW_GROUP), out / DATA_FOLDER)
        shards = _quote(out / DATA_FOLDER / "*.parquet")
        self._database.execute(f"CREATE VIEW written AS FROM read_parquet({shards})")

    def outcomes(self) -> Iterator[tuple[str, str | None, int]]:
        """(resource type, why not used or None, how many) of the records that could be decoded."""
        yield from self._database.execute(_OUTCOMES).fetchall()

    def rejects(self) -> pa.RecordBatchReader:
        """The rejects, by file and line."""
        query = "FROM rejects ORDER BY file, line, resource_type, field, expected, found"
        return self._database.sql(query).to_arrow_reader(ROW_GROUP)

    def codes(self, displays: pa.Table) -> pa.Table:
        """Each written code with its most frequent display. `displays`: code, display, count."""
        self._database.register("displays", displays)
        return self._database.sql(_CODES).to_arrow_table()

    def summary(self) -> dict[str, Any]:
        """Counts over what was written: see Report."""
        run = self._database.execute
        first, last = run(
            "SELECT min(time), max(time) FROM written WHERE category NOT IN ('birth', 'death')"
        ).fetchall()[0]
        dangling = run(
            "SELECT resource_type || '.encounter', count(DISTINCT source_id) FROM written "
            "ANTI JOIN stays USING (subject_id, encounter_id) WHERE encounter_id IS NOT NULL "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        orphans = self._count(
            "FROM stays AS s ANTI JOIN stays AS p ON s.part_of = p.encounter_id "
            "WHERE s.part_of IS NOT NULL"
        )
        return {
            "subjects": self._count("FROM patients"),
            "encounters": self._count("FROM stays"),
            "events": dict(
                run("SELECT category, count(*) FROM written GROUP BY ALL ORDER BY ALL").fetchall()
            ),
            "date_range": [time.isoformat() for time in (first, last) if time is not None],
            "unresolved_references": dict(dangling)
            | ({"Encounter.partOf": orphans} if orphans else {}),
        }

    def _count(self, what: str) -> int:
        return int(self._database.execute(f"SELECT count(*) {what}").fetchall()[0][0])

    def _write_table(self, table: str, schema: pa.Schema, order: str, file: Path) -> None:
        names = ", ".join(f'"{name}"' for name in schema.names)
        query = f"SELECT {names} FROM {table} ORDER BY {order}"
        found: pa.Table = self._database.sql(query).to_arrow_table()
        pq.write_table(found.cast(schema), file, compression="zstd")


def write_shards(
    batches: pa.RecordBatchReader,
    folder: Path,
    *,
    shard_rows: int = SHARD_ROWS,
    row_group: int = ROW_GROUP,
) -> None:
    """Write sorted events as shards that cut between subjects only, in row groups of one size.

    The files depend on the rows alone, not on how they are batched (the chunks are combined, since
    pages would follow them). There is always one shard, so that an empty table has its schema too.
    """
    shard, written, held = 0, 0, EVENT_SCHEMA.empty_table()
    writer = _open_shard(folder, shard)
    try:
        for batch in batches:
            held = pa.concat_tables([held, pa.Table.from_batches([batch]).cast(EVENT_SCHEMA)])
            while (cut := _next_cut(held, shard_rows - written)) is not None:
                writer.write_table(held.slice(0, cut).combine_chunks(), row_group)
                writer.close()
                shard, written, held = shard + 1, 0, held.slice(cut)
                writer = _open_shard(folder, shard)
            whole = min(len(held), shard_rows - 1 - written) // row_group * row_group
            if whole > 0:
                writer.write_table(held.slice(0, whole).combine_chunks(), row_group)
                written, held = written + whole, held.slice(whole)
        if len(held):
            writer.write_table(held.combine_chunks(), row_group)
    finally:
        writer.close()


def _next_cut(held: pa.Table, room: int) -> int | None:
    """The first row at or after `room` that begins a subject, if any of `held` does."""
    if len(held) <= room:
        return None
    ids = held["subject_id"].slice(max(room - 1, 0)).to_numpy()
    starts = np.flatnonzero(np.diff(ids))
    return max(room - 1, 0) + int(starts[0]) + 1 if len(starts) else None


def _open_shard(folder: Path, number: int) -> pq.ParquetWriter:
    file = folder / f"shard-{number:05d}.parquet"
    return pq.ParquetWriter(file, EVENT_SCHEMA, compression="zstd")


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
