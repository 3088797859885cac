"""`gpumon archive`, and runs that are read from where it put them: in memory, in a folder, over S3's own API."""

import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

import gpumon.archive
from compare_rows import is_same
from gpumon.analysis.load import load
from gpumon.analysis.remote import local, shown
from gpumon.analysis.report import build_report
from gpumon.archive import archive
from gpumon.cli import commands, main
from gpumon.errors import RunError
from gpumon.export import export
from otlp_receiver import receiver
from recorded import record_everything, write_run

fsspec = pytest.importorskip("fsspec", reason="no fsspec: pip install fsspec")


@pytest.fixture
def run(tmp_path):
    """A run that is over, with lines in live files and in a segment of each kind."""
    folder = record_everything(tmp_path / "gpumon-runs" / "20261124T140211-train-7f3a91")
    lines = (folder / "metrics.0.4711.jsonl").read_bytes().splitlines(keepends=True)
    with gzip.open(folder / "metrics.0.4711.000.jsonl.gz", "wb") as file:
        file.writelines(lines[:10])
    (folder / "metrics.0.4711.001.jsonl").write_bytes(b"".join(lines[10:20]))
    (folder / "metrics.0.4711.001.jsonl.gz.partial").write_bytes(b"\x1f\x8b")
    (folder / "metrics.0.4711.jsonl").write_bytes(b"".join(lines[20:]))
    (folder / ".lock").touch()
    return folder


@pytest.fixture
def memory():
    """A URL in memory that nobody else has."""
    url = f"memory://{uuid.uuid4().hex}/runs"
    yield url
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/").rpartition("/")[0], recursive=True)


def files_at(url):
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {each["name"].rpartition("/")[2]: fs.cat_file(each["name"]) for each in fs.ls(path, detail=True)}


def content(folder):
    """What a run says, whatever it is packed in."""
    tables = ("otel_traces", "otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram", "otel_logs")
    with local(folder) as path:
        loaded = load(path)
        assert not loaded.damaged
        return {table: sorted(map(str, loaded.execute(f"select * from {table}").fetchall())) for table in tables}


def report_of(run):
    told = build_report(run).as_dict()
    del told["run"]["path"]
    return told


