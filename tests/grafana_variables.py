"""What Grafana puts in the place of a dashboard's variables, in a query for Prometheus.

As its Prometheus data source does: values of a variable that may have several are escaped for a regular expression
within a string and joined by |; the value of any other is escaped for a string alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ALL = object()
_BUILT_IN = {"__rate_interval": "40s", "__interval": "15s", "__range": "60s"}
_SPECIAL = re.compile(r"[\\^$*+?.()|\[\]{}]")


@dataclass(frozen=True)
class Choice:
    """One value, several, or ALL of `options`."""

    value: Any
    options: tuple[str, ...]


def text_of(variable: Mapping[str, Any], choice: Choice) -> str:
    """What stands in a query."""
    if not variable["multi"] and not variable["includeAll"]:
        return str(choice.value).replace("\\", "\\\\").replace('"', '\\"')
    if choice.value is ALL:
        if variable.get("allValue"):
            return str(variable["allValue"])
        values = list(choice.options)
    else:
        values = [choice.value] if isinstance(choice.value, str) else list(choice.value)
    escaped = [_SPECIAL.sub(lambda found: "\\\\" + found[0], value) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def interpolated(query: str, variables: Mapping[str, str]) -> str:
    """The query without variables."""

    def value(found: re.Match[str]) -> str:
        return {**_BUILT_IN, **variables}[found[1] or found[2]]

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, query)


def choose(
    board: Mapping[str, Any], label_values: Callable[[str, str], list[str]], wanted: Mapping[str, Any]
) -> dict[str, str]:
    """Every variable's text, one after the other: later ones depend on earlier ones.

    *label_values* has the values of a label in the series of a selector; *wanted*: what to choose instead of the
    first value, or instead of all where there is an "All".
    """
    chosen: dict[str, str] = {}
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = interpolated(variable["query"]["query"], chosen)
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found, query
        options = tuple(sorted(label_values(found[1], found[2])))
        usual: Any = ALL if variable["includeAll"] else (options or ("",))[0]
        value = wanted.get(variable["name"], usual)
        if value == "one" and value not in options:
            value = options[0]
        chosen[variable["name"]] = text_of(variable, Choice(value, options))
    return chosen
