"""Numbers for people; they live in `gpumon.units`, where rules can use them too."""

from gpumon.units import duration, number, percent, quantity, rate, size

__all__ = ["duration", "number", "percent", "quantity", "rate", "size"]
