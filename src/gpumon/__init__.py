"""OpenTelemetry for deep-learning training: where a step's time goes, and which device is the cause.

    import gpumon
    gpumon.instrument()

or, with no edit at all, `gpumon run -- python train.py`, or `opentelemetry-instrument python train.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from gpumon.tracing.manual import phase, step, steps
from gpumon.version import __version__

if TYPE_CHECKING:
    from gpumon.analysis.report import Report

__all__ = ["__version__", "instrument", "phase", "report", "step", "steps", "uninstrument"]


def instrument(
    service_name: str | None = None,
    *,
    export: str = "auto",
    endpoint: str | None = None,
    run_dir: str | PathLike[str] | None = None,
    data_paths: Sequence[str | PathLike[str]] | str = (),
    collectors: Sequence[str] | str | None = None,
    intervals: Mapping[str, float] | str | None = None,
    spans: str = "default",
    tracer_provider: Any = None,
    meter_provider: Any = None,
    logger_provider: Any = None,
) -> None:
    """Record this process' training and the devices that it uses; `uninstrument` undoes it.

    Every argument has an environment variable, `GPUMON_<ARGUMENT>`. A second call is a warning.

    Args:
        service_name: what the run is called; default `OTEL_SERVICE_NAME`, else the script's name.
        export: `auto` (default: the application's providers, else OTLP where an endpoint is named, else a
            run directory under `gpumon-runs/`), `otlp`, `file`, `otlp+file` or `auto+file` (both), or `none`.
        endpoint: OTLP endpoint; default `OTEL_EXPORTER_OTLP_ENDPOINT`.
        run_dir: the run directory to write; implies `file`.
        data_paths: files or folders that hold the data set; found by themselves when not given.
        collectors: names of the collectors to run; default all.
        intervals: seconds between collections by collector, such as `{"disk": 0.5}`.
        spans: `default` (slow, failed, first-of-epoch steps and a sample), `all`, or `none`.
        tracer_provider, meter_provider, logger_provider: providers to use instead of the global ones.

    Raises:
        ValueError: an argument or a `GPUMON_*` variable does not fit. Nothing else is ever raised.
    """
    try:
        from gpumon.instrumentor import GpumonInstrumentor
    except Exception as error:  # OpenTelemetry reads some of its variables while it is imported
        import logging
        import os

        if os.environ.get("GPUMON_STRICT") == "1":
            raise
        logging.getLogger(__name__).warning("gpumon: not recorded: %s: %s", type(error).__name__, error)
        return

    GpumonInstrumentor().instrument(
        service_name=service_name,
        export=export if export != "auto" else None,  # a default leaves the say to the environment
        endpoint=endpoint,
        run_dir=run_dir,
        data_paths=data_paths,
        collectors=collectors,
        intervals=intervals,
        spans=spans if spans != "default" else None,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        logger_provider=logger_provider,
    )


def uninstrument() -> None:
    """Restore everything that `instrument` replaced, write what is left, and end its threads."""
    module = sys.modules.get("gpumon.instrumentor")  # without it there is nothing to restore
    if module is not None:
        module.GpumonInstrumentor().uninstrument()


def report(path: str | PathLike[str] | None = None) -> Report:
    """Judge a recorded run: a run directory (default the newest under `gpumon-runs/`), an OTLP JSON file, or a URL.

    Raises:
        gpumon.errors.RunError: there is no readable run; the text is one line.
    """
    from gpumon.analysis.report import build_report

    return build_report(path)
