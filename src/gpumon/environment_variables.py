"""Variables that `opentelemetry-instrument` offers as options (`--python_gpumon_data_paths` …).

Only names with OpenTelemetry's prefix become options; each has the meaning of `GPUMON_<FIELD>`.
"""

OTEL_PYTHON_GPUMON_DATA_PATHS = "OTEL_PYTHON_GPUMON_DATA_PATHS"
OTEL_PYTHON_GPUMON_COLLECTORS = "OTEL_PYTHON_GPUMON_COLLECTORS"
OTEL_PYTHON_GPUMON_INTERVALS = "OTEL_PYTHON_GPUMON_INTERVALS"
OTEL_PYTHON_GPUMON_SPANS = "OTEL_PYTHON_GPUMON_SPANS"
