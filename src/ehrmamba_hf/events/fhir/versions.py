"""Which version of a record is used, where several have one type and id.

The one that was last updated, and of these the one with the largest hash of what it gives: a rule
that does not see the order of files.
"""

from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from ehrmamba_hf.events.fhir.database import Parts, count, open_parts, save
from ehrmamba_hf.events.fhir.parts import PART_SCHEMAS

_KEY_BYTES: Final = 24  # a key as DuckDB finds it, as it is fetched and as it is sorted

_RESOURCES: Final = """
CREATE VIEW all_resources AS
SELECT row, resource_type, source_id, updated FROM events WHERE place = 0
UNION ALL SELECT row, resource_type, source_id, updated FROM open_events WHERE place = 0
UNION ALL SELECT row, resource_type, source_id, updated FROM resources
"""
_KEYS: Final = """
SELECT hash(resource_type, source_id) AS key FROM all_resources WHERE key % {rounds} = {turn}
"""
_RIVALS: Final = """
CREATE TABLE rivals AS
SELECT * FROM all_resources WHERE hash(resource_type, source_id) IN (FROM repeated)
"""
_GIVEN: Final = """
SELECT row, hash(*COLUMNS(lambda name: name NOT IN ('row', 'updated'))) AS given
FROM {table} SEMI JOIN rivals USING (row)
"""
_LOSERS: Final = """
CREATE TABLE losers AS
WITH given AS ({given}), contents AS (
    SELECT row, list(given ORDER BY given) AS content FROM given GROUP BY row
), placed AS (
    SELECT row, content, row_number() OVER best AS place, first_value(content) OVER best AS winner
    FROM rivals LEFT JOIN contents USING (row)
    WINDOW best AS (
        PARTITION BY resource_type, source_id ORDER BY updated DESC NULLS LAST, content DESC, row
    )
)
SELECT row, CASE WHEN content IS NOT DISTINCT FROM winner
    THEN 'duplicate' ELSE 'another version is used' END AS reason
FROM placed WHERE place > 1
"""


def find_losers(parts: Parts, threads: int, memory: int) -> None:
    """Write losers.parquet: the records that are not used because of another version, and why.

    `memory` in bytes.
    """
    with open_parts(parts, threads, memory) as database:
        database.execute(_RESOURCES)
        find_repeated(database, memory)
        if count(database, "FROM repeated"):
            database.execute(_RIVALS)
            tables = [name for name in PART_SCHEMAS if name != "rejects"]
            given = " UNION ALL ".join(_GIVEN.format(table=table) for table in tables)
            database.execute(_LOSERS.format(given=given))
        else:
            database.execute("CREATE TABLE losers (row BIGINT, reason VARCHAR)")
        save(database, parts, "losers")


def find_repeated(database: duckdb.DuckDBPyConnection, memory: int) -> None:
    """Make the table `repeated`: hashes of the types and ids that more than one record has.

    They are sorted by numpy, many times as fast as they are grouped, as many at a time as half of
    `memory` bytes holds.
    """
    database.execute("CREATE TABLE repeated (key UBIGINT)")
    rounds = 1 + count(database, "FROM all_resources") * _KEY_BYTES * 2 // memory
    for turn in range(rounds):
        keys = database.sql(_KEYS.format(rounds=rounds, turn=turn)).fetchnumpy()["key"]
        keys.sort()
        database.register("found", pa.table({"key": np.unique(keys[1:][keys[1:] == keys[:-1]])}))
        database.execute("INSERT INTO repeated FROM found")
        database.unregister("found")
