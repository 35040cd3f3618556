"""The grammar by hand: every column of a written-out record, every cut of it, every prompt."""

from datetime import datetime

import pytest

from ehrmamba_hf.tokenization.grammar_ehrmamba import (
    CLS,
    COLUMNS,
    MICROSECONDS_A_DAY,
    REG,
    SPECIAL_ID,
    SPECIAL_TOKENS,
    TASK_TOKENS,
    TYPE_ID,
    VE,
    VS,
    Columns,
    EncodedVisit,
    assemble,
    fit,
    interval_token,
    microseconds,
    prompt,
    special_type,
    truncate,
)

LAB, MEDICATION, PROCEDURE = range(41, 44)
TYPES = [special_type(i) for i in range(41)] + [TYPE_ID[n] for n in ("lab", "medication")]
TYPES.append(TYPE_ID["procedure"])
MORTALITY = SPECIAL_ID["[MOR]"]
OUTSIDE = ("ages", "time_stamps", "visit_segments", "visit_orders")


def at(text: str) -> int:
    found = microseconds(text)
    assert found is not None
    return found


def visit(start: str, end: str | None, *events: tuple[str, int]) -> EncodedVisit:
    return EncodedVisit(
        at(start),
        None if end is None else at(end),
        [i for _, i in events],
        [at(t) for t, _ in events],
    )


FIRST = visit(
    "2019-03-04T10:00",
    "2019-03-06T12:00",
    ("2019-03-04T11:00", LAB),
    ("2019-03-05T09:00", MEDICATION),
)
SECOND = visit("2019-03-20T12:00", "2019-03-20T18:00", ("2019-03-20T13:00", LAB))
THIRD = visit("2020-03-19T18:00", None, ("2020-03-19T20:00", PROCEDURE), ("2020-03-20T01:00", LAB))
BIRTH = at("1960-01-01")


def rows(columns: Columns) -> list[tuple]:
    return list(zip(*columns.values(), strict=True))


def test_a_record_written_out() -> None:
    columns = assemble([FIRST, SECOND, THIRD], BIRTH, TYPES)
    assert list(columns) == list(COLUMNS)
    # 2019-03-06 12:00 to 2019-03-20 12:00 is 14 days; 2019-03-20 18:00 to 2020-03-19 18:00 is 365,
    # by the leap day of 2020.
    w2, lt = SPECIAL_ID["[W_2]"], SPECIAL_ID["[LT]"]
    ids = [CLS, VS, LAB, MEDICATION, VE, REG, w2, VS, LAB, VE, REG, lt, VS, PROCEDURE, LAB]
    assert columns["input_ids"] == ids
    kinds = "CLS VS lab medication VE REG interval VS lab VE REG interval VS procedure lab"
    assert columns["token_type_ids"] == [TYPE_ID[kind] for kind in kinds.split()]
    assert columns["visit_orders"] == [0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 3, 3, 3]
    assert columns["visit_segments"] == [0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 1, 1, 1]
    assert columns["attention_mask"] == [1] * 15
    # 1960-01-01 to 2019-03-04 is 21612 days: 59 years of 365, 15 leap days, 31 + 28 + 3 of 2019.
    days = [21612 + 10 / 24, 21612 + 11 / 24, 21613 + 9 / 24, 21614.5, 21614.5]
    days += [21628.5, 21628 + 13 / 24, 21628.75, 21628.75]
    days += [21993.75, 21993 + 20 / 24, 21994 + 1 / 24]
    years = [day / 365.25 for day in days]
    ages = [0, *years[:5], 0, *years[5:9], 0, *years[9:]]
    assert columns["ages"] == pytest.approx(ages, abs=1e-9)
    weeks = [
        (day - (21612 + 11 / 24)) / 7 for day in days
    ]  # since the first event, not the first VS
    stamps = [0, *weeks[:5], 0, *weeks[5:9], 0, *weeks[9:]]
    assert columns["time_stamps"] == pytest.approx(stamps, abs=1e-9)
    assert columns["time_stamps"][1] == pytest.approx(-1 / 168)


