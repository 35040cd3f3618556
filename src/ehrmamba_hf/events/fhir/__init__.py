"""FHIR as a source: blocks of its text to parts, all parts to the shards of an events folder."""

from ehrmamba_hf.events.fhir.source import PARTS_FOLDER, Reading, ingest_fhir

__all__ = ["PARTS_FOLDER", "Reading", "ingest_fhir"]
