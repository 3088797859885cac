"""docs/alerts.md: every alert, when it fires and what to do."""

from __future__ import annotations

import re
from itertools import groupby

from monitoring.rules import ALERTS, RECORDS
from monitoring.rules.rule import SEVERITIES, Alert

HEAD = """# Alerts

Written by `make docs` from `monitoring/rules`.

`prometheus/rules/gpumon.yml` has the report's rules for Prometheus, by the same names and thresholds, judged live: over
the last five minutes where the report has the whole run. Load it with `rule_files`.

- **Once per device.** A GPU or a disk that its agent and eight ranks report is one alert, under its machine's name and
  its UUID or serial number. A training is one alert per process, with run and rank.
- **Pushed or scraped.** Series may come from Prometheus' OTLP receiver, from the Collector and from `/metrics` of
  `gpumon agent --prometheus`. They are joined by `target_info`, on `job` and `instance`; where the provider is the
  application's, run, rank and machine are on its series.
- **While it lasts.** A training is judged while it sends: half a minute after its end, with exports every 10 s, its
  alerts are over. What the kernel saw on a disk with a run's data stays for a day.
- **First events.** `increase()` sees nothing of a series that begins at 1. The kernel's I/O errors, whose series may
  come with the first error, are found all the same; memory errors are counted per GPU, across the processes that see
  it.
- `severity` is `critical`, `warning` or `info`; `info` is for dashboards and wakes nobody. `monitor="gpumon"` is on
  every alert; `reason` tells alerts of one rule apart.
- `python -m monitoring --docs URL` writes the rules with links to this page at that address.
"""

MAIL = """## E-mail
`prometheus/alertmanager.yml` is an example for Alertmanager: critical alerts at once and again every four hours,
warnings together, `info` to nobody; a critical alert mutes the warning of the same rule and device. Fill in addresses
and mail server, keep the password in the file that it names, and tell Prometheus:
```yaml
alerting:
  alertmanagers:
    - static_configs:
        - targets: [alertmanager:9093]
```
"""

LEFT_OUT = """## What Prometheus does not judge
| | why |
|---|---|
| the cause in `DataLoadingBound` | it needs what fetches were blocked on, device by device: `gpumon report` |
| `StepTimeRegression` | it needs the point at which the steps changed: the report looks for it over the run |
| XIDs by number | they are events (logs), no metrics; what they do to a GPU's state is in `GpuError` |
| `GpuMemoryGrowth` per step | growth is judged over half an hour, whatever the number of steps |
| `OverheadBound` on shared nodes | where agents report the GPUs of several runs, whose GPU is idle is not known |
"""


def alerts_page() -> str:
    """The page's text."""
    parts = [HEAD, "| rule | severity | after | when |\n|---|---|---|---|"]
    named = [(name, list(found)) for name, found in groupby(ALERTS, key=lambda alert: alert.name)]
    for name, found in named:
        parts[-1] += (
            f"\n| [`{name}`](#{name.lower()}) | {_severities(found)} | {found[0].hold or 'at once'} | {found[0].when} |"
        )
    parts.append("\n## Rules")
    for name, found in named:
        parts.append(f"### {name}\n{_summaries(found)}\nWhat to do: {found[0].advice}\n")
    parts += [MAIL, LEFT_OUT, "## Recorded series"]
    parts.append("| series | |\n|---|---|")
    parts[-1] += "".join(f"\n| `{record.name}` | {record.meaning} |" for record in RECORDS)
    return "\n".join(parts) + "\n"


def _severities(alerts: list[Alert]) -> str:
    return ", ".join(each for each in SEVERITIES if any(alert.severity == each for alert in alerts))


def _summaries(alerts: list[Alert]) -> str:
    """What the alerts say, each text once."""
    said = dict.fromkeys(alert.summary for alert in alerts)
    return "\n".join(f"> {_plain(text)}\n" for text in said)


def _plain(text: str) -> str:
    """Go's templates as ‹label›."""
    return re.sub(r"\{\{.*?\$(?:labels\.)?(?:gpumon_)?(\w+).*?\}\}", r"‹\1›", text)
