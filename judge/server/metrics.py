"""What `/metrics` shows, in Prometheus' format. Every label has a closed set of values, whatever strangers send."""

import math
from collections.abc import Callable, Sequence
from typing import get_args

from judge.errors import ImageStatus

OTHER = "other"
_STAGES = frozenset({"door", "filter", "student", "judge"})
_IMAGE_STATUSES = frozenset({"ok", *get_args(ImageStatus)})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server; safe to use from all threads."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = to = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory and processor time
        self._requests = Counter(
            "arbiter_requests_total", "HTTP requests.", ("route", "method", "status"), registry=to
        )
        self._request_seconds = Histogram(
            "arbiter_request_seconds",
            "Time from request to answer.",
            ("route",),
            buckets=_SECONDS,
            registry=to,
        )
        self._verdicts = Counter(
            "arbiter_verdicts_total",
            "Verdicts, by status and by the stage that decided.",
            ("status", "stage"),
            registry=to,
        )
        self._images = Counter(
            "arbiter_images_total", "Images, by whether they could be opened.", ("status",), registry=to
        )
        self._decode_seconds = Histogram(
            "arbiter_decode_seconds",
            "Time to open an image, waiting included.",
            buckets=_SECONDS,
            registry=to,
        )
        self._queue_seconds = Histogram(
            "arbiter_queue_seconds",
            "Time an opened image waited to be scored.",
            buckets=_SECONDS,
            registry=to,
        )
        self._score_seconds = Histogram(
            "arbiter_score_seconds", "Time the classifier took for a batch.", buckets=_SECONDS, registry=to
        )
        self._batch_images = Histogram(
            "arbiter_batch_images", "Images in a batch.", buckets=_IMAGES, registry=to
        )
        self._pending = Gauge(
            "arbiter_pending_images", "Images that were accepted and not answered.", registry=to
        )
        self._queued = Gauge("arbiter_queue_images", "Opened images that wait to be scored.", registry=to)
        self._ready = Gauge("arbiter_ready", "1 while questions are accepted.", registry=to)
        self._draining = Gauge("arbiter_draining", "1 while the server is shutting down.", registry=to)
        self._records_errors = Counter(
            "arbiter_records_errors_total",
            "Requests that failed because the database could not be used.",
            registry=to,
        )
        self._free_bytes = Gauge(
            "arbiter_state_free_bytes", "Free space where the queue's images are.", registry=to
        )
        self._free_bytes.set(math.nan)  # of a server without records

    def watch(
        self,
        pending: Callable[[], float],
        queued: Callable[[], float],
        ready: Callable[[], float],
        draining: Callable[[], float],
    ) -> None:
        """Where the gauges' numbers come from."""
        self._pending.set_function(pending)
        self._queued.set_function(queued)
        self._ready.set_function(ready)
        self._draining.set_function(draining)

    def watch_disk(self, free_bytes: Callable[[], float]) -> None:
        """Where the free space comes from."""
        self._free_bytes.set_function(free_bytes)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the path as the application declares it, never as it was asked for.
            method: of the request; what the application does not declare is `other`.
            status: of the answer.
            seconds: from the request to the end of the answer.
        """
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def opened(self, status: str, seconds: float) -> None:
        """An image was opened (`ok`) or could not be: an image status."""
        self._images.labels(status if status in _IMAGE_STATUSES else OTHER).inc()
        self._decode_seconds.observe(seconds)

    def scored(self, images: int, waited: Sequence[float], seconds: float) -> None:
        """A batch was scored (`judge.server.batching.Watcher`)."""
        self._batch_images.observe(images)
        self._score_seconds.observe(seconds)
        for wait in waited:
            self._queue_seconds.observe(wait)

    def concluded(self, status: str, stage: str) -> None:
        """A question was answered."""
        self._verdicts.labels(status, stage if stage in _STAGES else OTHER).inc()

    def records_failed(self) -> None:
        """A request needed the database, which could not be used."""
        self._records_errors.inc()

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
