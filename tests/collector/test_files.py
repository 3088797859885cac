"""What the gateway's file exporter leaves on the disk: rotated, bounded, and readable by `gpumon report`."""

import json
import subprocess
import sys
import urllib.request

from otlp_receiver import eventually
from peers import Gateway, needs_collector
from run_lines import assert_same

pytestmark = needs_collector

MUCH = {"GPUMON_EXPORT": "otlp+file", "GPUMON_SPANS": "all", "OTEL_METRIC_EXPORT_INTERVAL": "100"}


def report(place):
    done = subprocess.run(
        [sys.executable, "-m", "gpumon.cli", "report", "--json", place], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rotated_files_hold_all_of_it(train, tmp_path):
    """Closed at a megabyte, with a restart in between: nothing is lost or cut, and the folder is a run to report on."""
    with Gateway(tmp_path / "gateway", FILE_MEGABYTES="1") as gateway:
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, **MUCH)
        eventually(lambda: len(gateway.files) > 1, timeout_s=60)
        gateway.stop()
        gateway.start()
        eventually(lambda: len(gateway.files) > 2, timeout_s=60)
        training.finish()
        gateway.stop()
        assert all(path.stat().st_size <= 2**20 for path in gateway.files)
        assert_same(training.run, gateway.by_signal())
        ours, theirs = report(training.run), report(gateway.data)
        assert theirs["steps"]["count"] == ours["steps"]["count"] > 0
        assert (theirs["verdict"], theirs["headline"]) == (ours["verdict"], ours["headline"])


def test_old_files_go(tmp_path):
    """At most FILE_BACKUPS closed ones are kept."""
    with Gateway(tmp_path / "gateway", FILE_MEGABYTES="1", FILE_BACKUPS="1") as gateway:
        seen = set()
        for number in range(8):
            record = {"body": {"stringValue": f"{number}" * 400_000}}
            body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()
            headers = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(f"{gateway.http}/v1/logs", body, headers)).close()
            seen.update(path.name for path in gateway.files)
        eventually(lambda: len(gateway.files) == 2)
        assert len(seen) > 3
