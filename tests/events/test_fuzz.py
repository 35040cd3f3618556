"""Anything at all as input: no crash, no wrong count, and the rows of a slow, plain reference.

Lines are sound resources broken in their fields, and whole lines broken beyond that. They go
through all of an ingestion, thousands at a time.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from ehrmamba_hf.events import Report, read_encounters, read_subjects
from ehrmamba_hf.events.fhir import shards
from ehrmamba_hf.events.fhir.parts import DEEPEST_BUNDLE
from ehrmamba_hf.fhir import reading
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.codings import Concept
from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import Other, aliases_of, decode, entries_of
from ehrmamba_hf.fhir.identity import subject_id
from ehrmamba_hf.fhir.resources import Bundle
from ehrmamba_hf.fhir.rows import Event, NotUsed, Reject, Rows, Site
from ehrmamba_hf.fhir.times import Clock, instant_of

CASES_A_RUN = 2_000
LONG_RUN = 100_000


# The reference: line by line, with dictionaries.


class Version(NamedTuple):
    file: str
    updated: float
    rows: Rows | None
    reason: str  # why it is not used

    def content(self) -> Any:
        """What tells one version of a record from another."""
        if self.rows is None:
            return self.reason
        r = self.rows
        events = tuple((float32(e.numeric_value), codes(e), e._replace(concept=None, numeric_value=None)) for e in r.events)  # noqa: E501  # fmt: skip
        medication = r.medication and (r.medication.code, r.medication.codings)
        ingredients = tuple(one if isinstance(one, str) else (one.code, one.codings) for one in r.ingredients)  # noqa: E501  # fmt: skip
        return (r.patient_id, events, r.encounter, r.subject, medication, ingredients)


def drugs_of(medications: dict[str, Rows]) -> dict[str, Concept]:
    """What each medication is; those that are nothing are left out."""
    whole = {name: rows.medication for name, rows in medications.items() if rows.medication}
    drugs = dict(whole)
    for name, rows in medications.items():
        found = [whole.get(one) if isinstance(one, str) else one for one in rows.ingredients]
        parts = [one for one in found if one]
        if parts:
            codings = dict.fromkeys(coding for part in parts for coding in part.codings)
            drugs[name] = Concept(parts[0].code, tuple(codings))
    return drugs


def float32(value: float | None) -> float | None:
    return None if value is None else float(np.float32(value))


def codes(event: Event) -> tuple[str, tuple[str, ...]] | None:
    return event.concept and (event.concept.code, event.concept.codings)


class Reference:
    """What an ingestion of some files has to give."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lines = self.blank = self.bundles = self.without_category = 0
        self.read: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.not_used: Counter[tuple[str, str]] = Counter()
        self.notes: Counter[str] = Counter()
        self.rejects: list[tuple] = []
        self.events: list[tuple] = []
        self.versions: dict[tuple[str, str], list[Version]] = {}
        self.unclear: set[str] = set()  # files
        self.subjects: set[tuple] = set()
        self.encounters: set[tuple] = set()

    def add_file(self, name: str, text: bytes) -> None:
        lines = (
            [text] if name.endswith(".json") else text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        )
        if not lines[-1].strip():
            lines.pop()
        for number, line in enumerate(lines, start=1):
            self.lines += 1
            if line.strip():
                self.add(line.strip(), (name, number), self.site)
            else:
                self.blank += 1

    def add(self, raw: Any, place: tuple, site: Site, where: str = "", name: str = "") -> None:
        kind = "unknown"
        try:
            resource = decode(raw)
            kind = type(resource).__name__
            if isinstance(resource, Bundle):
                if where.count("entry[") >= DEEPEST_BUNDLE:
                    expected = f"a Bundle inside at most {DEEPEST_BUNDLE} others"
                    raise Reject("", expected, "a deeper one")
                self.bundles += 1
                site = site._replace(aliases=aliases_of(resource))
                for index, entry in enumerate(entries_of(resource)):
                    inside = f"{where}entry[{index}].resource."
                    self.add(entry.raw, place, site, inside, entry.fallback_id or "")
                return
            if isinstance(resource, Other):
                self.read[resource.resourceType] += 1
                self.not_used[resource.resourceType, "type not used"] += 1
                return
            name = resource.id or name
            if not name and kind == "Patient":
                raise Reject("id", "an id", "nothing")
            name = name or xxhash.xxh3_64_hexdigest(bytes(raw))
            text = resource.meta and resource.meta.lastUpdated
            updated = instant_of(text) if text else None
            try:
                rows, reason = convert(resource, site), ""
                self.notes.update(rows.notes)
                self.without_category += kind == "Observation" and not resource.category
            except NotUsed as outcome:
                rows, reason = None, outcome.reason
            version = Version(place[0], float("-inf") if updated is None else updated, rows, reason)
            self.versions.setdefault((kind, name), []).append(version)
            self.read[kind] += 1
        except Reject as reject:
            kind = reject.resource_type or kind
            self.read[kind] += 1
            self.rejected[kind] += 1
            about = (kind, f"{where}{reject.field}", reject.expected, reject.found)
            self.rejects.append((*place, *about))

    def finish(self) -> None:
        """Decide between versions, and look up what records refer to."""
        kept = dict(self._winners())
        patients = {name for kind, name in kept if kind == "Patient"}
        self.subjects = {
            (subject_id(name), name, *rows.subject)
            for (_, name), rows in kept.items()
            if rows.subject
        }
        stays = {
            (rows.patient_id, name): rows.encounter
            for (_, name), rows in kept.items()
            if rows.encounter and rows.patient_id in patients
        }
        self.encounters = {(subject_id(p), name, *stay) for (p, name), stay in stays.items()}
        medications = {name: rows for (kind, name), rows in kept.items() if kind == "Medication"}
        drugs = drugs_of(medications)
        named: set[str | None] = set()
        for (kind, name), rows in kept.items():
            patient = name if kind == "Patient" else rows.patient_id
            if patient in patients:
                named.update(event.medication_id for event in rows.events)
                failure = self._use(patient, kind, name, rows, stays, drugs)
            else:
                failure = None if kind == "Medication" else "no Patient resource"
            if failure:
                self.not_used[kind, failure] += 1
            elif kind != "Medication":
                self.used[kind] += 1
        for name in named & medications.keys():
            inside = {one for one in medications[name].ingredients if isinstance(one, str)}
            named |= {one for one in inside & drugs.keys() if medications[one].medication}
        for name in medications:
            if name not in named:
                self.not_used["Medication", "nothing refers to it"] += 1
            elif name in drugs:
                self.used["Medication"] += 1
            else:
                self.not_used["Medication", "no code"] += 1

    def _winners(self) -> Iterator[tuple[tuple[str, str], Rows]]:
        """Of each record's versions, the last updated one."""
        for key, versions in self.versions.items():
            last = max(version.updated for version in versions)
            best = [version for version in versions if version.updated == last]
            if len({version.content() for version in best}) > 1:
                # A hash decides, which is not for a reference to know.
                self.unclear.update(version.file for version in versions)
            for version in versions:
                if version is not best[0]:
                    same = version.content() == best[0].content()
                    reason = "duplicate" if same else "another version is used"
                    self.not_used[key[0], reason] += 1
            if best[0].rows is None:
                self.not_used[key[0], best[0].reason] += 1
            else:
                yield key, best[0].rows

    def _use(
        self, patient: str, kind: str, name: str, rows: Rows, stays: dict, drugs: dict
    ) -> str | None:
        for event in rows.events:
            concept = event.concept or drugs.get(event.medication_id)
            if concept is None:
                return "unresolved medicationReference"
            stay = stays.get((patient, event.encounter_id))
            time, available = event.time, event.available_time
            if stay and event.after_encounter:
                time = stay.end if time is None else time
                if stay.end is None:
                    available = None
                elif event.time is not None and event.time > stay.end:
                    available = max(available, event.time + 1)
                else:
                    available = stay.end + 1
            if time is None:
                time = event.fallback_time
            if time is None:
                return "no time"
            self.events.append(
                (
                    *(subject_id(patient), time, concept.code, float32(event.numeric_value)),
                    *(event.text_value, event.end_time, available, event.unit, event.category),
                    *(concept.codings, event.encounter_id, kind, name),
                )
            )
        return None


