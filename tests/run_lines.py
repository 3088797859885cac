"""Reads what a run directory holds: spans and points, straight from the OTLP JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines(directory: Path, signal: str) -> Iterator[dict[str, Any]]:
    """Every whole line of a signal, closed segments first; a torn last line is left out."""
    for path in sorted(directory.glob(f"{signal}.*.jsonl*"), key=lambda path: (path.suffix != ".gz", path.name)):
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def spans(directory: Path) -> list[dict[str, Any]]:
    return [
        span
        for line in lines(directory, "traces")
        for resource in line["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def points(directory: Path, name: str) -> list[dict[str, Any]]:
    return [
        point
        for line in lines(directory, "metrics")
        for resource in line["resourceMetrics"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == name
        for point in next(metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)["dataPoints"]
    ]


def resource(directory: Path) -> dict[str, Any]:
    """Attributes of the first resource."""
    line = next(lines(directory, "metrics"))
    return {
        item["key"]: next(iter(item["value"].values())) for item in line["resourceMetrics"][0]["resource"]["attributes"]
    }


def all_points(directory: Path) -> Iterator[dict[str, Any]]:
    """Every point of every metric, with the name of its metric."""
    for line in lines(directory, "metrics"):
        for resource in line["resourceMetrics"]:
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    data = next(metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)
                    yield from ({"metric": metric["name"], **point} for point in data["dataPoints"])


def all_items(directory: Path, signal: str, name: str) -> list[dict[str, Any]]:
    """Every span (`traces`, `spans`) or record (`logs`, `logRecords`)."""
    return [
        item
        for line in lines(directory, signal)
        for resource in next(iter(line.values()))
        for scope in resource[next(key for key in resource if key.startswith("scope"))]
        for item in scope[name]
    ]


def text(item: dict[str, Any]) -> str:
    """One spelling of it: the Collector writes 0.0 as 0."""
    return json.dumps(json.loads(json.dumps(item), parse_int=float), sort_keys=True)


def assert_same(run: Path, folder: Path) -> None:
    """Every span, point and event of *run* is in a Collector's files, once and with the same content."""
    for signal in ("traces", "logs"):
        items = "spans" if signal == "traces" else "logRecords"
        ours, theirs = ([text(item) for item in all_items(place, signal, items)] for place in (run, folder))
        assert sorted(ours) == sorted(theirs)
    ours, theirs = (sorted(text(point) for point in all_points(place)) for place in (run, folder))
    assert ours == theirs
    assert len(set(theirs)) == len(theirs) > 0
