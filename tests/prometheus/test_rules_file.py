"""The committed rules, the page about them, and the example for Alertmanager."""

import re
import subprocess

import pytest
import yaml

from gpumon.rules import RULES as RULES_OF_THE_REPORT
from gpumon.rules import thresholds
from monitoring.__main__ import ROOT, files
from monitoring.layout import laid_out
from monitoring.rules import ALERTS, GROUPS, RECORDS
from monitoring.rules.rule import SEVERITIES, rules_file
from peers import PROMTOOL, needs_promtool

FILE = ROOT / "prometheus" / "rules" / "gpumon.yml"
RULES = yaml.safe_load(FILE.read_text())
LIVE_ALONE = {"RankStraggler", "CheckpointSlow", "TrainingStalled", "HostMemoryGrowth"}
"""What Prometheus judges and the report does not, or not yet."""
REPORT_ALONE = {"StepTimeRegression"}
"""What Prometheus cannot judge; docs/alerts.md says why."""


def alerts():
    return [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def test_the_files_are_what_the_code_gives():
    """Rules and page; with them the thresholds, which the code takes from those of the report."""
    for path, text in files():
        assert (ROOT / path).read_text() == text, f"{path}: run `make docs`"


@needs_promtool
def test_promtool_accepts_them():
    done = subprocess.run([PROMTOOL, "check", "rules", "--lint-fatal", FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("threshold", "rule"),
    [
        ("LARGE_LOSS", "instance:gpumon_data_loading_bound:lost"),
        ("NO_ALARM_WAIT", "instance:gpumon_data_loading_bound:lost"),
        ("MIN_STEPS", "instance:gpumon_training:judged"),
        ("FIRST_BATCHES", "instance:gpumon_first_batch_slow:lost"),
        ("IDLE_GPU", "instance:gpumon_overhead_bound:lost"),
        ("USED_GPU", "device:hw_gpu_used:bool"),
    ],
)
def test_thresholds_are_the_reports(threshold, rule):
    """The number stands in the rule."""
    (record,) = [record for record in RECORDS if record.name == rule]
    assert re.search(rf"(?<![\d.]){getattr(thresholds, threshold):g}(?![\d.])", record.expr)


def test_alerts_have_the_reports_names():
    """All of its rules, but for those that one of the two cannot judge."""
    assert {alert["alert"] for alert in alerts()} - LIVE_ALONE == set(RULES_OF_THE_REPORT) - REPORT_ALONE - LIVE_ALONE
    for alert in alerts():
        assert alert["labels"]["severity"] in SEVERITIES
    page = (ROOT / "docs" / "alerts.md").read_text()
    assert all(f"| `{name}`" in page for name in REPORT_ALONE)


def test_every_alert_says_which_device_and_leads_to_its_section():
    page = (ROOT / "docs" / "alerts.md").read_text()
    sections = {found.lower() for found in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    for alert in alerts():
        said = alert["annotations"]
        assert re.search(r"\$labels\.(host_name|job)", said["summary"]), alert["alert"]
        assert said["description"] and said["runbook_url"] == f"docs/alerts.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in sections
        assert alert["labels"]["monitor"] == "gpumon"


def test_the_page_may_be_served_anywhere():
    text = rules_file(GROUPS, "https://docs.example.com/alerts.html")
    links = {
        rule["annotations"]["runbook_url"]
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert all(link.startswith("https://docs.example.com/alerts.html#") for link in links)


def test_recorded_series_come_before_who_uses_them():
    """In this file's order, or the first evaluations would see those of the round before."""
    known = set()
    names = {record.name for record in RECORDS}
    for group in GROUPS:
        for rule in group.rules:
            used = {name for name in names if name in rule.expr}
            assert used <= known, rule.name
            known |= {rule.name}


# -- lines of PromQL --------------------------------------------------------------------------------------


def tokens(expression):
    return re.findall(r'"(?:[^"\\]|\\.)*"|[\w:.$]+|[^\s\w]', expression)


def test_breaking_lines_changes_no_query():
    for rule in (*RECORDS, *ALERTS):
        for width in (40, 80, 120):
            assert tokens(laid_out(rule.expr, width)) == tokens(rule.expr)


def test_lines_are_short_where_they_can_be():
    text = laid_out('sum by (a) (rate(some_metric_total{label=~"a (b|c), d"}[5m])) / on (a) sum by (a) (other)', 48)
    assert text.splitlines() == [
        "sum by (a) (",
        "  rate(",
        '    some_metric_total{label=~"a (b|c), d"}[5m]',
        "  )",
        ")",
        "/ on (a) sum by (a) (other)",
    ]


# -- Alertmanager -----------------------------------------------------------------------------------------

MAIL = yaml.safe_load((ROOT / "prometheus" / "alertmanager.yml").read_text())
LABELS = {"alertname", "job", "instance", "host_name", "gpumon_run_id", "gpumon_node_id", "hw_id", "system_device"}


def matchers(texts):
    """{label: (operator, value)}, as Alertmanager reads `label="value"`."""
    found = [re.fullmatch(r'(\w+)(=~|!~|!=|=)"([^"]*)"', text) for text in texts]
    assert all(found), texts
    return {match[1]: (match[2], match[3]) for match in found}


def matches(texts, labels):
    for label, (operator, value) in matchers(texts).items():
        is_equal = (
            bool(re.fullmatch(value, labels.get(label, ""))) if "~" in operator else labels.get(label, "") == value
        )
        if is_equal == operator.startswith("!"):
            return False
    return True


def receiver(labels, route):
    for child in route.get("routes", []):
        if matches(child["matchers"], labels):
            return receiver(labels, child)
    return route["receiver"]


def test_mail_goes_to_whom_it_concerns():
    """By severity; info, and what is not ours, to nobody."""
    for alert in alerts():
        labels = {**alert["labels"], "alertname": alert["alert"]}
        expected = {"critical": "on-call", "warning": "team", "info": "nobody"}[labels["severity"]]
        assert receiver(labels, MAIL["route"]) == expected
    assert receiver({"severity": "critical"}, MAIL["route"]) == "nobody"


def test_receivers_and_labels_of_the_example():
    """Every receiver that a route names is there and mails; labels are those that alerts have."""
    there = {each["name"]: each for each in MAIL["receivers"]}
    routes = [MAIL["route"], *MAIL["route"]["routes"]]
    assert {route["receiver"] for route in routes} == there.keys()
    for name, each in there.items():
        assert ("email_configs" in each) == (name != "nobody")
    assert set(MAIL["route"]["group_by"]) <= LABELS
    for rule in MAIL["inhibit_rules"]:
        assert set(rule["equal"]) <= LABELS
        matchers(rule["source_matchers"] + rule["target_matchers"])
    assert "smtp_auth_password" not in MAIL["global"] and MAIL["global"]["smtp_auth_password_file"]


def test_the_worse_alert_mutes_the_other():
    """Of one rule and device; not of another device."""
    rule = MAIL["inhibit_rules"][0]
    critical = {"alertname": "GpuOverheating", "severity": "critical", "monitor": "gpumon", "hw_id": "GPU-1"}
    warning = {**critical, "severity": "warning"}

    def mutes(source, target):
        return (
            matches(rule["source_matchers"], source)
            and matches(rule["target_matchers"], target)
            and all(source.get(label, "") == target.get(label, "") for label in rule["equal"])
        )

    assert mutes(critical, warning)
    assert not mutes(critical, {**warning, "hw_id": "GPU-2"})
    assert not mutes(warning, critical)
