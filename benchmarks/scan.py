"""The selective scan alone: time and memory of ours, of transformers' loop and of mambapy's.

    python benchmarks/scan.py [--quick] [--threads N] [--rounds N] [--budget S] [--json FILE]

1536 channels and 16 states, the width of the paper's model. The peers are transformers' own
function, `mamba_selective_scan`: its loop over time, and with `use_mambapy` the parallel scan of
mambapy; each gets its inputs in the layout that its model gives them. Forward is without autograd;
forward and backward has the gradients of all six inputs.
"""

from collections.abc import Callable
from functools import partial

import torch
from measure import (
    NATIVE,
    PLAIN,
    Bar,
    Bench,
    Case,
    NoResultError,
    choose_backend,
    parser,
    ratio,
    shown,
    table,
)
from rich.table import Table
from torch import Tensor

CHANNELS, STATES = 1536, 16
LOOP, MAMBAPY = "transformers, loop", "transformers, mambapy"
IMPLEMENTATIONS = (PLAIN, NATIVE, LOOP, MAMBAPY)
FORWARD, BOTH = "forward", "forward and backward"
LENGTHS = (512, 1024, 2048, 4096, 8192)
# Where the backward pass of transformers' loop, quadratic in the length, ends in seconds.
SHORT = (128, 256)
BATCH, BATCH_LENGTH = 4, 2048
WARM = {"batch": 1, "length": 16}


def make_inputs(batch: int, length: int, channels: int) -> list[Tensor]:
    """x, delta, A, B, C, D; step sizes and rates in the range of a new model's."""
    x, log = torch.randn(batch, length, channels), torch.rand(batch, length, channels)
    delta = 0.001 * 100**log
    A = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    B, C = torch.randn(batch, length, STATES), torch.randn(batch, length, STATES)
    return [x, delta, A, B, C, torch.ones(channels)]


def scan_of(implementation: str) -> Callable[..., Tensor]:
    """A function of the six inputs, of which the peers take x and delta channels first."""
    if implementation in (PLAIN, NATIVE):
        from ehrmamba_hf.modeling import selective_scan

        return lambda *inputs: selective_scan(*inputs)[0]
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    run = partial(mamba_selective_scan, use_mambapy=implementation == MAMBAPY)
    return lambda x, delta, A, B, C, D: run(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), D)


def prepare(batch: int, length: int, implementation: str, kind: str) -> Callable[[], None]:
    """One scan, ready to be called."""
    scan = scan_of(implementation)
    inputs = make_inputs(batch, length, CHANNELS)
    if implementation in (LOOP, MAMBAPY):
        inputs[:2] = [tensor.transpose(1, 2).contiguous() for tensor in inputs[:2]]

    def forward() -> None:
        with torch.no_grad():
            scan(*inputs)

    def both() -> None:
        y = scan(*inputs)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    if kind == FORWARD:
        return forward
    for tensor in inputs:
        tensor.requires_grad_()
    return both


def disagreement(implementation: str) -> str:
    """How far ours is from the peers at a small shape, at most."""
    try:
        choose_backend(implementation)
    except NoResultError as error:
        return f"{implementation}: {error}"
    inputs = make_inputs(2, 37, 8)
    ours = scan_of(implementation)(*inputs)
    inputs[:2] = [tensor.transpose(1, 2) for tensor in inputs[:2]]
    theirs = [scan_of(name)(*inputs).transpose(1, 2) for name in (LOOP, MAMBAPY)]
    worst = max(float((ours - y).abs().max()) for y in theirs)
    return f"{implementation}: at most {worst:.1e} from the peers' outputs, at 2 x 37"


def contest(kind: str, length: int, batch: int, names: tuple[str, ...]) -> list[Case]:
    """The cases that are run in turn."""
    return [
        Case(name, kind, prepare, length, batch, {"implementation": name, "kind": kind}, WARM)
        for name in names
    ]


def result_table(bench: Bench, kind: str, shapes: list[tuple[int, int]]) -> Table:
    """Each shape and implementation with its time, memory, and ratio to ours in plain torch."""
    columns = [
        "batch x length",
        "implementation",
        "ms",
        "spread",
        "MiB",
        "time / ours",
        "MiB / ours",
    ]
    rows = []
    for length, batch in shapes:
        ours = bench.find(PLAIN, kind, length, batch)
        for name in IMPLEMENTATIONS:
            m = bench.find(name, kind, length, batch)
            if not m.runs:
                continue
            figures = [shown(1000 * m.seconds, 1), m.spread, shown(m.mib, 0)]
            ratios = [shown(ratio(m, ours)), shown(ratio(m, ours, "mib"))]
            rows.append([f"{batch} x {length}", name, *figures, *ratios])
    return table(kind.capitalize(), columns, rows)


def bars(bench: Bench) -> list[Bar]:
    """What has to be reached, with what was."""
    middle, long, half = 2048, LENGTHS[-1], LENGTHS[-2]

    def between(
        over: str, under: str, kind: str, length: int, what: str = "seconds"
    ) -> float | None:
        return ratio(bench.find(over, kind, length), bench.find(under, kind, length), what)

    growth = ratio(bench.find(PLAIN, FORWARD, long), bench.find(PLAIN, FORWARD, half), "mib")
    growth_both = ratio(bench.find(PLAIN, BOTH, long), bench.find(PLAIN, BOTH, half), "mib")
    return [
        Bar(
            f"transformers' loop / plain torch, forward at {middle}: at least 4",
            between(LOOP, PLAIN, FORWARD, middle),
            least=4,
        ),
        Bar(
            f"plain torch / native, forward at {middle}: at least 2",
            between(PLAIN, NATIVE, FORWARD, middle),
            least=2,
        ),
        Bar(
            f"plain torch / native, forward and backward at {middle}: at least 2",
            between(PLAIN, NATIVE, BOTH, middle),
            least=2,
        ),
        Bar(f"memory, forward, {long} / {half}: linear is 2, at most 2.2", growth, most=2.2),
        Bar(
            f"memory, both passes, {long} / {half}: linear is 2, at most 2.2", growth_both, most=2.2
        ),
        Bar(
            f"memory of transformers' loop / plain torch, forward at {long}: over 5",
            between(LOOP, PLAIN, FORWARD, long, "mib"),
            least=5,
        ),
    ]


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=3, budget=45.0).parse_args()
    lengths = (128, 256) if options.quick else LENGTHS
    short = (32, 64) if options.quick else SHORT
    options.rounds = 1 if options.quick else options.rounds
    bench = Bench(options)
    for length in short:
        bench.compare(contest(BOTH, length, 1, (PLAIN, LOOP)))
    shapes = [(length, 1) for length in lengths]
    batched = (lengths[0] if options.quick else BATCH_LENGTH, BATCH)
    for length, batch in [*shapes, batched]:
        for kind in (FORWARD, BOTH):
            bench.compare(contest(kind, length, batch, IMPLEMENTATIONS))
    tables = [
        result_table(bench, FORWARD, [*shapes, batched]),
        result_table(bench, BOTH, [*((length, 1) for length in short), *shapes, batched]),
    ]
    shape = f"{CHANNELS} channels, {STATES} states, float32; ratios are to {PLAIN}, at each shape"
    notes = [shape, *(disagreement(name) for name in (PLAIN, NATIVE))]
    bench.report(tables, bars(bench), notes)


if __name__ == "__main__":
    main()
