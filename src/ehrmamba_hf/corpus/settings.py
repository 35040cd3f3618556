"""The settings of `prepare`, checked before anything runs."""

from pathlib import Path

import msgspec

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import CATEGORIES
from ehrmamba_hf.tasks import Task, registered, with_options
from ehrmamba_hf.tasks.conditions import read_more_codes
from ehrmamba_hf.timelines import SplitRules, VisitRules
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
            seed; evaluation sees all.
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
            f"splits: expected shares from 0 to 1, pretrain and finetune together too, "
            f"found {self.splits}": min(shares) >= 0 and max(sum(shares[:2]), shares[2]) <= 1,
        }
        for sentence, holds in rules.items():
            if not holds:
                raise InputError(f"prepare: {sentence}")

    def tasks(self) -> list[Task]:
        """The registered tasks with the options of these settings."""
        more = read_more_codes(Path(self.more_codes)) if self.more_codes else None
        return with_options(registered(), new_onset=self.new_onset, more_codes=more)
