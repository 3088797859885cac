"""Under an application's own OpenTelemetry providers: gpumon uses them and replaces nothing.

    python examples/own_providers.py

Set before or after `gpumon.instrument()`, the signals are the same. Here they go to the console; put OTLP
exporters in their place to send them to a Collector.
"""

import json

import torch
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from torch.utils.data import DataLoader, TensorDataset

import gpumon


def one_line_a_metric(data):
    names = {
        metric.name: len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    return json.dumps({"points": names}) + "\n"


def main():
    resource = Resource.create({"service.name": "own-providers"})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"{span.name}\n")))
    trace.set_tracer_provider(traces)
    reader = PeriodicExportingMetricReader(
        ConsoleMetricExporter(formatter=one_line_a_metric), export_interval_millis=5000
    )
    metrics.set_meter_provider(MeterProvider([reader], resource))

    gpumon.instrument()

    data = TensorDataset(torch.randn(4096, 32), torch.randn(4096, 1))
    model = torch.nn.Linear(32, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(5):
        for inputs, targets in DataLoader(data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
