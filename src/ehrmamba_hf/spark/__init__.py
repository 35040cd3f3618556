"""The work of `ehrmamba_hf.events` and `ehrmamba_hf.corpus` on an Apache Spark cluster."""

from typing import Any

__all__ = ["ingest", "prepare"]


def __getattr__(name: str) -> Any:
    # Workers import this package for every run: what `prepare` imports takes seconds.
    if name == "ingest":
        from ehrmamba_hf.spark.ingestion import ingest

        return ingest
    if name == "prepare":
        from ehrmamba_hf.spark.preparation import prepare

        return prepare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
