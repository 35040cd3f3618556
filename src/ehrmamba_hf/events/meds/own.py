"""A MEDS dataset with this package's own columns: taken as it is, after its rules are checked."""

from pathlib import Path
from typing import Final

import duckdb

from ehrmamba_hf.errors import SchemaError
from ehrmamba_hf.events.schema import CATEGORIES, ENCOUNTERS_FILE, EVENT_SCHEMA, SUBJECTS_FILE
from ehrmamba_hf.events.sql import quoted
from ehrmamba_hf.events.table import read_encounters, read_subjects

EVENTS: Final = (
    f"SELECT {', '.join(EVENT_SCHEMA.names)} FROM rows WHERE subject_id BETWEEN $low AND $high"
)
_NO_ENCOUNTERS: Final = (
    f"The events name encounters, but there is no {ENCOUNTERS_FILE} beside them: visits are "
    "calendar days, and no stay is one."
)


def load_own(database: duckdb.DuckDBPyConnection, source: Path) -> list[str]:
    """Make the tables `people` and `stays` the source's own, as far as it has them.

    Without subjects.parquet, subjects are known by their births and deaths alone. Without
    encounters.parquet there are no encounters: where one began and ended, its events do not say.

    Returns:
        Warnings.

    Raises:
        SchemaError: a row breaks a rule of the events folder.
    """
    categories = ", ".join(map(quoted, CATEGORIES))
    rules = {
        f"category: expected one of {CATEGORIES}, found others": f"category NOT IN ({categories})",
        "category: expected one, found none": "category IS NULL",
        "available_time: expected null or not before time, found earlier": "available_time < time",
    }
    for sentence, broken in rules.items():
        _expect_none(database, broken, sentence)
    if (source / SUBJECTS_FILE).is_file():
        _replace(database, "people", read_subjects(source))
        sentence = f"subject_id: expected subjects of {SUBJECTS_FILE}, found others"
        _expect_none(database, "subject_id NOT IN (SELECT subject_id FROM people)", sentence)
    if (source / ENCOUNTERS_FILE).is_file():
        _replace(database, "stays", read_encounters(source))
        return []
    named = database.execute("SELECT 1 FROM rows WHERE encounter_id IS NOT NULL LIMIT 1")
    return [_NO_ENCOUNTERS] if named.fetchall() else []


def _expect_none(database: duckdb.DuckDBPyConnection, broken: str, sentence: str) -> None:
    query = f"SELECT min((file, row)), count(*) FROM rows WHERE {broken}"
    for first, count in database.execute(query).fetchall():
        if count:
            file, row = first
            raise SchemaError(f"{file}: column {sentence} in {count} rows, the first is row {row}")


def _replace(database: duckdb.DuckDBPyConnection, name: str, table: object) -> None:
    database.register("given", table)
    database.execute(f"CREATE OR REPLACE TABLE {name} AS FROM given")
    database.unregister("given")
