"""Histories: predictions and forecasts from a kept state are those of the whole sequence."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ehrmamba_hf.modeling import (
    ATTRIBUTES,
    EHRMambaConfig,
    EHRMambaForCausalLM,
    EHRMambaForSequenceClassification,
    EHRMambaModel,
)
from ehrmamba_hf.modeling.history_ehrmamba import DEFINING, EHRMambaHistory
from ehrmamba_hf.tokenization import EHRMambaTokenizer
from ehrmamba_hf.tokenization.grammar_ehrmamba import COLUMNS, prompt

DAY = 86_400_000_000
TASKS = [25, 26, 30]  # [MOR] [LOS] [C2]
CLOSE = {"rtol": 0, "atol": 1e-5}
Rows = list[dict[str, list]]


@pytest.fixture
def model(tiny_config: Callable[..., EHRMambaConfig]) -> EHRMambaForSequenceClassification:
    torch.manual_seed(0)
    return lively(EHRMambaForSequenceClassification(tiny_config()))


def lively(model: torch.nn.Module) -> Any:
    """Weights that make predictions differ by patient and task far beyond the tolerance."""
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "out_proj.weight")):
            weight.data += 0.3 * torch.randn(weight.shape)
    return model.eval()


@pytest.fixture
def patients() -> Rows:
    """Columns of the real tokenizer: two closed records, two in an open visit, one of no visit."""
    tokenizer = EHRMambaTokenizer(vocab={f"T/{i}": i for i in range(41, 60)})

    def patient(visits: int, closed: bool, seed: int) -> dict[str, list]:
        draw = torch.Generator().manual_seed(seed)
        stays, start = [], 18_000 * DAY
        for number in range(visits):
            ids = torch.randint(41, 60, (3,), generator=draw).tolist()
            end = start + (1 + number) * DAY
            events = [{"code": f"T/{i}", "time": start + n * DAY // 3} for n, i in enumerate(ids)]
            left = closed or number < visits - 1
            stays.append({"start": start, "end": end if left else None, "events": events})
            start = end + int(torch.randint(1, 400, (1,), generator=draw)) * DAY
        return dict(tokenizer({"birth": "1950-05-01", "visits": stays}))

    return [
        patient(*shape, seed)
        for seed, shape in enumerate([(3, True), (1, False), (4, False), (1, True), (0, True)])
    ]


def batch(rows: Rows, side: str = "right", spans: list[slice] | None = None) -> dict[str, Tensor]:
    """Columns, or parts of them, as a padded batch."""
    spans = spans or [slice(None)] * len(rows)
    width = max(len(row["input_ids"][span]) for row, span in zip(rows, spans, strict=True))
    columns = {}
    for name, kind in COLUMNS.items():
        values = torch.zeros(
            len(rows), width, dtype=torch.float32 if "float" in kind else torch.long
        )
        for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
            part = torch.tensor(row[name][span], dtype=values.dtype)
            place = slice(width - len(part), None) if side == "left" else slice(len(part))
            values[index, place] = part
        columns[name] = values
    return columns


def whole(model: EHRMambaForSequenceClassification, rows: Rows) -> Tensor:
    """Logits of the full forward pass over the tokenizer's own prompts, (patients, tasks)."""
    with torch.no_grad():
        return torch.cat(
            [model(**batch([prompt(row, task) for row in rows])).logits for task in TASKS], 1
        )


def assert_same(found: EHRMambaHistory, expected: EHRMambaHistory) -> None:
    for name, tensor in found._tensors().items():
        torch.testing.assert_close(tensor, getattr(expected, name), **CLOSE, msg=name)
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["all", "ids", "no mask"])
def test_predictions_are_those_of_the_prompted_sequence(
    side: str, given: str, model: EHRMambaForSequenceClassification, patients: Rows
) -> None:
    columns = batch(patients, side)
    expected = whole(model, patients)
    if given == "ids":
        derived = model.backbone.embeddings.derive(columns["input_ids"], columns["attention_mask"])
        patients = [
            row | {n: derived[n][i][columns["attention_mask"][i] == 1].tolist() for n in ATTRIBUTES}
            for i, row in enumerate(patients)
        ]
        expected = whole(model, patients)
        columns = {"input_ids": columns["input_ids"]}
    if given == "no mask":
        del columns["attention_mask"]
    history = model.encode_history(**columns, tasks=TASKS)
    found = model.predict_from_history(history)
    assert found.shape == (5, 3)
    assert expected.std(0).min() > 1e-3 and expected.std(1).min() > 1e-3
    torch.testing.assert_close(found, expected, **CLOSE)
    again = model.predict_from_history(history)
    assert torch.equal(again, found), "a prediction leaves the history as it is"


