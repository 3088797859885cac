"""The command line. What a command needs is imported inside it, so that `gpumon --help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import click

from gpumon.errors import GpumonError
from gpumon.version import __version__

FAILED, WRONG = 1, 2
"""Exit codes: a check or a limit failed; wrong usage or unreadable input."""


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
    help="Record into DIR itself. Default: a new folder under gpumon-runs/.",
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
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON (schema gpumon.report/1).")
def report(run: Path | None, as_json: bool) -> None:
    """Say where a recorded run's time went.

    RUN is a run directory, or a file that the OpenTelemetry Collector's file exporter wrote.
    Default: the newest run under gpumon-runs/.

    \b
    Examples:
        gpumon report
        gpumon report gpumon-runs/20261124T140211-train-7f3a91
        gpumon report --json | jq .verdict
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
