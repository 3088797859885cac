"""The real OpenTelemetry Collector as a receiver: its file exporters write what arrived."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from otlp_receiver import eventually

OTELCOL = os.environ.get("OTELCOL") or shutil.which("otelcol") or shutil.which("otelcol-contrib")

_CONFIG = """
extensions: {extensions}
receivers:
  otlp:
    protocols:
      http: {{endpoint: "127.0.0.1:{http}"{more}}}
      grpc: {{endpoint: "127.0.0.1:{grpc}"{more}}}
exporters:
  file/traces: {{path: {folder}/traces.0.1.jsonl, flush_interval: 50ms, append: true}}
  file/metrics: {{path: {folder}/metrics.0.1.jsonl, flush_interval: 50ms, append: true}}
  file/logs: {{path: {folder}/logs.0.1.jsonl, flush_interval: 50ms, append: true}}
service:
  extensions: {used}
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [file/traces]}}
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
    logs: {{receivers: [otlp], exporters: [file/logs]}}
"""


class Collector:
    """`http` and `grpc` are its endpoints, `folder` is where it writes; it may be stopped and started again."""

    def __init__(self, folder: Path, *, tls: Path | None = None, token: str | None = None) -> None:
        """*tls*: a folder with ca.pem, server.pem and server.key; clients must show a certificate of that CA."""
        self.folder = folder
        self._ports = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        scheme = "https" if tls else "http"
        self.http, self.grpc = (f"{scheme}://127.0.0.1:{port}" for port in self._ports)
        more = f", tls: {{cert_file: {tls}/server.pem, key_file: {tls}/server.key, client_ca_file: {tls}/ca.pem}}"
        more = (more if tls else "") + (", auth: {authenticator: bearertokenauth}" if token else "")
        folder.mkdir()
        text = _CONFIG.format(
            folder=folder,
            http=self._ports[0],
            grpc=self._ports[1],
            more=more,
            extensions=f"{{bearertokenauth: {{token: {token}}}}}" if token else "{}",
            used="[bearertokenauth]" if token else "[]",
        )
        (folder / "config.yaml").write_text(text)

    def start(self) -> None:
        assert OTELCOL is not None
        with open(self.folder / "log", "a") as log:
            self._process = subprocess.Popen([OTELCOL, "--config", self.folder / "config.yaml"], stdout=log, stderr=log)
        eventually(self._answers, timeout_s=20)

    def stop(self) -> None:
        """End it in order: what it has taken is in its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self._ports[1]), timeout=1):
                pass
            urllib.request.urlopen(self.http, timeout=1)
        except (urllib.error.HTTPError, ssl.SSLError):
            return True
        except OSError as error:  # urllib wraps what TLS says
            return isinstance(getattr(error, "reason", None), ssl.SSLError)
        return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def make_certificates(folder: Path) -> Path:
    """A CA of our own in *folder*, and a certificate of it for the server and for a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj")
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    usage = "keyUsage=critical,keyCertSign,cRLSign"
    openssl("req", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-addext", usage, *new_key, "/CN=ca")
    for name in ("server", "client"):
        openssl("req", "-keyout", f"{name}.key", "-out", f"{name}.csr", *new_key, f"/CN={name}")
        openssl(
            *("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-out", f"{name}.pem"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions"),
        )
    return folder
