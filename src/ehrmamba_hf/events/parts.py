"""A worker's share of an ingestion: some files in, Parquet parts and a tally out.

Parts hold rows as the resources gave them, in any order and with look-ups still open; the joins
over all parts are assemble.py's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, EVENT_SCHEMA, SUBJECT_SCHEMA, TIME
from ehrmamba_hf.fhir.codings import TEXT, Concept
from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import Other, aliases_of, decode, entries_of
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.fhir.reading import BrokenFile, read_records
from ehrmamba_hf.fhir.resources import Bundle, Clinical, Observation, Patient
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Rows, Site
from ehrmamba_hf.fhir.times import Clock, instant_of

UNKNOWN: Final = "unknown"
"""The resource type of a record that does not even say what it is."""
FLUSH_ROWS: Final = 100_000

_ROW: Final = pa.field("row", pa.int64())  # of the resource, within this run only
PART_SCHEMAS: Final[dict[str, pa.Schema]] = {
    "resources": pa.schema(
        [
            _ROW,
            ("resource_type", pa.string()),
            ("source_id", pa.string()),
            ("subject_id", pa.int64()),
            ("updated", pa.int64()),  # meta.lastUpdated, microseconds
            ("digest", pa.int64()),  # of the record's bytes
            ("reason", pa.string()),  # why it is not used; null: so far it is
        ]
    ),
    "subjects": pa.schema([_ROW, *SUBJECT_SCHEMA]),
    "encounters": pa.schema([_ROW, *ENCOUNTER_SCHEMA]),
    "medications": pa.schema(
        [
            _ROW,
            ("medication_id", pa.string()),
            ("code", pa.string()),
            ("codings", pa.list_(pa.string())),
        ]
    ),
    "events": pa.schema(
        [
            _ROW,
            *[pa.field(f.name, f.type) for f in EVENT_SCHEMA],
            ("medication_id", pa.string()),
            ("after_encounter", pa.bool_()),
            ("fallback_time", TIME),
        ]
    ),
    "rejects": pa.schema(
        [
            ("file", pa.string()),
            ("line", pa.int64()),
            ("resource_type", pa.string()),
            ("field", pa.string()),
            ("expected", pa.string()),
            ("found", pa.string()),
        ]
    ),
}
"""The tables that each worker writes as `{name}-*.parquet`."""


@dataclass
class Tally:
    """What a worker counted; tallies add up."""

    lines: int = 0
    blank_lines: int = 0
    bundles: int = 0
    observations_without_category: int = 0
    met_utc: bool = False
    met_other: bool = False
    read: Counter[str] = field(default_factory=Counter)  # by resource type
    rejected: Counter[str] = field(default_factory=Counter)
    other_types: Counter[str] = field(default_factory=Counter)
    unknown_systems: Counter[str] = field(default_factory=Counter)  # by URL, in codings
    displays: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (code, display)
    text_only: int = 0

    def add(self, other: "Tally") -> None:
        for part in fields(self):
            mine = getattr(self, part.name)
            theirs = getattr(other, part.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, bool):
                setattr(self, part.name, mine or theirs)
            else:
                setattr(self, part.name, mine + theirs)


class PartWriter:
    """Gathers rows of one table and writes them in parts of about FLUSH_ROWS."""

    def __init__(self, folder: Path, table: str, task: int) -> None:
        self._schema = PART_SCHEMAS[table]
        self._stem = f"{table}-{task:05d}"
        self._folder = folder
        self._written = 0
        self.rows: list[tuple[object, ...]] = []

    def flush(self) -> None:
        columns: Sequence[Sequence[object]] = list(zip(*self.rows, strict=True))
        if not columns:
            columns = [()] * len(self._schema)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
        part = self._folder / f"{self._stem}-{self._written:05d}.parquet"
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        pq.write_table(table, part, compression="lz4")
        self.rows.clear()
        self._written += 1


class Worker:
    """Reads files one after the other; `finish` writes what is left and gives the tally."""

    def __init__(
        self,
        source: Path,
        parts: Path,
        task: int,
        timezone: str | None,
        advance: Callable[[int], object],
    ) -> None:
        self._source = source
        self._advance = advance
        self._clock = Clock(timezone)
        self._plain = Site(self._clock)
        self._tables = {name: PartWriter(parts, name, task) for name in PART_SCHEMAS}
        self._events = self._tables["events"].rows
        self._resources = self._tables["resources"].rows
        self._concepts: Counter[Concept] = Counter()
        self._next_row = task << 40  # unlike those of any other worker
        self.tally = Tally()

    def read_file(self, file: Path) -> None:
        """Use every record of the file; what cannot be used is counted and listed."""
        name = file.relative_to(self._source).as_posix() if file != self._source else file.name
        try:
            for record in read_records(file, self._advance):
                self.tally.lines += 1
                if not record.text:
                    self.tally.blank_lines += 1
                    continue
                self._use(record.text, name, record.line, self._plain)
                if self.tally.lines % 1024 == 0:
                    self._flush(at_least=FLUSH_ROWS)
        except BrokenFile as broken:
            self.tally.read[UNKNOWN] += 1
            reject = Reject("", broken.expected, broken.found)
            self._reject(reject, UNKNOWN, name, broken.line)

    def finish(self) -> Tally:
        self._flush(at_least=0)
        tally = self.tally
        for concept, count in self._concepts.items():
            if concept.display:
                tally.displays[concept.code, concept.display] += count
            for url in concept.unknown_systems:
                tally.unknown_systems[url] += count
            tally.text_only += count * concept.code.startswith(f"{TEXT}/")
        tally.met_utc, tally.met_other = self._clock.met_utc, self._clock.met_other
        return tally

    def _flush(self, *, at_least: int) -> None:
        for table in self._tables.values():
            if len(table.rows) >= at_least:
                table.flush()

    def _use(
        self,
        raw: bytes | msgspec.Raw,
        file: str,
        line: int,
        site: Site,
        where: str = "",
        fallback_id: str | None = None,
    ) -> None:
        kind = UNKNOWN
        try:
            resource = decode(raw)
            if isinstance(resource, Bundle):
                self._use_bundle(resource, file, line, where)
                return
            if isinstance(resource, Other):
                self.tally.read[resource.resourceType] += 1
                self.tally.other_types[resource.resourceType] += 1
                return
            kind = type(resource).__name__
            self._use_resource(resource, kind, raw, site, fallback_id)
            self.tally.read[kind] += 1
        except Reject as reject:
            kind = reject.resource_type or kind
            self.tally.read[kind] += 1
            reject.field = f"{where}{reject.field}"
            self._reject(reject, kind, file, line)

    def _use_bundle(self, bundle: Bundle, file: str, line: int, where: str) -> None:
        self.tally.bundles += 1
        site = Site(self._clock, aliases_of(bundle))
        for index, entry in enumerate(entries_of(bundle)):
            inside = f"{where}entry[{index}].resource."
            self._use(entry.raw, file, line, site, inside, entry.fallback_id)

    def _use_resource(
        self,
        resource: Clinical,
        kind: str,
        raw: bytes | msgspec.Raw,
        site: Site,
        fallback_id: str | None,
    ) -> None:
        digest = int.from_bytes(blake2b(raw, digest_size=8).digest(), "big") >> 1
        source_id = resource.id or fallback_id
        if source_id is None:
            if isinstance(resource, Patient):
                raise Reject("id", "an id", "nothing")
            source_id = f"{digest:016x}"  # nothing can refer to it, but copies of it are told
        updated = resource.meta.lastUpdated if resource.meta else None
        version = instant_of(updated) if updated else None
        try:
            rows = convert(resource, site)
        except NotUsed as outcome:
            self._resources.append(
                (self._next_row, kind, source_id, None, version, digest, outcome.reason)
            )
        else:
            whose = source_id if isinstance(resource, Patient) else rows.patient_id
            subject = None if whose is None else subject_id(whose)
            self._resources.append(
                (self._next_row, kind, source_id, subject, version, digest, None)
            )
            self._add(rows, subject, kind, source_id)
            if isinstance(resource, Observation) and not resource.category:
                self.tally.observations_without_category += 1
        self._next_row += 1

    def _add(self, rows: Rows, subject: int | None, kind: str, source_id: str) -> None:
        row = self._next_row
        for e in rows.events:
            concept = e.concept
            if concept is not None:
                self._concepts[concept] += 1
            self._events.append(
                (
                    row,
                    subject,
                    e.time,
                    concept.code if concept else None,
                    e.numeric_value,
                    e.text_value,
                    e.end_time,
                    e.available_time,
                    e.unit,
                    e.category,
                    concept.codings if concept else None,
                    e.encounter_id,
                    kind,
                    source_id,
                    e.medication_id,
                    e.after_encounter,
                    e.fallback_time,
                )
            )
        if rows.subject is not None:
            self._tables["subjects"].rows.append((row, subject, source_id, *rows.subject))
        if rows.encounter is not None:
            self._tables["encounters"].rows.append((row, subject, source_id, *rows.encounter))
        if rows.medication is not None:
            self._concepts[rows.medication] += 1
            self._tables["medications"].rows.append(
                (row, source_id, rows.medication.code, rows.medication.codings)
            )

    def _reject(self, reject: Reject, kind: str, file: str, line: int) -> None:
        self.tally.rejected[kind] += 1
        self._tables["rejects"].rows.append(
            (file, line, kind, reject.field, reject.expected, reject.found)
        )
