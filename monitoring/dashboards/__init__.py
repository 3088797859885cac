"""The dashboards for Grafana."""

from __future__ import annotations

from monitoring.dashboards import alerts, disks_and_health, node_fleet, training_run
from monitoring.dashboards.board import Board

BOARDS: tuple[Board, ...] = (training_run.BOARD, disks_and_health.BOARD, node_fleet.BOARD, alerts.BOARD)
