"""R4 and R5 forms of the same record give the same events folder, all types together."""

import json
from typing import Any

import pytest

from ehrmamba_hf.events import read_encounters, read_subjects

Record = dict[str, Any]
STAY: Record = {
    "resourceType": "Encounter",
    "id": "e",
    "subject": {"reference": "Patient/p"},
    "period": {"start": "2019-03-04T09:00:00-05:00", "end": "2019-03-06T12:00:00-05:00"},
}


@pytest.fixture
def releases(records) -> tuple[list[Record], list[Record]]:
    """A record of each type in R4 and in R5, about one patient in one stay."""
    made: tuple[list[Record], list[Record]] = ([STAY], [STAY])
    for kind, forms in records.items():
        name = {"Patient": "p", "Medication": "m"}.get(kind, "x")
        for release, record in zip(made, forms, strict=True):
            release.append(record | {"id": name})
    return made


def test_every_type_gives_the_same_in_both_releases(run, releases, tmp_path):
    found = []
    for release in releases:
        report, events = run(release)
        folder = tmp_path / "events"
        found.append((report, events, read_encounters(folder), read_subjects(folder)))
    assert found[0] == found[1]
    report, events, encounters, _ = found[0]
    assert {kind: o.used for kind, o in report.resources.items()} == {
        kind: 2 if kind == "Encounter" else 1 for kind in report.resources
    }
    assert (report.total.read, len(encounters)) == (14, 2)
    # Birth and death, the two of the Observation, and one of each of the nine other types.
    assert len(events) == 2 + 2 + 9


@pytest.mark.parametrize("first", [0, 1])
def test_releases_may_be_mixed(first, run, releases, tmp_path):
    _, expected = run(releases[0])
    mixed = [pair[(n + first) % 2] for n, pair in enumerate(zip(*releases, strict=True))]
    _, events = run(mixed)
    assert events == expected


def test_a_bundle_of_each_release(run, releases):
    _, expected = run(releases[0])
    for release in releases:
        text = json.dumps(release)
        for record in release:
            name = f"{record['resourceType']}/{record['id']}"
            text = text.replace(f'"{name}"', f'"urn:uuid:{record["id"]}"')
        entries = [
            {"fullUrl": f"urn:uuid:{record['id']}", "resource": record}
            for record in json.loads(text)
        ]
        _, events = run([{"resourceType": "Bundle", "type": "transaction", "entry": entries}])
        assert events == expected
