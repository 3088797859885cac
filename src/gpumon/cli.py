"""The command line. What a command needs is imported inside it, so that `gpumon --help` answers at once."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

import click

from gpumon.errors import GpumonError
from gpumon.version import __version__

FAILED, WRONG = 1, 2
"""Exit codes: a check or a limit failed; wrong usage or unreadable input."""
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Of stdout, where no file is named: no bug of ours."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: a failure is one line on stderr, with `GPUMON_STRICT=1` its traceback too."""
    try:
        code = commands.main(arguments, prog_name="gpumon", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = WRONG
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "gpumon"
        code = _fail(f"{_lower(error.format_message())} (see `{where} --help`)", WRONG)
    except click.ClickException as error:
        code = _fail(_lower(error.format_message()), WRONG)
    except (GpumonError, ValueError) as error:
        code = _fail(str(error), WRONG)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        # The reader of our output has left (`gpumon report | head`); Python must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:  # noqa: BLE001 - never a traceback
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE and error.filename is None:
            code = _fail(f"cannot write the output: {error.strerror}", WRONG)
        else:
            advice = "" if _strict() else " (GPUMON_STRICT=1 shows where)"
            code = _fail(f"this is a bug of gpumon: {type(error).__name__}: {error}{advice}", WRONG)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    if _strict():
        traceback.print_exc()
    click.echo(f"gpumon: {' '.join(message.split())}", err=True)
    return code


def _strict() -> bool:
    return os.environ.get("GPUMON_STRICT") == "1"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpumon", message="%(prog)s %(version)s")
def commands() -> None:
    """Where a training step's time goes, and which device is the cause.

    \b
    Examples:
        gpumon run -- python train.py
        gpumon report
    """


@commands.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Record into DIR itself. Default: $GPUMON_RUN_DIR, else a new folder under gpumon-runs/.",
)
@click.option("--no-report", is_flag=True, help="Print no report at the end; `gpumon report` does it later.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD [ARG]...")
def run(out: Path | None, no_report: bool, command: tuple[str, ...]) -> int:
    """Record a training, then print the report.

    Nothing has to be changed in it: gpumon starts inside every Python that trains, those of torchrun too.
    The report goes to stderr, the exit code is the command's own (128+n when signal n ended it).

    \b
    Examples:
        gpumon run -- python train.py --epochs 3
        gpumon run --out runs/baseline -- torchrun --nproc-per-node 8 train.py
        gpumon run --no-report -- python -m mypackage.train
    """
    from gpumon.run import run as record

    return record(command, out=out, report=not no_report)


