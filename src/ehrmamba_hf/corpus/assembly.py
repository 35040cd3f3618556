"""Visits to the columns of sequences, many at once: what the grammar's `assemble` and `fit` do."""

from collections.abc import Sequence

import numpy as np

from ehrmamba_hf.timelines.layout import Batch, Layout, View, offsets, spans
from ehrmamba_hf.timelines.timeline import FAR
from ehrmamba_hf.tokenization.grammar_ehrmamba import (
    CLS,
    COLUMNS,
    DAYS_A_YEAR,
    LAST_VISIT_ORDER,
    MICROSECONDS_A_DAY,
    MONTH_TOKENS,
    REG,
    SPECIAL_ID,
    TYPE_ID,
    VE,
    VS,
    WEEK_TOKENS,
)

_YEAR, _WEEK = DAYS_A_YEAR * MICROSECONDS_A_DAY, 7 * MICROSECONDS_A_DAY
_INTERVALS = np.array([SPECIAL_ID[token] for token in (*WEEK_TOKENS, *MONTH_TOKENS, "[LT]")])
_WEEKS, _MONTHS = len(WEEK_TOKENS), len(MONTH_TOKENS)


class Sequences:
    """The sequences of views, end to end, whole: a token is at the same place in every column.

    Args:
        batch, views, layout: see `lay_out`.

    Attributes:
        lengths: (views,) tokens of each sequence; 1, the [CLS], where it shows no event.
        orders: (views,) visits with events of each sequence.
    """

    def __init__(self, batch: Batch, views: Sequence[View], layout: Layout) -> None:
        self.batch = batch
        self.views = views
        self.layout = layout
        self.orders = np.bincount(layout.view, minlength=len(views))
        self._last = np.diff(layout.view, append=len(views)) != 0
        closed = ~self._last | (layout.end != FAR)
        # [VS], the events, [VE] and [REG] where it has ended, and an interval where one follows.
        self._sizes = 1 + np.diff(layout.first) + 2 * closed + ~self._last
        self._closed = closed
        inside = np.bincount(layout.view, weights=self._sizes, minlength=len(views))
        self.lengths = 1 + inside.astype(np.int64)

    def columns(
        self, ids: np.ndarray, types: np.ndarray, max_length: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The model's columns, end to end, each sequence cut to its most recent tokens.

        Args:
            ids: token id of every event of the batch.
            types: token type of every id.
            max_length: tokens that are kept of a sequence.

        Returns:
            The columns of COLUMNS, and where each sequence begins in them (and the last ends).
        """
        layout, time = self.layout, self.batch.time
        starts = offsets(self._sizes)[:-1] + layout.view + 1  # a [CLS] stands before each sequence
        count = np.diff(layout.first)
        first = offsets(self.lengths)
        tokens = np.empty(first[-1], dtype=np.int32)
        moment = np.zeros(first[-1], dtype=np.int64)
        order = np.zeros(first[-1], dtype=np.int64)
        tokens[first[:-1]] = CLS
        number = np.arange(len(count)) - offsets(self.orders)[layout.view] + 1
        order[spans(starts, self._sizes)] = np.repeat(number, self._sizes)

        tokens[starts], moment[starts] = VS, layout.start
        events = spans(starts + 1, count)
        tokens[events], moment[events] = ids[layout.events], time[layout.events]
        # An open visit before the last is over: it ends with its last event.
        ends = np.where(layout.end == FAR, time[layout.events[layout.first[1:] - 1]], layout.end)
        closing, end = (starts + 1 + count)[self._closed], ends[self._closed]
        tokens[closing], moment[closing] = VE, end
        tokens[closing + 1], moment[closing + 1] = REG, end
        between = np.flatnonzero(~self._last)
        place = starts[between] + count[between] + 3
        tokens[place] = _interval_tokens(layout.start[between + 1] - ends[between])
        order[place] = 0

        columns = self._attributes(tokens, moment, order, types)
        kept = self._kept(columns["token_type_ids"], starts, first, max_length)
        if kept is None:
            return columns, first
        lengths = np.add.reduceat(kept, first[:-1], dtype=np.int64)
        return {name: column[kept] for name, column in columns.items()}, offsets(lengths)

    def _attributes(
        self, tokens: np.ndarray, moment: np.ndarray, order: np.ndarray, types: np.ndarray
    ) -> dict[str, np.ndarray]:
        inside = order > 0
        births = [self.batch.records[view.record].birth for view in self.views]
        known = np.repeat(np.array([b is not None for b in births], dtype=bool), self.lengths)
        birth = np.repeat(np.array([b or 0 for b in births], dtype=np.int64), self.lengths)
        earliest = np.repeat(self.layout.earliest, self.lengths)
        values = {
            "input_ids": tokens,
            "token_type_ids": types[tokens],
            "ages": np.where(inside & known, (moment - birth) / _YEAR, 0),
            "time_stamps": np.where(inside, (moment - earliest) / _WEEK, 0),
            "visit_segments": np.where(inside, 1 + (order - 1) % 2, 0),
            "visit_orders": np.minimum(order, LAST_VISIT_ORDER),
            "attention_mask": np.ones(len(tokens), dtype=np.int8),
        }
        return {name: values[name].astype(kind, copy=False) for name, kind in COLUMNS.items()}

    def _kept(
        self, types: np.ndarray, starts: np.ndarray, first: np.ndarray, max_length: int
    ) -> np.ndarray | None:
        """Which tokens `truncate` keeps; None for all."""
        long = np.flatnonzero(self.lengths > max_length)
        if not len(long):
            return None
        kept = np.ones(len(types), dtype=bool)
        for view in long.tolist():
            begin, end = int(first[view]), int(first[view + 1])
            start = end - (max_length - 1)
            opening = None
            if types[start] == TYPE_ID["interval"]:
                start += 1
            if types[start] != TYPE_ID["VS"]:
                start += 1  # room for the [VS]
                if types[start] == TYPE_ID["interval"]:
                    start += 1
                else:
                    opening = starts[np.searchsorted(starts, start, side="right") - 1]
            kept[begin + 1 : start] = False
            if opening is not None:
                kept[opening] = True
        return kept


def _interval_tokens(gaps: np.ndarray) -> np.ndarray:
    """The ids of the grammar's `interval_token` for gaps in microseconds.

    >>> from ehrmamba_hf.tokenization.grammar_ehrmamba import SPECIAL_TOKENS
    >>> days = np.array([6, 7, 28, 364, 365]) * MICROSECONDS_A_DAY
    >>> [SPECIAL_TOKENS[i] for i in _interval_tokens(days)]
    ['[W_0]', '[W_1]', '[M_0]', '[M_12]', '[LT]']
    """
    days = np.maximum(gaps, 0) // MICROSECONDS_A_DAY
    kind = np.where(days < 28, days // 7, _WEEKS + days // 30)
    return _INTERVALS[np.where(days < 365, kind, _WEEKS + _MONTHS)]
