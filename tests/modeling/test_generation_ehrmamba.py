"""generate(): every decoding way, left-padded patients, attributes that follow the tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ehrmamba_hf.modeling import ATTRIBUTES, EHRMambaConfig, EHRMambaForCausalLM

Ids = Callable[..., Tensor]
Pad = Callable[..., tuple[Tensor, Tensor]]
NEW = 9


@pytest.fixture
def model(tiny_config: Callable[..., EHRMambaConfig]) -> EHRMambaForCausalLM:
    torch.manual_seed(3)
    model = EHRMambaForCausalLM(tiny_config()).eval()
    # Livelier than at the start of training, so that generated tokens differ and intervals occur.
    model.lm_head.weight.data *= 40
    model.lm_head.weight.data[0] = 0
    return model


@pytest.fixture
def prompts(make_ids: Ids, pad_batch: Pad) -> tuple[list[Tensor], Tensor, Tensor]:
    rows = [make_ids(n, n) for n in (4, 9, 15)]
    return rows, *pad_batch(rows, "left")


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_greedy_is_the_argmax_of_the_full_forward(
    use_cache: bool, masked: bool, model: EHRMambaForCausalLM, prompts: tuple
) -> None:
    rows, ids, mask = prompts
    given = {"attention_mask": mask} if masked else {}
    found = model.generate(ids, max_new_tokens=NEW, do_sample=False, use_cache=use_cache, **given)
    for index, row in enumerate(rows):
        expected = row[None]
        for _ in range(NEW):
            best = model(expected).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, best], dim=1)
        assert found[index, -NEW:].tolist() == expected[0, -NEW:].tolist()


@pytest.mark.parametrize("given", ["all", "none", "some"])
def test_new_tokens_get_the_attributes_of_the_whole_sequence(
    given: str, model: EHRMambaForCausalLM, prompts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ids, mask = prompts
    derive = model.backbone.embeddings.derive
    # A patient of 61 in the 5th visit: not what a zero start would give.
    prompt = derive(ids, mask)
    inside = prompt["visit_orders"] > 0
    prompt["visit_orders"] = prompt["visit_orders"] + 4 * inside
    prompt["ages"] = prompt["ages"] + 61.0 * inside
    names = {"all": ATTRIBUTES, "none": (), "some": ("ages", "visit_orders")}[given]
    prompt = {name: prompt[name] for name in names}

    seen: list[dict[str, Tensor]] = []
    forward = model.backbone.embeddings.forward

    def spy(input_ids: Tensor, **columns: Tensor) -> Tensor:
        seen.append(columns)
        return forward(input_ids, **columns)

    monkeypatch.setattr(model.backbone.embeddings, "forward", spy)
    ids = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=True, top_k=0, **prompt
    )
    mask = torch.nn.functional.pad(mask, (0, NEW), value=1)
    whole = derive(ids, mask, **prompt)
    assert len(seen) == NEW, "a prefill, then one token a step"
    for name in ATTRIBUTES:
        found = torch.cat([columns[name] for columns in seen], dim=1)
        torch.testing.assert_close(found, whole[name][:, :-1], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_find_the_same_with_and_without_padding(
    use_cache: bool, model: EHRMambaForCausalLM, prompts: tuple
) -> None:
    rows, ids, mask = prompts
    ways = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": NEW, "do_sample": False}
    found = model.generate(ids, attention_mask=mask, use_cache=use_cache, **ways)
    assert found.shape == (6, ids.shape[1] + NEW)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], use_cache=True, **ways)
        assert found[2 * index : 2 * index + 2, -NEW:].tolist() == alone[:, -NEW:].tolist()


def test_samples_of_one_prompt_differ_and_are_seeded(
    model: EHRMambaForCausalLM, prompts: tuple
) -> None:
    _, ids, mask = prompts
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=NEW,
                do_sample=True,
                temperature=0.8,
                top_p=0.95,
                num_return_sequences=3,
            )
        )
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(row) for row in drawn[0].tolist()}) > 3


def test_scores_are_the_logits_of_the_full_forward(
    model: EHRMambaForCausalLM, prompts: tuple
) -> None:
    _, ids, mask = prompts
    outputs = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    mask = torch.nn.functional.pad(mask, (0, NEW), value=1)
    full = model(outputs.sequences, attention_mask=mask).logits[:, -NEW - 1 : -1]
    torch.testing.assert_close(torch.stack(outputs.logits, 1), full, rtol=0, atol=1e-3)


def test_a_static_cache_gives_the_same(model: EHRMambaForCausalLM, prompts: tuple) -> None:
    _, ids, mask = prompts
    ways = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False}
    dynamic = model.generate(ids, **ways)
    assert torch.equal(model.generate(ids, cache_implementation="static", **ways), dynamic)


def test_generation_goes_on_from_a_kept_state(model: EHRMambaForCausalLM, make_ids: Ids) -> None:
    ids = make_ids(16)[None]
    columns = model.backbone.embeddings.derive(ids)
    whole = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    cache = model(ids[:, :11]).cache_params
    rest = {name: column[:, 11:] for name, column in columns.items()}
    found = model.generate(
        ids[:, 11:], **rest, cache_params=cache, max_new_tokens=NEW, do_sample=False
    )
    assert found[0, -NEW:].tolist() == whole[0, -NEW:].tolist()


def test_generation_starts_from_embedded_tokens(model: EHRMambaForCausalLM, make_ids: Ids) -> None:
    ids = make_ids(8)[None]
    embedded = model.backbone.embeddings(ids, **model.backbone.embeddings.derive(ids))
    found = model.generate(inputs_embeds=embedded, max_new_tokens=1, do_sample=False)
    assert found[0, -1] == model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1]
