"""What a served model has done: counts and times, for the protocol's statistics and for Prometheus."""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections import Counter
from typing import Any

__all__ = ["Histogram", "Statistics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # of histograms
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclasses.dataclass
class _Duration:
    """How often something took place, and nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


class _Durations:
    """The three parts of a run."""

    def __init__(self) -> None:
        self._parts = {"compute_input": _Duration(), "compute_infer": _Duration(), "compute_output": _Duration()}

    def add(self, count: int, *ns: int) -> None:
        for part, taken in zip(self._parts.values(), ns, strict=True):
            part.add(count, taken * count)

    def to_json(self) -> dict[str, Any]:
        return {name: dataclasses.asdict(part) for name, part in self._parts.items()}


class Histogram:
    """How many values are at most each limit, their sum and their number."""

    def __init__(self, limits: tuple[float, ...]) -> None:
        self.limits, self.counts, self.sum = limits, [0] * (len(limits) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.limits, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """The limits with how many values are below, as Prometheus wants them."""
        total, rows = 0, []
        for limit, count in zip((*map(str, map(float, self.limits)), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((limit, float(total)))
        return rows


class Statistics:
    """Counts and times of one version of a model. It is touched by the event loop alone."""

    def __init__(self) -> None:
        self.last_inference = 0  # milliseconds since 1970
        self.rows = self.runs = 0
        self.statuses: Counter[int] = Counter()
        self.latency, self.batch = Histogram(_SECONDS), Histogram(_ROWS)
        self._success, self._fail, self._queue = _Duration(), _Duration(), _Duration()
        self._compute = _Durations()
        self._batches: dict[int, _Durations] = {}

    def ran(self, requests: int, rows: int, waited: int, joining: int, running: int, splitting: int) -> None:
        """Count one run of the model.

        Arguments:
            requests: how many it answered.
            rows: how many rows it had.
            waited: nanoseconds that the requests waited, all together.
            joining: nanoseconds to join their inputs.
            running: nanoseconds that the model took.
            splitting: nanoseconds to split its outputs.
        """
        self.last_inference = time.time_ns() // 1_000_000
        self.runs += 1
        self.rows += rows
        self.batch.add(rows)
        self._queue.add(requests, waited)
        batch = self._batches.get(rows)
        if batch is None:
            batch = self._batches[rows] = _Durations()
        batch.add(1, joining, running, splitting)
        self._compute.add(requests, joining, running, splitting)

    def answered(self, status: int, ns: int) -> None:
        """Count one request: its status, and how long it took in all."""
        self.statuses[status] += 1
        self.latency.add(ns / 1e9)
        (self._success if status == 200 else self._fail).add(1, ns)

    def to_json(self) -> dict[str, Any]:
        """The statistics as the protocol writes them."""
        nothing = dataclasses.asdict(_Duration())
        return {
            "last_inference": self.last_inference,
            "inference_count": self.rows,
            "execution_count": self.runs,
            "inference_stats": {
                "success": dataclasses.asdict(self._success),
                "fail": dataclasses.asdict(self._fail),
                "queue": dataclasses.asdict(self._queue),
                **self._compute.to_json(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [{"batch_size": rows, **taken.to_json()} for rows, taken in sorted(self._batches.items())],
        }
