"""What a report could not see, and why: said, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpumon.analysis.gather import Gathered
from gpumon.analysis.rows import query
from gpumon.analysis.source import Execute, Source

_COUNTED = {
    "gpumon.fetch.lost": ("fetches", "overwritten before they were read, and in no account: {count}"),
    "gpumon.fetch.background.count": (
        "fetches",
        "made by a thread that trains nothing, their waits in no step: {count}",
    ),
    "gpumon.spans.dropped": ("spans", "dropped, though they were to be kept: {count}"),
    "gpumon.export.dropped": ("export", "not taken by the receiver: {count}"),
}


def missing_of(run: Source, info: Mapping[str, Any], gathered: Gathered) -> list[dict[str, str]]:
    """Each with `what` and `reason`."""
    found: list[tuple[str, str]] = [(name, str(damage)) for name, damage in run.damaged.items()]
    for signal, count in (info.get("dropped") or {}).items():
        if count:
            segments = "segment was" if count == 1 else "segments were"
            found.append(
                (signal, f"{count} {segments} deleted to keep the run within its size; its figures are not in here")
            )
    found += [("recording", str(note)) for note in info.get("not_recorded") or []]
    found += sorted(gathered.evidence.blind.items())
    found += _counted(run.execute)
    totals = gathered.totals
    if totals["assumed"]:
        of = f"{totals['assumed']:.0f} of {totals['steps']:.0f}"
        found.append(("steps", f"the boundary of {of} was assumed: the optimizer's update was not seen"))
    if not gathered.everyone:
        found.append(("metrics", "none were recorded"))
    elif totals["steps"] and not gathered.fetch_count and gathered.evidence.steps.wait_s:
        found.append(("fetches", "no fetch could be followed (no torch DataLoader feeds the steps)"))
    unique = dict.fromkeys(found)
    return [{"what": what, "reason": reason} for what, reason in unique]


def _counted(execute: Execute) -> list[tuple[str, str]]:
    rows = query(
        execute,
        "select metric, sum(value) as total from (select metric, part, instance, max(value) as value from stg_points "
        "where metric in (" + ", ".join("?" for _ in _COUNTED) + ") group by metric, part, instance) as last_values "
        "group by metric order by metric",
        _COUNTED,
    )
    return [
        (_COUNTED[row["metric"]][0], _COUNTED[row["metric"]][1].format(count=f"{row['total']:.0f}"))
        for row in rows
        if row["total"]
    ]
