"""Texts as DuckDB's SQL writes them."""

from pathlib import Path


def quoted(text: str | Path) -> str:
    """An SQL string literal.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + str(text).replace("'", "''") + "'"
