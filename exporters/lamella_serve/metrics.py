"""What the models have done, for Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats"""

from __future__ import annotations

from collections.abc import Iterable

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from lamella_serve.repository import Repository

__all__ = ["exposition"]

_LABELS = ("model", "version")


class _Collector:
    """Reads the counts when they are asked for, so that requests pay nothing."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("lamella_requests", "Requests answered", labels=[*_LABELS, "status"])
        latency = HistogramMetricFamily("lamella_request_seconds", "From arrival to answer", labels=_LABELS)
        rows = CounterMetricFamily("lamella_rows", "Rows that went through the model", labels=_LABELS)
        batch = HistogramMetricFamily("lamella_batch_rows", "Rows of one run of the model", labels=_LABELS)
        waiting = GaugeMetricFamily("lamella_queue_requests", "Requests that wait for the model", labels=_LABELS)
        for model in self._repository:
            names, counted = (model.name, str(model.version)), model.statistics
            for status, count in sorted(counted.statuses.items()):
                requests.add_metric([*names, str(status)], count)
            latency.add_metric(names, counted.latency.buckets(), counted.latency.sum)
            rows.add_metric(names, counted.rows)
            batch.add_metric(names, counted.batch.buckets(), counted.batch.sum)
            waiting.add_metric(names, len(model.queue))
        return [requests, latency, rows, batch, waiting]


def exposition(repository: Repository, accept: str) -> tuple[bytes, str]:
    """Return the metrics as the reader accepts them, and their media type."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collector(repository))
    prometheus_client.ProcessCollector(registry=registry)
    try:
        write, kind = choose_encoder(accept)
    except Exception:  # it takes what readers send for well-formed
        write, kind = choose_encoder("")
    return write(registry), kind
