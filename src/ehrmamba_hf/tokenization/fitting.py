"""Fit bins and vocabulary on the patients of the pretraining split, and on nobody else."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.schema import DATA_FOLDER, METADATA_FOLDER
from ehrmamba_hf.tokenization.grammar_ehrmamba import (
    SPECIAL_TOKENS,
    TOKEN_TYPES,
    TYPE_ID,
    TYPE_OF_CATEGORY,
)
from ehrmamba_hf.tokenization.tokenization_ehrmamba import EHRMambaTokenizer

QUANTILES = (0.2, 0.4, 0.6, 0.8)
MIN_VALUES = 20
BINNED_CATEGORIES = ("lab", "vital_sign", "output", "observation")

_EVENTS = """
create temp view fitted as
select subject_id, code, coalesce(unit, '') as unit, category, numeric_value
from read_parquet($files) join patients using (subject_id)
where category in (select unnest($categories)) and time is not null
  and (last_time is null or time <= last_time)
"""
_BINS = """
select code, unit, list_sort(list_distinct(list_filter(quantile_disc(numeric_value, {quantiles}),
       lambda e: e < highest))) as edges
from (select *, max(numeric_value) over (partition by code, unit) as highest from fitted
      where isfinite(numeric_value) and category in (select unnest($binned)))
group by code, unit, highest
having count(*) >= {min_values} and count(distinct subject_id) >= {min_patients}
order by code, unit
"""
_TOKENS = """
with tokens as (
  select code, subject_id, category, unnest(list_distinct([code, case
    when edges is null or numeric_value is null or isnan(numeric_value) then code
    else code || '//Q' || (1 + len(list_filter(edges, lambda e: e < numeric_value))) end])) as token
  from fitted left join bins using (code, unit))
select token, any_value(code) as code, count(distinct subject_id) as patients
from tokens group by token having patients >= {min_patients} order by token
"""
_CATEGORIES = "select code, category, count(*) from fitted group by all order by all"


def fit_tokenizer(
    events: Path,
    patients: pa.Table,
    *,
    categories: Sequence[str],
    task_tokens: dict[str, str],
    min_patients: int,
    context_length: int,
) -> EHRMambaTokenizer:
    """A tokenizer whose bins, vocabulary and token types come from some patients alone.

    Bins are quintiles per (code, unit) by the inverted distribution function over float32 values,
    where there are at least 20, of at least `min_patients` patients; a value equal to an edge goes
    below, and tied edges merge bins. A token enters the vocabulary if at least `min_patients`
    patients have it, so that no rare code points at a person; the bare code stands behind its bins.

    Args:
        events: an events folder.
        patients: `subject_id` and `last_time` (null, or the last moment before death) of the
            patients of the pretraining split, without those kept for validation.
        categories: the kinds of event that become tokens.
        task_tokens: task name to its special token.
        min_patients: patients that a token needs.
        context_length: advice to users: the length to which sequences are truncated.

    Raises:
        InputError: no token has enough patients.
    """
    with duckdb.connect() as db:
        db.register("patients", patients)
        files = str(events / DATA_FOLDER / "**" / "*.parquet")
        view = _EVENTS.replace("$files", _text(files)).replace("$categories", _texts(categories))
        db.execute(view)
        statement = _BINS.format(
            quantiles=list(QUANTILES), min_values=MIN_VALUES, min_patients=int(min_patients)
        )
        db.execute(
            f"create temp table bins as {statement.replace('$binned', _texts(BINNED_CATEGORIES))}"
        )
        bins: dict[str, dict[str, list[float]]] = {}
        for code, unit, edges in db.execute("select * from bins").fetchall():
            bins.setdefault(code, {})[unit] = edges
        rows = db.execute(_TOKENS.format(min_patients=int(min_patients))).fetchall()
        kinds = _majority_types(db.execute(_CATEGORIES).fetchall())
    tokens = {token: code for token, code, _ in rows if token not in SPECIAL_TOKENS}
    if not tokens:
        raise InputError(
            f"{events}: expected codes that at least {min_patients} patients of the pretraining "
            f"split have, found none among {patients.num_rows} patients and events of "
            f"{', '.join(categories)}: give more patients, other categories or a lower min_patients"
        )
    kept = set(tokens.values())
    return EHRMambaTokenizer(
        vocab={token: len(SPECIAL_TOKENS) + i for i, token in enumerate(tokens)},
        types={t: TOKEN_TYPES[kinds[c]] for t, c in tokens.items()},
        bins={code: units for code, units in bins.items() if code in kept},
        names=_names(events, kept),
        task_tokens=task_tokens,
        categories=categories,
        model_max_length=context_length,
    )


def _majority_types(rows: Sequence[tuple[str, str, int]]) -> dict[str, int]:
    """The token type that each code has most often; of equally frequent ones, the first.

    >>> _majority_types([("X", "administration", 3), ("X", "lab", 4), ("X", "medication", 3)])
    {'X': 8}
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for code, category, n in rows:
        counts[code][TYPE_OF_CATEGORY.get(category, TYPE_ID["other"])] += n
    return {code: min(types, key=lambda t: (-types[t], t)) for code, types in counts.items()}


def _names(events: Path, codes: Collection[str]) -> dict[str, str]:
    """Display names of codes, from the metadata beside the events."""
    file = events / METADATA_FOLDER / "codes.parquet"
    if not file.is_file():
        return {}
    table = pq.read_table(file, columns=["code", "description"])
    rows = zip(table["code"].to_pylist(), table["description"].to_pylist(), strict=True)
    return {code: name for code, name in rows if name and code in codes}


def _text(value: str) -> str:
    """An SQL string literal: views take no parameters."""
    return "'" + value.replace("'", "''") + "'"


def _texts(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(_text, values)) + "]"
