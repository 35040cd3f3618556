"""The settings of `prepare`, checked before anything runs."""

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import CATEGORIES
from ehrmamba_hf.tasks import Task, registered, with_options
from ehrmamba_hf.tasks.conditions import read_more_codes
from ehrmamba_hf.timelines import SplitRules, VisitRules
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import SHORTEST_LENGTH
from ehrmamba_hf.tokenization.tokenization_ehrmamba import DEFAULT_CATEGORIES


class PrepareSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How events become training data.

    Attributes:
        categories: the kinds of event that become tokens; the paper's are procedures, medication
            requests and laboratory results (appendix B.1).
        context_length: sequences keep their most recent tokens, up to this many.
        min_patients: patients of the pretraining split that a token needs to enter the vocabulary.
        train_stays: stays with an example that finetuning sees at most of a patient, drawn by
            seed, in training and in its validation alike; testing sees all.
        follow_up_end: the last moment that the source tells of: a time, `complete`, or `auto`
            (the latest time in the data; complete for MIMIC, whose dates are shifted).
        new_onset: the condition tasks leave out stays with an earlier mention.
        more_codes: a YAML file of more codes for the condition tasks.
        splits, visits: see `SplitRules` and `VisitRules`.
    """

    categories: tuple[str, ...] = DEFAULT_CATEGORIES
    context_length: int = 2048
    min_patients: int = 10
    train_stays: int = 4
    follow_up_end: str = "auto"
    new_onset: bool = False
    more_codes: str | None = None
    splits: SplitRules = SplitRules()
    visits: VisitRules = VisitRules()

    def __post_init__(self) -> None:
        """Check what the types cannot. Raises InputError."""
        others = sorted(set(self.categories) - set(CATEGORIES))
        shares = (self.splits.pretrain, self.splits.finetune, self.splits.validation)
        rules = {
            f"categories: expected some of {CATEGORIES}, found {others}": not others,
            f"context_length: expected at least {SHORTEST_LENGTH}, found {self.context_length}": (
                self.context_length >= SHORTEST_LENGTH
            ),
            f"min_patients: expected at least 1, found {self.min_patients}": self.min_patients >= 1,
            f"train_stays: expected at least 1, found {self.train_stays}": self.train_stays >= 1,
            f"follow_up_end: expected auto, complete or an ISO time, found {self.follow_up_end}": (
                self.follow_up_end in ("auto", "complete") or self.follow_up_moment is not None
            ),
            f"splits: expected shares from 0 to 1, pretrain and finetune together too, "
            f"found {self.splits}": min(shares) >= 0 and max(sum(shares[:2]), shares[2]) <= 1,
        }
        for sentence, holds in rules.items():
            if not holds:
                raise InputError(f"prepare: {sentence}")

    @property
    def follow_up_moment(self) -> datetime | None:
        """The time that `follow_up_end` gives; None where it is none."""
        try:
            return datetime.fromisoformat(self.follow_up_end).replace(tzinfo=None)
        except ValueError:
            return None

    def plain(self) -> dict[str, Any]:
        """The settings as JSON holds them, the same however they were written."""
        # Decoded again, a number of hours is a float, written with a point or not.
        settings = msgspec.json.decode(msgspec.json.encode(self), type=type(self))
        return msgspec.json.decode(msgspec.json.encode(settings, order="deterministic"))

    def expect_fit(self, tokenizer: EHRMambaTokenizer) -> None:
        """Raises InputError for settings, other than the defaults, that a tokenizer contradicts."""
        length, kinds = tokenizer.model_max_length, sorted(tokenizer.categories)
        if self.context_length not in (PrepareSettings().context_length, length):
            raise InputError(
                "prepare: context_length: expected none beside a given tokenizer, or the "
                f"tokenizer's, {length}, found {self.context_length}"
            )
        if sorted(self.categories) not in (sorted(DEFAULT_CATEGORIES), kinds):
            raise InputError(
                "prepare: categories: expected none beside a given tokenizer, or the "
                f"tokenizer's, {kinds}, found {sorted(self.categories)}"
            )

    def tasks(self) -> list[Task]:
        """The registered tasks with the options of these settings."""
        more = read_more_codes(Path(self.more_codes)) if self.more_codes else None
        return with_options(registered(), new_onset=self.new_onset, more_codes=more)