@commands.command()
@click.argument("run", required=False, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON (schema gpumon.report/1).")
def report(run: str | None, as_json: bool) -> None:
    """Say where a recorded run's time went.

    RUN is a run directory, a file that the OpenTelemetry Collector's file exporter wrote (FILE?run=ID for another
    than its newest run), the URL of either
    (s3://, gs://, …; fetched for the moment), or a ClickHouse that holds runs
    (clickhouse://user@host:8123/database?run=ID&secure=1; without run= the newest one; the password in
    CLICKHOUSE_PASSWORD). Default: the newest run under gpumon-runs/.

    \b
    Examples:
        gpumon report
        gpumon report gpumon-runs/20261124T140211-train-7f3a91
        gpumon report --json | jq .verdict
        gpumon report s3://bucket/runs/20261124T140211-train-7f3a91
        gpumon report 'clickhouse://gpumon@clickhouse:8123/otel?run=7f3a91'
    """
    from gpumon.analysis.report import build_report

    result = build_report(run)
    if as_json:
        import json

        click.echo(json.dumps(result.as_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        from gpumon.analysis.render_text import write_report

        write_report(result, sys.stdout)


@commands.command()
@click.argument("run_and_url", nargs=-1, required=True, metavar="[RUN] URL")
@click.option(
    "--signal",
    "signals",
    multiple=True,
    type=click.Choice(["traces", "metrics", "logs"]),
    help="Only this signal; may be repeated. Default: all that the run has.",
)
@click.option("--replace", is_flag=True, help="Delete first what ClickHouse has of the run's signals.")
def export(run_and_url: tuple[str, ...], signals: tuple[str, ...], replace: bool) -> int:
    """Send a recorded run to a backend, with its own times.

    RUN is a run directory, a Collector's file, or the URL of either; default: the newest run under gpumon-runs/.
    URL is a ClickHouse (clickhouse://user@host:8123/database), where a run that is there already is refused,
    or an OTLP receiver (http://host:4318), for which OTEL_EXPORTER_OTLP_PROTOCOL, …_HEADERS, …_COMPRESSION
    and …_CERTIFICATE hold. Exit code 1 where something was refused.

    \b
    Examples:
        gpumon export clickhouse://gpumon@clickhouse:8123/otel
        gpumon export gpumon-runs/20261124T140211-train-7f3a91 http://collector:4318
        gpumon export --signal traces http://jaeger:4318
    """
    from gpumon.bench.render import progress
    from gpumon.export import export as send

    *runs, url = run_and_url
    if len(runs) > 1:
        raise click.UsageError(f"one run at a time, not {len(runs)}")
    with progress(sys.stderr) as show:
        outcome = send(runs[0] if runs else None, url, signals=signals, replace=replace, progress=show)
    for line in outcome.lines():
        click.echo(line)
    return 0 if outcome.is_whole else FAILED


@commands.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.argument("url")
@click.option("--live", is_flag=True, help="Runs that are still being recorded too, as far as they are.")
@click.option("--delete", is_flag=True, help="Delete each run here once all of it was verified there.")
def archive(runs: tuple[Path, ...], url: str, live: bool, delete: bool) -> int:
    """Copy recorded runs to object storage, and verify the copies.

    RUN is a run directory; default: the newest one under gpumon-runs/. Each gets a folder of its own name below
    URL (s3://, gs://, file:// … whatever fsspec reaches: pip install s3fs, gcsfs …). Lines are gzip'ed on the way,
    everything is read back and compared; what is there and equal is not copied again. Credentials are those that
    the library finds by itself (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS …).
    Exit code 1 where one of several runs could not be archived.

    \b
    Examples:
        gpumon archive s3://bucket/runs
        gpumon archive gpumon-runs/20261124T140211-train-7f3a91 gs://bucket/runs
        gpumon archive --delete gpumon-runs/* s3://bucket/runs
        gpumon archive --live gpumon-runs/20261124T140211-train-7f3a91 file:///mnt/archive
    """
    from gpumon.analysis.load import newest_run
    from gpumon.archive import archive as copy
    from gpumon.bench.render import progress

    code = 0
    for run in runs or (newest_run(),):
        try:
            with progress(sys.stderr) as show:
                outcome = copy(run, url, live=live, delete=delete, progress=show)
        except GpumonError as error:
            if len(runs) < 2:
                raise
            code = FAILED
            _fail(str(error), code)
            continue
        for line in outcome.lines():
            click.echo(line)
    return code


@commands.group()
def views() -> None:
    """The SQL views in ClickHouse, and the tables below them.

    \b
    Examples:
        gpumon views install --tables --ttl-days 90 clickhouse://admin@clickhouse:8123/otel
        gpumon views sql
    """


_TABLES = click.option("--tables", is_flag=True, help="Our tables too, where there are none.")
_TTL = click.option("--ttl-days", type=click.IntRange(1), metavar="N", help="With --tables: rows go after N days.")
_CLUSTER = click.option(
    "--cluster", metavar="NAME", help="ON CLUSTER; with --tables: Distributed tables over a local one per node."
)
_REPLICATED = click.option(
    "--replicated", is_flag=True, help="With --tables: ReplicatedMergeTree (needs Keeper and the macros)."
)


@views.command("install")
@click.argument("url")
@_TABLES
@_TTL
@_CLUSTER
@_REPLICATED
def views_install(url: str, tables: bool, ttl_days: int | None, cluster: str | None, replicated: bool) -> None:
    """Create the views in a ClickHouse, and say what was created.

    URL is clickhouse://user@host:8123/database (&secure=1 for TLS; the password in CLICKHOUSE_PASSWORD). The
    tables are those of the Collector's ClickHouse exporter: its own, or ours (--tables), which keep the times
    of metrics in nanoseconds. What is there already stays; views of another gpumon are replaced.

    \b
    Examples:
        gpumon views install clickhouse://localhost:8123/otel
        gpumon views install --tables --ttl-days 90 clickhouse://admin@clickhouse:8123/otel
        gpumon views install --tables --cluster prod --replicated 'clickhouse://admin@ch1:8443/otel?secure=1'
    """
    from gpumon.analysis.clickhouse.address import parse
    from gpumon.analysis.clickhouse.install import ensure_database, install, layout_of
    from gpumon.analysis.clickhouse.server import Server

    address, layout = parse(url), layout_of(tables, ttl_days, cluster, replicated)
    if layout is not None and ensure_database(address, cluster):
        click.echo(f"created database: {address.database}")
    with Server(address) as server:
        for line in install(server, layout=layout, cluster=cluster).lines():
            click.echo(line)


@views.command("sql")
@_TABLES
@_TTL
@_CLUSTER
@_REPLICATED
def views_sql(tables: bool, ttl_days: int | None, cluster: str | None, replicated: bool) -> None:
    """Print the statements, for somebody else to run.

    \b
    Examples:
        gpumon views sql | clickhouse-client --database otel
        gpumon views sql --tables --ttl-days 90 > otel.sql
    """
    from gpumon.analysis.clickhouse.install import layout_of, script

    click.echo(script(layout_of(tables, ttl_days, cluster, replicated), cluster), nl=False)


@commands.command()
@click.argument("fields", nargs=-1, metavar="[FIELD]...")
@click.option(
    "--every",
    type=click.FloatRange(0.05, 86400),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between rows; the first one comes after as many.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json"]),
    default="csv",
    show_default=True,
    help="A table with a header, or an object per line.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N ticks.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="PATTERN",
    help="Only this device (nvme0n1, sda1, gpu0, a GPU's UUID), or those like 'nvme*'; may be repeated. "
    "Default: all GPUs and whole disks.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Append to FILE instead of stdout."
)
@click.option(
    "--rotate-mb",
    type=click.FloatRange(0),
    default=64.0,
    show_default=True,
    metavar="MIB",
    help="Size at which FILE becomes FILE.1; five older ones are kept. 0: never.",
)
@click.option("--list", "as_list", is_flag=True, help="Print all fields with unit, origin and meaning.")
def sample(
    fields: tuple[str, ...],
    every: float,
    form: str,
    count: int | None,
    devices: tuple[str, ...],
    out: Path | None,
    rotate_mb: float,
    as_list: bool,
) -> None:
    """Log GPUs and disks as rows on one time line.

    FIELD is a name of nvidia-smi (utilization.gpu), of iostat (r_await), or of a metric
    (gpumon.disk.await[read]); units and formulas are those of the tool that the name is from.
    One row per device and tick: time, device, type, then the fields; empty where a device has none.

    \b
    Examples:
        gpumon sample
        gpumon sample utilization.gpu memory.used r/s r_await %util --every 1
        gpumon sample --out gpu.csv --every 10
        gpumon sample --format json --count 1 | jq .
        gpumon sample --list
    """
    from gpumon import sample as sampling

    if as_list:
        click.echo("\n".join(sampling.describe()))
        return
    sampling.sample(fields, every_s=every, form=form, count=count, out=out, rotate_mb=rotate_mb, devices=devices)


@commands.command()
@click.argument("path", type=click.Path())
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Readers of the loader's pattern: its num_workers. Default: two per usable CPU, at most 8.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON (schema gpumon.bench/1).")
def bench(path: str, parallel: int | None, as_json: bool) -> int:
    """Measure how fast PATH's storage can be read.

    PATH is a file or folder of the data set. Its files are read past the page cache, in order and in random
    order, for about 12 s per device; nothing is written, evicted or cached, and no root is needed. The result
    is kept, and reports of later runs are held against it.

    \b
    Examples:
        gpumon bench /data/imagenet
        gpumon bench /data/imagenet --parallel 16
        gpumon bench /data/train.h5 --json | jq .storages[].patterns
    """
    from gpumon.bench import bench as measure
    from gpumon.bench.apart import apart
    from gpumon.bench.render import progress, write_bench

    with progress(sys.stderr) as show:
        result = apart(lambda report: measure(path, parallel=parallel, progress=report), show)
    if as_json:
        import json

        click.echo(json.dumps(result.as_dict(), indent=1, allow_nan=False))
    else:
        write_bench(result, sys.stdout)
    return FAILED if result.is_failed else 0


@commands.command()
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen at PATH. Default: GPUMON_AGENT_SOCKET, else /run/gpumon/agent.sock.",
)
@click.option(
    "--group",
    metavar="NAME",
    help="The group whose members may ask. Default: gpumon, where it exists; else root alone.",
)
@click.option(
    "--prometheus",
    metavar="HOST:PORT",
    help="Serve /metrics there, too. A port alone is on the loopback interface.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read GPUMON_… and OTEL_… settings from FILE, one NAME=VALUE per line; again on SIGHUP.",
)
@click.option("--once", is_flag=True, help="Print one round of readings as JSON lines, and end.")
def agent(socket: Path | None, group: str | None, prometheus: str | None, config: Path | None, once: bool) -> None:
    """Read this machine's devices for all who may not.

    One per machine, as root: GPUs, disks and their health, over OTLP where an endpoint is named, to Prometheus,
    and on a Unix socket to trainings in containers and of other users. SIGHUP reloads, SIGTERM ends it.

    \b
    Examples:
        gpumon agent --once | jq -c 'select(.metric == "hw.temperature")'
        gpumon agent --group gpumon --prometheus 9464
        gpumon agent --config /etc/gpumon/agent.conf
    """
    if once:
        from gpumon.agent.once import print_once
        from gpumon.agent.settings import apply, read_settings

        print_once(apply(read_settings(config, os.environ)))
        return
    from gpumon.agent.service import Options, serve

    serve(Options(socket, group, prometheus, config))


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON (schema gpumon.doctor/1).")
@click.option("--quick", is_flag=True, help="Do not ask the frameworks whether they see the GPU: that imports them.")
@click.option(
    "--run",
    "recorded",
    metavar="RUN",
    help="Hold this run's num_workers against the CPUs: a directory, a file or the URL of one. "
    "Default: the newest run under gpumon-runs/.",
)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def doctor(as_json: bool, quick: bool, recorded: str | None, paths: tuple[str, ...]) -> int:
    """Check the set-up, and name the command that repairs it.

    PATH is where the data set lies: which disk is behind it?
    Nothing is changed, and no check needs root. Exit code 1 where a check failed.

    \b
    Examples:
        gpumon doctor
        gpumon doctor /data/imagenet
        gpumon doctor --json | jq '.checks[] | select(.status == "failed")'
    """
    from gpumon.doctor import Place
    from gpumon.doctor import doctor as examine

    is_well = examine(Place(paths=paths, run=recorded, quick=quick), sys.stdout, as_json=as_json)
    return 0 if is_well else FAILED


@commands.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Record into DIR itself. Default: a new folder under gpumon-runs/.",
)
def demo(out: Path | None) -> int:
    """Train a small model and print the report.

    The model is real, and reads files that are written to this disk first.

    \b
    Examples:
        gpumon demo
        gpumon demo --out /data/gpumon-demo
    """
    from gpumon.demo import main as train

    return train(out)


if __name__ == "__main__":
    main()
