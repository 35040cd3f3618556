"""Embeddings: exact zeros outside visits, clamped orders, narrow columns, the two tables."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaModel

Config = Callable[..., EHRMambaConfig]


def columns_for(batch: int, length: int, **changed: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    columns = {
        "input_ids": torch.randint(41, 60, (batch, length)),
        "token_type_ids": torch.randint(0, 11, (batch, length)),
        "ages": torch.rand(batch, length) * 90,
        "time_stamps": torch.rand(batch, length) * 500,
        "visit_segments": torch.randint(0, 3, (batch, length)),
        "visit_orders": torch.randint(1, 9, (batch, length)),
    }
    return columns | changed


def test_outside_visits_age_time_segment_and_order_have_no_effect_at_all(
    tiny_config: Config,
) -> None:
    embeddings = EHRMambaModel(tiny_config()).eval().embeddings
    outside = {"visit_orders": torch.zeros(2, 6, dtype=torch.long)}
    plain = embeddings(**columns_for(2, 6, **outside))
    other = {"ages": torch.full((2, 6), float("inf")), "time_stamps": torch.full((2, 6), -3.0)}
    other["visit_segments"] = torch.full((2, 6), 2)
    assert torch.equal(embeddings(**columns_for(2, 6, **outside, **other)), plain)

    columns = columns_for(2, 6, **outside)
    width = embeddings.config.hidden_size
    weight, bias = embeddings.fusion.weight[:, :width], embeddings.fusion.bias
    concept = embeddings.concept(columns["input_ids"]) @ weight.T + bias
    summed = concept + embeddings.token_type(columns["token_type_ids"])
    torch.testing.assert_close(embeddings.norm(summed), plain, rtol=0, atol=1e-4)


def test_a_newborn_at_a_first_event_is_not_taken_for_a_special_token(tiny_config: Config) -> None:
    embeddings = EHRMambaModel(tiny_config()).eval().embeddings
    zeros = {"ages": torch.zeros(1, 3), "time_stamps": torch.zeros(1, 3)}
    inside = embeddings(**columns_for(1, 3, **zeros))
    embeddings.age.phi.data += 1.0
    assert not torch.allclose(embeddings(**columns_for(1, 3, **zeros)), inside)


def test_learned_zero_rows_are_the_rows_0_of_the_tables(tiny_config: Config) -> None:
    embeddings = EHRMambaModel(tiny_config(learned_zero_rows=True)).eval().embeddings
    columns = columns_for(1, 3, visit_orders=torch.zeros(1, 3, dtype=torch.long))
    before = embeddings(**columns)
    embeddings.visit_order.weight.data[0] += torch.randn(24)
    assert not torch.allclose(embeddings(**columns), before)


def test_tanh_is_applied_to_the_fused_part_only(tiny_config: Config) -> None:
    embeddings = EHRMambaModel(tiny_config(embedding_activation="tanh")).eval().embeddings
    columns = columns_for(1, 3)
    fused = torch.cat(
        [
            embeddings.concept(columns["input_ids"]),
            torch.sin(columns["time_stamps"][..., None] * embeddings.time.w + embeddings.time.phi),
            torch.sin(columns["ages"][..., None] * embeddings.age.w + embeddings.age.phi),
        ],
        dim=-1,
    )
    summed = torch.tanh(embeddings.fusion(fused))
    summed = summed + embeddings.token_type(columns["token_type_ids"])
    summed = summed + embeddings.visit_order(columns["visit_orders"])
    summed = summed + embeddings.visit_segment(columns["visit_segments"])
    torch.testing.assert_close(embeddings(**columns), embeddings.norm(summed), rtol=0, atol=1e-4)


def test_late_visits_share_the_last_row(tiny_config: Config) -> None:
    embeddings = EHRMambaModel(tiny_config(max_visit_orders=5)).eval().embeddings
    last, later = (
        embeddings(**columns_for(1, 4, visit_orders=torch.full((1, 4), n))) for n in (5, 700)
    )
    assert torch.equal(last, later)


def test_columns_come_in_narrow_types(tiny_config: Config) -> None:
    model = EHRMambaModel(tiny_config()).eval()
    wide = columns_for(2, 6)
    narrow = wide | {
        "input_ids": wide["input_ids"].int(),
        "token_type_ids": wide["token_type_ids"].to(torch.int8),
        "visit_segments": wide["visit_segments"].to(torch.int8),
        "visit_orders": wide["visit_orders"].to(torch.int16),
    }
    mask = torch.ones(2, 6, dtype=torch.int8)
    expected = model(**wide).last_hidden_state
    assert torch.equal(model(**narrow, attention_mask=mask).last_hidden_state, expected)


def test_token_types_are_set_for_the_ordinary_tokens_and_saved(
    tiny_config: Config, tmp_path
) -> None:
    model = EHRMambaModel(tiny_config())
    model.set_token_types([7, 8, 9] + [10] * 16)
    model.save_pretrained(tmp_path)
    loaded = EHRMambaModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.embeddings.token_type_table.tolist()[38:45] == [6, 6, 6, 7, 8, 9, 10]
    assert loaded.embeddings.interval_days_table[7:10].tolist() == [3.5, 10.5, 17.5]
    assert loaded.embeddings.interval_days_table[24] == 365.0, "365 has no bfloat16"


@pytest.mark.parametrize(
    ("types", "message"), [([7] * 5, "expected 19 types"), ([3] * 19, r"found \[3\]")]
)
def test_wrong_token_types_are_an_error(
    types: list[int], message: str, tiny_config: Config
) -> None:
    with pytest.raises(ValueError, match=message):
        EHRMambaModel(tiny_config()).set_token_types(types)


def test_fused_parts_start_at_one_scale() -> None:
    torch.manual_seed(0)
    embeddings = EHRMambaModel(EHRMambaConfig(vocab_size=500, num_hidden_layers=1)).embeddings
    concept = embeddings.concept.weight[1:] @ embeddings.fusion.weight[:, :768].T
    sines = torch.sin(torch.rand(500, 64) * 7) @ embeddings.fusion.weight[:, 768:].T
    assert 0.7 < (concept.std() / sines.std()).item() < 1.4
