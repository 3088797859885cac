"""The catalogue keeps OpenTelemetry's names and rules."""

import importlib
import inspect
import pkgutil
import re

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from gpumon import metrics as m
from gpumon.metrics import CATALOGUE

STANDARD = [metric for metric in CATALOGUE if not metric.name.startswith("gpumon.")]
UNITS = re.compile(r"1|s|By|Hz|W|J|Cel|rpm|V|By/s|\{[a-z]+\}|\{[a-z]+\}/s")
KINDS = {
    "Counter": "counter",
    "ObservableCounter": "counter",
    "UpDownCounter": "updowncounter",
    "ObservableUpDownCounter": "updowncounter",
    "Gauge": "gauge",
    "ObservableGauge": "gauge",
    "Histogram": "histogram",
}


def conventions(kind):
    """Every name that OpenTelemetry's semantic conventions define -> (module, constant)."""
    defined = {}
    for package_name in (f"opentelemetry.semconv._incubating.{kind}", f"opentelemetry.semconv.{kind}"):
        package = pytest.importorskip(package_name, reason="pip install opentelemetry-semantic-conventions")
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package_name}.{found.name}")
            for constant, name in vars(module).items():
                if constant.isupper() and isinstance(name, str):
                    defined[name] = module, constant
    return defined


@pytest.fixture(scope="module")
def defined_metrics():
    return conventions("metrics")


@pytest.fixture(scope="module")
def defined_attributes():
    return conventions("attributes")


@pytest.mark.parametrize("metric", STANDARD, ids=lambda metric: metric.name)
def test_a_standard_name_has_its_standard_meaning(metric, defined_metrics):
    """A name outside of `gpumon.` is defined by OpenTelemetry, with the same kind and unit."""
    assert metric.name in defined_metrics
    module, constant = defined_metrics[metric.name]
    create = getattr(module, f"create_{constant.lower()}")
    arguments = [[]] if "callbacks" in inspect.signature(create).parameters else []
    instrument = create(MeterProvider([InMemoryMetricReader()]).get_meter("test"), *arguments)

    assert KINDS[type(instrument).__name__.lstrip("_")] == metric.kind
    assert instrument.unit == metric.unit


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_attributes_are_standard_or_ours(metric, defined_attributes):
    """An attribute is defined by OpenTelemetry, or begins with `gpumon.`."""
    for name in metric.attributes:
        assert name in defined_attributes or name.startswith("gpumon."), name
        assert not (name in defined_attributes and name.startswith("gpumon."))


def test_our_schema_is_the_one_that_is_compared():
    """The schema URL names the release of the conventions whose names are used."""
    schemas = pytest.importorskip("opentelemetry.semconv.schemas").Schemas

    assert m.SCHEMA_URL in {schema.value for schema in schemas}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_and_units_follow_the_rules(metric):
    """Lower case, dots, snake case; a base unit; no unit and no "total" in the name; every word said once."""
    assert re.fullmatch(r"[a-z][a-z0-9]*([._][a-z0-9]+)*", metric.name)
    assert len(metric.name) <= 255
    assert UNITS.fullmatch(metric.unit), metric.unit
    assert not re.search(r"(^|[._])(total|seconds|bytes|percent|ms|watts)($|[._])", metric.name)
    assert metric.description.endswith(".")
    assert len(set(metric.attributes)) == len(metric.attributes)


def test_no_metric_is_the_namespace_of_another():
    """`a.b` beside `a.b.c` cannot both be metrics in backends that nest names; but for OpenTelemetry's own `.limit`."""
    names = {metric.name for metric in CATALOGUE}
    nested = {(outer, inner) for outer in names for inner in names if inner.startswith(outer + ".")}
    nested -= {(name, f"{name}.limit") for name in names}

    assert not nested


def test_no_attribute_is_the_namespace_of_another():
    """The same holds among the attributes of one point."""
    for metric in CATALOGUE:
        nested = [(a, b) for a in metric.attributes for b in metric.attributes if b.startswith(a + ".")]
        assert not nested, metric.name


def test_every_metric_is_listed_once():
    """One row per name; the table by name has them all."""
    assert len(m.BY_NAME) == len(CATALOGUE)


def test_words_mean_what_they_say():
    """`utilization` is a share, `time` a running sum of seconds, `duration` a distribution of them."""
    for metric in CATALOGUE:
        last = metric.name.rsplit(".", 1)[-1]
        if last == "utilization":
            assert (metric.kind, metric.unit) == ("gauge", "1"), metric.name
        if last == "time":
            assert (metric.kind, metric.unit) == ("counter", "s"), metric.name
        if last == "duration":
            assert (metric.kind, metric.unit) == ("histogram", "s"), metric.name


def test_bounds_of_durations_rise():
    """Bucket bounds are strictly increasing, from half a millisecond to five minutes."""
    assert list(m.DURATION_BOUNDS) == sorted(set(m.DURATION_BOUNDS))
    assert m.DURATION_BOUNDS[0] <= 0.001
    assert m.DURATION_BOUNDS[-1] >= 300
