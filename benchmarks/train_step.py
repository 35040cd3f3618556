"""Training steps: real events a second, on full rows, and on patients of unequal length.

    python benchmarks/train_step.py [--quick] [--vocabulary N] [--threads N] [--rounds N] ...

A step is forward, backward and AdamW, at width 768. Full rows are one patient of 2,048 tokens,
through the backbone alone (the loss is the mean square of its output) and through the language
model, whose head costs as much as several layers and the same for all. The patients of unequal
length are drawn from a lognormal distribution with MIMIC-IV's mean of about 240 tokens, cut at
2,048; the same patients go into the batches of every way to lay them out, and only their own tokens
count as events, not the padding.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from measure import (
    NATIVE,
    PLAIN,
    Bar,
    Bench,
    Case,
    Measurement,
    parser,
    ratio,
    shown,
    table,
)
from rich.table import Table
from torch import Tensor

LOOP, MAMBAPY = "transformers, loop", "transformers, mambapy"
OURS = (PLAIN, NATIVE)
WIDTH, ROW = 768, 2048
DEPTHS = (2, 4)
# Where the quadratic backward pass of transformers' loop ends in seconds.
SHORT = (128, 256)
SEED, MEAN, SIGMA = 0, 240.0, 1.0
FIRST_ORDINARY = 41  # ids below are special tokens
CLS, VISIT_START, VISIT_END, REGISTER, MONTH = 3, 4, 5, 6, 12
ATTRIBUTES = ("token_type_ids", "ages", "time_stamps", "visit_segments", "visit_orders")
VISIT = 30  # tokens of a visit, its frame included

PADDED = "padded to 2,048"
LONGEST = "padded to the batch's longest"
GROUPED = "the same, grouped by length"
BEST_FIT = "packed, best fit into rows of 2,048"
FLAT = "packed, one flat row a batch"
WAYS = (PADDED, LONGEST, GROUPED, BEST_FIT, FLAT)


def lengths_of(patients: int) -> list[int]:
    """Tokens of each patient: lognormal, at least 2, cut at a row."""
    generator = torch.Generator().manual_seed(SEED)
    mu = torch.tensor(MEAN).log() - SIGMA**2 / 2  # so that the mean before the cut is MEAN
    drawn = (mu + SIGMA * torch.randn(patients, generator=generator)).exp()
    return drawn.round().clamp(2, ROW).long().tolist()


def patient(length: int, vocabulary: int) -> dict[str, list[Any]]:
    """The columns of a patient: [CLS], then visits a month apart, of random codes."""
    from ehrmamba_hf.modeling import derive_attributes
    from ehrmamba_hf.modeling.attributes_ehrmamba import default_interval_hours, default_token_types

    codes = torch.randint(FIRST_ORDINARY, vocabulary, (length,)).tolist()
    frame = {0: VISIT_START, VISIT - 3: VISIT_END, VISIT - 2: REGISTER, VISIT - 1: MONTH}
    ids = [CLS] + [frame.get(place % VISIT, codes[place]) for place in range(length - 1)]
    types = torch.tensor(default_token_types(vocabulary))
    days = torch.tensor(default_interval_hours(vocabulary, 365.0)) / 24
    columns = derive_attributes(torch.tensor([ids]), types, days)
    lists = {name: column[0].tolist() for name, column in columns.items()}
    return {"input_ids": ids, "attention_mask": [1] * length, **lists}


def batches_of(way: str, patients: list[dict[str, Any]], batch: int) -> list[dict[str, Tensor]]:
    """The patients laid out in batches, each of `batch` patients; packed rows, as many tokens."""
    from ehrmamba_hf.corpus.collation import PackingCollator, PaddingCollator
    from ehrmamba_hf.tokenization import EHRMambaTokenizer

    tokenizer = EHRMambaTokenizer()
    if way == BEST_FIT:
        # Packed over all patients, as over a training run's window of batches.
        rows = PackingCollator(tokenizer, row_length=ROW)(patients)
        each = max(1, round(batch * len(rows["input_ids"]) / len(patients)))
        parts = {name: column.split(each) for name, column in rows.items()}
        return [
            dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)
        ]
    if way == GROUPED:
        patients = sorted(patients, key=lambda columns: len(columns["input_ids"]))
    groups = [patients[begin : begin + batch] for begin in range(0, len(patients), batch)]
    collate = PackingCollator(tokenizer) if way == FLAT else PaddingCollator(tokenizer)
    if way == PADDED:
        collate = PaddingCollator(tokenizer, row_length=ROW)
    return [collate(group) for group in groups]


def build(implementation: str, layers: int, vocabulary: int, head: bool) -> Any:
    """A backbone, or a language model with untied embeddings; random weights."""
    size: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": WIDTH}
    size |= {"num_hidden_layers": layers, "tie_word_embeddings": False}
    if implementation in OURS:
        from ehrmamba_hf.modeling import EHRMambaConfig, EHRMambaForCausalLM, EHRMambaModel

        return (EHRMambaForCausalLM if head else EHRMambaModel)(EHRMambaConfig(**size)).train()
    from transformers import MambaConfig, MambaForCausalLM, MambaModel

    config = MambaConfig(**size, use_mambapy=implementation == MAMBAPY)
    return (MambaForCausalLM if head else MambaModel)(config).train()


def stepper(
    implementation: str, layers: int, vocabulary: int, head: bool
) -> Callable[[dict[str, Tensor]], None]:
    """A function that trains on one batch; it has made a first tiny step."""
    model = build(implementation, layers, vocabulary, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    unknown = set() if implementation in OURS else {"seq_idx", *ATTRIBUTES}
    unknown |= set() if head else {"labels"}

    def step(batch: dict[str, Tensor]) -> None:
        output = model(**{name: batch[name] for name in batch.keys() - unknown})
        (output.loss if head else output.last_hidden_state.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    tiny = torch.full((1, 4), FIRST_ORDINARY)
    step({"input_ids": tiny, "attention_mask": torch.ones_like(tiny), "labels": tiny})
    return step


def prepare_full(
    batch: int, length: int, implementation: str, layers: int, vocabulary: int, head: bool
) -> Callable[[], None]:
    """A step on full rows."""
    step = stepper(implementation, layers, vocabulary, head)
    ids = torch.randint(FIRST_ORDINARY, vocabulary, (batch, length))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return lambda: step(data)


def prepare_patients(
    batch: int,
    length: int,
    implementation: str,
    layers: int,
    vocabulary: int,
    way: str,
    patients: int,
    limit: int,
) -> Callable[[], None]:
    """Steps on all the batches of the patients, or on the first `limit` of them."""
    step = stepper(implementation, layers, vocabulary, head=True)
    drawn = [patient(tokens, vocabulary) for tokens in lengths_of(patients)]
    batches = batches_of(way, drawn, batch)[: limit or None]

    def call() -> None:
        for data in batches:
            step(data)

    return call


def full_rows(layers: int, head: bool) -> str:
    """The kind of the cases of full rows."""
    return f"full rows, {layers} layers{' and the language head' if head else ''}"


def plan_of(options: Namespace) -> list[tuple[int, int, bool, tuple[str, ...]]]:
    """Full rows: length, layers, head, and who runs them; the loop only where it ends."""
    short = [(length, DEPTHS[0], False, (PLAIN, LOOP)) for length in options.short]
    shapes = [(layers, head) for head in (False, True) for layers in DEPTHS]
    return short + [(options.row, *shape, (*OURS, MAMBAPY)) for shape in shapes]


def measure_full(bench: Bench, options: Namespace) -> None:
    """Full rows: ours and mambapy at every depth, and the loop where it ends."""
    for length, layers, head, names in plan_of(options):
        shared = {"layers": layers, "vocabulary": options.vocabulary, "head": head}
        kind = full_rows(layers, head)
        bench.compare(
            Case(name, kind, prepare_full, length, 1, shared | {"implementation": name})
            for name in names
        )


def measure_patients(bench: Bench, options: Namespace) -> None:
    """Unequal patients: every way for ours; for mambapy the paper's, one patient at a time."""
    shared = {"layers": DEPTHS[0], "vocabulary": options.vocabulary, "patients": options.patients}

    def case(name: str, way: str, batch: int) -> Case:
        # Batches padded to a full row all cost the same: one is run.
        limit = {"way": way, "implementation": name, "limit": int(way == PADDED)}
        return Case(name, way, prepare_patients, ROW, batch, shared | limit, {"patients": 2})

    peer = case(MAMBAPY, PADDED, 1)  # a batch of them takes more memory than many machines have
    bench.compare([case(PLAIN, way, options.batch) for way in WAYS] + [peer])
    bench.compare(case(NATIVE, way, options.batch) for way in WAYS)


