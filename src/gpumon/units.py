"""Numbers for people: two or three significant digits, with their unit; fractions become percent."""

from __future__ import annotations

import math
from collections.abc import Callable

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: float, digits: int = 2) -> str:
    """At least *digits* significant digits, never fewer than the integer part has: 87, 2.1, 0.093, 1240."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits - 1}e}")  # 9.96 is 10, not 10.0
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}"


def duration(seconds: float, digits: int = 2) -> str:
    """35 µs, 87 ms, 1.9 s, 12 min, 3.4 h."""
    size = abs(seconds)
    if size == 0:
        return "0 s"
    if size < 0.9995e-3:
        return f"{number(seconds * 1e6, digits)} µs"
    if size < 0.9995:
        return f"{number(seconds * 1e3, digits)} ms"
    if size < 300:
        return f"{number(seconds, digits)} s"
    if size < 3 * 3600:
        return f"{number(seconds / 60, digits)} min"
    return f"{number(seconds / 3600, digits)} h"


def percent(fraction: float) -> str:
    """71 %, 0.3 %, <0.1 %."""
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    if 0 < fraction < 0.0095:
        return f"{fraction * 100:.1f} %"
    return f"{fraction * 100:.0f} %"


def size(value: float) -> str:
    """41 GiB."""
    return _scaled(value, 1024, _BINARY)


def rate(bytes_per_s: float) -> str:
    """46 MB/s, decimal as disks are sold and `iostat -m` counts."""
    return _scaled(bytes_per_s, 1000, _DECIMAL) + "/s"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    scale = 0
    while abs(value) >= base * 0.9995 and scale < len(units) - 1:
        value /= base
        scale += 1
    return f"{number(value)} {units[scale]}" if scale else f"{value:.0f} {units[0]}"


_OF_UNIT: dict[str, Callable[[float], str]] = {
    "s": duration,
    "1": percent,
    "By": size,
    "By/s": rate,
    "W": lambda value: f"{number(value)} W",
    "Cel": lambda value: f"{value:.0f} °C",
    "J": lambda value: f"{number(value)} J",
    "Hz": lambda value: f"{number(value / 1e6)} MHz",
}


def quantity(value: float, unit: str) -> str:
    """A value with its UCUM unit, such as `0.087, "s"`; `{request}` is left to the words around."""
    if show := _OF_UNIT.get(unit):
        return show(value)
    shown = str(value) if isinstance(value, int) else number(value)
    if unit.startswith("{") and unit.endswith("}/s"):
        return f"{shown}/s"
    return shown if not unit or unit.startswith("{") else f"{shown} {unit}"
