"""The event table: MEDS columns and a few of ours, written from FHIR, read by every later stage."""

from ehrmamba_hf.events.ingestion import ingest
from ehrmamba_hf.events.report import Outcome, Report
from ehrmamba_hf.events.table import (
    read_encounters,
    read_subjects,
    validate,
)

__all__ = [
    "Outcome",
    "Report",
    "ingest",
    "read_encounters",
    "read_subjects",
    "validate",
]
