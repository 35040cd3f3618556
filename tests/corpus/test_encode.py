"""The road from records to columns: the same as the tokenizer's own; stays drawn by seed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ehrmamba_hf.corpus.encode import RecordEncoder, sample_stays
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


def test_unknown_events_are_counted_by_system(events: Path, data: Path) -> None:
    tokenizer = load_tokenizer(data)
    code = next(t for t in tokenizer.tokens if t.startswith("RXNORM/"))
    unknown, totals = Counter[str](), Counter[str]()
    expected = Counter[str]()
    known = set(tokenizer.vocab) - {code}
    tokenizer.vocab.pop(code)
    for record in iter_records(events, tokenizer.categories):
        RecordEncoder(record, tokenizer, RULES).unknown(unknown, totals)
        expected.update(c.split("/")[0] for c in record.code if c not in known)
    assert unknown == expected and 0 < unknown["RXNORM"] < totals["RXNORM"]


def test_stays_are_drawn_by_seed_and_patient() -> None:
    assert sample_stays(5, 0, 4, 0) == set()
    assert sample_stays(5, 4, 4, 0) == {0, 1, 2, 3}
    drawn = {(s, seed): sample_stays(s, 12, 4, seed) for s in (5, 6, 2**62) for seed in (0, 1)}
    assert all(len(d) == 4 and d <= set(range(12)) for d in drawn.values())
    assert len(set(map(frozenset, drawn.values()))) > 3
    assert drawn == {(s, seed): sample_stays(s, 12, 4, seed) for s, seed in drawn}
    often = Counter(i for s in range(3000) for i in sample_stays(s, 12, 4, 0))
    assert min(often.values()) > 850 and max(often.values()) < 1150  # 1000 each, evenly
