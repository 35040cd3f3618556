"""MEDS as a source: what its codes say of patients, encounters and events."""

from ehrmamba_hf.events.meds.rules import MedsRules, read_rules
from ehrmamba_hf.events.meds.shards import is_meds
from ehrmamba_hf.events.meds.source import ingest_meds

__all__ = ["MedsRules", "ingest_meds", "is_meds", "read_rules"]
