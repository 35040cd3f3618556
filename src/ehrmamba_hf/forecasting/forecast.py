"""Forecast a patient's next tokens with `generate()` (paper, section 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from ehrmamba_hf.corpus.encode import RecordEncoder, index_time
from ehrmamba_hf.corpus.examples import load_tokenizer
from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.table import read_subjects
from ehrmamba_hf.modeling import EHRMambaForCausalLM
from ehrmamba_hf.timelines import Record, VisitRules, iter_records


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
    weeks: float | None = None,
    at: str | None = None,
    seed: int = 0,
    rules: VisitRules | None = None,
    **generation: Any,
) -> list[ForecastEvent]:
    """Continue one patient's record.

    The forecast keeps to the grammar of a sequence: each visit has a start, events and an end, and
    then comes an interval.

    Args:
        model: a model's folder, pretrained, or finetuned with a forecasting loss.
        events: an events folder.
        subject: the patient's `subject_id`, or the id at the source.
        tokens: how many tokens to forecast, at most.
        weeks: how far ahead to forecast: the first interval that reaches it is the last token.
        at: an ISO time to forecast from, with what was known then; the end of the record by
            default.
        seed: of the sampling.
        rules: what counts as a visit; as in `prepare`.
        generation: passed to `generate()`; by default it samples with the settings of the
            authors' code, temperature 0.8 and top-p 0.95. A `logits_processor` takes the place of
            the grammar, a `stopping_criteria` that of `weeks`.

    Raises:
        InputError: no such patient, or one without any event; or weeks that are not above 0.
    """
    return forecasts(
        model,
        events,
        subject,
        tokens=tokens,
        weeks=weeks,
        at=at,
        seed=seed,
        rules=rules,
        **generation,
    )[0]


def forecasts(
    model: Path,
    events: Path,
    subject: str,
    *,
    tokens: int = 32,
    weeks: float | None = None,
    at: str | None = None,
    seed: int = 0,
    rules: VisitRules | None = None,
    **generation: Any,
) -> list[list[ForecastEvent]]:
    """Continue one patient's record in `num_return_sequences` ways: see `forecast`.

    With `num_beams` and `do_sample=False` they are the likeliest that were found, best first.
    """
    if weeks is not None and weeks <= 0:
        raise InputError(f"weeks: expected a number above 0, found {weeks}")
    tokenizer = load_tokenizer(model)
    record = _record(Path(events), subject, tokenizer.categories)
    columns = RecordEncoder(record, tokenizer, rules or VisitRules()).columns(index_time(at))
    if len(columns["input_ids"]) == 1:
        raise InputError("forecast: expected a patient with events, found none")
    network = _network(model)
    set_seed(seed)
    prompt = tokenizer.pad({k: [v] for k, v in columns.items()}, return_tensors="pt")
    output, full = _continue(network, dict(prompt), tokens, weeks, generation)
    last_week = max(columns["time_stamps"])
    return [
        [
            _event(tokenizer, token, {k: v[row, i].item() for k, v in full.items()}, last_week)
            for i, token in enumerate(tokens_of_row)
            if i >= len(columns["input_ids"]) and token != tokenizer.pad_token_id
        ]
        for row, tokens_of_row in enumerate(output.tolist())
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


def _network(model: Path) -> Any:
    """The language model of a folder, if it has learnt to forecast."""
    network = EHRMambaForCausalLM.from_pretrained(str(model)).eval()
    if network.config.learned_zero_rows:
        # Checkpoints of the authors' code: their time column is the difference between tokens, so
        # that a forecast from ours, weeks since the first event, would be wrong without a sign.
        raise InputError(
            f"{model}: expected a model of this package's time column, found one converted from "
            "the authors' code, whose times are differences"
        )
    finetuned = (network.config.architectures or [""])[0].endswith("ForSequenceClassification")
    if finetuned and not network.config.forecasting_loss_weight:
        raise InputError(
            f"{model}: expected a pretrained model, or one finetuned with a "
            "forecasting_loss_weight, found one that was finetuned without it"
        )
    return network


def _continue(
    network: Any,
    prompt: dict[str, Any],
    tokens: int,
    weeks: float | None,
    generation: dict[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sequences that begin with the prompt, (sequences, length), and their attributes."""
    pad = network.config.pad_token_id
    ends = generation.get("eos_token_id") or []
    settings: dict[str, Any] = {
        # transformers would keep the 50 likeliest tokens only, if not told otherwise.
        **{"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0},
        # Under the grammar, so that a beam does not lose by a token that it could not but take.
        "renormalize_logits": True,
        "logits_processor": [network.sequence_grammar()],
        **generation,
        # No token's own end: what comes first here fills the rows that end before others.
        "eos_token_id": [pad, *(ends if isinstance(ends, list) else [ends])],
    }
    if weeks is not None:
        horizon = network.horizon(weeks, prompt["input_ids"].shape[1])
        settings.setdefault("stopping_criteria", [horizon])
    with torch.inference_mode():
        output: Any = network.generate(**prompt, max_new_tokens=tokens, **settings)
        given = {
            name: column.expand(len(output), -1)
            for name, column in prompt.items()
            if name not in ("input_ids", "attention_mask")
        }
        mask = (output != pad).long()
        return output, network.backbone.embeddings.derive(output, mask, **given)


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