def test_one_task_of_many(model: EHRMambaForSequenceClassification, patients: Rows) -> None:
    history = model.encode_history(**batch(patients), tasks=TASKS)
    expected = model.predict_from_history(history)
    some = history.select([4, 1], tasks=[30])
    torch.testing.assert_close(
        model.predict_from_history(some), expected[[4, 1]][:, [2]], rtol=0, atol=1e-6
    )
    assert len(history.select(torch.tensor([True, False, True, False, False]))) == 2
    assert len(history.select(slice(1, None))) == 4
    assert some.nbytes * 5 * 3 < history.nbytes * 2 * 1.05
    with pytest.raises(ValueError, match=r"expected some of \[25, 26, 30\], found \[27\]"):
        history.select(tasks=[27])


def test_several_labels(tiny_config: Callable[..., EHRMambaConfig], patients: Rows) -> None:
    model = lively(EHRMambaForSequenceClassification(tiny_config(num_labels=4)))
    history = model.encode_history(**batch(patients), tasks=TASKS)
    found = model.predict_from_history(history)
    assert found.shape == (5, 3, 4)
    with torch.no_grad():
        rows = [prompt(row, TASKS[1]) for row in patients]
        torch.testing.assert_close(found[:, 1], model(**batch(rows)).logits, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attributes", [True, False])
def test_any_split_is_the_whole(
    side: str, attributes: bool, model: EHRMambaForSequenceClassification, patients: Rows
) -> None:
    """Each patient's record in three parts at places of its own, some of them empty."""
    kept = COLUMNS if attributes else ("input_ids", "attention_mask")
    columns = batch(patients)
    expected = model.encode_history(**{n: columns[n] for n in kept}, tasks=TASKS)
    lengths = [len(row["input_ids"]) for row in patients]
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        cuts = [sorted(torch.randint(1, n + 1, (2,), generator=draw).tolist()) for n in lengths]
        history = None
        for part in range(3):
            spans = [
                slice(*((0, a), (a, b), (b, n))[part])
                for (a, b), n in zip(cuts, lengths, strict=True)
            ]
            new = batch(patients, side, spans)
            new = {name: new[name] for name in kept}
            if history is None:
                history = model.encode_history(**new, tasks=TASKS)
            else:
                before = {n: t.clone() for n, t in history._tensors().items()}
                longer = model.extend_history(history, **new)
                assert all(torch.equal(before[n], t) for n, t in history._tensors().items())
                history = longer
            assert history.lengths.tolist() == [span.stop for span in spans]
        assert_same(history, expected)


def test_token_by_token_through_every_kind(
    model: EHRMambaForSequenceClassification, patients: Rows
) -> None:
    """Each kind of token is the last one once, and the prediction right each time."""
    row = patients[2]
    history = model.encode_history(**batch([row], spans=[slice(1)]), tasks=TASKS)
    for t in range(1, len(row["input_ids"])):
        history = model.extend_history(history, **batch([row], spans=[slice(t, t + 1)]))
        so_far = {name: column[: t + 1] for name, column in row.items()}
        expected = whole(model, [so_far])
        torch.testing.assert_close(model.predict_from_history(history), expected, **CLOSE)


def test_what_a_history_keeps(model: EHRMambaForSequenceClassification) -> None:
    """[CLS] [VS] x [VE] [REG] [M_0] [VS] y: 15 days pass at [M_0], of which a year has 365.25."""
    ids = torch.tensor([[3, 4, 41, 5, 6, 11, 4, 42]])
    steps = [model.encode_history(ids[:, :1])]
    for t in range(1, 8):
        steps.append(model.extend_history(steps[-1], ids[:, t : t + 1]))
    assert [h.input_ids.item() for h in steps] == [3, 4, 41, 5, 6, 11, 4, 42]
    assert [h.token_type_ids.item() for h in steps] == [1, 2, 10, 3, 4, 5, 2, 10]
    assert [h.visit_orders.item() for h in steps] == [0, 1, 1, 1, 1, 1, 2, 2]
    assert [h.visit_segments.item() for h in steps] == [0, 1, 1, 1, 1, 1, 2, 2]
    assert [h.lengths.item() for h in steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps[-2].time_stamps.item() == pytest.approx(15 / 7, abs=1e-6)
    assert steps[-1].ages.item() == pytest.approx(15 / 365.25, abs=1e-7)
    assert not steps[0].conv_states.any() and not steps[0].recurrent_states.any()


def test_the_size_is_fixed(model: EHRMambaForSequenceClassification, patients: Rows) -> None:
    sizes = {model.encode_history(**batch([row]), tasks=TASKS).nbytes for row in patients}
    # 2 layers x 3 tasks x 48 channels x (4 + 4) floats, 3 task ids, and 5 integers and 2 floats.
    assert sizes == {2 * 3 * 48 * 8 * 4 + 3 * 8 + 5 * 8 + 2 * 4}


def test_saving_and_joining(
    model: EHRMambaForSequenceClassification, patients: Rows, tmp_path: Path
) -> None:
    history = model.encode_history(**batch(patients), tasks=TASKS)
    path = tmp_path / "history.safetensors"
    history.select([0, 1]).save(path)
    history.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size < history.nbytes + 2000
    loaded = EHRMambaHistory.load(path)
    assert_same(loaded, history)
    torch.testing.assert_close(model.predict_from_history(loaded), whole(model, patients), **CLOSE)
    assert_same(
        EHRMambaHistory.concatenate([history.select([0, 1]), history.select([2, 3, 4])]), history
    )
    with pytest.raises(ValueError, match=r"the tasks \[25, 26, 30\] in every history, found"):
        EHRMambaHistory.concatenate([history, history.select(tasks=[25])])
    with pytest.raises(ValueError, match="at least one"):
        EHRMambaHistory.concatenate([])


def test_a_file_that_is_not_a_history(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected a file of format ehrmamba-history/1, found No"):
        EHRMambaHistory.load(path)
    with pytest.raises(FileNotFoundError):
        EHRMambaHistory.load(tmp_path / "none.safetensors")


def test_another_model_refuses(model: EHRMambaForSequenceClassification, patients: Rows) -> None:
    history = model.encode_history(**batch(patients), tasks=TASKS)
    changes: list[Callable[[torch.nn.Module], None]] = [
        lambda backbone: backbone.layers[1].mixer.A_log.mul_(1.001),
        lambda backbone: backbone.embeddings.interval_hours_table.add_(1),
        lambda backbone: setattr(backbone.config, "layer_norm_epsilon", 1e-3),
    ]
    for change in changes:
        other = EHRMambaForSequenceClassification(dataclasses.replace(model.config)).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.predict_from_history(history), model.predict_from_history(history))
        with torch.no_grad():
            change(other.backbone)
        with pytest.raises(ValueError, match="encode the record anew"):
            other.predict_from_history(history)
        with pytest.raises(ValueError, match="encode the record anew"):
            other.extend_history(history, torch.zeros(5, 1, dtype=torch.long))


def test_heads_share_histories(
    model: EHRMambaForSequenceClassification, patients: Rows, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    history = model.encode_history(**batch(patients), tasks=TASKS)
    for kind in (EHRMambaModel, EHRMambaForCausalLM, EHRMambaForSequenceClassification):
        loaded = kind.from_pretrained(tmp_path).eval()
        assert_same(loaded.encode_history(**batch(patients), tasks=TASKS), history)


def test_every_field_that_changes_states_is_in_the_fingerprint() -> None:
    """A field that is new in the configuration has to be put on one side or the other."""
    in_the_weights = {
        *("vocab_size", "hidden_size", "num_hidden_layers", "state_size", "expand"),
        *("time_step_rank", "use_bias", "use_conv_bias", "type_vocab_size"),
        *("segment_vocab_size", "time_embedding_size", "long_interval_days"),
    }
    without_effect = {
        *("time_step_scale", "time_step_min", "time_step_max", "time_step_floor"),
        *("time_step_init_scheme", "initializer_range", "rescale_prenorm_residual"),
        *("embedding_dropout", "classifier_dropout", "classifier_hidden", "context_length"),
        *("forecasting_loss_weight", "use_cache", "tie_word_embeddings", "bos_token_id"),
        "eos_token_id",
    }
    ours = {name for name in EHRMambaConfig.__annotations__ if not name.startswith("keys_to")}
    assert ours == set(DEFINING) | in_the_weights | without_effect


def test_generation_goes_on_from_a_history(
    tiny_config: Callable[..., EHRMambaConfig], patients: Rows
) -> None:
    torch.manual_seed(1)
    model = lively(EHRMambaForCausalLM(tiny_config()))
    model.lm_head.weight.data *= 40
    columns = batch(patients, "left")
    history = model.encode_history(**columns)
    before = {n: t.clone() for n, t in history._tensors().items()}
    length = columns["input_ids"].shape[1]
    for way in (
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    ):
        way = way | {"max_new_tokens": 9, "logits_processor": [model.sequence_grammar()]}
        torch.manual_seed(2)
        expected = model.generate(**columns, **way)
        torch.manual_seed(2)
        found = model.generate_from_history(history, **way)
        assert found[:, 2:].tolist() == expected[:, length:].tolist()
        assert found[:: len(found) // 5, 1].tolist() == columns["input_ids"][:, -1].tolist()
        assert not found[:, 0].any()
    assert all(torch.equal(before[n], t) for n, t in history._tensors().items())


def test_generation_after_an_interval_counts_its_days(
    tiny_config: Callable[..., EHRMambaConfig],
    patients: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last token lies outside visits: age, time and order go on from the visit before it."""
    model = lively(EHRMambaForCausalLM(tiny_config()))
    row = {name: column[:8] for name, column in patients[0].items()}  # up to the first interval
    assert 7 <= row["input_ids"][-1] < 25
    history = model.encode_history(**batch([row]))
    seen: list[dict[str, Tensor]] = []
    forward = model.backbone.embeddings.forward

    def spy(input_ids: Tensor, **columns: Tensor) -> Tensor:
        seen.append(columns)
        return forward(input_ids, **columns)

    monkeypatch.setattr(model.backbone.embeddings, "forward", spy)
    grammar = [model.sequence_grammar()]
    model.generate_from_history(history, max_new_tokens=2, logits_processor=grammar)
    start = seen[-1]  # of the [VS]
    days = float(model.backbone.embeddings.interval_days_table[row["input_ids"][-1]])
    assert start["visit_orders"].item() == 2 and start["visit_segments"].item() == 2
    assert start["ages"].item() == pytest.approx(row["ages"][-2] + days / 365.25, abs=1e-5)
    assert start["time_stamps"].item() == pytest.approx(row["time_stamps"][-2] + days / 7, abs=1e-5)


def test_plain_refusals(model: EHRMambaForSequenceClassification, patients: Rows) -> None:
    columns = batch(patients)
    history = model.encode_history(**columns)
    with pytest.raises(ValueError, match="expected a history of tasks' tokens"):
        model.predict_from_history(history)
    with pytest.raises(ValueError, match="without a task's prompt"):
        model.encode_history(**batch([prompt(row, 25) for row in patients]))
    with pytest.raises(ValueError, match=r"expected ids of tasks' tokens.*found \[41\]"):
        model.encode_history(**columns, tasks=[41])
    with pytest.raises(ValueError, match=r"found \[\]"):
        model.encode_history(**columns, tasks=[])
    with pytest.raises(ValueError, match=r"found \[CLS\] or a task's"):
        model.extend_history(history, **columns)
    with pytest.raises(ValueError, match="expected new tokens of the history's 5 patients"):
        model.extend_history(history, torch.tensor([[41]]))
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        model.train().encode_history(**columns)
