"""Forecasts: attributes that go on from the record's, the same again by seed, plain refusals."""

import itertools
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ehrmamba_hf.corpus.encode import RecordEncoder
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.forecasting import ForecastEvent, forecast, forecast_lines
from ehrmamba_hf.timelines import Record, VisitRules, iter_records, stays_of
from ehrmamba_hf.tokenization.grammar_ehrmamba import TASK_TOKENS

MIDDLE = {f"[W_{n}]": 7 * n + 3.5 for n in range(4)} | {f"[M_{n}]": 30 * n + 15 for n in range(13)}
MIDDLE["[LT]"] = 365


@pytest.fixture(scope="module")
def record(events: Path) -> Record:
    """The first patient with several stays."""
    return next(r for r in iter_records(events, ["lab", "medication"]) if len(stays_of(r)) > 3)


@pytest.fixture(scope="module")
def subject(record: Record) -> str:
    return str(record.subject_id)


def columns_of(model: Path, events: Path, subject: str, at: int | None = None) -> dict[str, list]:
    tokenizer = load_tokenizer(model)
    (found,) = iter_records(events, tokenizer.categories, only=[int(subject)])
    return RecordEncoder(found, tokenizer, VisitRules()).columns(at)


def text(moment: int) -> str:
    return (datetime(1970, 1, 1) + timedelta(microseconds=moment)).isoformat()


def check(ahead: list[ForecastEvent], columns: dict[str, list]) -> None:
    """Order, age and time of each forecast token, counted here token by token."""
    inside = [i for i, order in enumerate(columns["visit_orders"]) if order]
    order, age = columns["visit_orders"][inside[-1]], columns["ages"][inside[-1]]
    days = 7 * (columns["time_stamps"][inside[-1]] - max(columns["time_stamps"]))
    for event in ahead:
        order += event.token == "[VS]"
        days += MIDDLE.get(event.token, 0)
        age += MIDDLE.get(event.token, 0) / 365.25
        if event.token in MIDDLE:
            assert (event.visit, event.age, event.weeks) == (None, None, None)
        else:
            assert event.visit == order
            assert event.age == pytest.approx(age, abs=1e-4)
            assert event.weeks == pytest.approx(days / 7, abs=1e-3)


def test_attributes_go_on_from_the_record(model: Path, events: Path, subject: str) -> None:
    ahead = hot(model, events, subject, seed=0)
    assert len(ahead) == 200
    assert len(MIDDLE.keys() & {event.token for event in ahead}) > 3  # time does go on
    assert "[VS]" in {event.token for event in ahead}
    check(ahead, columns_of(model, events, subject))


def test_a_forecast_from_an_index_time(
    model: Path, events: Path, subject: str, record: Record
) -> None:
    stay = stays_of(record)[1]
    at = stay.start + 12 * 3_600_000_000
    ahead = forecast(model, events, subject, tokens=30, at=text(at))
    columns = columns_of(model, events, subject, at)
    assert columns["input_ids"] != columns_of(model, events, subject)["input_ids"]
    check(ahead, columns)
    assert ahead != forecast(model, events, subject, tokens=30)


def test_what_never_stands_in_a_record_is_never_forecast(
    model: Path, events: Path, subject: str
) -> None:
    """An untrained model's task tokens are as likely as any: they came up in forecasts."""
    found = {event.token for seed in range(3) for event in hot(model, events, subject, seed)}
    assert len(found) > 100
    assert not found & {"[PAD]", "[UNK]", "[MASK]", "[CLS]", *TASK_TOKENS}


def hot(model: Path, events: Path, subject: str, seed: int) -> list[ForecastEvent]:
    """Nearly any token, as likely as any other."""
    return forecast(model, events, subject, tokens=200, seed=seed, temperature=100.0, top_p=1.0)


def test_the_same_seed_the_same_forecast(model: Path, events: Path, subject: str) -> None:
    first = forecast(model, events, subject, tokens=12, seed=3)
    assert forecast(model, events, subject, tokens=12, seed=3) == first
    assert forecast(model, events, subject, tokens=12, seed=4) != first
    assert forecast(model, events, subject, tokens=20, seed=3)[:12] == first
    greedy = forecast(model, events, subject, tokens=5, seed=3, do_sample=False)
    assert forecast(model, events, subject, tokens=5, seed=4, do_sample=False) == greedy


def test_the_id_at_the_source_is_as_good(model: Path, events: Path, subject: str) -> None:
    people = read_subjects(events)
    row = people.filter(pc.equal(people["subject_id"], pa.scalar(int(subject)))).to_pylist()[0]
    found = forecast(model, events, row["source_id"], tokens=5)
    assert found == forecast(model, events, subject, tokens=5)


def test_a_finetuned_model_forecasts_where_it_learnt_to(
    mpf: Path, forgetful: Path, events: Path, subject: str
) -> None:
    check(forecast(mpf, events, subject, tokens=20), columns_of(mpf, events, subject))
    with pytest.raises(InputError, match="found one that was finetuned without it"):
        forecast(forgetful, events, subject, tokens=20)


def test_a_patient_that_nobody_knows(model: Path, events: Path) -> None:
    with pytest.raises(InputError, match="expected a subject_id or an id at the source") as error:
        forecast(model, events, "secret-name")
    assert "secret-name" not in str(error.value)


def test_nothing_to_go_on_from(model: Path, events: Path, subject: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a patient with events, found none"):
        forecast(model, events, subject, at="1900-01-01")
    with pytest.raises(InputError, match="expected a tokenizer"):
        forecast(tmp_path, events, subject)


def test_lines(model: Path, events: Path, subject: str) -> None:
    ahead = forecast(model, events, subject, tokens=60)
    for event, line in zip(ahead, forecast_lines(ahead), strict=True):
        assert line.endswith(event.text)
        assert (event.visit is None) == (line == event.text)
    assert forecast_lines([ForecastEvent("[W_0]", "[W_0]", None, None, None)]) == ["[W_0]"]
    assert forecast_lines([ForecastEvent("X/1", "X/1", -0.01, 60.04, 2)]) == [
        "+0.0 weeks  age 60.0  visit 2  X/1"
    ]


def test_weeks_never_run_backwards(mpf: Path, events: Path, subject: str) -> None:
    weeks = [e.weeks for e in hot(mpf, events, subject, 0) if e.weeks is not None]
    assert all(later >= earlier for earlier, later in itertools.pairwise(weeks))
