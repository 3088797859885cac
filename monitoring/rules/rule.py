"""What a rule is, and the file that Prometheus reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from monitoring.layout import laid_out

DOCS: Final = "docs/alerts.md"
MONITOR: Final = "gpumon"
"""Value of the label `monitor` of every alert: dashboards and Alertmanager pick ours by it."""
SEVERITIES: Final = ("critical", "warning", "info")


@dataclass(frozen=True)
class Record:
    """A recording rule. `meaning` is for the docs."""

    name: str
    expr: str
    meaning: str

    def as_rule(self) -> dict[str, Any]:
        return {"record": self.name, "expr": laid_out(self.expr)}


@dataclass(frozen=True)
class Alert:
    """An alerting rule; several may have one name, each with a severity or a condition of its own.

    `summary` is Go's template language over the alert's labels and value; `when` and `advice` are for people.
    """

    name: str
    severity: str
    expr: str
    summary: str
    when: str
    advice: str
    hold: str = ""  # how long the condition must hold, "5m"
    reason: str = ""  # tells rules of one name and severity apart
    keep: str = ""  # how long it goes on after its condition ended, or after whoever reported it did

    def as_rule(self, docs: str) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": laid_out(self.expr),
            **({"for": self.hold} if self.hold else {}),
            **({"keep_firing_for": self.keep} if self.keep else {}),
            "labels": {
                "severity": self.severity,
                **({"reason": self.reason} if self.reason else {}),
                "monitor": MONITOR,
            },
            "annotations": {
                "summary": self.summary,
                "description": f"{self.when} What to do: {self.advice}",
                "runbook_url": f"{docs}#{self.name.lower()}",
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after the other, `interval` apart; None: as Prometheus' configuration says."""

    name: str
    rules: Sequence[Record | Alert]
    interval: str | None = None

    def as_group(self, docs: str) -> dict[str, Any]:
        rules = [rule.as_rule(docs) if isinstance(rule, Alert) else rule.as_rule() for rule in self.rules]
        return {"name": self.name, **({"interval": self.interval} if self.interval else {}), "rules": rules}


def rules_file(groups: Sequence[Group], docs: str = DOCS) -> str:
    """The text of the file; *docs*: where the page with the alerts is served."""
    content = {"groups": [group.as_group(docs) for group in groups]}
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return "# Written by `make docs` from monitoring/rules: the thresholds are those of the report.\n" + text


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
