"""The events folder: the border between a hospital's records and everything that learns from them.

```
events/
  data/*.parquet        MEDS data shards, a subject in exactly one, sorted by time (EVENT_SCHEMA)
  encounters.parquet    one row per encounter (ENCOUNTER_SCHEMA)
  subjects.parquet      one row per patient; it stays on the site (SUBJECT_SCHEMA)
  metadata/             dataset.json and codes.parquet as MEDS 0.4 defines them
  report.json           what was read, used, not used and why
  report.html           the same to look at
  rejects.ndjson        the records that could not be read: file, line, field, expected, found
```

All times are naive microseconds of the hospital's wall clock.
"""

from typing import Final

import pyarrow as pa

DATA_FOLDER: Final = "data"
ENCOUNTERS_FILE: Final = "encounters.parquet"
SUBJECTS_FILE: Final = "subjects.parquet"
METADATA_FOLDER: Final = "metadata"
REPORT_FILE: Final = "report.json"
PAGE_FILE: Final = "report.html"
REJECTS_FILE: Final = "rejects.ndjson"
CONTENTS: Final = frozenset(
    {
        *(DATA_FOLDER, ENCOUNTERS_FILE, SUBJECTS_FILE, METADATA_FOLDER),
        *(REPORT_FILE, PAGE_FILE, REJECTS_FILE),
    }
)
"""All that an events folder holds."""

PARTS_FOLDER: Final = "parts"
"""What a run has finished, for the next if it is killed; not there once the folder is whole."""
ROW_GROUP: Final = 65_536
"""Rows of a shard's row groups."""

TIME: Final = pa.timestamp("us")

CATEGORIES: Final = (
    "procedure",
    "medication",
    "lab",
    "administration",
    "condition",
    "vital_sign",
    "output",
    "observation",
    "dispense",
    "statement",
    "immunization",
    "allergy",
    "report",
    "birth",
    "death",
)
"""The closed set of `category`: the kind of an event, whatever resource it came from."""

EVENT_SCHEMA: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", TIME),
        pa.field("code", pa.string(), nullable=False),  # "{SYSTEM}/{code}"
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("end_time", TIME),
        pa.field("available_time", TIME),  # when it could have been known; null: never
        pa.field("unit", pa.string()),
        pa.field("category", pa.string(), nullable=False),  # one of CATEGORIES
        pa.field("codings", pa.list_(pa.string())),  # every "{SYSTEM}/{code}" of the record
        pa.field("encounter_id", pa.string()),
        pa.field("resource_type", pa.string()),
        pa.field("source_id", pa.string()),
    ]
)
"""One row per event: the five MEDS columns, then ours. `available_time` is null or >= `time`."""

ENCOUNTER_SCHEMA: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("encounter_id", pa.string(), nullable=False),
        pa.field("part_of", pa.string()),  # encounter_id of the parent
        pa.field("start", TIME, nullable=False),
        pa.field("end", TIME),
        pa.field("class", pa.string()),
        pa.field("disposition", pa.string()),  # its codes, displays and text, by "; "
        pa.field("source", pa.string(), nullable=False),  # "mimic" where known, else ""
    ]
)
"""One row per encounter, sorted by subject_id, start, encounter_id. `end` may lie before `start`:
what the hospital wrote is kept, and a later stage cuts and counts it."""

SUBJECT_SCHEMA: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),  # the Patient's id at the source
        pa.field("birth", TIME),
        pa.field("death", TIME),
        pa.field("death_is_date", pa.bool_(), nullable=False),  # True: the hour is not known
        pa.field("deceased", pa.bool_(), nullable=False),  # True also where the date is unknown
        pa.field("sex", pa.string()),
        pa.field("race", pa.string()),
    ]
)
"""One row per patient, sorted by subject_id."""
