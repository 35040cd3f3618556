"""Who the subjects of a MEDS dataset are, in SQL, from the codes that say so.

Birth and death are the earliest of their codes. A death at midnight exactly is a date that lost its
kind. A death before the birth is refused: the subject is dead without a date. A sex that two codes
contradict is none; of several races all are kept, joined by "; ".
"""

from typing import Final

import duckdb

# `marks`: the rows that are no plain events (see source.py); `seen`: every subject once.
_TOLD: Final = """
CREATE TABLE told AS
SELECT *, coalesce(
    role = 'death'
    AND day_over(time) < min(time) FILTER (role = 'birth') OVER (PARTITION BY subject_id), false
) AS refused
FROM marks WHERE role IN ('birth', 'death', 'sex', 'race')
"""

_PEOPLE: Final = """
CREATE TABLE people AS
WITH facts AS (
    SELECT subject_id,
        min(time) FILTER (role = 'birth') AS birth,
        min(time) FILTER (role = 'death' AND NOT refused) AS death,
        bool_or(role = 'death') AS deceased,
        CASE WHEN count(DISTINCT value) FILTER (role = 'sex') = 1
            THEN min(value) FILTER (role = 'sex') END AS sex,
        string_agg(DISTINCT value, '; ' ORDER BY value) FILTER (role = 'race') AS race
    FROM told GROUP BY subject_id
)
SELECT s.subject_id, s.subject_id::VARCHAR AS source_id, f.birth, f.death,
    coalesce(hourless(f.death), false) AS death_is_date, coalesce(f.deceased, false) AS deceased,
    f.sex, f.race
FROM seen AS s LEFT JOIN facts AS f USING (subject_id)
"""

_CONFLICTS: Final = """
SELECT role, count(*) FROM (
    SELECT subject_id, role FROM told WHERE role IN ('birth', 'death', 'sex')
    GROUP BY subject_id, role
    HAVING count(DISTINCT CASE WHEN role = 'sex' THEN value ELSE time::VARCHAR END) > 1
) GROUP BY role ORDER BY role
"""


def make_subjects(database: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The tables `told` (facts, and which are refused) and `people` (SUBJECT_SCHEMA).

    Returns:
        By fact, how many subjects have several that differ.
    """
    database.execute(_TOLD)
    database.execute(_PEOPLE)
    return dict(database.execute(_CONFLICTS).fetchall())
