"""Forecasts: attributes that go on from the record's, the same again by seed, plain refusals."""

import itertools
import json
import shutil
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
from ehrmamba_hf.forecasting.forecast import forecasts
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


def follows_the_grammar(tokens: list[str], last: str) -> None:
    """Each token may follow the one before it; `last` is the record's last one."""
    special = {"[CLS]", "[VS]", "[VE]", "[REG]", *MIDDLE}
    for token in tokens:
        if last in MIDDLE or last == "[CLS]":
            assert token == "[VS]"
        elif last == "[VE]":
            assert token == "[REG]"
        elif last == "[REG]":
            assert token in MIDDLE
        else:  # inside a visit, which is not empty
            assert token not in special - ({"[VE]"} if last != "[VS]" else set())
        assert token not in {"[PAD]", "[UNK]", "[MASK]", *TASK_TOKENS}
        last = token


def test_forecasts_keep_to_the_grammar(model: Path, events: Path, subject: str) -> None:
    """An untrained model's task tokens are as likely as any: they came up in forecasts."""
    found: set[str] = set()
    for seed in range(3):
        tokens = [event.token for event in hot(model, events, subject, seed)]
        follows_the_grammar(tokens, "[REG]")
        found |= set(tokens)
    assert len(found) > 100


def test_an_open_visit_goes_on(model: Path, events: Path, subject: str, record: Record) -> None:
    at = text(stays_of(record)[1].start + 12 * 3_600_000_000)
    tokens = [event.token for event in hot(model, events, subject, 0, at=at)]
    follows_the_grammar(tokens, "an event")
    assert tokens[0] not in MIDDLE


def test_a_forecast_ends_at_its_horizon(model: Path, events: Path, subject: str) -> None:
    for weeks in (1.0, 30.0):
        ahead = hot(model, events, subject, seed=0, weeks=weeks)
        days = [MIDDLE.get(event.token, 0.0) for event in ahead]
        assert sum(days) >= 7 * weeks > sum(days[:-1])
        assert ahead[-1].token in MIDDLE
    with pytest.raises(InputError, match="weeks: expected a number above 0, found -1"):
        forecast(model, events, subject, weeks=-1)


def test_many_forecasts_of_one_record(model: Path, events: Path, subject: str) -> None:
    """Each ends at its own horizon, and none goes on into padding."""
    way = {"tokens": 200, "weeks": 70.0, "temperature": 100.0, "top_p": 1.0, **LEAVES}
    many = forecasts(model, events, subject, **way, num_return_sequences=4)
    assert len({len(ahead) for ahead in many}) > 1
    for ahead in many:
        days = [MIDDLE.get(event.token, 0.0) for event in ahead]
        assert sum(days) >= 490 > sum(days[:-1])
        check(ahead, columns_of(model, events, subject))
    assert forecast(model, events, subject, **way, num_return_sequences=4) == many[0]


def test_the_likeliest_forecasts(model: Path, events: Path, subject: str) -> None:
    way = {"tokens": 12, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    many = forecasts(model, events, subject, **way)
    assert len(many) == 2 and many[0] != many[1]
    for ahead in many:
        follows_the_grammar([event.token for event in ahead], "[REG]")
    ended = forecasts(model, events, subject, **way, weeks=1.0)
    for ahead in ended:
        days = [MIDDLE.get(event.token, 0.0) for event in ahead]
        assert len(ahead) == 12 or sum(days) >= 7 > sum(days[:-1])


def test_a_forecast_up_to_a_token(model: Path, events: Path, subject: str) -> None:
    tokens = [e.token for e in hot(model, events, subject, seed=0, eos_token_id=5)]
    assert tokens.index("[VE]") == len(tokens) - 1


LEAVES = {"sequence_bias": {(5,): 250.0}}
"""Lets an untrained model end visits: of all that may follow an event, [VE] is one of hundreds."""


def hot(
    model: Path, events: Path, subject: str, seed: int, **options: object
) -> list[ForecastEvent]:
    """Nearly any token that the grammar allows, as likely as any other."""
    ways = {"tokens": 200, "seed": seed, "temperature": 100.0, "top_p": 1.0} | LEAVES
    return forecast(model, events, subject, **(ways | options))


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


def test_a_converted_model_of_other_times_is_refused(
    model: Path, events: Path, subject: str, tmp_path: Path
) -> None:
    """Its forecasts would be wrong without a sign: its times are differences between tokens."""
    shutil.copytree(model, tmp_path / "converted")
    file = tmp_path / "converted" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"learned_zero_rows": True}))
    with pytest.raises(InputError, match="converted from the authors' code, whose times are"):
        forecast(tmp_path / "converted", events, subject)


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
