"""Numbers as people read them."""

import pytest

from gpumon import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.5e-5, "35 µs"),
        (0.00099996, "1.0 ms"),
        (0.0021, "2.1 ms"),
        (0.00996, "10 ms"),
        (0.1102, "110 ms"),
        (0.99949, "999 ms"),
        (0.9999, "1.0 s"),
        (1.94, "1.9 s"),
        (61.23, "61 s"),
        (299.0, "299 s"),
        (725.0, "12 min"),
        (12240.0, "3.4 h"),
    ],
)
def test_duration(seconds, text):
    """Two significant digits, in the unit that keeps the number short."""
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0, "0 %"),
        (0.0001, "<0.1 %"),
        (0.003, "0.3 %"),
        (0.0096, "1 %"),
        (0.706, "71 %"),
        (0.998, "100 %"),
        (1, "100 %"),
    ],
)
def test_percent(fraction, text):
    """Whole percent; below one percent a digit more, and never a 0 for what is not 0."""
    assert units.percent(fraction) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (41 * 2**30, "By", "41 GiB"),
        (1023.9, "By", "1.0 KiB"),
        (12, "By", "12 B"),
        (46.2e6, "By/s", "46 MB/s"),
        (999_800, "By/s", "1.0 MB/s"),
        (0.19, "1", "19 %"),
        (180.2, "W", "180 W"),
        (62.4, "Cel", "62 °C"),
        (4.02, "{request}", "4.0"),
        (1234.5, "{operation}/s", "1234/s"),
        (304, "{error}", "304"),
        (7, "", "7"),
    ],
)
def test_quantity(value, unit, text):
    """A value in its UCUM unit, as a person writes it."""
    assert units.quantity(value, unit) == text
