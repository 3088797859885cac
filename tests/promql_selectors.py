"""What PromQL selects, as Prometheus' own parser reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from peers import Prometheus


def selectors(prometheus: Prometheus, expression: str) -> list[dict[str, Any]]:
    """Each selector: `name` (or a pattern, where the name is matched by one) and `matchers`.

    Raises:
        AssertionError: it is no PromQL.
    """
    answer = prometheus.get("/api/v1/parse_query", query=expression)
    assert answer["status"] == "success", answer
    return list(_selectors(answer["data"]))


def names(prometheus: Prometheus, expression: str) -> set[str]:
    """The names of all the metrics that it selects."""
    found: set[str] = set()
    for selector in selectors(prometheus, expression):
        found |= _expanded(selector["name"])
    return found


def labels(prometheus: Prometheus, expression: str) -> set[str]:
    """The labels that it selects, groups and joins by."""
    answer = prometheus.get("/api/v1/parse_query", query=expression)
    return set(_labels(answer["data"])) - {"__name__", "le"}


def _selectors(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for each in node:
            yield from _selectors(each)
    elif isinstance(node, dict):
        if node.get("type") in ("vectorSelector", "matrixSelector"):
            matchers = node["matchers"]
            by_name = [each["value"] for each in matchers if each["name"] == "__name__"]
            yield {"name": node["name"] or by_name[0], "matchers": matchers}
        for value in node.values():
            yield from _selectors(value)


def _labels(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _labels(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "matchers":
                yield from (each["name"] for each in value)
            elif key in ("grouping", "labels", "include") and isinstance(value, list):
                yield from value
            else:
                yield from _labels(value)


def _expanded(name: str) -> set[str]:
    """`a(_ratio)?` is `a` and `a_ratio`, `a|b` is both."""
    if "|" in name:
        return set().union(*map(_expanded, name.split("|")))
    if found := re.fullmatch(r"(\w+)\(_ratio\)\?", name):
        return {found[1], f"{found[1]}_ratio"}
    assert re.fullmatch(r"[\w:]+", name), name
    return {name}
