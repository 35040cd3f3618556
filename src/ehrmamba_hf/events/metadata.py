"""The metadata of a MEDS dataset: what a source says of itself and its codes, and what is written.

https://github.com/Medical-Event-Data-Standard/meds: metadata/dataset.json, metadata/codes.parquet
and, where the source has it, metadata/subject_splits.parquet.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import meds
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ehrmamba_hf.errors import SchemaError

_KEPT: Final = ("dataset_name", "dataset_version", "license", "location_uri", "description_uri")
_CODES: Final = pa.schema(
    [("code", pa.string()), ("description", pa.string()), ("parent_codes", pa.list_(pa.string()))]
)


class CodeNote(msgspec.Struct, frozen=True):
    """What the metadata say of a code."""

    description: str | None = None
    parents: tuple[str, ...] = ()


def read_codes(source: Path) -> dict[str, CodeNote]:
    """metadata/codes.parquet by code; nothing where there is none. Raises SchemaError."""
    file = source / meds.code_metadata_filepath
    if not file.is_file():
        return {}
    try:
        found = pq.read_table(file)
        found = found.select([name for name in _CODES.names if name in found.column_names])
        found = found.cast(pa.schema([_CODES.field(name) for name in found.column_names]))
    except (OSError, pa.ArrowException) as error:
        raise SchemaError(f"{file}: expected the code metadata of MEDS, found {error}") from None
    if "code" not in found.column_names:
        raise SchemaError(f"{file}: expected a column code, found {found.column_names}")
    return {
        row["code"]: CodeNote(row.get("description"), tuple(row.get("parent_codes") or ()))
        for row in found.to_pylist()
        if row["code"] is not None
    }


def write_metadata(
    out: Path,
    about: Mapping[str, Any],
    codes: Iterable[tuple[str, CodeNote]],
    source: Path | None = None,
) -> None:
    """Write dataset.json, codes.parquet, and the source's subject_splits.parquet if it has one.

    There is no date in it, so that equal data are equal.

    Args:
        out: the events folder.
        about: what the source says of itself, whose name, version, licence and links are kept.
        codes: each written code with what is known of it.
        source: a MEDS dataset whose splits are carried over.
    """
    (out / meds.dataset_metadata_filepath).parent.mkdir(exist_ok=True)
    written = {"dataset_name": "MEDS"} | {k: about[k] for k in _KEPT if about.get(k)}
    written |= {
        "etl_name": "ehrmamba-hf",
        "etl_version": version("ehrmamba-hf"),
        "meds_version": meds.__version__,
        "raw_source_id_columns": ["encounter_id", "source_id"],
        "code_modifier_columns": ["unit"],
        "other_extension_columns": [
            *("end_time", "available_time", "category", "codings", "resource_type")
        ],
    }
    meds.DatasetMetadataSchema.validate(written)
    text = json.dumps(written, indent=2) + "\n"
    (out / meds.dataset_metadata_filepath).write_text(text, encoding="utf-8")
    rows = [
        {"code": code, "description": note.description, "parent_codes": note.parents}
        for code, note in sorted(codes)
    ]
    table = meds.CodeMetadataSchema.align(pa.Table.from_pylist(rows, schema=_CODES))
    pq.write_table(table, out / meds.code_metadata_filepath)
    splits = source / meds.subject_splits_filepath if source else None
    if splits and splits.is_file():
        aligned = meds.SubjectSplitSchema.align(pq.read_table(splits))
        pq.write_table(aligned, out / meds.subject_splits_filepath)
