"""The attributes of tokens: which columns there are, and how to derive the missing ones.

A sequence is `[CLS] ([VS] events [VE] [REG] [interval])* ...`, and each token has, beside its id, a
type, an age, a time, a visit segment and a visit order (EHRMamba paper, section 3.1 and figure 1).
All but the type of ordinary tokens follow from the ids of the special ones, which stand at fixed
places at the front of every vocabulary.
"""

import torch
from torch import Tensor

ATTRIBUTES = ("token_type_ids", "ages", "time_stamps", "visit_segments", "visit_orders")

PAD, CLS, VISIT_START, VISIT_END, REGISTER, INTERVAL, TASK = range(7)
PROCEDURE, MEDICATION, LAB, OTHER = range(7, 11)

# [PAD] [UNK] [MASK] [CLS] [VS] [VE] [REG], then [W_0..3] [M_0..12] [LT], then the task tokens
# [MOR] [LOS] [REA] [C0] [C1] [C2] and ten reserved ones.
SPECIAL_TYPES = (
    [PAD, OTHER, OTHER, CLS, VISIT_START, VISIT_END, REGISTER] + [INTERVAL] * 18 + [TASK] * 16
)
_FIRST_INTERVAL = 7
_WEEKS, _MONTHS = 4, 13

DAYS_PER_YEAR = 365.25
DAYS_PER_WEEK = 7.0


def default_token_types(vocab_size: int) -> list[int]:
    """Types of a vocabulary of which only the special tokens are known; the rest are "other".

    Example:
        >>> default_token_types(43)[3:8], default_token_types(43)[-3:]
        ([1, 2, 3, 4, 5], [6, 10, 10])
    """
    ordinary = max(0, vocab_size - len(SPECIAL_TYPES))
    return (SPECIAL_TYPES + [OTHER] * ordinary)[:vocab_size]


def default_interval_hours(vocab_size: int, long_interval_days: float) -> list[int]:
    """Hours that pass at each token: the middle of an interval token's range, else 0.

    [W_n] is 7 n + 3.5 days, [M_n] 30 n + 15, [LT] `long_interval_days`. Whole hours, so that no
    cast of the model to a narrow dtype can change them.

    Example:
        >>> hours = default_interval_hours(41, long_interval_days=365)
        >>> [hours[i] / 24 for i in (6, 7, 8, 11, 12, 24, 25)]
        [0.0, 3.5, 10.5, 15.0, 45.0, 365.0, 0.0]
    """
    days = [7 * n + 3.5 for n in range(_WEEKS)] + [30 * n + 15 for n in range(_MONTHS)]
    days.append(long_interval_days)
    hours = [0] * _FIRST_INTERVAL + [round(24 * value) for value in days]
    return (hours + [0] * max(0, vocab_size - len(hours)))[:vocab_size]


