"""Sequences and labelled examples as Arrow data sets, and how batches are made of them."""

from ehrmamba_hf.corpus.collation import PackingCollator, PaddingCollator, best_fit
from ehrmamba_hf.corpus.examples import TaskExamples, load_examples, load_sequences
from ehrmamba_hf.corpus.prepare import prepare
from ehrmamba_hf.corpus.settings import PrepareSettings

__all__ = [
    "PackingCollator",
    "PaddingCollator",
    "PrepareSettings",
    "TaskExamples",
    "best_fit",
    "load_examples",
    "load_sequences",
    "prepare",
]
