"""What transformers' own generation tests ask of a model, asked of the language model.

They are not in the source distribution; these are ours of those that apply. There is no attention
to return, and no assisted decoding, which a state that cannot be cut back does not allow.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForCausalLM

Ids = Callable[..., Tensor]
Model = EHRMambaForCausalLM
LENGTH, NEW = 10, 5
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW}
SAMPLE: dict[str, Any] = {"do_sample": True, "max_new_tokens": NEW, "top_k": 10, "top_p": 0.7}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sample": SAMPLE | {"num_return_sequences": 2},
    "beam": GREEDY | {"num_beams": 2, "length_penalty": 2.0, "num_return_sequences": 2},
    "beam sample": SAMPLE | {"num_beams": 2, "length_penalty": 2.0, "num_return_sequences": 2},
}
SCORED = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def model(tiny_config: Callable[..., EHRMambaConfig]) -> Model:
    torch.manual_seed(4)
    model = EHRMambaForCausalLM(tiny_config()).eval()
    # Ordinary tokens inside the prompt's visit, so that their attributes matter.
    model.lm_head.weight.data *= 40
    model.lm_head.weight.data[5:41] = 0
    model.lm_head.weight.data[0] = 0
    return model


@pytest.fixture
def prompt(make_ids: Ids, pad_batch: Callable) -> dict[str, Tensor]:
    """Two patients, one of them padded on the left."""
    ids, mask = pad_batch([make_ids(LENGTH, 1), make_ids(LENGTH - 3, 2)], "left")
    return {"input_ids": ids, "attention_mask": mask}


def longer(mask: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, by), value=1)


def check_cache(cache: Cache, rows: int, config: EHRMambaConfig) -> None:
    assert len(cache) == config.num_hidden_layers
    for index in range(len(cache)):
        conv, recurrent = cache.get_conv_state(index), cache.get_recurrent_state(index)
        assert conv.shape == (rows, config.intermediate_size, config.conv_kernel)
        assert recurrent.shape == (rows, config.intermediate_size, config.state_size)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_outputs_have_their_fields_and_shapes(
    way: str, use_cache: bool, model: Model, prompt: dict[str, Tensor]
) -> None:
    torch.manual_seed(0)
    processors = {"bad_words_ids": [[41, 42]], "repetition_penalty": 1.2}
    asked = SCORED | {"output_scores": True, "output_hidden_states": True}
    found = model.generate(**prompt, **WAYS[way], **processors, **asked, use_cache=use_cache)
    copies = WAYS[way].get("num_return_sequences", 1)
    rows = 2 * WAYS[way].get("num_beams", copies)
    assert found.sequences.shape == (2 * copies, LENGTH + NEW)
    assert torch.equal(
        found.sequences[:, :LENGTH], prompt["input_ids"].repeat_interleave(copies, 0)
    )
    assert [s.shape for s in found.scores] == [(rows, model.config.vocab_size)] * NEW
    assert [s.shape for s in found.logits] == [(rows, model.config.vocab_size)] * NEW
    width, depth = model.config.hidden_size, model.config.num_hidden_layers + 1
    lengths = [LENGTH] + [1 if use_cache else LENGTH + step for step in range(1, NEW)]
    assert [[h.shape[1:] for h in states] for states in found.hidden_states] == [
        [(length, width)] * depth for length in lengths
    ]
    if use_cache:
        check_cache(found.past_key_values, rows, model.config)
    else:
        assert found.get("past_key_values") is None


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_nothing(way: str, model: Model, prompt: dict[str, Tensor]) -> None:
    sequences = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        sequences.append(model.generate(**prompt, **WAYS[way], use_cache=use_cache))
    assert torch.equal(*sequences)


@pytest.mark.parametrize("way", WAYS)
def test_a_static_cache_changes_nothing(way: str, model: Model, prompt: dict[str, Tensor]) -> None:
    found = []
    for implementation in ("static", "dynamic"):
        torch.manual_seed(0)
        found.append(
            model.generate(**prompt, **WAYS[way], **SCORED, cache_implementation=implementation)
        )
    static, dynamic = found
    assert type(static.past_key_values) is StaticCache
    assert type(dynamic.past_key_values) is DynamicCache
    check_cache(static.past_key_values, len(static.logits[0]), model.config)
    assert torch.equal(static.sequences, dynamic.sequences)


def test_all_logits_kept_change_nothing(model: Model, prompt: dict[str, Tensor]) -> None:
    default = model.generate(**prompt, **GREEDY)
    for kept in (0, 1, 3):
        assert torch.equal(model.generate(**prompt, **GREEDY, logits_to_keep=kept), default)


def test_much_padding_on_the_left_changes_nothing(model: Model, make_ids: Ids) -> None:
    ids = torch.stack([make_ids(LENGTH, 1), make_ids(LENGTH, 2)])
    alone = model(ids, use_cache=False).logits[:, -1]
    padded = torch.nn.functional.pad(ids, (32, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (32, 0))
    found = model(padded, attention_mask=mask, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("more", [0, 1, 4])
def test_generation_continues_from_what_generate_returned(
    more: int, model: Model, prompt: dict[str, Tensor], make_ids: Ids
) -> None:
    """With the last token, which the cache has not seen, and as many as came in since."""
    first = model.generate(**prompt, **GREEDY, **SCORED)
    events = make_ids(60, 3)
    ids = torch.cat([first.sequences, events[events > 40][:more].expand(2, -1)], 1)
    mask = longer(prompt["attention_mask"], NEW + more)
    whole = model.generate(ids, attention_mask=mask, **GREEDY, **SCORED)
    columns = {"input_ids": ids, **model.backbone.embeddings.derive(ids, mask)}
    found = model.generate(
        **{name: column[:, -1 - more :] for name, column in columns.items()},
        attention_mask=mask,
        cache_params=first.past_key_values,
        **GREEDY,
        **SCORED,
    )
    assert torch.equal(found.sequences[:, -NEW:], whole.sequences[:, -NEW:])
    for layer in range(model.config.num_hidden_layers):
        for read in (Cache.get_conv_state, Cache.get_recurrent_state):
            ours, theirs = read(found.past_key_values, layer), read(whole.past_key_values, layer)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_generation_does_not_take_in_twice_what_the_cache_has_seen(
    model: Model, prompt: dict[str, Tensor]
) -> None:
    first = model.generate(**prompt, **GREEDY, **SCORED)
    mask = longer(prompt["attention_mask"], NEW)
    with pytest.raises(ValueError, match="attributes"):
        model.generate(
            first.sequences, attention_mask=mask, cache_params=first.past_key_values, **GREEDY
        )


@pytest.mark.parametrize("beams", [1, 2])
def test_embedded_prompts_beside_their_ids(
    beams: int, model: Model, prompt: dict[str, Tensor]
) -> None:
    ways = GREEDY | SCORED | {"num_beams": beams}
    columns = model.backbone.embeddings.derive(*prompt.values())
    embedded = model.backbone.embeddings(prompt["input_ids"], **columns)
    whole = model.generate(**prompt, **ways)
    found = model.generate(**prompt, inputs_embeds=embedded, **ways)
    assert torch.equal(found.sequences, whole.sequences)
    other = model.generate(**prompt, inputs_embeds=torch.rand_like(embedded), **ways)
    for logits, changed in zip(found.logits, other.logits, strict=True):
        assert not torch.allclose(logits, changed)


def test_embedded_prompts_alone_do_not_tell_the_attributes_of_what_follows(
    model: Model, prompt: dict[str, Tensor]
) -> None:
    columns = model.backbone.embeddings.derive(*prompt.values())
    embedded = model.backbone.embeddings(prompt["input_ids"], **columns)
    mask = prompt["attention_mask"]
    with pytest.raises(ValueError, match="input_ids"):
        model.generate(inputs_embeds=embedded, attention_mask=mask, **GREEDY)


def test_without_a_prompt_a_patient_begins(model: Model) -> None:
    found = model.generate(**GREEDY)
    assert found.shape == (1, 1 + NEW)
    assert found[0, 0] == model.config.bos_token_id


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_end_at_an_end_token(beams: int, model: Model, prompt: dict[str, Tensor]) -> None:
    free = model.generate(**prompt, **GREEDY)
    end = int(free[0, LENGTH + 1])
    found = model.generate(**prompt, **GREEDY, eos_token_id=end, num_beams=beams)
    for row in found[:, LENGTH:].tolist():
        length = row.index(end) + 1 if end in row else NEW
        assert not any(row[length:]), "PAD"
    assert end in found[0]


@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_a_half_precision_model_generates(
    implementation: str, model: Model, prompt: dict[str, Tensor]
) -> None:
    half = copy.deepcopy(model).bfloat16()
    ways = GREEDY | SCORED | {"cache_implementation": implementation}
    found = half.generate(**prompt, **ways)
    mask = longer(prompt["attention_mask"], NEW)
    full = half(found.sequences, attention_mask=mask).logits[:, -NEW - 1 : -1]
    torch.testing.assert_close(torch.stack(found.logits, 1).float(), full.float(), rtol=0, atol=1.0)


def test_a_model_goes_on_from_a_cache_of_another_dtype(
    model: Model, prompt: dict[str, Tensor]
) -> None:
    cache = model(**prompt).cache_params
    ids = torch.cat([prompt["input_ids"], torch.full((2, 1), 41)], 1)
    mask = longer(prompt["attention_mask"], 1)
    columns = model.backbone.embeddings.derive(ids, mask)
    last = {name: column[:, -1:] for name, column in columns.items()}
    expected = model(ids, attention_mask=mask).logits[:, -1]
    half = copy.deepcopy(model).bfloat16()
    found = half(ids[:, -1:], **last, cache_params=cache).logits[:, -1]
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1.0)


def test_the_model_says_what_it_cannot(model: Model, prompt: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(**prompt, **GREEDY, assistant_model=model)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(**prompt, **GREEDY, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="prefill chunking"):
        model.generate(**prompt, **GREEDY, prefill_chunk_size=4)
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(**prompt, **GREEDY, no_such_argument=1)
    assert GenerationMixin in EHRMambaForCausalLM.__bases__


@pytest.mark.slow
def test_the_steps_compile_without_a_break(
    model: Model, make_ids: Ids, prompt: dict[str, Tensor]
) -> None:
    """Twice, so that a state kept from the first run would show."""
    other = {"input_ids": torch.stack([make_ids(LENGTH, 5), make_ids(LENGTH, 6)])}
    other["attention_mask"] = torch.ones_like(other["input_ids"])
    expected = [model.generate(**inputs, **GREEDY) for inputs in (prompt, other)]
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    found = [model.generate(**inputs, **GREEDY) for inputs in (prompt, other)]
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
