"""The grammar of a patient sequence: special tokens, intervals, bins, attributes, prompts.

A sequence reads ``[CLS] ([VS] e1 .. en [VE] [REG] [interval])* [VS] .. [VE] [REG]`` (EHRMamba,
section 2.1 and appendix D, https://arxiv.org/abs/2405.14567). All functions are pure and use the
standard library alone. Times are integers: microseconds of the hospital's wall clock since
1970-01-01.
"""

import math
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

MICROSECONDS_A_DAY = 86_400_000_000
DAYS_A_YEAR = 365.25

WEEK_TOKENS = tuple(f"[W_{n}]" for n in range(4))
MONTH_TOKENS = tuple(f"[M_{n}]" for n in range(13))
TASK_TOKENS = (
    "[MOR]",
    "[LOS]",
    "[REA]",
    "[C0]",
    "[C1]",
    "[C2]",
    *(f"[TASK_{n}]" for n in range(10)),  # kept free for tasks to come
)
SPECIAL_TOKENS = (
    "[PAD]",
    "[UNK]",
    "[MASK]",
    "[CLS]",
    "[VS]",
    "[VE]",
    "[REG]",
    *WEEK_TOKENS,
    *MONTH_TOKENS,
    "[LT]",
    *TASK_TOKENS,
)
PAD, UNK, MASK, CLS, VS, VE, REG = range(7)
SPECIAL_ID = {token: index for index, token in enumerate(SPECIAL_TOKENS)}

TOKEN_TYPES = (
    "PAD",
    "CLS",
    "VS",
    "VE",
    "REG",
    "interval",
    "task",
    "procedure",
    "medication",
    "lab",
    "other",
)
TYPE_ID = {name: index for index, name in enumerate(TOKEN_TYPES)}
TYPE_OF_CATEGORY = {
    "procedure": TYPE_ID["procedure"],
    "medication": TYPE_ID["medication"],
    "administration": TYPE_ID["medication"],
    "dispense": TYPE_ID["medication"],
    "statement": TYPE_ID["medication"],
    "lab": TYPE_ID["lab"],
}

# The columns of a sequence in the order of the model's forward signature, with their Arrow types.
COLUMNS = {
    "input_ids": "int32",
    "token_type_ids": "int8",
    "ages": "float32",
    "time_stamps": "float32",
    "visit_segments": "int8",
    "visit_orders": "int16",
    "attention_mask": "int8",
}
Columns = dict[str, list]

SHORTEST_LENGTH = 4  # [CLS] [VS] and the last two tokens
LAST_VISIT_ORDER = 512  # the size of the embedding table; later visits share it


@dataclass(slots=True)
class EncodedVisit:
    """One visit, its events already tokens. ``end`` is None while the visit is open."""

    start: int
    end: int | None
    token_ids: Sequence[int]
    times: Sequence[int]


def microseconds(value: "str | date | datetime | int | None") -> int | None:
    """A time as microseconds of the wall clock; an offset is dropped, the clock as written stays.

    >>> microseconds("1970-01-02T00:00:01+05:00") == MICROSECONDS_A_DAY + 1_000_000
    True
    """
    if value is None or isinstance(value, int):
        return value
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    elapsed = moment.replace(tzinfo=None) - datetime(1970, 1, 1)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def special_type(token_id: int) -> int:
    """The token type of a special token; [UNK] and [MASK] stand for events and are ``other``."""
    token = SPECIAL_TOKENS[token_id]
    if token in ("[PAD]", "[CLS]", "[VS]", "[VE]", "[REG]"):
        return TYPE_ID[token[1:-1]]
    if token in TASK_TOKENS:
        return TYPE_ID["task"]
    if token in ("[UNK]", "[MASK]"):
        return TYPE_ID["other"]
    return TYPE_ID["interval"]


