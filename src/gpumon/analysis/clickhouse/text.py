"""Names and values as ClickHouse's SQL writes them."""

from __future__ import annotations


def literal(text: str) -> str:
    """A string; a quote in it is doubled."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name of a database, a table or a cluster."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
