"""Settings: arguments over environment over defaults, and clear words about what does not fit."""

import os
from pathlib import Path

import pytest

from gpumon.config import Config, Options


def test_defaults():
    """Nothing has to be set."""
    assert Config.load({}) == Config()


def test_every_field_has_a_variable():
    """`GPUMON_<FIELD>` sets what the argument of that name sets."""
    environment = {
        "GPUMON_SERVICE_NAME": "vision",
        "GPUMON_EXPORT": "FILE",
        "GPUMON_ENDPOINT": "http://collector:4318",
        "GPUMON_RUN_DIR": "runs/1",
        "GPUMON_DATA_PATHS": f"/data/train{os.pathsep}/data/val",
        "GPUMON_COLLECTORS": "disk, host",
        "GPUMON_INTERVALS": "disk=0.5, smart=600",
        "GPUMON_SPANS": "all",
    }
    expected = Config(
        service_name="vision",
        export="file",
        endpoint="http://collector:4318",
        run_dir=Path("runs/1"),
        data_paths=("/data/train", "/data/val"),
        collectors=("disk", "host"),
        intervals={"disk": 0.5, "smart": 600.0},
        spans="all",
    )

    assert Config.load(environment) == expected
    assert Config.load({f"OTEL_PYTHON_{name}": value for name, value in environment.items()}) == expected
    assert set(environment) == {f"GPUMON_{name.upper()}" for name in Config.__dataclass_fields__}


def test_arguments_win():
    """An argument beats the variable; None and an empty tuple are no arguments."""
    environment = {"GPUMON_EXPORT": "otlp", "GPUMON_DATA_PATHS": "/env"}

    assert Config.load(environment, export="none").export == "none"
    assert Config.load(environment, export=None, data_paths=()).export == "otlp"
    assert Config.load(environment, data_paths=()).data_paths == ("/env",)
    assert Config.load(environment, data_paths=[Path("/a"), "/b"]).data_paths == ("/a", "/b")


@pytest.mark.parametrize(
    ("given", "taken"),
    [("otlp+file", "otlp+file"), ("FILE + auto", "auto+file"), ("file+file", "file"), ("file+otlp", "otlp+file")],
)
def test_two_places(given, taken):
    """A run directory and OTLP at once; the order says nothing."""
    assert Config.load({"GPUMON_EXPORT": given}).export == taken


def test_options_say_nothing_by_themselves():
    """OpenTelemetry's declarative configuration passes every field on: only what is said may reach `load`."""
    assert set(vars(Options())) == set(Config.__dataclass_fields__)
    assert set(vars(Options()).values()) == {None}


def test_an_empty_variable_is_not_set():
    """`GPUMON_EXPORT=` in a shell means the default."""
    assert Config.load({"GPUMON_EXPORT": "", "GPUMON_COLLECTORS": ""}) == Config()


def test_no_collectors_at_all():
    """An empty list asks for none; the default is all."""
    assert Config.load({}, collectors=[]).collectors == ()
    assert Config.load({}).collectors is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"export": "files"}, ["export", "auto, otlp, file, none, auto+file, otlp+file", "files"]),
        ({"export": "none+file"}, ["export", "auto+file", "none+file"]),
        ({"export": "otlp+"}, ["export", "otlp+file"]),
        ({"spans": "some"}, ["spans", "default, all, none"]),
        ({"intervals": "disk"}, ["intervals", "collector=seconds"]),
        ({"intervals": {"disk": "soon"}}, ["intervals", "collector=seconds"]),
        ({"intervals": {"disk": 0.0}}, ["intervals", "between"]),
        ({"intervals": {"disk": float("nan")}}, ["intervals", "between"]),
        ({"colour": "red"}, ["unknown argument", "colour"]),
    ],
)
def test_what_does_not_fit_is_named(settings, words):
    """A wrong value raises ValueError with the argument's name and what was expected."""
    with pytest.raises(ValueError) as error:
        Config.load({}, **settings)

    assert all(word in str(error.value) for word in words)


def test_a_wrong_variable_is_named():
    """The text names the variable where the value came from one."""
    with pytest.raises(ValueError, match="GPUMON_EXPORT"):
        Config.load({"GPUMON_EXPORT": "nowhere"})
