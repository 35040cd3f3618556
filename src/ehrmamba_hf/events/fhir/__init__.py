"""FHIR as a source: blocks of its text to parts, all parts to the shards of an events folder."""

from ehrmamba_hf.events.fhir.source import Advance, Begin, Reading, ingest_fhir

__all__ = ["Advance", "Begin", "Reading", "ingest_fhir"]
