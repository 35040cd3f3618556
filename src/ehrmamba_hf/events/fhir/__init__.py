"""FHIR as a source: blocks of its text to parts, all parts to the shards of an events folder."""

from ehrmamba_hf.events.fhir.source import Reading, ingest_fhir

__all__ = ["Reading", "ingest_fhir"]
