"""Encounters from the codes that begin and end them, in SQL.

Rows with an id of their own (`hadm_id`, or for parts `icustay_id`) make one encounter an id, from
the first beginning to the last end. The others are paired in time order: a beginning is ended by
the next row if that is an end, else it has none; an end without a beginning before it is not used.
A row that names its own end (OMOP's visits) needs no other. Encounters of intensive care are parts
of the hospital encounter that they name, else of the one whose time holds them.
"""

from typing import Final

import duckdb

# kind of encounter, and whether the row begins it
SIDES: Final = {
    "admission": ("hospital", True),
    "discharge": ("hospital", False),
    "icu_admission": ("icu", True),
    "icu_discharge": ("icu", False),
    "ed_arrival": ("ed", True),
    "ed_departure": ("ed", False),
}

# `marks` has subject_id, time, role, value, encounter_id, stay_id, end_time; boundaries its rows
# with a time, by kind and side, with the id that is their encounter's own.
_BOUNDARIES: Final = """
CREATE TABLE boundaries AS
SELECT m.*, s.kind, s.begins,
    CASE WHEN s.kind = 'hospital' THEN m.encounter_id ELSE m.stay_id END AS own_id
FROM marks AS m JOIN sides AS s USING (role)
WHERE m.time IS NOT NULL
"""

_WITH_ID: Final = """
CREATE TABLE with_id AS
SELECT subject_id, kind, own_id, min(encounter_id) AS encounter_id,
    min(time) FILTER (begins) AS start,
    coalesce(max(end_time) FILTER (begins), max(time) FILTER (NOT begins)) AS "end",
    arg_min(value, {'time': time, 'value': value}) FILTER (begins) AS class,
    arg_max(value, {'time': time, 'value': value}) FILTER (NOT begins) AS disposition,
    count(*) FILTER (NOT begins) AS ends
FROM boundaries
WHERE own_id IS NOT NULL
GROUP BY subject_id, kind, own_id
"""

# At one moment, an end comes first if something is open, for the patient is moved on; else it
# closes what begins at that moment.
_IN_ORDER: Final = """
CREATE TABLE in_order AS
WITH told AS (
    SELECT *, coalesce((max({'time': time, 'begins': begins}) OVER (
        PARTITION BY subject_id, kind, encounter_id ORDER BY time
        RANGE BETWEEN UNBOUNDED PRECEDING AND INTERVAL 1 MICROSECOND PRECEDING
    )).begins, false) AS open
    FROM boundaries WHERE own_id IS NULL
)
SELECT subject_id, kind, encounter_id, begins, time AS start, value AS class,
    lag(begins) OVER following AS begun,
    coalesce(end_time, CASE WHEN NOT lead(begins) OVER following THEN lead(time) OVER following END)
        AS "end",
    CASE WHEN NOT lead(begins) OVER following THEN lead(value) OVER following END AS disposition
FROM told
WINDOW following AS (
    PARTITION BY subject_id, kind, encounter_id ORDER BY time, open = begins, value, end_time
)
"""

_FOUND: Final = """
CREATE TABLE found AS
SELECT subject_id, kind, start, "end", class, disposition,
    scoped(subject_id, encounter_id) AS whole,
    CASE WHEN kind = 'hospital' THEN '' ELSE kind || '/' END || scoped(subject_id, own_id)
        AS encounter_id
FROM with_id WHERE start IS NOT NULL
UNION ALL
SELECT subject_id, kind, start, "end", class, disposition, scoped(subject_id, encounter_id),
    subject_id || '/' || kind || '/' || row_number() OVER (
        PARTITION BY subject_id, kind ORDER BY start, encounter_id, "end", class, disposition
    )
FROM in_order WHERE begins
"""

_STAYS: Final = """
CREATE TABLE stays AS
WITH hospital AS (FROM found WHERE kind = 'hospital'), placed AS (
    SELECT f.*, h.encounter_id AS holder, h."end" AS holder_end
    FROM found AS f ASOF LEFT JOIN hospital AS h
        ON f.subject_id = h.subject_id AND f.start >= h.start
)
SELECT p.subject_id, p.encounter_id,
    CASE WHEN p.kind = 'icu' THEN coalesce(
        n.encounter_id,
        CASE WHEN p.holder_end IS NULL OR p.start <= p.holder_end THEN p.holder END
    ) END AS part_of,
    p.start, p."end", nullif(p.class, '') AS class, nullif(p.disposition, '') AS disposition,
    $source AS source
FROM placed AS p LEFT JOIN hospital AS n
    ON p.kind = 'icu' AND p.subject_id = n.subject_id AND p.whole = n.encounter_id
"""

# Spans in which some encounter goes on, for events that name none. One without an end goes on
# until the next begins; the last one for ever.
_SPANS: Final = """
CREATE TABLE spans AS
WITH roots AS (
    SELECT subject_id, start, coalesce(
        "end", lead(start) OVER (PARTITION BY subject_id ORDER BY start), 'infinity'::TIMESTAMP
    ) AS over
    FROM stays WHERE part_of IS NULL
), reached AS (
    SELECT *, max(over) OVER (
        PARTITION BY subject_id ORDER BY start, over
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS reach
    FROM roots WHERE over >= start
), numbered AS (
    SELECT *, count(*) FILTER (reach IS NULL OR start > reach) OVER (
        PARTITION BY subject_id ORDER BY start, over
    ) AS span
    FROM reached
)
SELECT subject_id, min(start) AS start, max(over) AS over
FROM numbered GROUP BY subject_id, span
"""


def make_encounters(database: duckdb.DuckDBPyConnection, *, mimic: bool) -> int:
    """The tables `stays` (ENCOUNTER_SCHEMA) and `spans` of the table `marks`.

    The macro `scoped(subject_id, id)` gives an id of the source as it is written: as it is, or
    after the subject's where two subjects have the same one.

    Returns:
        The number of ends without a beginning.
    """
    run = database.execute
    run("CREATE TABLE sides (role VARCHAR, kind VARCHAR, begins BOOLEAN)")
    database.executemany(
        "INSERT INTO sides VALUES (?, ?, ?)", [(role, *side) for role, side in SIDES.items()]
    )
    run(_BOUNDARIES)
    shared = "\n UNION ALL ".join(
        f"SELECT {name} FROM boundaries WHERE {name} IS NOT NULL "
        f"GROUP BY {name} HAVING count(DISTINCT subject_id) > 1"
        for name in ("own_id", "encounter_id")
    )
    repeated = bool(run(f"SELECT 1 FROM ({shared}) LIMIT 1").fetchall())
    written = "subject_id || '/' || id" if repeated else "id"
    run(f"CREATE MACRO scoped(subject_id, id) AS {written}")
    for step in (_WITH_ID, _IN_ORDER, _FOUND):
        run(step)
    run(_STAYS.replace("$source", "'mimic'" if mimic else "''"))
    run(_SPANS)
    unpaired = run(
        "SELECT (SELECT count(*) FROM in_order WHERE NOT begins AND begun IS NOT TRUE) "
        "+ (SELECT coalesce(sum(ends), 0) FROM with_id WHERE start IS NULL)"
    ).fetchall()
    return int(unpaired[0][0])