def full_table(bench: Bench, options: Namespace) -> Table:
    """Full rows: events a second and memory, and the time beside ours in plain torch."""
    rows = []
    for length, layers, head, names in plan_of(options):
        kind = full_rows(layers, head)
        ours = bench.find(PLAIN, kind, length)
        for m in (bench.find(name, kind, length) for name in names):
            if not m.runs:
                continue
            figures = [shown(m.seconds), m.spread, shown(length / m.seconds, 0), shown(m.mib, 0)]
            ratios = [shown(ratio(m, ours)), shown(ratio(m, ours, "mib"))]
            rows.append([f"1 x {length}, {kind}", m.case.implementation, *figures, *ratios])
    columns = ["shape", "implementation", "s a step", "spread", "events/s", "MiB", "time / ours"]
    return table("Full rows", [*columns, "MiB / ours"], rows)


def all_seconds(m: Measurement, options: Namespace) -> float | None:
    """Seconds for all the patients."""
    if not m.runs:
        return None
    batches = -(-options.patients // m.case.batch)
    return m.seconds * (batches if m.case.kind == PADDED else 1)


def patients_table(bench: Bench, options: Namespace) -> Table:
    """Unequal patients: their own events a second, in every layout."""
    lengths = lengths_of(options.patients)
    data = [patient(length, options.vocabulary) for length in lengths]
    events = sum(lengths)
    rows = []
    for way in WAYS:
        computed = sum(b["input_ids"].numel() for b in batches_of(way, data, options.batch))
        for name in (*OURS, MAMBAPY):
            batch = 1 if name == MAMBAPY else options.batch
            m = bench.find(name, way, ROW, batch)
            padded = all_seconds(bench.find(name, PADDED, ROW, batch), options)
            seconds = all_seconds(m, options)
            if seconds is None:
                continue
            figures = [shown(seconds, 1), m.spread, shown(events / seconds, 0), shown(m.mib, 0)]
            faster = shown(padded and padded / seconds)
            rows.append([way, name, shown(computed / events), *figures, faster])
    columns = ["layout", "implementation", "computed / real tokens", "s", "spread", "real events/s"]
    return table("Patients of unequal length", [*columns, "MiB", "x padded"], rows)


def beside_mambapy(bench: Bench, layers: int, head: bool) -> dict[str, float | None]:
    """How many times as long as each of ours transformers with mambapy takes."""
    kind = full_rows(layers, head)
    theirs = bench.find(MAMBAPY, kind, ROW)
    return {name: ratio(theirs, bench.find(name, kind, ROW)) for name in OURS}


def bars(bench: Bench, options: Namespace) -> list[Bar]:
    """What has to be reached, with what was."""
    found = [
        Bar(f"transformers with mambapy / {name}, 1 x {ROW}, {full_rows(layers, False)}", value, 5)
        for layers in DEPTHS
        for name, value in beside_mambapy(bench, layers, head=False).items()
    ]
    for name in OURS:
        seconds = {
            way: all_seconds(bench.find(name, way, ROW, options.batch), options) for way in WAYS
        }
        padded = seconds[PADDED]
        for way in (BEST_FIT, FLAT):
            packed = seconds[way]
            faster = padded / packed if padded and packed else None
            found.append(Bar(f"real events/s, {way} / {PADDED}, {name}", faster, least=4))
    return found


def notes(bench: Bench, options: Namespace) -> list[str]:
    """What a reader of the tables has to know."""
    lengths, many = lengths_of(options.patients), lengths_of(44 * 100)

    def overhead(values: list[int]) -> float:
        groups = [values[begin : begin + 44] for begin in range(0, len(values), 44)]
        return sum(max(group) * len(group) for group in groups) / sum(values)

    with_head = [
        f"{layers} layers, {name}: {shown(value)}"
        for layers in DEPTHS
        for name, value in beside_mambapy(bench, layers, head=True).items()
    ]
    return [
        f"width {WIDTH}, vocabulary {options.vocabulary:,}, untied, float32, AdamW (fused)",
        "with the language head, whose products are the same for all, transformers with mambapy "
        f"takes so many times as long: {'; '.join(with_head)}",
        f"unequal patients: lognormal, mean {MEAN:.0f}, sigma {SIGMA}, 2 to {ROW} tokens, seed "
        f"{SEED}: {options.patients} patients with {sum(lengths):,} events, {options.batch} a "
        f"step, {DEPTHS[0]} layers; best fit packs them all, then takes as many rows a step as "
        "hold that many patients on average",
        f"{PADDED}: one step is run and multiplied, as all cost the same; mambapy takes one "
        "patient a step, for its memory",
        "MiB is the rise above weights, optimizer state and inputs; it includes the gradients",
        f"computed / real tokens in batches of 44, the paper's, of 4,400 patients: padded to the "
        f"batch's longest {overhead(many):.2f}, grouped by length {overhead(sorted(many)):.2f}, "
        f"padded to {ROW} {ROW * len(many) / sum(many):.2f}",
    ]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], rounds=2, budget=45.0)
    arguments.add_argument("--vocabulary", type=int, default=20_000)
    arguments.add_argument("--patients", type=int, default=32)
    arguments.add_argument("--batch", type=int, default=8, help="patients a step")
    options = arguments.parse_args()
    options.short, options.row = SHORT, ROW
    if options.quick:
        options.rounds, options.vocabulary = 1, 200
        options.short, options.row = SHORT[:1], SHORT[1]
        options.patients, options.batch = 4, 2
    bench = Bench(options)
    measure_full(bench, options)
    measure_patients(bench, options)
    tables = [full_table(bench, options), patients_table(bench, options)]
    bench.report(tables, bars(bench, options), notes(bench, options))


if __name__ == "__main__":
    main()
