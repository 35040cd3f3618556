"""A MEDS dataset to an events folder.

MEDS (https://github.com/Medical-Event-Data-Standard/meds) gives times, codes and values of
subjects. What else an events folder has comes from the codes, by `MedsRules`: who a subject is,
encounters, categories, units. A dataset with this package's own columns (an events folder, or what
a MEDS tool made of one) is taken as it is, with its subjects and encounters. All of it is SQL in
DuckDB, out of core, and what is written does not depend on how the source is sharded.
"""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb
import meds
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import InputError, SchemaError
from ehrmamba_hf.events.meds import own
from ehrmamba_hf.events.meds.encounters import SIDES, make_encounters
from ehrmamba_hf.events.meds.events import EVENTS, LATE, MACROS
from ehrmamba_hf.events.meds.rules import Meaning, MedsRules, meaning_of_own, prefix_of
from ehrmamba_hf.events.meds.shards import (
    Shards,
    file_list,
    is_meds,
    read_about,
    read_shards,
)
from ehrmamba_hf.events.meds.subjects import make_subjects
from ehrmamba_hf.events.meds.writing import source_key, write_events
from ehrmamba_hf.events.metadata import CodeNote, read_codes, write_metadata
from ehrmamba_hf.events.schema import (
    ENCOUNTER_SCHEMA,
    ENCOUNTERS_FILE,
    REJECTS_FILE,
    ROW_GROUP,
    SUBJECT_SCHEMA,
    SUBJECTS_FILE,
)
from ehrmamba_hf.events.sql import quoted
from ehrmamba_hf.events.table import data_files
from ehrmamba_hf.folders import name_within

__all__ = ["ingest_meds", "is_meds"]

_NO_ROOM: Final = (duckdb.IOException, duckdb.OutOfMemoryException)
_DAMAGE: Final = (duckdb.Error, pa.ArrowInvalid, UnicodeDecodeError)
_EVENT_ROLES: Final = ("event", "birth", "death")
_MEANINGS: Final = pa.schema(
    [
        ("code", pa.string()),
        ("source_table", pa.string()),
        ("role", pa.string()),
        ("category", pa.string()),
        ("name", pa.string()),
        ("codings", pa.list_(pa.string())),
        ("unit", pa.string()),
        ("value", pa.string()),
        ("after_encounter", pa.bool_()),
    ]
)
_REJECTS: Final = """
SELECT file, row, 'subject_id' AS field, 'a 64-bit integer' AS expected, 'none' AS found
FROM source WHERE subject_id IS NULL
UNION ALL
SELECT file, row, 'code', 'a code', 'none' FROM source
WHERE subject_id IS NOT NULL AND trim(coalesce(code, '')) = ''
UNION ALL
SELECT file, row, misfit,
    CASE misfit WHEN 'numeric_value' THEN 'a number that fits a 32-bit float'
        ELSE 'a time from year 1 to 9999' END,
    CASE misfit WHEN 'numeric_value' THEN 'a larger one' ELSE 'another one' END
FROM source WHERE subject_id IS NOT NULL AND trim(code) <> '' AND misfit IS NOT NULL
"""
_REFUSED: Final = """
UNION ALL
SELECT file, row, 'time', 'a death not before the birth', 'an earlier one' FROM told WHERE refused
"""
_ROWS: Final = """
CREATE VIEW rows AS
FROM source WHERE subject_id IS NOT NULL AND trim(code) <> '' AND misfit IS NULL
"""
_SEEN: Final = """
CREATE TABLE seen AS
SELECT subject_id, count(*) AS rows, min(file) <> max(file) AS scattered
FROM rows GROUP BY subject_id
"""
_MARKS: Final = """
CREATE TABLE marks AS
SELECT r.subject_id, r.time, m.role, m.value, r.encounter_id, r.stay_id, r.end_time, r.file, r.row
FROM rows AS r JOIN meanings AS m USING (code, source_table)
WHERE m.role NOT IN ('event', 'not_used')
"""
_RACES: Final = """
INSERT INTO marks (subject_id, role, value)
SELECT DISTINCT subject_id, 'race', trim(race) FROM rows WHERE trim(race) <> ''
"""