@pytest.mark.parametrize(
    ("end", "start", "token"),
    [
        ("2019-01-01T00:00", "2019-01-01T00:00", "[W_0]"),  # 0 days
        ("2019-01-01T00:00", "2019-01-07T23:59", "[W_0]"),  # 6 days and a little
        ("2019-01-01T00:00", "2019-01-08T00:00", "[W_1]"),  # 7 days
        ("2019-01-01T00:00", "2019-01-28T23:59", "[W_3]"),  # 27 days and a little
        ("2019-01-01T00:00", "2019-01-29T00:00", "[M_0]"),  # 28 days
        ("2019-01-01T00:00", "2019-01-30T00:00", "[M_0]"),  # 29 days
        ("2019-01-01T00:00", "2019-01-31T00:00", "[M_1]"),  # 30 days
        ("2019-01-01T00:00", "2019-03-01T00:00", "[M_1]"),  # 59 days
        ("2019-01-01T00:00", "2019-03-02T00:00", "[M_2]"),  # 60 days
        ("2019-01-01T00:00", "2019-12-31T00:00", "[M_12]"),  # 364 days
        ("2019-01-01T00:00", "2019-12-31T23:59", "[M_12]"),  # 364 days and a little
        ("2019-01-01T00:00", "2020-01-01T00:00", "[LT]"),  # 365 days
        ("2019-01-01T00:00", "2049-01-01T00:00", "[LT]"),
        ("2019-01-02T00:00", "2019-01-01T00:00", "[W_0]"),  # a caller's visits that overlap
    ],
)
def test_intervals(end: str, start: str, token: str) -> None:
    assert SPECIAL_TOKENS[interval_token(at(end), at(start))] == token


def test_every_day_of_an_interval() -> None:
    for days in range(400):
        token = SPECIAL_TOKENS[interval_token(0, days * MICROSECONDS_A_DAY)]
        expected = f"[W_{days // 7}]" if days < 28 else f"[M_{days // 30}]"
        assert token == (expected if days < 365 else "[LT]")


def test_the_special_tokens_and_their_types() -> None:
    weeks, months = [f"[W_{n}]" for n in range(4)], [f"[M_{n}]" for n in range(13)]
    named = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[VS]", "[VE]", "[REG]"]
    assert list(SPECIAL_TOKENS[:25]) == [*named, *weeks, *months, "[LT]"]
    assert SPECIAL_TOKENS[25:31] == ("[MOR]", "[LOS]", "[REA]", "[C0]", "[C1]", "[C2]")
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == 41
    kinds = "PAD other other CLS VS VE REG" + " interval" * 18 + " task" * 16
    assert [special_type(i) for i in range(41)] == [TYPE_ID[kind] for kind in kinds.split()]


def test_a_visit_without_an_end_that_is_not_the_last_ends_with_its_last_event() -> None:
    earlier = visit("2020-01-01T08:00", None, ("2020-01-01T09:00", LAB), ("2020-01-02T09:00", LAB))
    later = visit("2020-01-09T09:00", None, ("2020-01-09T10:00", LAB))
    columns = assemble([earlier, later], None, TYPES)
    w1 = SPECIAL_ID["[W_1]"]  # 7 days from the last event, not from the start
    assert columns["input_ids"] == [CLS, VS, LAB, LAB, VE, REG, w1, VS, LAB]
    assert columns["time_stamps"][4] == columns["time_stamps"][5] == pytest.approx(1 / 7)
    assert columns["ages"] == [0.0] * 9  # no birth date


def test_no_visit_at_all() -> None:
    columns = assemble([], BIRTH, TYPES)
    assert columns["input_ids"] == [CLS]
    assert prompt(columns, MORTALITY)["input_ids"] == [MORTALITY, MORTALITY]


def test_a_newborn_and_a_first_event_at_zero_keep_their_order() -> None:
    born = visit("2020-01-01T00:00", None, ("2020-01-01T00:00", LAB))
    columns = assemble([born], at("2020-01-01T00:00"), TYPES)
    assert columns["ages"] == columns["time_stamps"] == [0.0, 0.0, 0.0]
    assert columns["visit_orders"] == [0, 1, 1]


def test_visit_orders_go_to_512_while_segments_go_on_alternating() -> None:
    days = [k * 10 * MICROSECONDS_A_DAY for k in range(600)]
    columns = assemble([EncodedVisit(d, d, [LAB], [d]) for d in days], None, TYPES)
    starts = [i for i, token in enumerate(columns["input_ids"]) if token == VS]
    assert [columns["visit_orders"][i] for i in starts] == [min(k, 512) for k in range(1, 601)]
    assert [columns["visit_segments"][i] for i in starts] == [1, 2] * 300


def many_visits(last_open: bool) -> Columns:
    """Five visits of 3, 1, 4, 1 and 2 events; an interval before each but the first."""
    visits = []
    for k, size in enumerate((3, 1, 4, 1, 2)):
        start = k * 40 * MICROSECONDS_A_DAY
        end = None if last_open and k == 4 else start + size
        visits.append(EncodedVisit(start, end, [LAB] * size, [start + n for n in range(size)]))
    return assemble(visits, 0, TYPES)


