"""The road from one record to columns: the same as the tokenizer's own."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ehrmamba_hf.corpus.encode import RecordEncoder
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.timelines import Record, VisitRules, iter_records, stays_of, timeline
from ehrmamba_hf.timelines.record import HOUR

RULES = VisitRules()


def as_visits(record: Record) -> dict[str, Any]:
    """A record as a user would hand it to the tokenizer."""
    visits = []
    for visit in timeline(record, None, RULES):
        events = [
            {
                "code": record.code[i],
                "time": int(record.time[i]),
                "available": int(record.available[i]),
                "value": None if np.isnan(record.value[i]) else float(record.value[i]),
                "unit": record.unit[i],
                "category": record.category[i],
            }
            for i in visit.events
        ]
        visits.append({"start": visit.start, "end": visit.end, "events": events})
    return {"birth": record.birth, "visits": visits}


def test_the_tokenizer_on_visits_gives_the_corpus_columns(events: Path, data: Path) -> None:
    tokenizer = load_tokenizer(data)
    compared = Counter[str]()
    for record in iter_records(events, tokenizer.categories):
        encoder = RecordEncoder(record, tokenizer, RULES)
        patient = as_visits(record)
        assert dict(tokenizer(patient, truncation=True)) == encoder.columns()
        for stay in stays_of(record, RULES):
            for at in (stay.start, stay.start + 24 * HOUR, stay.end):
                assert dict(tokenizer(patient, at=at, truncation=True)) == encoder.columns(at)
                compared["cut"] += 1
        compared["whole"] += 1
    assert compared["whole"] == 80 and compared["cut"] > 300