def ingest_meds(
    source: Path,
    out: Path,
    *,
    workers: int | None = None,
    memory: str | None = None,
    progress: bool = False,
    rules: MedsRules | None = None,
) -> dict[str, Any]:
    """Write the events folder of a MEDS dataset (but for its reports); return what was counted.

    Args:
        source: a folder with `data/**/*.parquet`; see `read_shards` for what may differ from MEDS
            0.4. Shards need not be sorted, and a subject may be in several.
        out: an existing folder to write `data/`, `encounters.parquet`, `subjects.parquet`,
            `metadata/` and `rejects.ndjson` into. Shards that an earlier run on the same dataset
            finished there are kept; `parts/` tells which.
        workers: threads; one per CPU by default.
        memory: of DuckDB, such as "4GB"; what does not fit spills into `out`.
        progress: show a progress bar.
        rules: what codes mean; the packaged rules by default.

    Returns:
        `files`, `rows` (`read` = `event` + `subject_fact` + `encounter_boundary` + the sum of
        `not_used` + `rejected`), `subjects`, `encounters`, `encounters_without_end`, `events` (by
        category), `date_range`, `unknown_codes` (events of unknown category, by prefix of their
        code), `unresolved_references`, `conflicting_facts` (subjects with several that differ, by
        fact) and `warnings`.

    Raises:
        SchemaError: a file's columns or texts, or an own dataset's rows, break a rule.
        InputError: no usable row, or a folder that cannot be read.
        duckdb.IOException, duckdb.OutOfMemoryException: no room on disk or in memory.
    """
    threads = workers or os.cpu_count() or 1
    try:
        with _Dataset(source, out, rules or MedsRules(), threads, memory) as dataset:
            return dataset.ingest(progress=progress)
    except _NO_ROOM:  # with more of it, another run goes on with what is finished
        raise
    except _DAMAGE:  # its own text may show what a record holds
        raise SchemaError(
            f"{source}: expected readable Parquet whose texts are UTF-8, found a damaged file or "
            "other texts"
        ) from None


class _Code(NamedTuple):
    """A code of the source (in rows of one value of `table`), how often, and what it means."""

    code: str
    rows: int
    meaning: Meaning


class _Dataset:
    """The joined view over a MEDS dataset's shards. Use as a context manager."""

    def __init__(
        self, source: Path, out: Path, rules: MedsRules, threads: int, memory: str | None
    ) -> None:
        self._source, self._out, self._rules = source, out, rules
        self._shards: Shards = read_shards(source, rules.columns)
        self._about = read_about(source)
        self._spill = out / "spill"
        shutil.rmtree(self._spill, ignore_errors=True)
        self._database = _connect(self._spill, threads, memory)
        self._run = self._database.execute
        hourless = ", ".join(f"TIME {quoted(time)}" for time in rules.hourless)
        self._run(MACROS.replace("$hourless", hourless))
        self._run(f"CREATE VIEW source AS {self._shards.query}")
        self._run(_ROWS)

    def __enter__(self) -> "_Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    def ingest(self, *, progress: bool) -> dict[str, Any]:
        notes = read_codes(self._source)
        codes, mimic = self._codes(notes)
        for step in (_SEEN, _MARKS, _RACES):
            self._run(step)
        conflicts = make_subjects(self._database)
        unpaired = make_encounters(self._database, mimic=mimic)
        query, warnings = EVENTS, []
        if self._shards.own:
            query, warnings = own.EVENTS, own.load_own(self._database, self._source)
        else:
            self._run(LATE)
        key = source_key(self._source, self._rules)
        write_events(self._database, query, self._out, key, progress=progress)
        self._run(f"CREATE VIEW written AS FROM read_parquet({file_list(data_files(self._out))})")
        self._write_table("people", SUBJECT_SCHEMA, "subject_id", SUBJECTS_FILE)
        order = 'subject_id, "start", encounter_id'
        self._write_table("stays", ENCOUNTER_SCHEMA, order, ENCOUNTERS_FILE)
        rows = self._accounts(codes, unpaired, self._write_rejects())
        if not self._count("FROM people"):
            found = f"{rows['read']} rows, {rows['rejected']} of them rejected"
            raise InputError(
                f"{self._source}: expected MEDS with at least one subject, found {found}"
            )
        described = _described(codes, notes).items()
        write_metadata(self._out, self._about, described, self._source)
        return {
            "files": len(self._shards.files),
            "rows": rows,
            **self._summary(),
            "unknown_codes": _unknown(codes),
            "conflicting_facts": conflicts,
            "warnings": [*warnings, *self._warnings()],
        }

    def _codes(self, notes: dict[str, CodeNote]) -> tuple[list[_Code], bool]:
        """Every code, and whether the source is MIMIC; makes the table `meanings`."""
        query = "SELECT code, source_table, count(*) FROM rows GROUP BY ALL ORDER BY ALL"
        found = self._run(query).fetchall()
        texts = [str(self._about.get("dataset_name") or ""), *(code for code, _, _ in found)]
        mimic = self._rules.is_mimic(texts)
        codes, rows = [], []
        for code, table, count in found:
            if self._shards.own:
                meaning = meaning_of_own(code)
            else:
                parents = notes.get(code, CodeNote()).parents
                meaning = self._rules.meaning(code, table=table, mimic=mimic, parents=parents)
            codes.append(_Code(code, count, meaning))
            rows.append({"code": code, "source_table": table, **msgspec.structs.asdict(meaning)})
        self._database.register("told_meanings", pa.Table.from_pylist(rows, schema=_MEANINGS))
        self._run("CREATE TABLE meanings AS FROM told_meanings")
        return codes, mimic

    def _write_table(self, table: str, schema: pa.Schema, order: str, file: str) -> None:
        names = ", ".join(f'"{name}"' for name in schema.names)
        found = self._database.sql(f"SELECT {names} FROM {table} ORDER BY {order}")
        pq.write_table(found.to_arrow_table().cast(schema), self._out / file, compression="zstd")

    def _write_rejects(self) -> int:
        """rejects.ndjson: file and row (from 1, as `line`) of each row that cannot be used."""
        query = _REJECTS if self._shards.own else _REJECTS + _REFUSED
        found = self._database.sql(f"FROM ({query}) ORDER BY ALL").to_arrow_reader(ROW_GROUP)
        rejected = 0
        with (self._out / REJECTS_FILE).open("w", encoding="utf-8") as lines:
            for batch in found:
                for row in batch.to_pylist():
                    file = name_within(Path(row.pop("file")), self._source)
                    reject = {"file": file, "line": row.pop("row"), "resource_type": "MEDS", **row}
                    lines.write(json.dumps(reject) + "\n")
                rejected += len(batch)
        return rejected

    def _accounts(self, codes: list[_Code], unpaired: int, rejected: int) -> dict[str, Any]:
        """What became of every row."""
        roles: Counter[str] = Counter()
        not_used: Counter[str] = Counter()
        for _, count, meaning in codes:
            roles[meaning.role] += count
            if meaning.role == "not_used":
                not_used[meaning.value or "by rule"] += count
        boundaries = ", ".join(map(quoted, SIDES))
        timeless = self._count(f"FROM marks WHERE time IS NULL AND role IN ({boundaries})")
        not_used["an encounter's begin or end without a time"] = timeless
        not_used["an encounter's end without its begin"] = unpaired
        refused = 0 if self._shards.own else self._count("FROM told WHERE refused")
        return {
            "read": self._shards.rows,
            "event": sum(roles[role] for role in _EVENT_ROLES) - refused,
            "subject_fact": roles["sex"] + roles["race"],
            "encounter_boundary": sum(roles[role] for role in SIDES) - unpaired - timeless,
            "not_used": {reason: n for reason, n in sorted(not_used.items()) if n},
            "rejected": rejected,
        }

    def _summary(self) -> dict[str, Any]:
        first, last = self._run(
            "SELECT min(time), max(time) FROM written WHERE category NOT IN ('birth', 'death')"
        ).fetchall()[0]
        dangling = self._count(
            "FROM (SELECT DISTINCT subject_id, encounter_id FROM written "
            "WHERE encounter_id IS NOT NULL) ANTI JOIN stays USING (subject_id, encounter_id)"
        )
        events = self._run(
            "SELECT category, count(*) FROM written GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        return {
            "subjects": self._count("FROM people"),
            "encounters": self._count("FROM stays"),
            "encounters_without_end": self._count('FROM stays WHERE "end" IS NULL'),
            "events": dict(events),
            "date_range": [time.isoformat() for time in (first, last) if time is not None],
            "unresolved_references": {"encounter_id": dangling} if dangling else {},
        }

    def _warnings(self) -> list[str]:
        warnings = []
        if not self._count("FROM stays"):
            warnings.append(
                "There are no encounters: visits are calendar days, and no stay is one."
            )
        if scattered := self._count("FROM seen WHERE scattered"):
            warnings.append(
                f"{scattered} subjects are in several files, which MEDS rules out: their rows were "
                "put together."
            )
        if self._shards.utc:
            warnings.append(
                "Times are written in UTC: without the hospital's wall clock, days and nights are "
                "not the hospital's."
            )
        if self._shards.unused:
            unused = ", ".join(self._shards.unused)
            warnings.append(f"Columns that nothing is read from: {unused}.")
        if (self._source / meds.subject_splits_filepath).is_file():
            warnings.append(
                f"The dataset's own splits ({meds.subject_splits_filepath}) are not used: patients "
                "are split anew by prepare."
            )
        return warnings

    def _count(self, what: str) -> int:
        return int(self._run(f"SELECT count(*) {what}").fetchall()[0][0])


