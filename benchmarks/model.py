"""The paper's model, 32 layers of width 768: prefill and decode, beside Mamba, BERT and BigBird.

    python benchmarks/model.py [--quick] [--whole L] [--threads N] [--rounds N] [--budget S] ...

Prefill is one forward pass without autograd, of the backbone alone, with its states kept where it
has any. Two layers are built and run, the time inside them is multiplied to that of all layers, and
the rest (embeddings, final norm) is counted once; up to `--whole` tokens the whole Mamba models are
run too, to show how true that is. Decode is always of the whole models, language head included: it
is bound by reading their weights. All weights are random. BERT and BigBird have as many layers as
have the parameters of 32 Mamba layers.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
import transformers
from measure import (
    BFLOAT16,
    NATIVE,
    PLAIN,
    Bar,
    Bench,
    Case,
    Measurement,
    clock_of,
    parser,
    ratio,
    shown,
    table,
)
from rich.table import Table
from torch import nn

MAMBA, BERT, BIGBIRD = "transformers' Mamba", "BERT, sdpa", "BigBird"
OURS = (PLAIN, NATIVE, BFLOAT16)
PREFILLED = (*OURS, MAMBA, BERT, BIGBIRD)
DECODED = (*OURS, MAMBA)
PREFILL, WHOLE, DECODE = "prefill", "prefill, whole model", "decode"
LENGTHS = (512, 1024, 2048, 4096, 8192)
BUILT = 2  # layers of the models whose time is multiplied
LAYERS, WIDTH, HEADS, VOCABULARY = 32, 768, 12, 20_000
BATCHES = (1, 8)
PROMPT, DECODED_TOKENS = 16, 8
FIRST_ORDINARY = 41  # ids below are special tokens


def build(implementation: str, layers: int, head: bool = False) -> Any:
    """A model with random weights; `head` adds the language model's."""
    size: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": WIDTH}
    size["num_hidden_layers"] = layers
    if implementation in OURS:
        return _ours(implementation, size, head)
    if implementation == MAMBA:
        mamba = transformers.MambaConfig(**size, tie_word_embeddings=False)
        kind = transformers.MambaForCausalLM if head else transformers.MambaModel
        return kind(mamba).eval()
    size |= {"num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH}
    size["max_position_embeddings"] = max(LENGTHS)
    if implementation == BERT:
        bert = transformers.BertConfig(**size | {"attn_implementation": "sdpa"})
        return transformers.BertModel(bert, add_pooling_layer=False).eval()
    bigbird = transformers.BigBirdConfig(**size)
    return transformers.BigBirdModel(bigbird, add_pooling_layer=False).eval()


def _ours(implementation: str, size: dict[str, Any], head: bool) -> Any:
    from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForCausalLM, EHRMambaModel

    kind: Any = EHRMambaForCausalLM if head else EHRMambaModel
    model = kind(EHRMambaConfig(**size)).eval()
    if implementation == BFLOAT16:
        model.bfloat16_projections()
    return model


def blocks(model: Any) -> list[nn.Module]:
    """The repeated layers of a backbone."""
    return list(model.layers if hasattr(model, "layers") else model.encoder.layer)


def tokens(batch: int, length: int) -> torch.Tensor:
    """Random ids of ordinary tokens, (batch, length)."""
    return torch.randint(FIRST_ORDINARY, VOCABULARY, (batch, length))


def prepare_prefill(
    batch: int, length: int, implementation: str, layers: int
) -> Callable[[], float]:
    """A forward pass that returns the seconds inside the layers."""
    model, ids = build(implementation, layers), tokens(batch, length)
    clock = clock_of(torch.get_num_threads())
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(clock())

    for block in blocks(model):
        block.register_forward_pre_hook(mark)
        block.register_forward_hook(mark)
    options: dict[str, Any] = {} if implementation in (BERT, BIGBIRD) else {"use_cache": True}

    @torch.no_grad()
    def call() -> float:
        marks.clear()
        model(input_ids=ids, **options)
        return sum(marks[1::2]) - sum(marks[::2])

    return call


def prepare_decode(batch: int, length: int, implementation: str, layers: int) -> Callable[[], None]:
    """`length` greedy tokens, one after the other, from the states after a short prompt."""
    model = build(implementation, layers, head=True)

    def step(ids: torch.Tensor, cache: Any) -> Any:
        # Ours wants the new tokens' attributes; that they are made up costs the same.
        columns = ("token_type_ids", "ages", "time_stamps", "visit_segments", "visit_orders")
        given = dict.fromkeys(columns, torch.ones_like(ids)) if implementation in OURS else {}
        return model(input_ids=ids, cache_params=cache, use_cache=True, logits_to_keep=1, **given)

    with torch.no_grad():
        state = step(tokens(batch, PROMPT), None)

    @torch.no_grad()
    def call() -> None:
        nonlocal state
        for _ in range(length):
            state = step(state.logits[:, -1:].argmax(-1), state.cache_params)

    return call


def layer_parameters(implementation: str) -> int:
    """Parameters of one layer, the same for all of ours."""
    with torch.device("meta"):
        model = build(PLAIN if implementation in OURS else implementation, 1)
    return sum(parameter.numel() for parameter in blocks(model)[0].parameters())


def layers_of(implementation: str) -> int:
    """How many layers have the parameters of the 32 Mamba layers, as nearly as can be."""
    if implementation not in (BERT, BIGBIRD):
        return LAYERS
    return round(LAYERS * layer_parameters(PLAIN) / layer_parameters(implementation))


def whole_seconds(measurement: Measurement, layers: int) -> float | None:
    """Seconds of a pass through all layers, from a pass through two."""
    if not measurement.runs:
        return None
    return measurement.seconds + (layers / BUILT - 1) * measurement.part


def contest(
    kind: str, names: tuple[str, ...], length: int, batch: int, layers: dict[str, int]
) -> list[Case]:
    """The cases that are run in turn; `layers` says how many of each are built."""
    prepare = prepare_decode if kind == DECODE else prepare_prefill
    return [
        Case(
            name,
            kind,
            prepare,
            length,
            batch,
            {"implementation": name, "layers": layers[name]},
            {"batch": 1, "length": PROMPT, "layers": 1},
        )
        for name in names
    ]


def prefill_table(bench: Bench, shapes: list[tuple[int, int]], layers: dict[str, int]) -> Table:
    """Each model at each shape: the estimate for all layers, and the memory."""
    columns = ["batch x length", "model", "layers", "s, all layers", "tokens/s", "ms a layer"]
    columns += ["spread", "MiB", "time / ours", "MiB / ours"]
    rows = []
    for length, batch in shapes:
        ours = bench.find(PLAIN, PREFILL, length, batch)
        for name in PREFILLED:
            m = bench.find(name, PREFILL, length, batch)
            seconds, our_seconds = whole_seconds(m, layers[name]), whole_seconds(ours, LAYERS)
            if seconds is None:
                continue
            layer = 1000 * m.part / BUILT
            figures = [shown(seconds), shown(batch * length / seconds, 0), shown(layer, 1)]
            relative = [shown(our_seconds and seconds / our_seconds), shown(ratio(m, ours, "mib"))]
            shape = [f"{batch} x {length}", name, str(layers[name])]
            rows.append([*shape, *figures, m.spread, shown(m.mib, 0), *relative])
    return table(f"Prefill, estimated from {BUILT} layers", columns, rows)


def whole_table(bench: Bench, lengths: list[int]) -> Table:
    """Whole models beside their estimates from two layers."""
    rows = []
    for length in lengths:
        for name in (PLAIN, NATIVE, MAMBA):
            m, two = bench.find(name, WHOLE, length), bench.find(name, PREFILL, length)
            estimate = whole_seconds(two, LAYERS)
            if m.runs and estimate:
                figures = [shown(m.seconds), shown(estimate), shown(m.seconds / estimate)]
                rows.append([f"1 x {length}", name, *figures, shown(m.mib, 0), shown(two.mib, 0)])
    columns = ["batch x length", "model", "s, measured", "s, estimated", "ratio", "MiB"]
    return table("Prefill, whole models", [*columns, f"MiB, {BUILT} layers"], rows)


def decode_table(bench: Bench) -> Table:
    """Tokens a second of each model that has states, at each batch size."""
    rows = []
    for batch in BATCHES:
        ours = bench.find(PLAIN, DECODE, DECODED_TOKENS, batch)
        for name in DECODED:
            m = bench.find(name, DECODE, DECODED_TOKENS, batch)
            if not m.runs:
                continue
            step = m.seconds / DECODED_TOKENS
            figures = [shown(1000 * step, 1), shown(batch / step, 1), m.spread]
            rows.append([str(batch), name, *figures, shown(ratio(m, ours))])
    columns = ["batch", "model", "ms a step", "tokens/s", "spread", "time / ours"]
    return table("Decode, whole models", columns, rows)


def bars(bench: Bench) -> list[Bar]:
    """What has to be reached, with what was."""

    def faster(name: str) -> float | None:
        theirs, ours = (
            whole_seconds(bench.find(each, PREFILL, 2048), LAYERS) for each in (MAMBA, name)
        )
        return theirs / ours if theirs and ours else None

    def measured(name: str) -> float | None:
        return ratio(bench.find(MAMBA, WHOLE, 2048), bench.find(name, WHOLE, 2048))

    def memory(over: Measurement, length: int) -> float | None:
        return ratio(over, bench.find(PLAIN, PREFILL, length), "mib")

    theirs, longest = bench.find(MAMBA, PREFILL, 8192), bench.find(PLAIN, PREFILL, 8192)
    return [
        Bar("transformers' Mamba / plain torch, whole, 1 x 2048", measured(PLAIN), least=3),
        Bar("transformers' Mamba / plain torch, estimated, 1 x 2048", faster(PLAIN), least=3),
        Bar("memory of plain torch, 8192 / 4096: 2 is linear", memory(longest, 4096), most=2.2),
        Bar("memory of transformers' Mamba / plain torch at 8192", memory(theirs, 8192), least=5),
    ]


def notes(layers: dict[str, int]) -> list[str]:
    """What a reader of the tables has to know."""
    counts = [
        f"{name} {layers[name]} x {layer_parameters(name) / 1e6:.2f} M"
        for name in (PLAIN, MAMBA, BERT, BIGBIRD)
    ]
    return [
        f"layers and parameters of each: {'; '.join(counts)}",
        f"time for all layers: a pass through a model of {BUILT}, and the time inside the layers "
        "as often as more are needed",
        f"MiB is what a pass through {BUILT} layers needs beside weights and inputs; more layers "
        "add the states that are kept, and what the allocator does not reuse",
        "BigBird attends fully under 705 tokens, where its sparse pattern does not apply",
        "decode: BERT and BigBird are encoders, and have none; each new token would cost a prefill",
        f"decode: {DECODED_TOKENS} tokens a run, whose cost does not depend on the history",
    ]


def measure(bench: Bench, options: Namespace, layers: dict[str, int]) -> list[Table]:
    """Run everything; returns the tables."""
    lengths = (64, 128) if options.quick else LENGTHS
    whole = [length for length in lengths if length <= options.whole]
    shapes = [(length, 1) for length in lengths] + [(lengths[0], BATCHES[-1])]
    built = dict.fromkeys(layers, BUILT)
    for length, batch in shapes:
        bench.compare(contest(PREFILL, PREFILLED, length, batch, built))
    for length in whole:
        bench.compare(contest(WHOLE, (PLAIN, NATIVE, MAMBA), length, 1, layers))
    for batch in BATCHES:
        bench.compare(contest(DECODE, DECODED, DECODED_TOKENS, batch, layers))
    tables = [prefill_table(bench, shapes, layers), whole_table(bench, whole), decode_table(bench)]
    return [each for each in tables if each.row_count]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], rounds=3, budget=60.0)
    arguments.add_argument("--whole", type=int, default=2048, help="run whole models to here")
    options = arguments.parse_args()
    layers = {name: layers_of(name) for name in PREFILLED}
    if options.quick:
        options.rounds, options.whole = 1, 0
    bench = Bench(options)
    bench.report(measure(bench, options, layers), bars(bench), notes(layers))


if __name__ == "__main__":
    main()
