"""Small models, and patient sequences of the real grammar, shared by the modeling tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import EHRMambaConfig

VOCAB = 60


@pytest.fixture
def tiny_config() -> Callable[..., EHRMambaConfig]:
    def make(**fields: object) -> EHRMambaConfig:
        small = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
        return EHRMambaConfig(**(small | fields))

    return make


@pytest.fixture
def make_ids() -> Callable[..., Tensor]:
    """Random visits: [CLS] [VS] events [VE] [REG] [interval] [VS] ..., cut at the length asked."""

    def make(length: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, size: int = 1) -> list[int]:
            return torch.randint(low, high, (size,), generator=generator).tolist()

        ids = [3]
        while len(ids) < length:
            ids += [4, *draw(41, VOCAB, draw(1, 4)[0]), 5, 6, *draw(7, 25)]
        return torch.tensor(ids[:length])

    return make


@pytest.fixture
def pad_batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Rows of unequal lengths as one batch, ids and mask, padded by 0 on one side."""

    def pad(rows: list[Tensor], side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
        width = max(len(row) for row in rows) + extra
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
            ids[index, place] = row
            mask[index, place] = 1
        return ids, mask

    return pad
