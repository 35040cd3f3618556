"""The models: equality with transformers' Mamba, losses, pooling, ties, resizing, training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import MambaConfig, MambaModel, Trainer, TrainingArguments

from ehrmamba_hf.modeling import (
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    EHRMambaModel,
)

Config = Callable[..., EHRMambaConfig]
Ids = Callable[..., Tensor]
Pad = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_backbone_equals_transformers_mamba_for_the_same_weights(
    use_bias: bool, tiny_config: Config
) -> None:
    torch.manual_seed(0)
    config = tiny_config(use_bias=use_bias)
    shared = ("vocab_size", "hidden_size", "state_size", "num_hidden_layers", "use_bias")
    theirs = MambaModel(MambaConfig(**{name: getattr(config, name) for name in shared})).eval()
    ours = EHRMambaModel(config).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("embeddings.")}
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"embeddings"}

    inputs = torch.randn(2, 29, config.hidden_size)
    found = ours(inputs_embeds=inputs, output_hidden_states=True)
    expected = theirs(inputs_embeds=inputs, output_hidden_states=True)
    torch.testing.assert_close(
        found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-4
    )
    assert len(found.hidden_states) == 3, "the embeddings, then each layer's output"
    assert torch.equal(found.hidden_states[0], inputs)
    first = expected.hidden_states[0]  # transformers' Mamba leaves the embeddings out
    torch.testing.assert_close(found.hidden_states[1], first, rtol=0, atol=1e-4)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)


def test_embedded_tokens_give_what_the_ids_give(tiny_config: Config, make_ids: Ids) -> None:
    model = EHRMambaModel(tiny_config()).eval()
    ids = make_ids(20)[None]
    embedded = model.embeddings(ids, **model.embeddings.derive(ids))
    expected = model(ids).last_hidden_state
    assert torch.equal(model(inputs_embeds=embedded).last_hidden_state, expected)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=embedded)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_that_of_the_next_tokens_without_padding(
    side: str, tiny_config: Config, make_ids: Ids, pad_batch: Pad
) -> None:
    model = EHRMambaForCausalLM(tiny_config()).eval()
    rows = [make_ids(n, n) for n in (7, 12)]
    ids, mask = pad_batch(rows, side)
    losses = []
    for row in rows:
        logits = model(row[None]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, row[1:], reduction="none"))
    expected = torch.cat(losses).mean()
    for labels in (ids, ids.int(), ids.masked_fill(mask == 0, -100)):
        for given in (mask, None):
            loss = model(ids, attention_mask=given, labels=labels).loss
            torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)


def test_only_the_last_logits_can_be_asked_for(tiny_config: Config, make_ids: Ids) -> None:
    model = EHRMambaForCausalLM(tiny_config()).eval()
    ids = make_ids(9)[None]
    last = model(ids, logits_to_keep=1).logits
    torch.testing.assert_close(last, model(ids).logits[:, -1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_classifier_reads_the_last_real_token(
    side: str, hidden: bool, tiny_config: Config, make_ids: Ids, pad_batch: Pad
) -> None:
    model = EHRMambaForSequenceClassification(tiny_config(classifier_hidden=hidden)).eval()
    rows = [make_ids(n, n) for n in (1, 7, 12)]
    ids, mask = pad_batch(rows, side, extra=2)
    alone = torch.cat([model(row[None]).logits for row in rows])
    for given in (mask, mask.to(torch.int8), None):
        logits = model(ids, attention_mask=given).logits
        assert logits.shape == (3, 1)
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


def test_one_label_is_binary_cross_entropy(tiny_config: Config, make_ids: Ids) -> None:
    model = EHRMambaForSequenceClassification(tiny_config()).eval()
    ids = torch.stack([make_ids(9, seed) for seed in range(3)])
    labels = torch.tensor([0.0, 1.0, 1.0])
    logits = model(ids).logits
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels)
    for given in (labels, labels.long(), labels[:, None]):
        torch.testing.assert_close(model(ids, labels=given).loss, expected)
    assert model.config.problem_type is None, "a loss does not rewrite the configuration"


@pytest.mark.parametrize(
    ("fields", "labels", "expected"),
    [
        ({"num_labels": 3}, [0, 2], F.cross_entropy),
        (
            {"num_labels": 2},
            [[0.0, 1.0], [1.0, 1.0]],
            F.binary_cross_entropy_with_logits,
        ),
        (
            {"num_labels": 1, "problem_type": "regression"},
            [0.5, 2.0],
            lambda z, y: F.mse_loss(z[:, 0], y),
        ),
    ],
)
def test_other_problem_types_are_as_in_transformers(
    fields: dict, labels: list, expected: Callable, tiny_config: Config, make_ids: Ids
) -> None:
    model = EHRMambaForSequenceClassification(tiny_config(**fields)).eval()
    ids = torch.stack([make_ids(9, seed) for seed in range(2)])
    targets = torch.tensor(labels)
    outputs = model(ids, labels=targets)
    torch.testing.assert_close(outputs.loss, expected(outputs.logits, targets))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_forecasting_loss_is_that_of_the_next_tokens_but_the_task(
    side: str, tiny_config: Config, make_ids: Ids, pad_batch: Pad
) -> None:
    still = {"embedding_dropout": 0.0, "classifier_dropout": 0.0}
    model = EHRMambaForSequenceClassification(tiny_config(forecasting_loss_weight=0.5, **still))
    task = torch.tensor([25])
    rows = [torch.cat([task, make_ids(n, n)[1:], task]) for n in (7, 12)]
    ids, mask = pad_batch(rows, side)
    ids = ids.masked_fill(mask == 0, 41)  # what padding holds does not matter where there is a mask
    labels = torch.tensor([0.0, 1.0])
    plain = model.eval()(ids, attention_mask=mask, labels=labels).loss
    losses = []
    for row in rows:
        logits = model.lm_head(model.backbone(row[None]).last_hidden_state)[0, :-2]
        losses.append(F.cross_entropy(logits, row[1:-1], reduction="none"))
    found = model.train()(ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(found, plain + 0.5 * torch.cat(losses).mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ids", [[[25, 25]], [[25]], [[25, 0, 0]]])
def test_patients_without_events_have_nothing_to_forecast(ids: list, tiny_config: Config) -> None:
    # A batch of them had a mean over no token: NaN, and with it all weights.
    model = EHRMambaForSequenceClassification(tiny_config(forecasting_loss_weight=0.1)).train()
    loss = model(torch.tensor(ids), labels=torch.tensor([1.0])).loss
    loss.backward()
    assert loss.isfinite()
    assert all(w.grad.isfinite().all() for w in model.parameters() if w.grad is not None)


@pytest.mark.parametrize(("weight", "tied"), [(0.0, False), (0.1, False), (0.0, True)])
def test_a_language_head_without_a_loss_is_frozen_before_and_after_loading(
    weight: float, tied: bool, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config(forecasting_loss_weight=weight, tie_word_embeddings=tied)
    model = EHRMambaForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    loaded, _ = EHRMambaForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    again = EHRMambaForSequenceClassification.from_pretrained(tmp_path)
    for found in (model, loaded, again):
        assert found.lm_head.weight.requires_grad is (weight > 0 or tied)
        assert found.classifier.out_proj.weight.requires_grad


def test_a_finetuned_head_gives_way_to_one_of_other_labels(
    tiny_config: Config, tmp_path: Path
) -> None:
    EHRMambaForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "one")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        EHRMambaForSequenceClassification.from_pretrained(tmp_path / "one", num_labels=3)
    model = EHRMambaForSequenceClassification.from_pretrained(
        tmp_path / "one", num_labels=3, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "three")
    loaded = EHRMambaForSequenceClassification.from_pretrained(tmp_path / "three")
    assert loaded.num_labels == 3 and loaded.classifier.out_proj.weight.shape == (3, 24)


def test_tied_weights_are_one_tensor_before_and_after_loading(
    tiny_config: Config, tmp_path: Path
) -> None:
    model = EHRMambaForCausalLM(tiny_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.backbone.embeddings.concept.weight
    model.save_pretrained(tmp_path)
    loaded = EHRMambaForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.backbone.embeddings.concept.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    untied = EHRMambaForCausalLM(tiny_config())
    assert untied.lm_head.weight is not untied.backbone.embeddings.concept.weight


@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_vocabulary_takes_the_tables_along(
    tied: bool, tiny_config: Config, make_ids: Ids, tmp_path: Path
) -> None:
    model = EHRMambaForCausalLM(tiny_config(tie_word_embeddings=tied)).eval()
    model.set_token_types([7] * 19)
    ids = make_ids(15)[None]
    before = model(ids).logits
    model.resize_token_embeddings(63)
    table = model.backbone.embeddings.token_type_table
    assert table.dtype == torch.int8 and table[58:].tolist() == [7, 7, 10, 10, 10]
    assert model.backbone.embeddings.interval_days_table[[8, 60, 62]].tolist() == [10.5, 0, 0]
    torch.testing.assert_close(model(ids).logits[..., :60], before, rtol=0, atol=1e-6)
    assert model(torch.tensor([[62]])).logits.shape == (1, 1, 63)
    model.save_pretrained(tmp_path)
    loaded = EHRMambaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.resize_token_embeddings(60)
    torch.testing.assert_close(loaded(ids).logits, before, rtol=0, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(tiny_config: Config, make_ids: Ids) -> None:
    model = EHRMambaForCausalLM(tiny_config(embedding_dropout=0.0)).train()
    ids = torch.stack([make_ids(20, seed) for seed in range(2)])
    ids[0, 16:] = 0
    grads = []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable()
        outputs = model(ids, labels=ids)
        assert outputs.cache_params is None
        outputs.loss.backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)
    cache = model.eval()(ids).cache_params
    with pytest.raises(ValueError, match="a second time"):
        model.train()(ids, cache_params=cache)


def test_the_trainer_accumulates_to_the_gradient_of_one_large_batch(
    tiny_config: Config, make_ids: Ids, tmp_path: Path
) -> None:
    data = [
        {"input_ids": make_ids(20, seed), "ages": torch.ones(20), "labels": float(seed % 2)}
        for seed in range(8)
    ]
    norms = {}
    for steps in (1, 4):
        torch.manual_seed(0)
        config = tiny_config(embedding_dropout=0.0, classifier_dropout=0.0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            logging_steps=1,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        model = EHRMambaForSequenceClassification(config)
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        norms[steps] = trainer.state.log_history[0]["grad_norm"]
        found = trainer.predict(data)
        assert found.predictions.shape == (8, 1), "no cache among what is gathered"
    assert norms[1] == pytest.approx(norms[4], rel=1e-4)


def test_every_parameter_learns(tiny_config: Config, make_ids: Ids) -> None:
    ids = torch.stack([make_ids(20, seed) for seed in range(2)])
    for cls, labels in (
        (EHRMambaForCausalLM, ids),
        (EHRMambaForSequenceClassification, torch.tensor([0.0, 1.0])),
    ):
        model = cls(tiny_config())
        model(ids, labels=labels).loss.backward()
        learning = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
        assert not [name for name, w in learning if w.grad is None or not w.grad.any()]


def test_a_causal_checkpoint_becomes_a_classifier(tiny_config: Config, tmp_path: Path) -> None:
    causal = EHRMambaForCausalLM(tiny_config())
    causal.set_token_types([9] * 19)
    causal.save_pretrained(tmp_path)
    classifier = EHRMambaForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert classifier.classifier.out_proj.weight.shape == (3, 24)
    for name, weight in causal.backbone.state_dict().items():
        assert torch.equal(classifier.backbone.state_dict()[name], weight), name


def test_initialisation_is_seeded_and_as_in_the_mamba_paper(tiny_config: Config) -> None:
    config = tiny_config(num_hidden_layers=3)
    torch.manual_seed(1)
    one = EHRMambaModel(config)
    torch.manual_seed(1)
    other = EHRMambaModel(config)
    for (name, left), right in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right), name
    mixer = one.layers[0].mixer
    torch.testing.assert_close(mixer.A_log.exp()[5], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    steps = F.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.99 * config.time_step_min and steps.max() <= 1.01 * config.time_step_max
    assert mixer.out_proj.weight.abs().max() <= (48 * 3) ** -0.5
