"""Patients are split by a hash of their id and a seed."""

from collections import Counter

import pytest

from ehrmamba_hf.timelines import SPLITS, SplitRules, split_of


def test_shares_are_those_of_the_paper_and_a_tenth_is_for_validation():
    counts = Counter(split_of(i, SplitRules()) for i in range(20_000))
    assert set(counts) == set(SPLITS)
    shares = {"pretrain": 0.513, "pretrain_validation": 0.057, "finetune": 0.252}
    shares |= {"finetune_validation": 0.028, "test": 0.15}
    for split, share in shares.items():
        assert counts[split] / 20_000 == pytest.approx(share, abs=0.01)


def test_a_patient_stays_where_it_is_whoever_else_there_is_and_another_seed_moves_it():
    assert [split_of(i) for i in (1, 2, 3)] == [split_of(i) for i in (1, 2, 3)]
    seeds = [[split_of(i, SplitRules(seed=seed)) for i in range(100)] for seed in (0, 1)]
    assert seeds[0] != seeds[1]
    # a held-out patient of pretraining is never one of finetuning or test
    held = SplitRules(validation=0.5)
    for i in range(200):
        assert split_of(i, held).removesuffix("_validation") == split_of(i).removesuffix(
            "_validation"
        )