def said(*arguments):
    """(exit code, stdout and stderr) of a command."""
    result = CliRunner().invoke(commands, [str(each) for each in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value, result.output


def test_an_archived_run_is_the_same_run(run, memory):
    """Its lines gzip'ed, its report the same, and read as it was: nothing twice, nothing missing."""
    before, told = content(run), report_of(run)
    outcome = archive(run, memory)

    there = f"{memory}/{run.name}"
    assert outcome.url == there
    assert set(files_at(there)) == {
        *("metrics.0.4711.000.jsonl.gz", "metrics.0.4711.001.jsonl.gz", "metrics.0.4711.jsonl.gz"),
        *("metrics.1.4711.jsonl.gz", "traces.0.4711.jsonl.gz", "logs.0.4711.jsonl.gz", "run.json"),
    }
    assert outcome.files == outcome.copied == 7
    assert content(there) == before
    assert is_same(report_of(there), told)
    assert run.exists()


def test_reports_and_exports_take_a_url(run, memory, tmp_path, monkeypatch):
    """The URL is what they call the run; nothing of it stays on this machine."""
    archive(run, memory)
    there = f"{memory}/{run.name}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert gpumon.report(there).path == there
    assert there in said("report", there)[1]
    assert said("report", f"{there}/metrics.0.4711.jsonl.gz")[0] is None
    with receiver() as receiving:
        outcome = export(there, receiving.endpoint, signals=("traces",))
    assert outcome.is_whole and outcome.sent["traces"] == 8
    assert str(outcome.run) == there
    assert not list(temporary.iterdir())


def test_again_copies_only_what_is_not_there(run, memory):
    """A copy that broke off goes on; what was cut short or altered there is written again."""
    archive(run, memory)
    assert archive(run, memory).copied == 0
    fs, path = fsspec.core.url_to_fs(f"{memory}/{run.name}")
    fs.rm_file(f"{path}/traces.0.4711.jsonl.gz")
    fs.pipe_file(f"{path}/logs.0.4711.jsonl.gz", b"short")
    whole = fs.cat_file(f"{path}/metrics.1.4711.jsonl.gz")
    fs.pipe_file(f"{path}/metrics.1.4711.jsonl.gz", bytes(len(whole)))
    outcome = archive(run, memory)
    assert (outcome.copied, outcome.files) == (3, 7)
    assert content(f"{memory}/{run.name}") == content(run)


def test_nothing_is_deleted_that_was_not_verified(run, memory, monkeypatch):
    """A store that keeps other bytes than it was given is found out, and the run stays as it was."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    store = type(fsspec.filesystem("memory"))
    put = store.put_file

    def put_damaged(self, source, target, **options):
        put(self, source, target, **options)
        if "traces" in target:
            self.pipe_file(target, bytes(len(self.cat_file(target))))

    monkeypatch.setattr(store, "put_file", put_damaged)
    with pytest.raises(RunError, match=r"traces\.0\.4711\.jsonl\.gz' is not what was written"):
        archive(run, memory, delete=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_delete_removes_the_run_and_leaves_what_is_not_of_it(run, memory):
    """With its lock and what was being packed; somebody's notes stay, with a word."""
    before = content(run)
    (run / "notes.txt").write_text("keep me")
    outcome = archive(run, memory, delete=True)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert "notes.txt" in "\n".join(outcome.lines())
    assert content(f"{memory}/{run.name}") == before
    (run / "notes.txt").unlink()
    record_everything(run)
    archive(run, f"{memory}/again", delete=True)
    assert not run.exists()


def test_a_run_is_never_archived_into_itself(run):
    """Deleting it would delete the copy."""
    before = content(run)
    for target in (run.parent, run):
        with pytest.raises(RunError, match=r"in .* itself"):
            archive(run, target.as_uri(), delete=True)
    assert content(run) == before


def test_a_run_that_is_being_recorded_is_refused(run, memory):
    """Unless asked for; once it is over, its live files' earlier copies are not there beside its segments."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            ticks = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
            host = os.uname().nodename
            who = {"pid": process.pid, "start_ticks": ticks, "host": host, "rank": 0, "ended": None}
            write_run(run, processes=[who])
            with pytest.raises(RunError, match=f"still being recorded .*{process.pid}.*--live"):
                archive(run, memory)
            with pytest.raises(RunError, match="choose one"):
                archive(run, memory, live=True, delete=True)
            with open(run / "traces.0.4711.jsonl", "ab") as file:
                file.write(b'{"resourceSpans": [{"torn')
            before = content(run)
            archive(run, memory, live=True)
            assert content(f"{memory}/{run.name}") == before
        finally:
            process.kill()
    (run / "metrics.0.4711.jsonl").rename(run / "metrics.0.4711.002.jsonl")
    archive(run, memory)  # killed, so over
    assert content(f"{memory}/{run.name}") == content(run)


def test_another_hosts_run_is_over_once_nobody_has_written_for_long(run, memory):
    write_run(run, processes=[{"pid": 1, "start_ticks": 1, "host": "node17", "rank": 0, "ended": None}])
    with pytest.raises(RunError, match="process 1 on node17"):
        archive(run, memory)
    for path in run.iterdir():
        os.utime(path, (1.79e9, 1.79e9))
    assert archive(run, memory).copied == 7


def test_another_run_is_not_overwritten(run, memory):
    archive(run, memory)
    write_run(run, ended_s=1.79e9, id="f" * 32)
    with pytest.raises(RunError, match="holds another run"):
        archive(run, memory)


def test_several_runs_at_once(run, memory, tmp_path, capsys):
    """One that cannot be archived does not keep the others here: exit code 1."""
    other = record_everything(tmp_path / "gpumon-runs" / "other")
    code, output = said("archive", "--delete", tmp_path / "no", run, other, memory)
    assert code == 1
    assert output.count("deleted ") == 2 and output.count("verified") == 2
    assert "no run at" in output + capsys.readouterr().err
    assert not run.exists() and not other.exists()


def test_the_newest_run_is_archived_by_default(run, memory, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    assert run.name in said("archive", memory)[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("report", "memory://nowhere/run"), "no run at 'memory://nowhere/run'.*Nothing is there"),
        (("report", "nosuch://bucket/run"), "no such kind of URL: nosuch://"),
        (("report", "file:///nowhere/run"), "no run at '/nowhere/run'"),
        (("report", "http://127.0.0.1:9/run.jsonl?X-Signature=geheim12345"), r"run\.jsonl\?…'"),
        (("report", "ftp://me:geheim12345@127.0.0.1:9/run"), r"ftp://me:\*\*\*@127.0.0.1:9/run"),
        (("archive", "{run}", "{run}"), "is no URL"),
        (("archive", "{run}/run.json", "memory://x"), "is a file"),
        (("archive", "{run}", "file:///proc/nowhere"), "cannot write 'file:///proc/nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_errors_are_one_line_without_secrets(run, capsys, arguments, told):
    """Exit code 2; with GPUMON_STRICT=1 too nothing secret is printed."""
    for strict in ("", "1"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
            patch.setenv("GPUMON_STRICT", strict)
            main([argument.format(run=run) for argument in arguments])
        message = capsys.readouterr().err
        assert exit_.value.code == 2
        assert "geheim" not in message
        if not strict:
            assert message.count("\n") == 1
            assert re.search(told, message), message


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("abfs://container@account/run", "abfs://container@account/run"),
        ("sftp://me:pass@word@host/run", "sftp://me:***@host/run"),
        ("https://host/run?sig=1", "https://host/run?…"),
        ("zip://run::s3://bucket/x.zip", "zip://run::s3://bucket/x.zip"),
    ],
)
def test_urls_are_shown_without_secrets(url, text):
    assert shown(url) == text


def test_urls_with_several_runs_name_them(run, memory):
    archive(run, memory)
    with pytest.raises(RunError, match=run.name):
        build_report(memory)


def test_what_is_missing_is_named_with_its_command(run):
    """Without fsspec, and without the library behind a kind of URL."""
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\nfrom gpumon.cli import main\nmain(['report', 's3://bucket/run'])"
    )
    for module, package in (("fsspec", "opentelemetry-instrumentation-gpumon[remote]"), ("s3fs", "s3fs")):
        command = [sys.executable, "-c", code, module]
        environment = {**os.environ, "GPUMON_STRICT": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert f"pip install '{package}'" in done.stderr and done.stderr.count("\n") == 1


def test_a_url_is_what_it_takes_to_import_fsspec(run):
    code = f"import sys, gpumon; gpumon.report({str(run)!r}); print('fsspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_more_than_fits_is_not_fetched(run, memory, monkeypatch):
    archive(run, memory)
    monkeypatch.setattr(gpumon.analysis.remote, "LARGEST_RUN", 1000)
    with pytest.raises(RunError, match="GiB are fetched"):
        build_report(f"{memory}/{run.name}")


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3's API."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install s3fs")
    server = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[server]'")
    serving = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    serving.start()
    yield "http://{}:{}".format(*serving.get_host_and_port())
    serving.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """The URL of a folder in a bucket; where the server is stands in the environment, as a user has it."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim12345")
    store = fsspec.filesystem("s3")
    if not store.exists("bucket"):
        store.mkdir("bucket")
    return "s3://bucket/runs"


def test_a_run_goes_to_s3_and_comes_back(run, bucket):
    before, told = content(run), report_of(run)
    assert archive(run, bucket).copied == 7
    assert archive(run, bucket, delete=True).copied == 0
    assert not run.exists()
    assert content(f"{bucket}/{run.name}") == before
    assert is_same(report_of(f"{bucket}/{run.name}"), told)
    with pytest.raises(RunError, match=rf"Folders there: .*{run.name}"):
        build_report(bucket)


def test_no_bucket_is_made(run, bucket):
    with pytest.raises(RunError, match="cannot write 's3://nosuch/runs"):
        archive(run, "s3://nosuch/runs")
    assert not fsspec.filesystem("s3").exists("nosuch")


def test_no_run_in_s3(bucket):
    with pytest.raises(RunError, match=r"no run at 's3://nosuch/run'.*Nothing"):
        build_report("s3://nosuch/run")


def test_run_json_is_what_the_url_says(run, memory):
    archive(run, memory)
    assert json.loads(files_at(f"{memory}/{run.name}")["run.json"]) == json.loads((run / "run.json").read_text())
