"""From a patient's visits to tokens and attributes, and the fitting of vocabulary and bins."""

from ehrmamba_hf.tokenization.tokenization_ehrmamba import EHRMambaTokenizer

__all__ = ["EHRMambaTokenizer"]
