"""Which patients, encounters and medications are used, once it is known which records are not."""

from typing import Any

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.assemble import _KEPT, _KEPT_TABLES, Parts, _count, _database, _quote

LOSERS = "losers.parquet"


def keep(parts: Parts, threads: int, memory: int) -> dict[str, Any]:
    """Write the kept tables that `write_shard` needs, given losers.parquet beside the parts."""
    with _database(parts, threads, memory) as database:
        database.execute(
            f"CREATE VIEW losers AS FROM read_parquet({_quote(parts.folder / LOSERS)})"
        )
        database.execute(_KEPT)
        count = (
            "FROM (SELECT subject_id FROM kept_subjects GROUP BY subject_id HAVING count(*) > 1)"
        )
        collisions = _count(database, count)
        if collisions:
            raise InputError(
                f"Patient ids: expected different hashes, found {collisions} collisions"
            )
        for table in set(_KEPT_TABLES) - {"losers"}:
            file = parts.folder / f"{table}.parquet"
            database.execute(f"COPY {table} TO {_quote(file)} (FORMAT parquet)")
        orphans = _count(
            database,
            "FROM kept_encounters AS e ANTI JOIN kept_encounters AS p "
            "ON e.part_of = p.encounter_id WHERE e.part_of IS NOT NULL",
        )
        return {
            "subjects": _count(database, "FROM kept_subjects"),
            "encounters": _count(database, "FROM kept_encounters"),
            "orphans": orphans,
        }
