"""What Grafana and Prometheus show of gpumon, as code over the catalogue of metrics.

`python -m monitoring` (`make docs`) writes grafana/dashboards/, prometheus/rules/gpumon.yml and docs/alerts.md;
a test fails where they differ.
"""