def interval_token(start: int, end: int) -> int:
    """The id of the token for the gap from a visit's end to the next one's start.

    ``[W_n]``, n = days // 7, under 28 days; ``[M_n]``, n = days // 30, from 28 to 364; ``[LT]``
    from 365. Days are whole days; visits never overlap, so a negative gap cannot arise but by a
    caller's visits, and counts as none.

    >>> [SPECIAL_TOKENS[interval_token(0, d * MICROSECONDS_A_DAY)] for d in (6, 7, 28, 364, 365)]
    ['[W_0]', '[W_1]', '[M_0]', '[M_12]', '[LT]']
    """
    days = max(end - start, 0) // MICROSECONDS_A_DAY
    if days < 28:
        return SPECIAL_ID[WEEK_TOKENS[days // 7]]
    return SPECIAL_ID[MONTH_TOKENS[days // 30]] if days < 365 else SPECIAL_ID["[LT]"]


def bin_index(value: float, edges: Sequence[float]) -> int:
    """The bin of a value, from 1; a value equal to an edge goes below.

    Values are compared as float32, the precision in which the edges were fitted.

    >>> [bin_index(v, [1.0, 2.0]) for v in (0.5, 1.0, 1.5, 2.0, 99.0)]
    [1, 1, 2, 2, 3]
    """
    try:
        value = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:  # beyond float32: outside every fitted range, on its own side
        value = math.copysign(math.inf, value)
    return bisect_left(edges, value) + 1


def event_token_id(
    code: str,
    value: float | None,
    unit: str | None,
    vocab: Mapping[str, int],
    bins: Mapping[str, Mapping[str, Sequence[float]]],
) -> int:
    """The id of an event: its binned token, else its bare code, else [UNK].

    Args:
        code: ``{SYSTEM}/{code}``, for example ``LOINC/2345-7``.
        value: the number of a laboratory result; None or NaN where there is none.
        unit: its unit; bins were fitted per (code, unit).
    """
    if value is not None and not math.isnan(value):
        edges = bins.get(code, {}).get(unit or "")
        if edges is not None:
            token_id = vocab.get(f"{code}//Q{bin_index(value, edges)}")
            if token_id is not None:
                return token_id
    return vocab.get(code, UNK)


def assemble(
    visits: Sequence[EncodedVisit],
    birth: int | None,
    types: Sequence[int],
    first: int | None = None,
) -> Columns:
    """Write a patient's ordered visits as columns, whole (see `truncate` for the cut).

    Args:
        visits: in order of their start; only the last may be open. An earlier visit without an
            end is closed at its last event.
        birth: time of birth; ages are 0 where it is not known.
        types: the token type of every id of the vocabulary.
        first: the time of the patient's first event, from which `time_stamps` count; by default
            the first event of `visits`.

    Returns:
        A list per column of `COLUMNS`, all of one length. ages in years of 365.25 days,
        time_stamps in weeks. Special tokens outside visits have 0 in all four. Visit orders go to
        512, and later visits keep that number, while their segments go on alternating.
    """
    columns: Columns = {name: [] for name in COLUMNS}
    if first is None:
        first = min((t for v in visits for t in v.times), default=visits[0].start if visits else 0)
    _outside(columns, CLS)
    for order, visit in enumerate(visits, 1):
        last = order == len(visits)
        end = visit.end
        if end is None and not last:
            end = max(visit.times, default=visit.start)
        ids = [VS, *visit.token_ids]
        times = [visit.start, *visit.times]
        if end is not None:
            ids += (VE, REG)
            times += (end, end)
        _inside(columns, ids, times, order, birth, first, types)
        if end is not None and not last:
            _outside(columns, interval_token(end, visits[order].start))
    columns["attention_mask"] = [1] * len(columns["input_ids"])
    return columns


def _outside(columns: Columns, token_id: int) -> None:
    """Append a token that belongs to no visit."""
    columns["input_ids"].append(token_id)
    columns["token_type_ids"].append(special_type(token_id))
    for name in ("ages", "time_stamps", "visit_segments", "visit_orders"):
        columns[name].append(0)


def _inside(
    columns: Columns,
    ids: Sequence[int],
    times: Sequence[int],
    order: int,
    birth: int | None,
    first: int,
    types: Sequence[int],
) -> None:
    """Append one visit's tokens."""
    year, week = DAYS_A_YEAR * MICROSECONDS_A_DAY, 7 * MICROSECONDS_A_DAY
    columns["input_ids"] += ids
    columns["token_type_ids"] += [types[i] for i in ids]
    columns["ages"] += [0.0] * len(ids) if birth is None else [(t - birth) / year for t in times]
    columns["time_stamps"] += [(t - first) / week for t in times]
    columns["visit_segments"] += [1 + (order - 1) % 2] * len(ids)
    columns["visit_orders"] += [min(order, LAST_VISIT_ORDER)] * len(ids)


def truncate(columns: Columns, max_length: int) -> Columns:
    """Keep the most recent tokens; [CLS] and the cut visit's [VS] are put back.

    Attributes stay as they were, visit orders too. An interval token that would open the sequence
    is dropped with the visit it followed.
    """
    length = len(columns["input_ids"])
    if length <= max_length:
        return columns
    types = columns["token_type_ids"]
    start = length - (max_length - 1)
    keep = [0]
    if types[start] == TYPE_ID["interval"]:
        start += 1
    if types[start] != TYPE_ID["VS"]:
        start += 1  # room for the [VS]
        if types[start] == TYPE_ID["interval"]:
            start += 1
        else:
            keep.append(_opening(columns, start))
    keep += range(start, length)
    return {name: [column[i] for i in keep] for name, column in columns.items()}


def _opening(columns: Columns, position: int) -> int:
    """The position of the [VS] that opens the visit of a position."""
    types = columns["token_type_ids"]
    while types[position] != TYPE_ID["VS"]:
        position -= 1
    return position


def prompt(columns: Columns, task_id: int) -> Columns:
    """Put the task's token first and last (Multitask Prompted Finetuning, paper section 3.3).

    It replaces [CLS] and the closing [REG]; where the input ends inside an open visit there is no
    [REG], and it is appended, so that no event is lost.
    """
    result = {name: list(column) for name, column in columns.items()}
    closed = result["input_ids"][-1] == REG
    for position in (0, len(result["input_ids"]) - 1) if closed else (0,):
        result["input_ids"][position] = task_id
        result["token_type_ids"][position] = TYPE_ID["task"]
        for name in ("ages", "time_stamps", "visit_segments", "visit_orders"):
            result[name][position] = 0
    if not closed:
        _outside(result, task_id)
        result["attention_mask"].append(1)
    return result


def fit(columns: Columns, max_length: int | None, task_id: int | None) -> Columns:
    """Truncate to `max_length` tokens, the task's tokens included, then prompt.

    Raises:
        ValueError: a `max_length` under 4.
    """
    if max_length is not None:
        if max_length < SHORTEST_LENGTH:
            raise ValueError(f"max_length: expected at least {SHORTEST_LENGTH}, found {max_length}")
        appended = task_id is not None and columns["input_ids"][-1] != REG
        columns = truncate(columns, max_length - appended)
    return columns if task_id is None else prompt(columns, task_id)
