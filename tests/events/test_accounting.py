"""Nothing vanishes: every resource of other people's files, counted here by the json module."""

import gzip
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ehrmamba_hf.events import read_encounters, read_subjects

pytestmark = pytest.mark.shared_data

NAMES = [
    "mimic-iv-demo-fhir-6",
    "synthea-r4-bundles",
    pytest.param("mimic-iv-demo-fhir", marks=pytest.mark.slow),
    pytest.param("synthea-r4", marks=pytest.mark.slow),
]

Record = dict[str, Any]


def records_of(folder: Path) -> Iterator[Record]:
    """Every resource of a folder; of Bundles, those within."""
    for file in sorted(folder.iterdir()):
        if file.suffix == ".txt":
            continue
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if file.suffix == ".json":
            yield from (entry["resource"] for entry in json.loads(text)["entry"])
        else:
            yield from map(json.loads, text.splitlines())


def numbers_of(record: Record) -> Iterator[float]:
    """The values of an Observation."""
    for part in (record, *record.get("component", ())):
        value = part.get("valueQuantity", {}).get("value")
        if value is not None:
            yield value


def ids_used(events: pa.Table, folder: Path, medications: set[str]) -> dict[str, set[str]]:
    """By type, the ids of the resources that are anywhere in what was written."""
    used: dict[str, set[str]] = defaultdict(set)
    pairs = events.select(["resource_type", "source_id"]).group_by(events.column_names[-2:])
    for row in pairs.aggregate([]).to_pylist():
        used[row["resource_type"]].add(row["source_id"])
    used["Encounter"] |= set(read_encounters(folder)["encounter_id"].to_pylist())
    used["Patient"] |= set(read_subjects(folder)["source_id"].to_pylist())
    used["Medication"] = medications
    return used


@pytest.mark.parametrize("name", NAMES)
def test_every_resource_is_used_or_its_reason_is_told(name, run, shared_data, tmp_path):
    read: Counter[str] = Counter()
    ids: dict[str, set[str]] = defaultdict(set)
    named: set[str] = set()
    numbers: list[float] = []
    for record in records_of(shared_data / name):
        kind = record["resourceType"]
        read[kind] += 1
        ids[kind].add(record["id"])
        drug = record.get("medicationReference", {}).get("reference", "")
        named.add(drug.removeprefix("Medication/"))
        if kind == "Observation":
            numbers += numbers_of(record)

    report, events = run(shared_data / name)
    assert {kind: outcome.read for kind, outcome in report.resources.items()} == read
    used = ids_used(events, tmp_path / "events", ids["Medication"] & named)
    for kind, outcome in report.resources.items():
        assert used[kind] <= ids[kind]
        assert len(used[kind]) == outcome.used
        assert read[kind] - len(used[kind]) == sum(outcome.not_used.values())
    values = events.filter(pc.field("resource_type") == "Observation")["numeric_value"].drop_null()
    assert len(values) == len(numbers)
    assert math.fsum(values.to_pylist()) == pytest.approx(math.fsum(numbers), rel=1e-6)


def test_bundles_give_what_their_entries_give_as_lines(run, shared_data, write, tmp_path):
    source = shared_data / "synthea-r4-bundles"
    bundled, events = run(source)
    lines = write(tmp_path / "lines" / "all.ndjson", records_of(source)).parent
    report, plain = run(lines)
    assert plain == events
    assert report.resources == bundled.resources
    assert (bundled.bundles, report.bundles) == (4, 0)
    assert report.lines == report.total.read
