"""The agent's configuration file: the variables that a process takes from its environment, one per line.

# /etc/gpumon/agent.conf
GPUMON_INTERVALS=smart=600
OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gpumon.config import Config

_LINE: Final = re.compile(r"((?:GPUMON|OTEL)_[A-Z0-9_]+)=(.*)")


def read_settings(file: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, and what the file adds to it: what is set in both is as in the environment.

    Raises:
        ValueError: the file cannot be read, or has a line that is no setting.
    """
    if file is None:
        return dict(environment)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(("#", ";")):
            continue
        if (match := _LINE.fullmatch(text)) is None:
            raise ValueError(f"{file}, line {number}: expected GPUMON_… or OTEL_… = value, got {text!r}")
        value = match[2].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[match[1]] = value
    return {**found, **environment}


def apply(settings: Mapping[str, str]) -> Config:
    """Let the settings hold in this process, whoever reads its environment; returns those of `Config`.

    Raises:
        ValueError: a value does not fit; nothing was changed.
    """
    config = Config.load(settings)
    for name in [name for name in os.environ if name not in settings]:
        if name.startswith(("GPUMON_", "OTEL_")):  # it was in the file, and is there no more
            del os.environ[name]
    os.environ.update(settings)
    return config
