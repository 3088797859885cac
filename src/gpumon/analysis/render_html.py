"""The report in a notebook: the text report, with its colours."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.text import Text

from gpumon.analysis.render_text import HasDict, render

_PRE = '<pre style="font-family: monospace; line-height: 1.3; white-space: pre-wrap">{code}</pre>'


def render_html(report: HasDict | Mapping[str, Any], *, width: int = 100) -> str:
    """The report as one HTML element; what the run named is escaped."""
    console = Console(record=True, file=StringIO(), width=width, legacy_windows=False)
    console.print(Text.from_ansi(render(report, width=width, color=True)), soft_wrap=True)
    return console.export_html(code_format=_PRE, inline_styles=True)
