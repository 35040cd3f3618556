"""Forecast a patient's next tokens with `generate()` (paper, section 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ehrmamba_hf.corpus.encode import RecordEncoder, index_time
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.modeling import EHRMambaForCausalLM
from ehrmamba_hf.timelines import Record, VisitRules, iter_records
from ehrmamba_hf.tokenization.grammar_ehrmamba import TYPE_ID

NEVER_IN_A_RECORD = {TYPE_ID[name] for name in ("PAD", "CLS", "task")}


@dataclass(frozen=True, slots=True)
class ForecastEvent:
    """One forecast token.

    Attributes:
        token: the token.
        text: as a person reads it.
        weeks: weeks from the end of the record; None outside visits.
        age: age in years; None outside visits.
        visit: the visit's number; None outside visits.
    """

    token: str
    text: str
    weeks: float | None
    age: float | None
    visit: int | None


def forecast(
    model: Path,
    events: Path,
    subject: str,
    *,
    tokens: int = 32,
    at: str | None = None,
    seed: int = 0,
    rules: VisitRules | None = None,
    **generation: Any,
) -> list[ForecastEvent]:
    """Continue one patient's record.

    Args:
        model: a model's folder, pretrained, or finetuned with a forecasting loss.
        events: an events folder.
        subject: the patient's `subject_id`, or the id at the source.
        tokens: how many tokens to forecast.
        at: an ISO time to forecast from, with what was known then; the end of the record by
            default.
        seed: of the sampling.
        rules: what counts as a visit; as in `prepare`.
        generation: passed to `generate()`; by default it samples with the settings of the
            authors' code, temperature 0.8 and top-p 0.95.

    Raises:
        InputError: no such patient, or one without any event.
    """
    tokenizer = load_tokenizer(model)
    record = _record(Path(events), subject, tokenizer.categories)
    encoder = RecordEncoder(record, tokenizer, rules or VisitRules())
    columns = encoder.columns(index_time(at))
    if len(columns["input_ids"]) == 1:
        raise InputError("forecast: expected a patient with events, found none")
    network = EHRMambaForCausalLM.from_pretrained(str(model)).eval()
    finetuned = (network.config.architectures or [""])[0].endswith("ForSequenceClassification")
    if finetuned and not network.config.forecasting_loss_weight:
        raise InputError(
            f"{model}: expected a pretrained model, or one finetuned with a "
            "forecasting_loss_weight, found one that was finetuned without it"
        )
    set_seed(seed)
    prompt = tokenizer.pad({k: [v] for k, v in columns.items()}, return_tensors="pt")
    # transformers would keep the 50 likeliest tokens only, if not told otherwise.
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
    settings = {**sampling, **generation}
    never = [i for i, kind in enumerate(tokenizer.token_types) if kind in NEVER_IN_A_RECORD]
    never += [tokenizer.mask_token_id, tokenizer.unk_token_id]
    with torch.inference_mode():
        output = network.generate(
            **prompt, max_new_tokens=tokens, suppress_tokens=never, **settings
        )
        given = {k: v for k, v in prompt.items() if k not in ("input_ids", "attention_mask")}
        full = network.backbone.embeddings.derive(output, torch.ones_like(output), **given)
    start = len(columns["input_ids"])
    last_week = max(columns["time_stamps"])
    return [
        _event(
            tokenizer, int(output[0, i]), {k: v[0, i].item() for k, v in full.items()}, last_week
        )
        for i in range(start, output.shape[1])
    ]


def forecast_lines(events: Sequence[ForecastEvent]) -> list[str]:
    """A forecast as lines of text.

    >>> forecast_lines([ForecastEvent("[VS]", "[VS]", 2.5, 60.0, 3)])
    ['+2.5 weeks  age 60.0  visit 3  [VS]']
    """
    lines = []
    for event in events:
        where = ""
        if event.weeks is not None:
            weeks = round(event.weeks, 1) + 0.0  # no minus before a zero
            where = f"{weeks:+.1f} weeks  age {event.age:.1f}  visit {event.visit}  "
        lines.append(where + event.text)
    return lines


def _event(tokenizer: Any, token_id: int, columns: dict[str, Any], last: float) -> ForecastEvent:
    (text,) = tokenizer.readable([token_id])
    token = tokenizer.tokens[token_id]
    visit = int(columns["visit_orders"])
    if not visit:
        return ForecastEvent(token, text, None, None, None)
    return ForecastEvent(token, text, columns["time_stamps"] - last, columns["ages"], visit)


def _record(events: Path, subject: str, categories: Sequence[str]) -> Record:
    subjects = read_subjects(events)
    ids, sources = subjects["subject_id"].to_pylist(), subjects["source_id"].to_pylist()
    found = [i for i, s in zip(ids, sources, strict=True) if subject in (str(i), s)]
    if not found:
        raise InputError(f"{events}: expected a subject_id or an id at the source, found neither")
    return next(iter_records(events, categories, only=found[:1]))
