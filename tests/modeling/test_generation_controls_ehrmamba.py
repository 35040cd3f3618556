"""Controls of generate(): the grammar of a sequence, a horizon in weeks, stated tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForCausalLM
from ehrmamba_hf.modeling.generation_ehrmamba import HorizonCriteria, SequenceGrammarProcessor

Ids = Callable[..., Tensor]
Pad = Callable[..., tuple[Tensor, Tensor]]
PAD, UNK, CLS, VS, VE, REG, W_0, W_2, M_0, LT, MOR, X, Y = (
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    9,
    11,
    24,
    25,
    41,
    59,
)
EVENTS = list(range(41, 60))
INTERVALS = list(range(7, 25))


@pytest.fixture
def model(tiny_config: Callable[..., EHRMambaConfig]) -> EHRMambaForCausalLM:
    torch.manual_seed(0)
    return EHRMambaForCausalLM(tiny_config()).eval()


@pytest.mark.parametrize(
    "tokens, following",
    [
        ([CLS], [VS]),
        ([MOR], [VS]),  # multitask prompted finetuning
        ([CLS, VS], EVENTS),
        ([CLS, VS, X], [VE, *EVENTS]),
        ([MOR, VS, X, Y], [VE, *EVENTS]),
        ([CLS, VS, UNK], [VE, *EVENTS]),  # a record's unknown code, which is never forecast
        ([CLS, VS, X, VE], [REG]),
        ([CLS, VS, X, VE, REG], INTERVALS),
        ([CLS, VS, X, VE, REG, W_0], [VS]),
        ([CLS, VS, X, VE, REG, LT], [VS]),
        ([CLS, VS, X, VE, REG, W_0, VS], EVENTS),
        ([CLS, VS, X, VE, PAD], [PAD]),  # a row that has ended
    ],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_what_may_come_next(
    tokens: list[int], following: list[int], padding: int, model: EHRMambaForCausalLM
) -> None:
    scores = torch.arange(120.0).view(2, 60)
    rows = torch.tensor([[PAD] * padding + tokens, [PAD] * (padding + len(tokens) - 1) + [CLS]])
    found = model.sequence_grammar()(rows, scores)
    assert found[0].isfinite().nonzero().flatten().tolist() == following
    assert found[0, following].tolist() == scores[0, following].tolist()
    assert found[1].isfinite().nonzero().flatten().tolist() == [VS], "rows are independent"


def test_a_type_of_its_own_for_each_event(model: EHRMambaForCausalLM) -> None:
    model.set_token_types([7, 8, 9, 10] * 4 + [7, 8, 9])
    for last in (VS, 41, 42, 43, 44):
        found = model.sequence_grammar()(torch.tensor([[CLS, last]]), torch.zeros(1, 60))
        expected = EVENTS if last == VS else [VE, *EVENTS]
        assert found.isfinite().nonzero()[:, 1].tolist() == expected


def obeys(tokens: list[int], last: int) -> bool:
    """The grammar once more, read token by token."""
    after = {CLS: [VS], VS: EVENTS, VE: [REG], REG: INTERVALS} | {i: [VS] for i in INTERVALS}
    for token in tokens:
        if token not in after.get(last, [VE, *EVENTS]):
            return False
        last = token
    return True


@pytest.mark.parametrize(
    "way",
    [
        {"do_sample": True, "top_k": 0, "num_return_sequences": 4},
        {"do_sample": True, "top_p": 0.5, "temperature": 2.0},
        {"do_sample": False},
        {"do_sample": False, "num_beams": 5, "num_return_sequences": 5},
        {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["many", "top-p", "greedy", "beams", "sampled beams"],
)
@pytest.mark.parametrize("sharp", [1.0, 200.0])
def test_whatever_is_generated_obeys(
    way: dict, sharp: float, model: EHRMambaForCausalLM, make_ids: Ids, pad_batch: Pad
) -> None:
    """An untrained model, which without the grammar breaks it at nearly every token."""
    model.lm_head.weight.data *= sharp
    rows = [make_ids(length, seed=length) for length in (1, 2, 4, 5, 6, 7, 8, 9, 17)]
    rows[-1] = torch.cat([torch.tensor([MOR]), rows[-1][1:]])
    ids, mask = pad_batch(rows, "left")
    # Ends of visits as likely as all events together, so that every rule is in use.
    ways = way | {"attention_mask": mask, "max_new_tokens": 40, "sequence_bias": {(VE,): 3.0}}
    torch.manual_seed(1)
    found = model.generate(ids, logits_processor=[model.sequence_grammar()], **ways)
    copies = len(found) // len(rows)
    lasts = ids[:, -1].repeat_interleave(copies).tolist()
    new = found[:, ids.shape[1] :].tolist()
    assert all(obeys(row, last) for row, last in zip(new, lasts, strict=True))
    free = model.generate(ids, **ways)[:, ids.shape[1] :].tolist()
    assert not any(obeys(row, last) for row, last in zip(free, lasts, strict=True))


def test_time_ahead_is_summed_from_the_intervals(model: EHRMambaForCausalLM) -> None:
    """Prompt of 2; then 3.5, 17.5, 15 and 365 days at [W_0], [W_2], [M_0] and [LT]."""
    rows = torch.tensor(
        [
            [CLS, LT, W_0, VS, W_2, VS],  # 21 days
            [CLS, LT, W_2, VS, W_2, VS],  # 35
            [PAD, CLS, M_0, VS, M_0, VS],  # 30
            [PAD, PAD, VS, X, X, LT],  # 365
            [CLS, LT, VS, X, X, X],  # none
        ]
    )
    for weeks, expected in {
        0.1: [True, True, True, True, False],
        3.0: [True, True, True, True, False],  # exactly 21 days reach it
        3.001: [False, True, True, True, False],
        5.0: [False, True, False, True, False],
        52.0: [False, False, False, True, False],
        52.5: [False, False, False, False, False],
    }.items():
        found = model.horizon(weeks, prompt_length=2)(rows, None)
        assert found.dtype == torch.bool and found.tolist() == expected, weeks


@pytest.mark.parametrize("weeks", [-1.0, 0.0, float("nan")])
def test_a_horizon_lies_ahead(weeks: float) -> None:
    with pytest.raises(ValueError, match="weeks: expected a number above 0"):
        HorizonCriteria(torch.zeros(3), weeks, 1)


def ends_at_its_horizon(row: list[int], days: list[float], horizon: float) -> bool:
    """The first token that reaches it is the last one, and padding the rest."""
    total = 0.0
    for place, token in enumerate(row):
        total += days[token]
        if total >= horizon:
            return not any(row[place + 1 :])
    return False


@pytest.mark.parametrize(
    "way",
    [
        {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2, "eos_token_id": PAD},
    ],
    ids=["samples", "beams"],
)
def test_each_row_stops_at_its_own_horizon(
    way: dict, model: EHRMambaForCausalLM, make_ids: Ids, pad_batch: Pad
) -> None:
    rows = [make_ids(length, seed=length) for length in (3, 6, 11)]
    ids, mask = pad_batch(rows, "left")
    torch.manual_seed(4)
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=400,
        logits_processor=[model.sequence_grammar()],
        stopping_criteria=[model.horizon(30.0, ids.shape[1])],
        sequence_bias={(VE,): 3.0},
        renormalize_logits=True,
        **way,
    )[:, ids.shape[1] :]
    days = model.backbone.embeddings.interval_days_table.tolist()
    assert all(ends_at_its_horizon(row, days, 210) for row in found.tolist())
    assert len(set((found != PAD).sum(1).tolist())) > 1, "rows of unequal lengths"


@pytest.mark.parametrize("beams", [1, 4])
def test_a_stated_token_ends_a_row(
    beams: int, model: EHRMambaForCausalLM, make_ids: Ids, pad_batch: Pad
) -> None:
    ids, mask = pad_batch([make_ids(3, 0), make_ids(9, 1)], "left")
    torch.manual_seed(0)
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=200,
        do_sample=beams == 1,
        num_beams=beams,
        eos_token_id=[PAD, VE],  # PAD first: what transformers fills ended beams with
        logits_processor=[model.sequence_grammar()],
        sequence_bias={(VE,): 2.0},
    )[:, ids.shape[1] :]
    for row in found.tolist():
        tokens = [token for token in row if token != PAD]
        assert tokens.index(VE) == len(tokens) - 1
        assert row == tokens + [PAD] * (len(row) - len(tokens))


def test_scores_of_a_narrower_dtype_keep_it() -> None:
    types = torch.tensor([0, 10, 10, 1, 2, 3, 4, *[5] * 18, *[6] * 16, 9], dtype=torch.int8)
    scores = torch.zeros(1, 42, dtype=torch.bfloat16)
    found = SequenceGrammarProcessor(types)(torch.tensor([[VS]]), scores)
    assert found.dtype == torch.bfloat16 and found.isfinite().nonzero().tolist() == [[0, X]]
    assert not scores.any(), "the scores given are left as they are"
