"""The rules for Prometheus."""

from __future__ import annotations

from typing import Final

from monitoring.rules import disks, gpus, hosts, targets, training_alerts
from monitoring.rules.rule import Alert, Group, Record

GROUPS: Final[tuple[Group, ...]] = (
    targets.GROUP,
    training_alerts.GROUP,
    gpus.GROUP,
    *disks.GROUPS,
    hosts.GROUP,
)
ALERTS: Final = [rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert)]
RECORDS: Final = [rule for group in GROUPS for rule in group.rules if isinstance(rule, Record)]