def plain_rows(table: pa.Table) -> list[tuple]:
    """Rows of Python's own kinds, times as microseconds."""
    columns = [
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for column in table.columns
    ]
    listed = [column.to_pylist() for column in columns]
    rows = zip(*listed, strict=True)
    return [tuple(tuple(v) if isinstance(v, list) else v for v in row) for row in rows]


def expect_the_same(reference: Reference, report: Report, events: pa.Table, out: Path) -> None:
    assert (report.lines, report.blank_lines, report.bundles) == (
        *(reference.lines, reference.blank, reference.bundles),
    )
    found = {kind: (o.read, o.used, o.rejected) for kind, o in report.resources.items()}
    assert found == {
        kind: (read, reference.used[kind], reference.rejected[kind])
        for kind, read in reference.read.items()
    }
    reasons = {(k, why): n for k, o in report.resources.items() for why, n in o.not_used.items()}
    assert reasons == reference.not_used
    rejects = [tuple(json.loads(r).values()) for r in (out / "rejects.ndjson").open()]
    assert rejects == sorted(reference.rejects)
    assert report.notes == reference.notes
    assert report.observations_without_category == reference.without_category
    assert set(plain_rows(read_subjects(out))) == reference.subjects
    assert set(plain_rows(read_encounters(out))) == reference.encounters
    assert Counter(plain_rows(events)) == Counter(reference.events)
    assert report.events == Counter(event[8] for event in reference.events)


