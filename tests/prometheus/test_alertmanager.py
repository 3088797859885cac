"""Our rules on a real Prometheus, our example on a real Alertmanager: the mail that people get."""

import email
import email.policy
import json
import os
import shutil
import ssl
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from monitored import monitored
from otel_collector import free_port, make_certificates
from otlp_receiver import eventually
from peers import Alertmanager, needs_alertmanager, needs_prometheus

ROOT = Path(__file__).parents[2]
PASSWORD = "secret of a test"

pytestmark = [
    needs_alertmanager,
    needs_prometheus,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]


class Mailbox:
    """What a mail server got from those who know the password."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, _server, _session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, mail["Subject"], mail))
        return "250 OK"

    def to(self, receiver):
        """(subject, text) of the mails to somebody."""
        return [
            (subject, mail.get_body().get_content())
            for _, receivers, subject, mail in self.mails
            if receiver in receivers
        ]


@contextmanager
def mail_server(certificates):
    """(Mailbox, port), with STARTTLS and a login, as mail servers ask for."""

    def login(_server, _session, _envelope, _mechanism, data):
        return AuthResult(success=data.login == b"gpumon@example.com" and data.password == PASSWORD.encode())

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    box, port = Mailbox(), free_port()
    server = Controller(
        box,
        "127.0.0.1",
        port,
        tls_context=tls,
        require_starttls=True,
        auth_required=True,
        auth_exclude_mechanism=["LOGIN"],  # Alertmanager does not know its prompts
        authenticator=login,
    )
    server.start()
    try:
        yield box, port
    finally:
        server.stop()


def example(folder, port, certificates):
    """The example with what one has to fill in, a CA of our own, and times that suit a test."""
    config = yaml.safe_load((ROOT / "prometheus" / "alertmanager.yml").read_text())
    password = folder / "smtp_password"
    password.write_text(PASSWORD)
    config["global"].update(smtp_smarthost=f"localhost:{port}", smtp_auth_password_file=str(password))
    for receiver in config["receivers"]:
        for mail in receiver.get("email_configs", []):
            mail["tls_config"] = {"ca_file": str(certificates / "ca.pem")}
    for route in (config["route"], *config["route"]["routes"]):
        route["group_wait"] = "1s"
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def alerted(tmp_path_factory):
    """(Alertmanager, Mailbox), while a disk fails and a GPU is hot."""
    folder = tmp_path_factory.mktemp("alertmanager")
    certificates = make_certificates(folder / "certificates")
    with (
        mail_server(certificates) as (box, port),
        Alertmanager(folder, example(folder, port, certificates)) as alertmanager,
        monitored(folder / "monitored", "direct", alertmanager=alertmanager.url.removeprefix("http://")),
    ):
        eventually(lambda: box.to("on-call@example.com") and box.to("training-team@example.com"), timeout_s=90)
        yield alertmanager, box


def test_a_failing_disk_is_mailed_to_those_on_call(alerted):
    """Which machine, which disk, what to do: all in the one mail."""
    ((subject, text),) = alerted[1].to("on-call@example.com")
    assert subject == f"FIRING DiskFailing {os.uname().nodename}"
    assert "Z9FAILS" in text and "save a checkpoint" in text
    assert "/alerts.md#diskfailing" in text.split()[-1]


def test_a_hot_gpu_is_mailed_to_the_team(alerted):
    ((subject, text),) = alerted[1].to("training-team@example.com")
    assert subject == f"FIRING GpuOverheating {os.uname().nodename}"
    assert "GPU 0" in text and "87" in text


def test_the_worse_alert_mutes_the_other(alerted):
    """Of the same GPU: then nobody gets a second mail."""
    alertmanager, _ = alerted

    def hot():
        return [alert for alert in alertmanager.alerts() if alert["labels"]["alertname"] == "GpuOverheating"]

    (warning,) = hot()
    assert warning["status"]["state"] == "active"
    critical = {"labels": {**warning["labels"], "severity": "critical"}, "annotations": warning["annotations"]}
    other = {"labels": {**critical["labels"], "severity": "warning", "hw_id": "GPU-of-another"}, "annotations": {}}
    request = urllib.request.Request(
        f"{alertmanager.url}/api/v2/alerts",
        json.dumps([critical, other]).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()

    eventually(lambda: len(hot()) == 3, timeout_s=10)
    time.sleep(1)
    states = {(alert["labels"]["severity"], alert["labels"]["hw_id"]): alert["status"]["state"] for alert in hot()}
    gpu = warning["labels"]["hw_id"]
    assert states == {
        ("warning", gpu): "suppressed",
        ("critical", gpu): "active",
        ("warning", "GPU-of-another"): "active",
    }
