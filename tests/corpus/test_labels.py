"""Labels: the stays that finetuning sees, drawn by seed."""

from collections import Counter

import numpy as np

from ehrmamba_hf.corpus.labels import sample_stays


def test_stays_are_drawn_by_seed_and_patient() -> None:
    assert sample_stays(5, 0, 4, 0) == set()
    assert sample_stays(5, 4, 4, 0) == {0, 1, 2, 3}
    drawn = {(s, seed): sample_stays(s, 12, 4, seed) for s in (5, 6, 2**62) for seed in (0, 1)}
    assert all(len(d) == 4 and d <= set(range(12)) for d in drawn.values())
    assert len(set(map(frozenset, drawn.values()))) > 3
    assert drawn == {(s, seed): sample_stays(s, 12, 4, seed) for s, seed in drawn}
    assert all(len(sample_stays(s, 12, 4, seed)) == 4 for s, seed in ((-5, 0), (5, -1)))
    assert sample_stays(7, 9, 4, 3) == set(
        np.random.default_rng([3, 7]).choice(9, 4, replace=False).tolist()
    )
    often = Counter(i for s in range(3000) for i in sample_stays(s, 12, 4, 0))
    assert min(often.values()) > 850 and max(often.values()) < 1150  # 1000 each, evenly
