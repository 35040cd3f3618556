"""Patient-level splits: a hash of the patient's id and a seed, so that no list need be kept."""

from hashlib import blake2b

import msgspec

SPLITS = ("pretrain", "pretrain_validation", "finetune", "finetune_validation", "test")


class SplitRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of the patients (paper, appendix B.3); the rest is for testing.

    ``validation`` is the share of the pretraining and of the finetuning patients kept for
    choosing thresholds and stopping early.
    """

    pretrain: float = 0.57
    finetune: float = 0.28
    validation: float = 0.1
    seed: int = 0


PAPER_SPLITS = SplitRules()


def split_of(subject_id: int, rules: SplitRules = PAPER_SPLITS) -> str:
    """The split of a patient.

    >>> split_of(1, SplitRules(pretrain=0.0, finetune=0.0))
    'test'
    """
    place = _uniform(f"{rules.seed}:{subject_id}")
    if place >= rules.pretrain + rules.finetune:
        return "test"
    name = "pretrain" if place < rules.pretrain else "finetune"
    held = _uniform(f"validation:{rules.seed}:{subject_id}") < rules.validation
    return f"{name}_validation" if held else name


def _uniform(text: str) -> float:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
