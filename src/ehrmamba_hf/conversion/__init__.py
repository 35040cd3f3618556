"""Weights from elsewhere: transformers' Mamba, and the checkpoints of the paper's authors."""

from ehrmamba_hf.conversion.convert import KINDS, convert
from ehrmamba_hf.conversion.mamba import from_mamba
from ehrmamba_hf.conversion.odyssey import from_odyssey, time_differences
from ehrmamba_hf.conversion.vocabulary import OdysseyVocabulary, read_vocabulary

__all__ = [
    "KINDS",
    "OdysseyVocabulary",
    "convert",
    "from_mamba",
    "from_odyssey",
    "read_vocabulary",
    "time_differences",
]
