"""Fit bins and vocabulary on the patients of the pretraining split, and on nobody else.

What is fitted depends on counts alone, which parts of the events are counted for one by one: see
`counting`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import METADATA_FOLDER
from ehrmamba_hf.tokenization.counting import Bins
from ehrmamba_hf.tokenization.grammar_ehrmamba import (
    SPECIAL_TOKENS,
    TOKEN_TYPES,
    TYPE_ID,
    TYPE_OF_CATEGORY,
)
from ehrmamba_hf.tokenization.tokenization_ehrmamba import EHRMambaTokenizer

QUANTILES = 5
MIN_VALUES = 20
# The edge of the k-th fifth is the value at the rank of k fifths of them, rounded up.
_BINS = """
with merged as (
  select code, detail as unit, value, sum(count) as n
  from counts where measure = 'value' group by all
), ranked as (
  select *, sum(n) over (partition by code, unit order by value) as rank,
         sum(n) over (partition by code, unit) as total,
         max(value) over (partition by code, unit) as highest
  from merged
), supported as (
  select code, detail as unit from counts where measure = 'patients'
  group by all having sum(count) >= {min_patients}
)
select code, unit, coalesce(list(value order by value) filter (
    value < highest and ({is_edge})), []) as edges
from ranked semi join supported using (code, unit)
where total >= {min_values}
group by code, unit order by code, unit
"""
_IS_EDGE = " or ".join(
    f"(total * {k} + {QUANTILES - 1}) // {QUANTILES} between rank - n + 1 and rank"
    for k in range(1, QUANTILES)
)


def fit_bins(
    counts: pa.Table | Sequence[Path],
    *,
    min_patients: int,
    memory: str | None = None,
    spill: Path | None = None,
) -> Bins:
    """Edges of the quintiles of each (code, unit), by code and unit.

    They are those of the inverted distribution function over float32 values, where there are at
    least 20, of at least `min_patients` patients. A value equal to an edge goes below, and tied
    edges merge bins.

    Args:
        counts: what `count_values` gave, or Parquet files of it, in any number of parts: they are
            added up out of core.
        min_patients: patients that have to stand behind the bins of a (code, unit).
        memory: DuckDB's limit, such as "4GB".
        spill: a folder for what does not fit in it.
    """
    config: dict[str, str | bool | int | float | list[str]] = {"threads": 1}
    config |= {"memory_limit": memory} if memory else {}
    config |= {"temp_directory": str(spill)} if spill else {}
    with duckdb.connect(config=config) as db:
        db.execute("set enable_progress_bar = false")
        if isinstance(counts, pa.Table):
            db.register("counts", counts)
        else:
            db.read_parquet([str(file) for file in counts]).create_view("counts")
        statement = _BINS.format(
            min_patients=int(min_patients), min_values=MIN_VALUES, is_edge=_IS_EDGE
        )
        bins: Bins = {}
        for code, unit, edges in db.execute(statement).fetchall():
            bins.setdefault(code, {})[unit] = edges
    return bins


def build_tokenizer(
    counts: pa.Table,
    bins: Bins,
    names: Mapping[str, str],
    *,
    categories: Sequence[str],
    task_tokens: dict[str, str],
    min_patients: int,
    context_length: int,
) -> EHRMambaTokenizer:
    """The tokenizer of what was counted: its vocabulary and token types, beside given bins.

    A token enters the vocabulary if at least `min_patients` patients have it, so that no rare code
    points at a person; the bare code stands behind its bins.

    Args:
        counts: the measures `token` and `events`, added up.
        bins: see `fit_bins`.
        names: display names of codes, of which those in the vocabulary are kept.
        categories: the kinds of event that become tokens.
        task_tokens: task name to its special token.
        min_patients: patients that a token needs.
        context_length: advice to users: the length to which sequences are truncated.

    Raises:
        InputError: no token has enough patients.
    """
    patients: Counter[str] = Counter()
    code_of: dict[str, str] = {}
    for code, token, n in _rows(counts, "token"):
        patients[token] += n
        code_of[token] = min(code, code_of.get(token, code))
    tokens = [t for t in sorted(code_of) if patients[t] >= min_patients and t not in SPECIAL_TOKENS]
    if not tokens:
        raise InputError(
            f"events: expected codes that at least {min_patients} patients of the pretraining "
            f"split have, found none among events of {', '.join(categories)}: give more patients, "
            "other categories or a lower min_patients"
        )
    kept = {code_of[token] for token in tokens}
    kinds = _majority_types(_rows(counts, "events"))
    return EHRMambaTokenizer(
        vocab={token: len(SPECIAL_TOKENS) + i for i, token in enumerate(tokens)},
        types={token: TOKEN_TYPES[kinds[code_of[token]]] for token in tokens},
        bins={code: units for code, units in bins.items() if code in kept},
        names={code: name for code, name in names.items() if code in kept},
        task_tokens=task_tokens,
        categories=categories,
        model_max_length=context_length,
    )


def _rows(counts: pa.Table, measure: str) -> list[tuple[str, str, int]]:
    """Code, detail and count of one measure."""
    rows = counts.filter(pc.equal(counts["measure"], measure))
    columns = (rows[name].to_pylist() for name in ("code", "detail", "count"))
    return list(zip(*columns, strict=True))


def _majority_types(rows: Sequence[tuple[str, str, int]]) -> dict[str, int]:
    """The token type that each code has most often; of equally frequent ones, the first.

    >>> _majority_types([("X", "administration", 3), ("X", "lab", 4), ("X", "medication", 3)])
    {'X': 8}
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for code, category, n in rows:
        counts[code][TYPE_OF_CATEGORY.get(category, TYPE_ID["other"])] += n
    return {code: min(types, key=lambda t: (-types[t], t)) for code, types in counts.items()}


def names_of(events: Path) -> dict[str, str]:
    """Display names of codes, from the metadata beside the events."""
    file = events / METADATA_FOLDER / "codes.parquet"
    if not file.is_file():
        return {}
    table = pq.read_table(file, columns=["code", "description"])
    rows = zip(table["code"].to_pylist(), table["description"].to_pylist(), strict=True)
    return {code: name for code, name in rows if name}
