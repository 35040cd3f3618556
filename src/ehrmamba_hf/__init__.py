"""EHRMamba for Hugging Face: health records in, a clinical foundation model out."""

__version__ = "0.1.0"
