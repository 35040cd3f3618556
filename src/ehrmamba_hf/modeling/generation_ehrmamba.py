"""Controls of generate(): what may follow what, how far ahead to go, and starting from a history.

To stop at a stated token needs no class: `generate(..., eos_token_id=5)` ends each row at its first
[VE], the end of a visit; a list of ids ends it at any of them. In beam search let PAD be the first
of the list, `[0, 5]`: transformers fills beams that end early with the first one, since it takes a
`pad_token_id` of 0 for none.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria

from .attributes_ehrmamba import (
    CLS,
    DAYS_PER_WEEK,
    INTERVAL,
    LAB,
    MEDICATION,
    OTHER,
    PAD,
    PROCEDURE,
    REGISTER,
    SPECIAL_TYPES,
    TASK,
    VISIT_END,
    VISIT_START,
)
from .continuation_ehrmamba import evaluated_backbone
from .history_ehrmamba import EHRMambaHistory

_EVENTS = [PROCEDURE, MEDICATION, LAB, OTHER]
_NEXT = {
    PAD: [PAD],  # a row that has ended, which transformers fills with PAD
    CLS: [VISIT_START],
    TASK: [VISIT_START],
    INTERVAL: [VISIT_START],
    VISIT_START: _EVENTS,
    **{kind: [*_EVENTS, VISIT_END] for kind in _EVENTS},
    VISIT_END: [REGISTER],
    REGISTER: [INTERVAL],
}


class SequenceGrammarProcessor(LogitsProcessor):
    """Forbids what cannot come next in `[CLS] ([VS] e1 .. en [VE] [REG] [interval])* ...`.

    After [CLS], a task's token or an interval: [VS]. After [VS]: an event. After an event: an event
    or [VE]. After [VE]: [REG]. After [REG]: an interval. No other special token ever, [UNK] and
    [MASK] among them, though a prompt may hold them. What may come next depends on the last token
    alone, so that padding on the left and the prompt's first token do not matter; a prompt that
    ends with a task's token is taken as one that begins with it.

    Scores of beams are probabilities under the grammar with `renormalize_logits=True`.

    Args:
        token_type_table: type of each token of the vocabulary, (vocab,): that of the model,
            `model.backbone.embeddings.token_type_table`.

    Example:
        >>> types = torch.tensor([*SPECIAL_TYPES, LAB])
        >>> scores = SequenceGrammarProcessor(types)(torch.tensor([[3, 4]]), torch.zeros(1, 42))
        >>> scores.isfinite().nonzero().tolist()  # after [VS], the one event that there is
        [[0, 41]]
    """

    def __init__(self, token_type_table: Tensor) -> None:
        self.types = token_type_table.long()
        special = torch.arange(len(self.types), device=self.types.device) < len(SPECIAL_TYPES)
        never = special & (self.types == OTHER)  # [UNK] and [MASK] stand for events
        kinds = int(self.types.max()) + 1
        self.allowed = torch.zeros(max(kinds, len(_NEXT)), len(self.types), dtype=torch.bool)
        self.allowed = self.allowed.to(self.types.device)
        for kind, following in _NEXT.items():
            self.allowed[kind] = torch.isin(self.types, self.types.new_tensor(following)) & ~never

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set scores, (rows, vocab), of what cannot follow `input_ids`, (rows, length), to -inf."""
        self.types = self.types.to(scores.device)
        self.allowed = self.allowed.to(scores.device)
        return scores.masked_fill(~self.allowed[self.types[input_ids[:, -1]]], -torch.inf)


class HorizonCriteria(StoppingCriteria):
    """Stops each row once the time since the prompt's end reaches the horizon.

    Time passes at interval tokens, by the middle of their range; so the token that reaches the
    horizon is the row's last one. Sampled rows that have stopped are filled with PAD while others
    go on; beam search needs `eos_token_id=0`, PAD, for that.

    Args:
        interval_days_table: days that pass at each token, (vocab,): that of the model,
            `model.backbone.embeddings.interval_days_table`.
        weeks: the horizon.
        prompt_length: tokens of the prompt, `input_ids.shape[1]`, padding and all.

    Raises:
        ValueError: a horizon that is not positive.

    Example:
        >>> days = torch.tensor([0.0, 3.5, 10.5])
        >>> criteria = HorizonCriteria(days, weeks=2, prompt_length=1)
        >>> criteria(torch.tensor([[2, 2, 0], [2, 2, 1]]), None).tolist()  # 10.5 and 14 days
        [False, True]
    """

    # transformers fills the rows that have stopped only where a criterion has this attribute.
    eos_token_id = None

    def __init__(self, interval_days_table: Tensor, weeks: float, prompt_length: int) -> None:
        if not weeks > 0:
            raise ValueError(f"weeks: expected a number above 0, found {weeks}")
        self.days = interval_days_table.float()
        self.horizon = weeks * DAYS_PER_WEEK
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows of `input_ids`, (rows, length), have reached the horizon, (rows,)."""
        self.days = self.days.to(input_ids.device)
        return self.days[input_ids[:, self.prompt_length :]].sum(1) >= self.horizon


class EHRMambaGenerationMixin:
    """The controls made for a model, and generation from a history, for the language model."""

    def sequence_grammar(self) -> SequenceGrammarProcessor:
        """The grammar of the model's vocabulary, for `generate(logits_processor=[...])`."""
        return SequenceGrammarProcessor(cast(Any, self).base_model.embeddings.token_type_table)

    def horizon(self, weeks: float, prompt_length: int) -> HorizonCriteria:
        """A horizon in weeks from the prompt's end, for `generate(stopping_criteria=[...])`."""
        days = cast(Any, self).base_model.embeddings.interval_days_table
        return HorizonCriteria(days, weeks, prompt_length)

    def generate_from_history(
        self,
        history: EHRMambaHistory,
        *,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        **generation: Any,
    ) -> Any:
        """Go on from a history, which is not changed, without its tokens.

        Args:
            history: begun with [CLS], or with tasks' tokens.
            num_beams: see `generate()`.
            num_return_sequences: see `generate()`.
            generation: the other arguments of `generate()`. The prompt's length is 2.

        Returns:
            What `generate()` does; its sequences, of patients * tasks * num_return_sequences rows,
            begin with [PAD] and the history's last token.

        Raises:
            ValueError: a model in training mode, or a history of another backbone.
        """
        backbone = evaluated_backbone(self, history)
        history = history.to(backbone.device)
        prompt = history.rows(history.tail())
        # Not fed, but what the attributes of the new tokens are counted from.
        mask = torch.ones_like(prompt["input_ids"])
        mask[:, 0] = 0
        return cast(Any, self).generate(
            **prompt,
            attention_mask=mask,
            cache_params=history.cache(backbone.config, max(num_beams, num_return_sequences)),
            use_cache=True,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            **generation,
        )


__all__ = ["EHRMambaGenerationMixin", "HorizonCriteria", "SequenceGrammarProcessor"]
