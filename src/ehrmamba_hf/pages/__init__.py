"""One look for every page that the package writes: a base template, charts and ways of counting."""

from ehrmamba_hf.pages.rendering import (
    Column,
    Verdict,
    by_power,
    by_year,
    environment,
    percent,
    short,
    thousands,
)

__all__ = [
    "Column",
    "Verdict",
    "by_power",
    "by_year",
    "environment",
    "percent",
    "short",
    "thousands",
]