def _connect(spill: Path, threads: int, memory: str | None) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(config={"threads": threads, "temp_directory": str(spill)})
    if memory is not None:
        try:
            database.execute(f"SET memory_limit = {quoted(memory)}")
        except duckdb.Error:
            raise InputError(f"memory: expected such as 4GB, found {memory}") from None
    database.execute("SET enable_progress_bar = false")  # it writes to stdout
    database.execute("SET preserve_insertion_order = false")
    database.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    return database


def _described(codes: list[_Code], notes: dict[str, CodeNote]) -> dict[str, CodeNote]:
    """Each written code with the description of its most frequent source code, and all parents."""
    result: dict[str, CodeNote] = {}
    for code, _, meaning in sorted(codes, key=lambda code: -code.rows):
        if meaning.role in _EVENT_ROLES:
            note, known = notes.get(code, CodeNote()), result.get(meaning.name, CodeNote())
            parents = tuple(sorted({*known.parents, *note.parents}))
            result[meaning.name] = CodeNote(known.description or note.description, parents)
    return result


def _unknown(codes: list[_Code]) -> dict[str, int]:
    unknown: Counter[str] = Counter()
    for code, count, meaning in codes:
        if not meaning.known:
            unknown[prefix_of(code)] += count
    return dict(unknown.most_common())
