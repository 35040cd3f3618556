"""Attributes derived from ids: a case worked by hand, prompts, padding, partial columns."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import ATTRIBUTES, derive_attributes
from ehrmamba_hf.modeling.attributes_ehrmamba import default_interval_hours, default_token_types

VOCAB = 60
TYPES = torch.tensor(default_token_types(VOCAB), dtype=torch.int8)
TYPES[41], TYPES[42], TYPES[43] = 7, 8, 9
DAYS = torch.tensor(default_interval_hours(VOCAB, 365.0)) / 24

# [PAD] [MOR] [VS] procedure medication [VE] [REG] [W_1] [VS] lab [VE] [REG] [LT] [VS] other [MOR]
IDS = [0, 25, 4, 41, 42, 5, 6, 8, 4, 43, 5, 6, 24, 4, 50, 25]
KINDS = [0, 6, 2, 7, 8, 3, 4, 5, 2, 9, 3, 4, 5, 2, 10, 6]
ORDERS = [0, 0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 3, 3, 0]
SEGMENTS = [0, 0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 1, 1, 0]
ELAPSED_DAYS = [0, 0, 0, 0, 0, 0, 0, 0] + [10.5] * 4 + [0, 375.5, 375.5, 0]


def derive(ids: Tensor | list[list[int]], mask: Tensor | None = None, **given: Tensor | None):
    return derive_attributes(torch.as_tensor(ids), TYPES, DAYS, mask, **given)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in ATTRIBUTES:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4, msg=name)


def test_a_sequence_worked_by_hand() -> None:
    columns = derive([IDS])
    assert columns["token_type_ids"][0].tolist() == KINDS
    assert columns["visit_orders"][0].tolist() == ORDERS
    assert columns["visit_segments"][0].tolist() == SEGMENTS
    assert columns["ages"][0].tolist() == pytest.approx([d / 365.25 for d in ELAPSED_DAYS])
    assert columns["time_stamps"][0].tolist() == pytest.approx([d / 7 for d in ELAPSED_DAYS])


def test_a_prompt_is_continued_from_its_last_visit() -> None:
    # The patient is 70.5 in their 9th visit (an odd one: segment 1), at week 100, discharged and
    # four days away: the prompt ends in [W_0], so the clock has to run on from before it.
    ids = [[4, 41, 5, 6, 7, 4, 43, 9, 4]]
    given = {
        "token_type_ids": torch.tensor([[2, 7, 3, 4, 5]], dtype=torch.int8),
        "ages": torch.tensor([[70.5, 70.5, 70.5, 70.5, 0.0]]),
        "time_stamps": torch.tensor([[99.5, 99.75, 100.0, 100.0, 0.0]]),
        "visit_segments": torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.int8),
        "visit_orders": torch.tensor([[9, 9, 9, 9, 0]], dtype=torch.int16),
    }
    columns = derive(ids, **given)
    assert columns["visit_orders"].tolist() == [[9, 9, 9, 9, 0, 10, 10, 0, 11]]
    assert columns["visit_segments"].tolist() == [[1, 1, 1, 1, 0, 2, 2, 0, 1]]
    weeks = [99.5, 99.75, 100, 100, 0, 100.5, 100.5, 0, 103.0]
    assert columns["time_stamps"][0].tolist() == pytest.approx(weeks)
    ages = columns["ages"][0].tolist()
    assert ages[5:7] == pytest.approx([70.5 + 3.5 / 365.25] * 2)
    assert ages[8] == pytest.approx(70.5 + 21 / 365.25)
    assert columns["token_type_ids"].tolist() == [[2, 7, 3, 4, 5, 2, 9, 5, 2]]


def test_past_the_last_visit_order_segments_go_on_alternating() -> None:
    # The 513th and 514th visits both have the order 512, and the segments 1 and 2.
    given = {
        "visit_segments": torch.tensor([[1, 1, 0, 2, 2, 0], [2, 2, 0, 1, 1, 0]]),
        "visit_orders": torch.tensor([[512, 512, 0, 512, 512, 0]] * 2),
    }
    columns = derive([[4, 41, 7, 4, 41, 7, 4, 41, 5, 6, 7, 4]] * 2, **given)
    assert columns["visit_segments"][:, 6:].tolist() == [[1, 1, 1, 1, 0, 2], [2, 2, 2, 2, 0, 1]]
    assert (columns["visit_orders"][:, [6, 7, 8, 9, 11]] >= 512).all()


def test_a_prompt_that_ends_inside_a_visit_stays_in_it() -> None:
    given = {
        "ages": torch.tensor([[40.0, 40.0]]),
        "time_stamps": torch.tensor([[2.0, 2.5]]),
        "visit_orders": torch.tensor([[3, 3]]),
    }
    columns = derive([[4, 41, 42, 5]], **given)
    assert columns["time_stamps"].tolist() == [[2.0, 2.5, 2.5, 2.5]]
    assert columns["ages"].tolist() == [[40.0] * 4]
    assert columns["visit_orders"].tolist() == [[3, 3, 3, 3]]
    assert columns["visit_segments"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("prompt", range(1, 40))
def test_continuing_derived_columns_equals_deriving_the_whole(
    prompt: int, make_ids: Callable[..., Tensor]
) -> None:
    ids = torch.stack([make_ids(40, seed) for seed in range(4)])
    whole = derive(ids)
    assert_same(derive(ids, **{n: c[:, :prompt] for n, c in whole.items()}), whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gives_zeros_and_changes_nothing_else(
    side: str, make_ids: Callable[..., Tensor], pad_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    rows = [make_ids(length, seed=length) for length in (5, 11, 18)]
    ids, mask = pad_batch(rows, side)
    by_type, by_mask = derive(ids), derive(torch.where(mask == 1, ids, 50), mask)
    for columns in (by_type, by_mask):
        for index, row in enumerate(rows):
            real = mask[index] == 1
            for name, expected in derive(row[None]).items():
                assert torch.equal(columns[name][index, real], expected[0])
                assert not columns[name][index, ~real].any()


def test_left_padded_prompts_of_unequal_patients_are_continued(
    make_ids: Callable[..., Tensor], pad_batch: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    rows = [make_ids(30, seed) for seed in range(3)]
    lengths = (4, 13, 20)
    ids, mask = pad_batch([row[:n] for row, n in zip(rows, lengths, strict=True)], "left")
    new = torch.stack([row[n : n + 10] for row, n in zip(rows, lengths, strict=True)])
    columns = derive(
        torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1), **derive(ids, mask)
    )
    for index, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        for name, expected in derive(row[None, : n + 10]).items():
            found = columns[name][index, -(n + 10) :]
            torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_one_missing_column_is_derived_beside_the_given_ones(
    name: str, make_ids: Callable[..., Tensor]
) -> None:
    ids = make_ids(25)[None]
    whole = derive(ids)
    assert_same(derive(ids, **(whole | {name: None})), whole)


def test_given_values_are_kept_even_where_they_differ_from_the_derived_ones() -> None:
    given = torch.tensor([[0.0, 33.0, 33.0, 33.25]])
    assert torch.equal(derive([[3, 4, 41, 42]], ages=given)["ages"], given)


def test_a_column_longer_than_the_ids_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"ages has shape \(1, 5\).*\(1, 4\)"):
        derive([[3, 4, 41, 42]], ages=torch.zeros(1, 5))
