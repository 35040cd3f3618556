"""The events of a MEDS dataset, in SQL.

`available_time` is the time, but for what is coded after an encounter (diagnoses, and procedures
without an hour): just after the end of the encounter that the row names, else of the encounters
whose time holds it; never, where that has no end. Without any, such a row that has no hour is known
when its day is over, and so are births and deaths.
"""

from typing import Final

MACROS: Final = """
CREATE MACRO hourless(t) AS t::TIME IN ($hourless);
CREATE MACRO day_over(t) AS CASE
    WHEN hourless(t) THEN date_trunc('day', t) + INTERVAL 1 DAY - INTERVAL 1 MICROSECOND ELSE t END;
CREATE MACRO just_after(t) AS t + INTERVAL 1 MICROSECOND;
CREATE MACRO late(after, category, t) AS after OR (category = 'procedure' AND hourless(t));
"""

# When late rows are known, by their moment and encounter: few, beside all rows.
LATE: Final = """
CREATE TABLE late_rows AS
WITH moments AS (
    SELECT DISTINCT r.subject_id, r.time, scoped(r.subject_id, r.encounter_id) AS encounter_id
    FROM rows AS r JOIN meanings AS m USING (code, source_table)
    WHERE m.role = 'event' AND late(m.after_encounter, m.category, r.time) AND r.time IS NOT NULL
), named AS (
    SELECT m.*, s.encounter_id IS NOT NULL AS found, s."end"
    FROM moments AS m LEFT JOIN stays AS s USING (subject_id, encounter_id)
)
SELECT n.subject_id, n.time, coalesce(n.encounter_id, '') AS encounter_id, CASE
    WHEN n.found AND n."end" IS NULL THEN NULL
    WHEN n.time > n."end" THEN greatest(day_over(n.time), just_after(n.time))
    WHEN n.found THEN just_after(n."end")
    WHEN s.over IS NULL OR n.time > s.over THEN day_over(n.time)
    WHEN isfinite(s.over) THEN just_after(s.over)
    END AS available_time
FROM named AS n ASOF LEFT JOIN spans AS s ON n.subject_id = s.subject_id AND n.time >= s.start
"""

# The joins are written from the largest to the small ones, and are not to be reordered: DuckDB
# cannot know how few rows are late, and would hold all the others in memory.
EVENTS: Final = """
SELECT r.subject_id, r.time, m.name AS code, r.numeric_value, r.text_value, r.end_time,
    CASE
        WHEN m.role IN ('birth', 'death') THEN day_over(r.time)
        WHEN late(m.after_encounter, m.category, r.time) THEN l.available_time
        ELSE r.time
    END AS available_time,
    coalesce(CASE WHEN trim(r.unit) NOT IN ('', 'UNK') THEN trim(r.unit) END, m.unit) AS unit,
    m.category, m.codings, scoped(r.subject_id, r.encounter_id) AS encounter_id,
    NULL::VARCHAR AS resource_type, NULL::VARCHAR AS source_id
FROM (FROM rows WHERE subject_id BETWEEN $low AND $high) AS r
JOIN meanings AS m ON r.code = m.code AND r.source_table = m.source_table
LEFT JOIN (FROM late_rows WHERE subject_id BETWEEN $low AND $high) AS l
    ON late(m.after_encounter, m.category, r.time) AND r.subject_id = l.subject_id
    AND r.time = l.time AND coalesce(scoped(r.subject_id, r.encounter_id), '') = l.encounter_id
ANTI JOIN (SELECT DISTINCT subject_id, time FROM told WHERE refused) AS f
    ON m.role = 'death' AND r.subject_id = f.subject_id AND r.time = f.time
WHERE m.role IN ('event', 'birth', 'death')
"""