def derive_attributes(
    input_ids: Tensor,
    token_type_table: Tensor,
    interval_days_table: Tensor,
    attention_mask: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    token_type_ids: Tensor | None = None,
    ages: Tensor | None = None,
    time_stamps: Tensor | None = None,
    visit_segments: Tensor | None = None,
    visit_orders: Tensor | None = None,
) -> dict[str, Tensor]:
    """Complete the attribute columns of a batch of sequences.

    A column that is given may cover only the first positions (a prompt), and is then continued;
    one that is not given is derived from a zero start. Orders count [VS]; segments alternate 1, 2
    by visit; age and time stay within a visit and advance at an interval token by its days. All
    four are 0 on padding, [CLS], intervals and task tokens, and before the first visit.

    Args:
        input_ids: token ids, (batch, length); padding on either side.
        token_type_table: type of each token of the vocabulary, (vocab,).
        interval_days_table: days that pass at each token, (vocab,).
        attention_mask: (batch, length), 0 on padding; None goes by the PAD type alone.
        positions: each position's place in its own patient's sequence, (batch, length), where
            several share a row; each begins anew at place 0, and a column is given whole or not.
        token_type_ids: given types, (batch, at most length).
        ages: given ages in years, likewise.
        time_stamps: given weeks since the first event, likewise.
        visit_segments: given segments, likewise.
        visit_orders: given orders, likewise.

    Returns:
        The five columns by name, each (batch, length): types, segments, orders int64, ages and
        times float32.

    Raises:
        ValueError: a given column that is longer than `input_ids` or of another batch size, or
            shorter where patients share a row.

    Example:
        >>> types = torch.tensor(default_token_types(42))
        >>> days = torch.tensor(default_interval_hours(42, 365)) / 24
        >>> ids = torch.tensor([[3, 4, 41, 5, 6, 8, 4, 41]])  # [CLS] [VS] x [VE] [REG] [W_1] [VS] x
        >>> columns = derive_attributes(ids, types, days)
        >>> columns["visit_orders"].tolist(), columns["time_stamps"].tolist()
        ([[0, 1, 1, 1, 1, 0, 2, 2]], [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5, 1.5]])
    """
    given = dict(
        zip(
            ATTRIBUTES,
            (token_type_ids, ages, time_stamps, visit_segments, visit_orders),
            strict=True,
        )
    )
    _check_given(given, input_ids, whole=positions is not None)
    types = token_type_table.long()[input_ids]
    if attention_mask is not None:
        types = types.masked_fill(attention_mask == 0, PAD)
    types = _continued(token_type_ids, types)
    in_visit = (types >= VISIT_START) & (types != INTERVAL) & (types != TASK)

    visits = _running_sum((types == VISIT_START).long(), positions)
    orders = (visits + _offset(visit_orders, visit_orders, visits)) * in_visit
    orders = _continued(visit_orders, orders)
    in_visit = in_visit & (orders > 0)
    # Given segments tell odd visits from even ones where the orders, all 512 from there on, do not.
    turns = orders if visit_segments is None else visits + _offset(visit_segments, orders, visits)
    segments = torch.where(orders > 0, 1 + (turns - 1) % 2, 0)
    days = torch.where(types == INTERVAL, interval_days_table.float()[input_ids], 0.0)
    days = _running_sum(days, positions)

    def elapsed(column: Tensor | None, unit: float) -> Tensor:
        passed = days / unit
        values = (passed + _offset(column, orders, passed)) * in_visit
        return _continued(column, values)

    return {
        "token_type_ids": types,
        "ages": elapsed(ages, DAYS_PER_YEAR),
        "time_stamps": elapsed(time_stamps, DAYS_PER_WEEK),
        "visit_segments": _continued(visit_segments, segments),
        "visit_orders": orders,
    }


def _check_given(given: dict[str, Tensor | None], input_ids: Tensor, whole: bool) -> None:
    batch, length = input_ids.shape
    for name, column in given.items():
        if column is None:
            continue
        short = column.shape[1] < length and not whole
        if column.shape[0] != batch or not (short or column.shape[1] == length):
            fewer = "" if whole else ", or fewer positions, which are then continued"
            raise ValueError(
                f"{name} has shape {tuple(column.shape)}, expected that of input_ids, "
                f"({batch}, {length}){fewer}"
            )


def _running_sum(values: Tensor, positions: Tensor | None) -> Tensor:
    """The sum along each row, (batch, length), begun anew at each place 0."""
    total = values.cumsum(1)
    if positions is None:
        return total
    index = torch.arange(values.shape[1], device=values.device)
    first = torch.where(positions == 0, index, 0).cummax(1).values
    return total - (total - values).gather(1, first)


def _continued(given: Tensor | None, derived: Tensor) -> Tensor:
    """The given positions, then the derived ones."""
    if given is None:
        return derived
    return torch.cat([given.to(derived.dtype), derived[:, given.shape[1] :]], dim=1)


def _offset(given: Tensor | None, orders: Tensor | None, counted: Tensor) -> Tensor:
    """What to add to a running count, (batch, length), so that it goes on from the given values.

    The anchor is the last given position inside a visit; without one, the count starts at zero.
    """
    if given is None or orders is None or given.shape[1] == 0:
        return counted.new_zeros(counted.shape[0], 1)
    inside = orders[:, : given.shape[1]] > 0
    anchor = (inside * torch.arange(1, given.shape[1] + 1, device=given.device)).argmax(1, True)
    offset = given.to(counted.dtype).gather(1, anchor) - counted.gather(1, anchor)
    return torch.where(inside.any(1, True), offset, torch.zeros_like(offset))


__all__ = ["ATTRIBUTES", "derive_attributes"]
