"""A synthetic hospital in FHIR R4, with the true probability of every label beside it."""

from ehrmamba_hf.simulation.hospital import simulate, true_risks_path

__all__ = ["simulate", "true_risks_path"]
