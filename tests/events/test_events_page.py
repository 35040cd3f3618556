"""The page of an events folder says what its report says, and where that does not add up."""

import re

import pytest

from ehrmamba_hf.events.page import events_page, warnings

REPORT = {
    "source": "FHIR",
    "timezone": None,
    "files": 3,
    "files_not_read": {".txt": 1, ".xml": 30},
    "lines": 12_345,
    "resources": {
        "Observation": {
            "read": 12_000,
            "used": 11_000,
            "not_used": {"no code": 900},
            "rejected": 100,
        },
        "Patient": {"read": 345, "used": 345, "not_used": {}, "rejected": 0},
    },
    "total": {"read": 12_345, "used": 11_345, "not_used": {"no code": 900}, "rejected": 100},
    "subjects": 345,
    "encounters": 0,
    "events": {"lab": 10_500, "vital_sign": 500},
    "events_by_year": {"2019": 7_000, "2021": 4_000},
    "date_range": ["2019-01-02T03:04:05", "2021-06-07T08:09:10"],
    "systems": {
        "LOINC": {"events": 10_000, "known": True, "url": "http://loinc.org"},
        "HOUSE": {"events": 1_000, "known": False, "url": "https://house.example/codes"},
    },
    "unknown_code_systems": {"https://house.example/codes": 1_000, "urn:other": 7},
    "text_only_codes": 21,
    "notes": {"a date without a day": 33},
    "unresolved_references": {"encounter": 77},
    "warnings": ["All times are written in UTC."],
}
REJECTS = [
    *(
        {
            "file": "labs.ndjson",
            "line": line,
            "resource_type": "Observation",
            "field": f"component[{line}].code",
            "expected": "a coding",
            "found": f"secret {line}",
        }
        for line in range(1, 100)
    ),
    {
        "file": "more.ndjson",
        "line": 8,
        "resource_type": "unknown",
        "field": "",
        "expected": "one JSON record",
        "found": "secret",
    },
]


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).replace("&#39;", "'")


@pytest.fixture(scope="module")
def text() -> str:
    return text_of(events_page(REPORT, REJECTS))


def test_the_first_screen_says_what_was_read_and_whether_to_trust_it(text):
    assert (
        "12,345 FHIR resources in 3 files gave 11,000 events and 0 encounters of 345 patients"
        in text
    )
    first = text.index("Accounting")
    for point in (
        "All resources are accounted for. Before you use the events, read this:",
        "All times are written in UTC.",
        "100 resources (0.8 %) were rejected.",
        "Files of these endings were not read: .xml (30).",
        "77 references lead to nothing that was read.",
        "1,007 codings are of code systems that are not known.",
    ):
        assert text.index(point) < first


def test_files_that_were_not_read_are_told(text):
    assert "Files not read .txt (1), .xml (30)" in text


def test_accounts_equal_the_report(text):
    assert "12,345 read = 11,345 used (91.9 %) + 900 not used + 100 rejected" in text
    assert "Observation 12,000 11,000 900 100 no code 900" in text
    assert "Patient 345 345 0 0" in text
    assert "All 12,345 11,345 900 100" in text


def test_bars_are_as_long_as_the_counts():
    page = events_page(REPORT)
    kinds = re.findall(r'<i class="(\w+)" style="flex-grow: (\d+)">', page)
    whole = [("used", "11345"), ("unused", "900"), ("rejected", "100")]
    observations = [("used", "11000"), ("unused", "900"), ("rejected", "100")]
    assert kinds == [*whole, *observations, ("used", "345")]


@pytest.mark.parametrize("lost", ["Observation", "total"])
def test_counts_that_do_not_add_up_are_said_first(lost):
    report = {**REPORT, "resources": {**REPORT["resources"]}}
    if lost == "total":
        report["total"] = {**REPORT["total"], "used": 11_344}
    else:
        report["resources"][lost] = {**REPORT["resources"][lost], "used": 10_999}
    named = "All" if lost == "total" else lost
    assert f"Do not trust these events: the counts do not add up ({named})." in text_of(
        events_page(report)
    )


def test_nothing_to_warn_of():
    report = {
        "total": {"read": 2, "used": 2, "not_used": {}, "rejected": 0},
        "subjects": 2,
        "unresolved_references": {},
        "files_not_read": {".md": 1, ".txt": 2},
    }
    assert warnings(report) == []
    text = text_of(events_page(report))
    assert "All resources are accounted for, none was rejected, and there are no warnings." in text
    assert "Every reference of the used resources leads to something that was read." in text


def test_categories_systems_references_and_notes(text):
    assert "lab 10,500 95.5 % vital sign 500 4.5 %" in text
    house, other, loinc = (text.index(x) for x in ("HOUSE", "urn:other", "LOINC"))
    assert house < other < loinc
    assert text.count("https://house.example/codes") == 1
    assert text.count("unknown 1,000") + text.count("https://house.example/codes 1,000") == 1
    assert "encounter 77" in text
    assert "concepts that have a text but no code 21" in text
    assert "a date without a day 33" in text


def test_years_show_the_gap_between_them():
    page = events_page(REPORT)
    titles = re.findall(r'<div title="(\d{4}: [\d,]+)">', page)
    assert titles == ["2019: 7,000", "2020: 0", "2021: 4,000"]
    assert "The tallest column is 2019, with 7,000 events." in text_of(page)


def test_rejects_are_grouped_with_places_and_without_content(text):
    assert (
        "Observation component[].code: expected a coding "
        "labs.ndjson:1 labs.ndjson:2 labs.ndjson:3 99" in text
    )
    assert "unknown: expected one JSON record more.ndjson:8 1" in text
    assert "labs.ndjson:4" not in text
    assert "secret" not in text


def test_many_reasons_are_summed_up():
    rejects = [{**REJECTS[0], "field": f"field{n}"} for n in range(20)]
    assert "5 other reasons 5" in text_of(events_page(REPORT, rejects))


def test_rows_of_meds_are_not_called_resources():
    text = text_of(events_page({**REPORT, "source": "MEDS"}))
    assert "12,345 MEDS rows in 3 files" in text
    assert "100 rows (0.8 %) were rejected." in text


@pytest.mark.parametrize("missing", [*REPORT])
def test_a_report_without_a_key_still_gives_a_page(missing):
    report = {key: value for key, value in REPORT.items() if key != missing}
    assert "What was read" in events_page(report, REJECTS)


def test_an_empty_report_still_gives_a_page():
    assert "What was read" in events_page({})
