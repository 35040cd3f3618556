"""The border into evaluation: prediction tables, checked once, split by task, joined by example."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ehrmamba_hf.errors import SchemaError

KEY_COLUMNS = ("subject_id", "task", "prediction_time")

PREDICTION_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("task", pa.string()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("probability", pa.float64()),
    ]
)
"""One row an example: a patient at one index time of one task, its label and the model's score."""

SCORE_SCHEMA = pa.schema([*(PREDICTION_SCHEMA.field(name) for name in KEY_COLUMNS)])


@dataclass(frozen=True)
class Scores:
    """Aligned columns of one task: subjects (n,) int64, labels (n,) bool, scores (n,) in 0..1."""

    subjects: NDArray[np.int64]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)


def check_predictions(table: pa.Table, what: str) -> pa.Table:
    """The table with exactly the columns of ``PREDICTION_SCHEMA``.

    Raises:
        SchemaError: a column is missing, of another type or null, a probability is not a number
            in 0..1, or two rows are the same example. ``what`` names the table in the message.
    """
    table = _conform(table, PREDICTION_SCHEMA, what)
    for name in PREDICTION_SCHEMA.names:
        if nulls := table[name].null_count:
            raise SchemaError(f"{what}, {name}: expected a value in every row, found {nulls} nulls")
    _check_probabilities(table, "probability", what)
    return table


def check_true_risks(table: pa.Table) -> pa.Table:
    """The true risks with their keys, ``true_risk`` and ``given``; a null risk is an unknown one.

    Raises:
        SchemaError: as ``check_predictions``.
    """
    schema = SCORE_SCHEMA.append(pa.field("true_risk", pa.float64()))
    table = _conform(table, schema.append(pa.field("given", pa.string())), "true risks")
    _check_probabilities(table, "true_risk", "true risks")
    return table


def task_names(tables: Iterable[pa.Table]) -> list[str]:
    """The tasks of the tables in the order in which they first appear."""
    names = (name for table in tables for name in table["task"].unique().to_pylist())
    return list(dict.fromkeys(names))


def of_task(table: pa.Table, task: str) -> pa.Table:
    """The rows of one task."""
    return table.filter(pc.equal(table["task"], task))


def scores_of(table: pa.Table, column: str = "probability") -> Scores:
    """The rows of a table of one task as arrays, leaving out those whose score is null."""
    known = table.filter(pc.is_valid(table[column]))
    return Scores(
        subjects=known["subject_id"].to_numpy(),
        labels=known["boolean_value"].to_numpy(),
        scores=known[column].to_numpy(),
    )


def join_scores(table: pa.Table, other: pa.Table, columns: dict[str, str]) -> pa.Table:
    """``table`` in its own order with ``other``'s columns beside it under new names.

    Rows are matched by subject, task and prediction time; a row without a match has nulls.

    >>> keys = {"subject_id": [7, 8], "task": ["a", "a"], "prediction_time": [2020, 2020]}
    >>> other = pa.table({name: column[1:] for name, column in keys.items()} | {"true_risk": [0.5]})
    >>> join_scores(pa.table(keys), other, {"true_risk": "reference"})["reference"].to_pylist()
    [None, 0.5]
    """
    other = other.select([*KEY_COLUMNS, *columns]).rename_columns([*KEY_COLUMNS, *columns.values()])
    numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    joined = numbered.join(other, keys=list(KEY_COLUMNS), join_type="left outer")
    return joined.sort_by("row").select([*table.column_names, *columns.values()])


def _conform(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise SchemaError(f"{what}: expected the columns {schema.names}, {missing} not found")
    columns: list[Any] = []
    for field in schema:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowInvalid as error:
            found = table[field.name].type
            raise SchemaError(
                f"{what}, {field.name}: expected {field.type}, found {found}"
            ) from error
    conformed = pa.table(columns, schema=schema)
    examples = conformed.group_by(list(KEY_COLUMNS)).aggregate([])
    if repeats := len(conformed) - len(examples):
        raise SchemaError(
            f"{what}: expected one row for each subject, task and prediction time, "
            f"found {repeats} more"
        )
    return conformed


def _check_probabilities(table: pa.Table, column: str, what: str) -> None:
    values = table[column].drop_null().to_numpy()
    outside = int(np.count_nonzero(~((values >= 0) & (values <= 1))))
    if outside:
        raise SchemaError(f"{what}, {column}: expected numbers in 0..1, found {outside} others")
