"""Real and synthetic FHIR of other people's making: everything is accounted for."""

import gzip
import json
import random

import pytest

pytestmark = pytest.mark.shared_data


@pytest.mark.parametrize(
    ("name", "subjects", "encounters"),
    [
        ("mimic-iv-demo-fhir-6", 6, 13),
        pytest.param("mimic-iv-demo-fhir", 60, 238, marks=pytest.mark.slow),
        pytest.param("synthea-r4", 615, 18_098, marks=pytest.mark.slow),
        ("synthea-r4-bundles", 4, 22),
    ],
)
def test_every_resource_is_accounted_for(run, shared_data, name, subjects, encounters):
    report, events = run(shared_data / name, workers=1)
    assert (report.subjects, report.encounters) == (subjects, encounters)
    assert report.total.rejected == 0
    assert len(events) == sum(report.events.values())
    assert report.unresolved_references == {}
    assert report.unknown_code_systems == {}
    reasons = {"type not used", "status not-done", "nothing refers to it"}
    assert report.total.not_used.keys() <= reasons


def test_bundles_give_the_events_of_their_ndjson_form(run, shared_data, write, tmp_path):
    _, bundled = run(shared_data / "synthea-r4-bundles")
    ids = set(bundled["source_id"].to_pylist())
    people = {f"Patient/{row}" for row in ids}
    records = []
    for file in (shared_data / "synthea-r4").glob("*.ndjson.gz"):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            record = json.loads(line)
            whose = (record.get("subject") or record.get("patient") or {}).get("reference")
            if record["id"] in ids or whose in people:
                records.append(record)
    if not records:
        pytest.skip("the two samples have no patient in common")
    _, plain = run(records)
    assert plain == bundled


def test_the_order_of_files_and_lines_changes_nothing(run, shared_data, tmp_path):
    source = shared_data / "mimic-iv-demo-fhir-6"
    run(source)
    events = tmp_path / "events"
    before = {p.relative_to(events): p.read_bytes() for p in events.rglob("*.parquet")}
    lines = [line for file in source.glob("*.ndjson") for line in file.read_bytes().splitlines()]
    random.Random(1).shuffle(lines)
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for number in range(7):
        (shuffled / f"{number}.ndjson").write_bytes(b"\n".join(lines[number::7]))
    run(shuffled)
    assert {p.relative_to(events): p.read_bytes() for p in events.rglob("*.parquet")} == before
