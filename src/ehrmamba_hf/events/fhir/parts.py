"""A block of FHIR text to tables whose look-ups are still open: a pure function of its lines.

Any number of processes, on one machine or many, can do this side by side. The joins over all blocks
(versions of a record, encounters, medications, patients) are versions.py's and assemble.py's.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import xxhash

from ehrmamba_hf.events.fhir.columns import CLOSED_SCHEMA, OPEN_SCHEMA, EventColumns
from ehrmamba_hf.events.schema import ENCOUNTER_SCHEMA, SUBJECT_SCHEMA
from ehrmamba_hf.fhir.batch import PlainReader
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.codings import TEXT, Concept
from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import Other, aliases_of, decode, entries_of
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.fhir.reading import LONGEST, BrokenFile, Lines, Span, read_lines
from ehrmamba_hf.fhir.resources import Bundle, Clinical, Observation, Patient
from ehrmamba_hf.fhir.rows import NotUsed, Reject, Rows, Site
from ehrmamba_hf.fhir.time_columns import NONE
from ehrmamba_hf.fhir.times import Clock, instant_of
from ehrmamba_hf.fhir.vocabulary import Vocabulary

UNKNOWN: Final = "unknown"
"""The resource type of a record that does not even say what it is."""
MOST_ROWS: Final = 1 << 21
"""Rows that are held in memory; a block of usual records has a tenth of them."""
ROWS_A_BLOCK: Final = 1 << 36  # more than a block can hold, so that row numbers never meet
DEEPEST_BUNDLE: Final = 32
"""Bundles in one another: far more than there are, far less than what Python can follow."""

_INSIDE: Final = ".resource."
_ROW: Final = pa.field("row", pa.int64())
PART_SCHEMAS: Final[dict[str, pa.Schema]] = {
    "events": CLOSED_SCHEMA,
    "open_events": OPEN_SCHEMA,
    # The resources that gave no event; the others are known by their first.
    "resources": pa.schema(
        [
            _ROW,
            ("resource_type", pa.string()),
            ("source_id", pa.string()),
            ("subject_id", pa.int64()),
            ("updated", pa.int64()),  # meta.lastUpdated, microseconds
            ("reason", pa.string()),  # why it is not used; null: so far it is
        ]
    ),
    "subjects": pa.schema([_ROW, *SUBJECT_SCHEMA]),
    "encounters": pa.schema([_ROW, *ENCOUNTER_SCHEMA]),
    "medications": pa.schema(
        [
            _ROW,
            ("medication_id", pa.string()),
            ("place", pa.int64()),  # of an ingredient in a mixture; null: of the medication itself
            ("ingredient_id", pa.string()),  # the medication that has the ingredient's code
            ("code", pa.string()),
            ("codings", pa.list_(pa.string())),
        ]
    ),
    "rejects": pa.schema(
        [
            ("file", pa.string()),
            ("start", pa.int64()),  # of the span in the file
            ("line", pa.int64()),  # from 1 at that start
            ("resource_type", pa.string()),
            ("field", pa.string()),
            ("expected", pa.string()),
            ("found", pa.string()),
        ]
    ),
}
"""The tables that a block gives."""
SORTED_PARTS: Final = ("events", "open_events")
"""Those that are sorted by subject."""


@dataclass
class Tally:
    """What was counted on the way; tallies add up, and go through JSON."""

    lines: int = 0
    blank_lines: int = 0
    bundles: int = 0
    events: int = 0
    observations_without_category: int = 0
    text_only: int = 0
    met_utc: bool = False
    met_other: bool = False
    read: Counter[str] = field(default_factory=Counter)  # by resource type
    rejected: Counter[str] = field(default_factory=Counter)
    other_types: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)  # what was left out of used records
    unknown_systems: Counter[str] = field(default_factory=Counter)  # by URL, in codings
    displays: Counter[str] = field(default_factory=Counter)  # by "code\ndisplay"
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # file, start, lines

    def add(self, other: "Tally") -> None:
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, bool):
                setattr(self, part.name, mine or theirs)
            else:
                setattr(self, part.name, mine + theirs)

    def to_dict(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Tally":
        """The inverse of to_dict, after JSON."""
        tally = cls()
        for name, value in content.items():
            counts = isinstance(getattr(tally, name), Counter)
            setattr(tally, name, Counter(value) if counts else value)
        return tally


Tables = dict[str, pa.Table]
"""By the names of PART_SCHEMAS."""


class BlockConverter:
    """Takes the lines of one block; `tables` and `tally` then hold what they gave.

    With `spill`, that is given the tables whenever they are long, and `tables` holds the rest: a
    packed text of the smallest records is a thousand times its size on disk.
    """

    def __init__(
        self,
        number: int,
        timezone: str | None,
        book: Codebook,
        spill: Callable[[Tables], None] | None = None,
    ) -> None:
        self._site = Site(Clock(timezone), book=book)
        self._spill = spill
        self._next_row = number * ROWS_A_BLOCK
        self._tally = Tally()
        self._forget()

    def _forget(self) -> None:
        self._words = Vocabulary()
        self._plain = PlainReader(self._site, self._words)
        self._events = EventColumns(self._words)
        self._rows: dict[str, list[tuple[object, ...]]] = {
            name: [] for name in PART_SCHEMAS if name not in SORTED_PARTS
        }
        self._medications: Counter[Concept] = Counter()

    def read(self, name: str, span: Span, digest: xxhash.xxh3_128 | None = None) -> None:
        """Use every record of a span; what cannot be used is counted and listed.

        Args:
            name: of the file, as the rejects tell it.
            span: the lines to read.
            digest: is told all that is read.
        """
        before = self._tally.lines
        try:
            for lines in read_lines(span, digest):
                self.use(lines, name, span.start)
        except BrokenFile as broken:
            self._tally.read[UNKNOWN] += 1
            reject = Reject("", broken.expected, broken.found)
            self._reject(reject, UNKNOWN, (name, span.start, broken.line))
        self._tally.spans.append((name, span.start, self._tally.lines - before))

    def use(self, lines: Lines, name: str, start: int = 0) -> None:
        """Use some lines of a file."""
        self._tally.lines += lines.amount
        if lines.text is None:
            self._tally.read[UNKNOWN] += 1
            reject = Reject("", f"a line of at most {LONGEST >> 20} MiB", "a longer one")
            self._reject(reject, UNKNOWN, (name, start, lines.first))
            return
        if lines.text.isspace():
            self._tally.blank_lines += lines.amount
            return
        if b'"Observation"' in lines.text:
            plain, others = self._plain.read(lines)
            if plain is not None:
                self._events.add_plain(plain, self._next_row)
                self._next_row += len(plain.source_id)
                self._tally.read["Observation"] += len(plain.source_id)
                self._tally.observations_without_category += plain.without_category
        else:
            others = list(enumerate(lines.split(), start=lines.first))
        for number, text in others:
            if text:
                self._use(text, (name, start, number), self._site)
            else:
                self._tally.blank_lines += 1
        self._spill_if_long()

    def _spill_if_long(self) -> None:
        held = len(self._events) + sum(map(len, self._rows.values()))
        if self._spill and held >= MOST_ROWS:
            self._spill(self.tables())
            self._count_events()
            self._forget()

    def tables(self) -> Tables:
        closed, opened = self._events.tables()
        tables = {"events": closed, "open_events": opened}
        for name, rows in self._rows.items():
            schema = PART_SCHEMAS[name]
            columns: Iterable[Any] = zip(*rows, strict=True) if rows else [()] * len(schema)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            tables[name] = pa.Table.from_arrays(arrays, schema=schema)
        return tables

    def tally(self) -> Tally:
        """What was counted in all; nothing can be added afterwards."""
        self._count_events()
        clock = self._site.clock
        self._tally.met_utc, self._tally.met_other = clock.met_utc, clock.met_other
        return self._tally

    def _count_events(self) -> None:
        tally = self._tally
        tally.events += len(self._events)
        concepts = self._words.concepts.values_
        counts = zip(concepts, self._events.concept_counts().tolist(), strict=True)
        for concept, count in (*counts, *self._medications.items()):
            if concept is None or not count:
                continue
            if concept.display:
                tally.displays[f"{concept.code}\n{concept.display}"] += count
            for url in concept.unknown_systems:
                tally.unknown_systems[url] += count
            tally.text_only += count * concept.code.startswith(f"{TEXT}/")

    def _use(
        self,
        raw: bytes | msgspec.Raw,
        place: tuple[str, int, int],
        site: Site,
        where: str = "",
        fallback_id: str | None = None,
    ) -> None:
        kind = UNKNOWN
        try:
            resource = decode(raw)
            kind = type(resource).__name__
            if isinstance(resource, Bundle):
                self._use_bundle(resource, place, where)
                return
            if isinstance(resource, Other):
                self._tally.read[resource.resourceType] += 1
                self._tally.other_types[resource.resourceType] += 1
                return
            self._use_resource(resource, kind, raw, site, fallback_id)
            self._tally.read[kind] += 1
        except Reject as reject:
            kind = reject.resource_type or kind
            self._tally.read[kind] += 1
            reject.field = f"{where}{reject.field}"
            self._reject(reject, kind, place)

    def _use_bundle(self, bundle: Bundle, place: tuple[str, int, int], where: str) -> None:
        if where.count(_INSIDE) >= DEEPEST_BUNDLE:
            raise Reject("", f"a Bundle inside at most {DEEPEST_BUNDLE} others", "a deeper one")
        self._tally.bundles += 1
        site = self._site._replace(aliases=aliases_of(bundle))
        for index, entry in enumerate(entries_of(bundle)):
            inside = f"{where}entry[{index}]{_INSIDE}"
            self._use(entry.raw, place, site, inside, entry.fallback_id)
            self._spill_if_long()

    def _use_resource(
        self,
        resource: Clinical,
        kind: str,
        raw: bytes | msgspec.Raw,
        site: Site,
        fallback_id: str | None,
    ) -> None:
        source_id = resource.id or fallback_id
        if not source_id:
            if isinstance(resource, Patient):
                raise Reject("id", "an id", "nothing")
            # Nothing can refer to it, but copies of it are told.
            source_id = xxhash.xxh3_64_hexdigest(memoryview(raw))
        text = resource.meta.lastUpdated if resource.meta else None
        updated = instant_of(text) if text else None
        try:
            rows = convert(resource, site)
        except NotUsed as outcome:
            self._rows["resources"].append(
                (self._next_row, kind, source_id, None, updated, outcome.reason)
            )
        else:
            whose = source_id if isinstance(resource, Patient) else rows.patient_id
            subject = None if whose is None else subject_id(whose)
            self._add(rows, subject, kind, source_id, updated)
            if isinstance(resource, Observation) and not resource.category:
                self._tally.observations_without_category += 1
        self._next_row += 1

    def _add(
        self, rows: Rows, subject: int | None, kind: str, source_id: str, updated: int | None
    ) -> None:
        row = self._next_row
        version = NONE if updated is None else updated
        self._tally.notes.update(rows.notes)
        for place, event in enumerate(rows.events):
            assert subject is not None
            self._events.add(event, row, place, subject, kind, source_id, version)
        if not rows.events:
            self._rows["resources"].append((row, kind, source_id, subject, updated, None))
        if rows.subject is not None:
            self._rows["subjects"].append((row, subject, source_id, *rows.subject))
        if rows.encounter is not None:
            self._rows["encounters"].append((row, subject, source_id, *rows.encounter))
        if rows.medication is not None:
            self._add_medication(rows.medication, row, source_id, None)
        for place, ingredient in enumerate(rows.ingredients):
            self._add_medication(ingredient, row, source_id, place)

    def _add_medication(
        self, what: Concept | str, row: int, source_id: str, place: int | None
    ) -> None:
        found: tuple[object, ...] = (what, None, None)
        if isinstance(what, Concept):
            self._medications[what] += 1
            found = (None, what.code, what.codings)
        self._rows["medications"].append((row, source_id, place, *found))

    def _reject(self, reject: Reject, kind: str, place: tuple[str, int, int]) -> None:
        self._tally.rejected[kind] += 1
        self._rows["rejects"].append((*place, kind, reject.field, reject.expected, reject.found))


def part_file(folder: Path, table: str, number: int) -> Path:
    """Where the part of a table lies that a block gave."""
    return folder / f"{table}-{number:09d}.parquet"
