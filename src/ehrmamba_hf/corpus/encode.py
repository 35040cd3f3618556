"""One patient's record as token columns, at any moment.

`sequences_of` gives the same for many patients at once.
"""

from collections import Counter

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.timelines import Record, VisitRules, timeline
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import Columns, EncodedVisit, microseconds


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