@pytest.mark.parametrize("last_open", [False, True])
def test_every_cut(last_open: bool) -> None:
    whole = many_visits(last_open)
    before, length = rows(whole), len(whole["input_ids"])
    for most in range(4, length + 3):
        after = rows(truncate(whole, most))
        assert most - 2 <= len(after) <= most or len(after) == length <= most
        assert after[0] == before[0]  # [CLS]
        assert after[1][0] == VS
        recent = after[2:]
        assert recent == before[length - len(recent) :]
        # The [VS] is the very one that opened the visit, so order and time are its own.
        order = list(COLUMNS).index("visit_orders")
        assert after[1] in before
        assert after[1][order] == recent[0][order]
        assert {len(column) for column in truncate(whole, most).values()} == {len(after)}


@pytest.mark.parametrize("last_open", [False, True])
def test_no_cut_loses_a_token_that_had_room(last_open: bool) -> None:
    whole = many_visits(last_open)
    length = len(whole["input_ids"])
    for most in range(4, length):
        kept = len(truncate(whole, most)["input_ids"])
        if kept == most:
            continue
        # A shorter result begins with the [VS] of a whole visit: what would have filled the rest
        # is the interval before it (and the [REG] before that), which follow a visit cut away.
        missing = whole["input_ids"][length - (kept - 1) - (most - kept) : length - (kept - 1)]
        interval = SPECIAL_ID["[M_1]"]
        assert missing in ([interval], [REG, interval])


@pytest.mark.parametrize("last_open", [False, True])
def test_cuts_in_two_steps_equal_one(last_open: bool) -> None:
    whole = many_visits(last_open)
    lengths = range(4, len(whole["input_ids"]) + 1)
    for first in lengths:
        for second in range(4, first + 1):
            assert truncate(truncate(whole, first), second) == truncate(whole, second)


def test_a_prompt_replaces_what_closes_a_visit() -> None:
    whole = many_visits(last_open=False)
    prompted = prompt(whole, MORTALITY)
    inner = slice(1, len(whole["input_ids"]) - 1)
    assert rows(prompted)[inner] == rows(whole)[inner]
    for place in (0, -1):
        assert prompted["input_ids"][place] == MORTALITY
        assert prompted["token_type_ids"][place] == TYPE_ID["task"]
        assert [prompted[name][place] for name in OUTSIDE] == [0, 0, 0, 0]
        assert prompted["attention_mask"][place] == 1
    assert whole["input_ids"][0] == CLS and whole["input_ids"][-1] == REG  # the given one is whole


def test_a_prompt_is_appended_to_an_open_visit() -> None:
    whole = many_visits(last_open=True)
    prompted = prompt(whole, MORTALITY)
    assert rows(prompted)[1:-1] == rows(whole)[1:]
    assert rows(prompted)[0] == rows(prompted)[-1] == (MORTALITY, TYPE_ID["task"], 0, 0, 0, 0, 1)


@pytest.mark.parametrize("last_open", [False, True])
@pytest.mark.parametrize("task", TASK_TOKENS[:7])
def test_every_prompted_cut_starts_and_ends_with_the_task(last_open: bool, task: str) -> None:
    whole = many_visits(last_open)
    for most in range(4, len(whole["input_ids"]) + 3):
        ids = fit(whole, most, SPECIAL_ID[task])["input_ids"]
        assert len(ids) <= most
        assert SPECIAL_TOKENS[ids[0]] == SPECIAL_TOKENS[ids[-1]] == task
        assert ids[1] == VS
        assert not {CLS, SPECIAL_ID[task]} & set(ids[1:-1])
        assert ids[-2] == (LAB if last_open else VE)  # the last event of an open visit stays


def test_a_length_that_holds_no_visit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 4, found 3"):
        fit(many_visits(last_open=False), 3, None)


@pytest.mark.parametrize(
    "value",
    ["2019-03-04T10:00:00", "2019-03-04T10:00:00Z", "2019-03-04T10:00:00-05:00"],
)
def test_times_are_of_the_wall_clock(value: str) -> None:
    # 17959 days from 1970-01-01 to 2019-03-04: 49 years, 12 leap days, 62 days of 2019.
    expected = 17959 * MICROSECONDS_A_DAY + 10 * 3_600_000_000
    assert microseconds(value) == microseconds(datetime.fromisoformat(value)) == expected
    assert microseconds(expected) == expected