def reference_of(files: Iterable[tuple[str, bytes]], site: Site) -> Reference:
    reference = Reference(site)
    for name, text in files:
        reference.add_file(name, text)
    reference.finish()
    return reference


def told_apart(lines: list[bytes]) -> list[bytes]:
    """Lines without the records of which several versions have an equal claim."""
    while True:
        files = ((str(number), line) for number, line in enumerate(lines))
        reference = reference_of(files, Site(Clock()))
        if not reference.unclear:
            return lines
        lines = [line for n, line in enumerate(lines) if str(n) not in reference.unclear]


Check = Callable[..., None]


@pytest.fixture
def check(run, broken_lines, tmp_path, monkeypatch) -> Check:
    """Ingests cases and compares with the reference."""

    def of(cases: int, seed: int, timezone: str | None = None, units: str | None = None) -> None:
        lines = told_apart(broken_lines(seed).lines(cases))
        texts = broken_lines(seed).write(tmp_path / "fhir", lines)
        book = Codebook.load(units=units, mappings=[mapping(tmp_path)] if units else ())
        # With the stack of a new thread, as in an ingestion.
        with ThreadPoolExecutor(1) as thread:
            site = Site(Clock(timezone), book=book)
            reference = thread.submit(reference_of, texts.items(), site).result()
        monkeypatch.setattr(
            "ehrmamba_hf.fhir.reading._CHUNK", 1 << random.Random(seed).randrange(8, 18)
        )
        report, events = run(tmp_path / "fhir", timezone=timezone, book=book, workers=1)
        expect_the_same(reference, report, events, tmp_path / "events")

    return of


def mapping(folder: Path) -> Path:
    file = folder / "mapping.csv"
    file.write_text("from,to\nLOINC/2345-7,SNOMED/33747003\nRXNORM/5856,ATC/A10\n")
    return file


def test_two_thousand_broken_lines(check):
    check(CASES_A_RUN, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_hundred_thousand_broken_lines(check, seed):
    check(
        LONG_RUN // 10,
        seed,
        timezone="America/New_York" if seed % 3 == 0 else None,
        units="common" if seed % 4 == 0 else None,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def nested(depth: int) -> bytes:
    """A record whose depth is at the limit of the stack."""
    inner = b"[" * depth + b"]" * depth
    return b'{"resourceType":"Observation","id":"n%d","x":%s}' % (depth, inner)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_blocks_chunks_and_workers_change_no_byte(seed, run, broken_lines, tmp_path, monkeypatch):
    maker = broken_lines(seed)
    # Here all lines may stay: which version is used is the same each time.
    lines = maker.lines(CASES_A_RUN // 4) + [nested(depth) for depth in range(900, 1000)]
    maker.write(tmp_path / "fhir", lines)
    monkeypatch.setattr("ehrmamba_hf.events.fhir.shards.SHARD_ROWS", 100)
    run(tmp_path / "fhir", workers=1)
    expected = contents(tmp_path / "events")
    assert len([name for name in expected if name.startswith("data/")]) > 1
    for size in (20_000, 300_000):
        with monkeypatch.context() as patch:
            patch.setattr(
                "ehrmamba_hf.events.fhir.source.blocks_of",
                lambda files, size=size: reading.blocks_of(files, block=size),
            )
            patch.setattr("ehrmamba_hf.fhir.reading._CHUNK", maker.rng.randrange(50, 5_000))
            patch.setattr("ehrmamba_hf.events.fhir.parts.MOST_ROWS", maker.rng.randrange(5, 500))
            patch.setattr("ehrmamba_hf.events.fhir.writing._GROUP", maker.rng.randrange(5, 500))
            run(tmp_path / "fhir", workers=1)
            assert contents(tmp_path / "events") == expected
            patch.setattr("ehrmamba_hf.events.ingestion._POOL_BYTES", 0)
            if size > 20_000:
                run(tmp_path / "fhir", workers=2)
                assert contents(tmp_path / "events") == expected


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_patients_are_sorted_a_few_at_a_time_where_memory_asks_for_it(
    seed, run, broken_lines, tmp_path, monkeypatch
):
    maker = broken_lines(seed)
    maker.write(tmp_path / "fhir", maker.lines(CASES_A_RUN // 4))
    for module in ("shards", "shard_file"):  # also the least that is sorted at a time
        monkeypatch.setattr(f"ehrmamba_hf.events.fhir.{module}.ROW_GROUP", 16)
    run(tmp_path / "fhir", workers=1)
    expected = contents(tmp_path / "events")
    pieces = []
    cut = shards._cut
    monkeypatch.setattr(shards, "_cut", lambda *args: pieces.append(cut(*args)) or pieces[-1])
    monkeypatch.setattr(shards, "_ROW_BYTES", 1 << 40)
    run(tmp_path / "fhir", workers=1)
    assert max(map(len, pieces)) > 4
    assert contents(tmp_path / "events") == expected
