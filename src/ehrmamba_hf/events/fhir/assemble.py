"""All blocks' parts to what concerns all patients: what is used, the tables beside the shards.

DuckDB does the joins out of core, after versions.py has said which version of a record is used and
before and after shards.py has made the shards. Nothing here depends on the order of the parts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.fhir.database import KEPT_TABLES, Parts, count, open_parts, save
from ehrmamba_hf.events.fhir.shards import named_file
from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, ROW_GROUP, SUBJECT_SCHEMA
from ehrmamba_hf.events.sql import quoted

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
_OF_NOBODY: Final = """
SELECT resource_type, coalesce(l.reason, r.reason, CASE
    WHEN n.medication_id IS NULL THEN 'nothing refers to it'
    WHEN NOT n.has_code THEN 'no code' END) AS why, count(*)
FROM resources AS r LEFT JOIN losers AS l USING (row)
LEFT JOIN (SELECT DISTINCT * FROM named) AS n
    ON resource_type = 'Medication' AND source_id = n.medication_id
WHERE subject_id IS NULL GROUP BY ALL
"""


def kept_files(parts: Parts) -> list[Path]:
    """All that `versions.find_losers` and `keep` write."""
    return [parts.folder / f"{table}.parquet" for table in ("losers", *KEPT_TABLES)]


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
        for table in KEPT_TABLES:
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
        named = [quoted(named_file(parts, number)) for number in range(shards)]
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
