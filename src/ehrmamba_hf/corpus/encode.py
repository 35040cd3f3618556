"""A patient's record as token columns: the one road from timelines to tokens."""

from collections import Counter

import numpy as np

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.timelines import Record, VisitRules, timeline
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import UNK, Columns, EncodedVisit, microseconds


class RecordEncoder:
    """Encodes one patient's record, whole or as it stood at any number of index times."""

    def __init__(self, record: Record, tokenizer: EHRMambaTokenizer, rules: VisitRules) -> None:
        self.record = record
        self.tokenizer = tokenizer
        self.rules = rules
        values = record.value.tolist()
        self.ids = [
            tokenizer.event_id(code, value, unit)
            for code, value, unit in zip(record.code, values, record.unit, strict=True)
        ]

    def columns(self, at: int | None = None, counts: Counter[str] | None = None) -> Columns:
        """The columns at an index time (None: the whole record), cut to the context length."""
        times = self.record.time
        visits = [
            EncodedVisit(
                visit.start,
                visit.end,
                [self.ids[i] for i in visit.events.tolist()],
                times[visit.events].tolist(),
            )
            for visit in timeline(self.record, at, self.rules, counts)
        ]
        limit = self.tokenizer.model_max_length
        return self.tokenizer.encode_visits(visits, self.record.birth, max_length=limit)

    def unknown(self, systems: Counter[str], totals: Counter[str]) -> None:
        """Add this patient's events, and those that became [UNK], by code system."""
        for code, token_id in zip(self.record.code, self.ids, strict=True):
            system = code.partition("/")[0]
            totals[system] += 1
            if token_id == UNK:
                systems[system] += 1


def index_time(text: str | None) -> int | None:
    """An index time that a user gave, in microseconds.

    Raises:
        InputError: it is not an ISO time.

    >>> index_time("1970-01-01T00:00:01"), index_time(None)
    (1000000, None)
    """
    try:
        return microseconds(text or None)
    except ValueError:
        raise InputError(f"at: expected an ISO time, found {text}") from None


def sample_stays(subject_id: int, count: int, most: int, seed: int) -> set[int]:
    """The positions of at most `most` of a patient's `count` stays, drawn by seed and patient.

    >>> sample_stays(7, count=3, most=4, seed=0) == {0, 1, 2}, len(sample_stays(7, 9, 4, 0))
    (True, 4)
    """
    if count <= most:
        return set(range(count))
    return set(
        np.random.default_rng([seed, subject_id]).choice(count, most, replace=False).tolist()
    )
