"""From FHIR resources to the label table: clocks of several kinds, worked by hand.

A label is a matter of wall clocks: times as written with their own offset; of sources that write
everything in UTC, times in the hospital's zone.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehrmamba_hf.corpus import PrepareSettings, prepare
from ehrmamba_hf.events import ingest
from ehrmamba_hf.timelines import SplitRules

NEW_YORK = "America/New_York"  # -05:00; -04:00 from 2020-03-08T02:00 to 2020-11-01T02:00
ALL_FIT = PrepareSettings(
    min_patients=1, splits=SplitRules(pretrain=1.0, finetune=0.0, validation=0.0)
)


def patient(name: str, *stays: tuple[str, str], death: str | None = None) -> list[dict]:
    """A patient with stays (start, end), and a laboratory result at the start of each."""
    who = {"reference": f"Patient/{name}"}
    person = {"resourceType": "Patient", "id": name, "birthDate": "1950-01-01"}
    resources = [person | ({"deceasedDateTime": death} if death else {})]
    for i, (start, end) in enumerate(stays):
        resources += [
            {
                "resourceType": "Encounter",
                "id": f"{name}-{i}",
                "class": {"code": "IMP"},
                "subject": who,
                "period": {"start": start, "end": end},
            },
            {
                "resourceType": "Observation",
                "id": f"{name}-lab-{i}",
                "category": [{"coding": [{"code": "laboratory"}]}],
                "code": {"coding": [{"system": "http://loinc.org", "code": "2345-7"}]},
                "subject": who,
                "effectiveDateTime": start,
            },
        ]
    return resources


@pytest.fixture
def labels(tmp_path: Path) -> Callable[..., list[tuple[str, bool]]]:
    """(index time, label) of one task, from resources all the way to `labels.parquet`.

    Somebody else's stay in 2021 lets follow-up end after all that is asked here.
    """

    def of(
        task: str, resources: list[dict], timezone: str | None = None, last: bool = True
    ) -> list[tuple[str, bool]]:
        offset = "Z" if timezone else "-05:00"
        later = (f"2021-05-01T08:00:00{offset}", f"2021-05-01T20:00:00{offset}")
        resources = [*resources, *(patient("z", later) if last else ())]
        file = tmp_path / "fhir" / "all.ndjson"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(r) + "\n" for r in resources))
        ingest(file.parent, tmp_path / "events", timezone=timezone, workers=1, progress=False)
        data = prepare(tmp_path / "events", tmp_path / "data", ALL_FIT, progress=False)
        rows = pq.read_table(data / "labels.parquet").to_pylist()
        return sorted(
            (str(row["prediction_time"]), row["boolean_value"])
            for row in rows
            if row["task"] == task and row["prediction_time"].year < 2021
        )

    return of


@pytest.mark.parametrize(
    ("death", "label"),
    [
        ("2020-02-09T12:00:00-05:00", True),  # 30 x 24 h by the clock
        ("2020-02-09T12:00:00.000001-05:00", False),
        ("2020-02-09T12:00:00-06:00", True),  # an hour later, in a zone where it is noon too
        ("2020-02-09", True),  # 30 days after 10 January
        ("2020-02-10", False),
    ],
)
def test_mortality_with_an_offset(labels, death, label):
    stay = ("2020-01-01T08:00:00-05:00", "2020-01-10T12:00:00-05:00")
    assert labels("mortality", patient("p", stay, death=death)) == [("2020-01-10 12:00:00", label)]


@pytest.mark.parametrize(
    ("death", "found"),
    [
        ("2020-02-09T17:00:00Z", [("2020-01-10 23:30:00", True)]),
        ("2020-02-10T04:30:00Z", [("2020-01-10 23:30:00", True)]),  # 9 February, 23:30
        ("2020-02-10T04:30:01Z", [("2020-01-10 23:30:00", False)]),
        ("2020-01-11T04:59:00Z", []),  # still 10 January in New York: an in-hospital death
        ("2020-01-11T05:00:00Z", [("2020-01-10 23:30:00", True)]),
        ("2020-01-10", []),
        ("2020-01-11", [("2020-01-10 23:30:00", True)]),  # dates have no zone
    ],
)
def test_mortality_in_utc_with_a_timezone(labels, death, found):
    stay = ("2020-01-01T13:00:00Z", "2020-01-11T04:30:00Z")  # leaves on 10 January, 23:30
    assert labels("mortality", patient("p", stay, death=death), NEW_YORK) == found


@pytest.mark.parametrize(
    ("death", "label"),
    [("2020-03-31T16:00:00Z", True), ("2020-03-31T16:00:01Z", False)],
)
def test_mortality_across_the_start_of_daylight_saving(labels, death, label):
    # 1 March 12:00 -05:00 to 31 March 12:00 -04:00: 30 days of the clock, 719 hours of the sun
    stay = ("2020-02-20T13:00:00Z", "2020-03-01T17:00:00Z")
    found = labels("mortality", patient("p", stay, death=death), NEW_YORK)
    assert found == [("2020-03-01 12:00:00", label)]


@pytest.mark.parametrize(
    ("end", "label"),
    [
        ("2020-03-12T12:00:00Z", False),  # 12 March 08:00 -04:00: 7 days of the clock
        ("2020-03-12T12:00:00.000001Z", True),
    ],
)
def test_length_of_stay_across_the_start_of_daylight_saving(labels, end, label):
    resources = patient("p", ("2020-03-05T13:00:00Z", end))  # 5 March 08:00 -05:00
    assert labels("length_of_stay", resources, NEW_YORK) == [("2020-03-06 08:00:00", label)]


def test_24_hours_across_the_change_are_wall_clock_too(labels):
    # 7 March 08:00 -05:00 to 8 March 08:00 -04:00: 24 h of the clock, 23 of the sun
    day = ("2020-03-07T13:00:00Z", "2020-03-08T12:00:00Z")
    assert labels("length_of_stay", patient("p", day), NEW_YORK) == []
    more = ("2020-03-07T13:00:00Z", "2020-03-08T12:00:01Z")
    assert labels("length_of_stay", patient("p", more), NEW_YORK) == [
        ("2020-03-08 08:00:00", False)
    ]


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("2020-01-02T08:00:00-05:00", []),  # 24 h exactly
        ("2020-01-02T08:00:01-05:00", [("2020-01-02 08:00:00", False)]),
        ("2020-01-08T08:00:00-05:00", [("2020-01-02 08:00:00", False)]),  # 7 days exactly
        ("2020-01-08T08:00:01-05:00", [("2020-01-02 08:00:00", True)]),
    ],
)
def test_length_of_stay_with_an_offset(labels, end, found):
    resources = patient("p", ("2020-01-01T08:00:00-05:00", end))
    assert labels("length_of_stay", resources) == found


@pytest.mark.parametrize(
    ("start", "label"),
    [
        ("2020-11-14T12:00:00-05:00", True),  # written with the offsets of the season
        ("2020-11-14T12:00:01-05:00", False),
    ],
)
def test_readmission_across_the_end_of_daylight_saving(labels, start, label):
    first = ("2020-10-10T08:00:00-04:00", "2020-10-15T12:00:00-04:00")
    found = labels("readmission", patient("p", first, (start, "2020-11-20T08:00:00-05:00")))
    assert found == [("2020-10-15 12:00:00", label), ("2020-11-20 08:00:00", False)]


@pytest.mark.parametrize(
    ("start", "found"),
    [
        # 15 October 12:00 -04:00 is 16:00 UTC, 14 November 12:00 -05:00 is 17:00 UTC
        ("2020-11-14T17:00:00Z", [("2020-10-15 12:00:00", True), ("2020-11-20 08:00:00", False)]),
        ("2020-11-14T17:00:01Z", [("2020-10-15 12:00:00", False), ("2020-11-20 08:00:00", False)]),
        ("2020-10-15T21:59:59Z", [("2020-11-20 08:00:00", False)]),  # under 6 h: one stay
        ("2020-10-15T22:00:00Z", [("2020-10-15 12:00:00", True), ("2020-11-20 08:00:00", False)]),
    ],
)
def test_readmission_in_utc_with_a_timezone(labels, start, found):
    first = ("2020-10-10T12:00:00Z", "2020-10-15T16:00:00Z")
    resources = patient("p", first, (start, "2020-11-20T13:00:00Z"))
    assert labels("readmission", resources, NEW_YORK) == found


@pytest.mark.parametrize("task", ["mortality", "readmission"])
@pytest.mark.parametrize(
    ("end", "kept"),
    [("2020-02-09T12:00:00-05:00", True), ("2020-02-09T11:59:59-05:00", False)],
)
def test_follow_up_ends_with_the_latest_time_in_the_data(labels, task, end, kept):
    resources = [
        *patient("p", ("2020-01-01T08:00:00-05:00", "2020-01-10T12:00:00-05:00")),
        *patient("q", ("2020-02-09T08:00:00-05:00", end)),
    ]
    found = labels(task, resources, last=False)
    assert found == ([("2020-01-10 12:00:00", False)] if kept else [])
