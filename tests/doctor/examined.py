"""Runs the doctor on a machine of a test's own making, and holds its text, its JSON and its exit code together."""

import contextlib
import http.server
import io
import json
import os
import socketserver
import threading
from dataclasses import replace
from importlib import resources

import jsonschema

from faketree import Machine
from gpumon.doctor import CHECKS, Place
from gpumon.doctor.render import show
from gpumon.doctor.runner import run

SCHEMA = json.loads(resources.files("gpumon.doctor").joinpath("doctor.schema.json").read_text())
SYMBOLS = {"ok": "ok", "failed": "✖", "warning": "▲", "absent": "–"}
NOBODY = 65534


class Examined:
    """What the doctor said: `text`, `entries` of its JSON, exit `code`."""

    def __init__(self, text, document, code):
        self.text, self.entries, self.code = text, document["checks"], code

    def of(self, name):
        return [entry for entry in self.entries if entry["name"] == name]

    def only(self, name):
        (entry,) = self.of(name)
        return entry

    def names(self, status, cause, command, where="here"):
        """One thing is wrong: its cause and its repair stand in one line of the text, and in the JSON."""
        (entry,) = [each for each in self.entries if each["status"] in ("failed", "warning")]
        assert entry["status"] == status, entry
        assert cause in entry["summary"], entry
        assert entry["repair"] == {"command": command, "where": where}, entry
        (line,) = [line for line in self.text.splitlines() if line.startswith((" ✖ ", " ▲ "))]
        assert line.startswith(f" {SYMBOLS[status]} ")
        place = {"here": "", "host": "on the host: ", "receiver": "at the receiver: "}[where]
        assert f"{entry['summary']}  → {place}{command}" in line
        assert self.text.endswith(f" 1 of {len(self.entries)} checks needs attention.\n")
        assert self.code == (1 if status == "failed" else 0)

    def is_fine(self):
        """Nothing needs attention."""
        assert [entry for entry in self.entries if entry["status"] in ("failed", "warning")] == []
        assert self.code == 0
        assert f" 0 of {len(self.entries)} checks need attention.\n" in self.text


def examine(place, *names, limit_s=None):
    """Run the checks of these names, as text and as JSON."""
    checks = [check for check in CHECKS if check.name in names]
    assert len(checks) == len(set(names)), names
    if limit_s is not None:
        checks = [replace(check, limit_s=limit_s) for check in checks]
    text, document = io.StringIO(), io.StringIO()
    done = list(run(checks, place))
    is_well = show(iter(done), checks, text, as_json=False)
    assert show(iter(done), checks, document, as_json=True) == is_well
    content = json.loads(document.getvalue())
    jsonschema.validate(content, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert content["ok"] == is_well
    assert all(entry["summary"] in text.getvalue() for entry in content["checks"])
    return Examined(text.getvalue(), content, 0 if is_well else 1)


class Somewhere:
    """A machine as the kernel would describe it, with commands on its PATH; `place()` is where the doctor looks."""

    def __init__(self, root):
        self.root = root / "root"
        self.machine = Machine(self.root)
        self.tools = root / "bin"
        self.tools.mkdir()
        self.write = self.machine.write
        self.command("sudo")
        self.command("apt-get")

    def command(self, name, script="#!/bin/sh\nexit 0\n"):
        file = self.tools / name
        file.write_text(script)
        file.chmod(0o755)
        return file

    def without(self, *names):
        for name in names:
            (self.tools / name).unlink()

    def docker(self):
        self.write(".dockerenv", "")

    def place(self, *, uid=1000, paths=(), run=None, **environment):
        variables = {"PATH": str(self.tools), **environment}
        return Place(root=self.root, environment=variables, uid=uid, paths=tuple(map(str, paths)), run=run and str(run))


@contextlib.contextmanager
def unprivileged():
    """What only root may do is refused meanwhile. Everything that is needed has to be imported before."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


class Agent(socketserver.ThreadingUnixStreamServer):
    """The node agent's socket: answers every question with one document."""

    daemon_threads = True

    def __init__(self, path, document, status=200):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self):
                return "client"

            def log_message(self, *_):
                pass

        super().__init__(str(path), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
