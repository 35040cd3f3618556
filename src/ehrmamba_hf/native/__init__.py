"""The selective scan in C++, compiled on demand: several times as quick as plain torch on a CPU."""

from ehrmamba_hf.native.library import NativeUnavailableError, available, why_not
from ehrmamba_hf.native.scan import backward, chunk_length, forward, step

INTERFACE = 1
"""Changes with the arguments or results of these functions: copies of the model's code ask it."""

__all__ = [
    "INTERFACE",
    "NativeUnavailableError",
    "available",
    "backward",
    "chunk_length",
    "forward",
    "step",
    "why_not",
]
