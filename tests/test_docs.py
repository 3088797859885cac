"""The documentation says what the code does: metrics, commands, options, rules, links."""

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import gpumon
from gpumon.config import Config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["metrics.md", "commands.md"])
def test_generated_pages_are_what_the_code_says(name):
    """A metric or an option that changes without `make docs` fails here."""
    assert (DOCS / name).read_text(encoding="utf-8") == generate().PAGES[name]()


def test_every_setting_is_documented():
    """Each argument of `instrument()` and its variable stand in configuration.md."""
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Config):
        assert f"`{field.name}`" in text
        assert f"`GPUMON_{field.name.upper()}`" in text


def test_instrument_has_the_settings_of_config_and_the_providers():
    """No argument without a setting, no setting without an argument."""
    arguments = set(inspect.signature(gpumon.instrument).parameters)
    providers = {"tracer_provider", "meter_provider", "logger_provider"}

    assert arguments - providers == {field.name for field in dataclasses.fields(Config)}


def test_every_rule_verdict_and_cause_is_documented():
    """What a report may say is explained in report.md."""
    from gpumon import rules

    text = (DOCS / "report.md").read_text(encoding="utf-8")
    for name in (*rules.VERDICTS, *rules.CAUSES, *rules.RULES):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link of a page names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_metric_that_pages_name_exists():
    """`gpumon.step.time` and the like in prose are names of the catalogue or its attributes."""
    from gpumon import metrics as m

    known = set(m.BY_NAME) | {name for metric in m.CATALOGUE for name in metric.attributes}
    known |= {value for key, value in vars(m).items() if key.isupper() and isinstance(value, str)}
    for page in PAGES:
        for name in re.findall(
            r"`(gpumon\.(?:step|phase|fetch|disk|loader|cpu|pressure|data)\.[a-z_.]+)`", page.read_text()
        ):
            assert name in known or name.startswith("gpumon.step."), (page.name, name)
