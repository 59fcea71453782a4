"""The metrics of a server in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prometheus_client as prometheus

import mask_rcnn

#: Upper limits of the histogram of seconds.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one server, and the registry that contains them.

    Args:
        model_name: The model's name.
    """

    def __init__(self, model_name: str):
        self.registry = prometheus.CollectorRegistry()
        options: Any = {'registry': self.registry}
        self.requests = prometheus.Counter(
            'mask_rcnn_requests', 'Requests by path, method and status.', ('path', 'method', 'status'), **options
        )
        self.seconds = prometheus.Histogram(
            'mask_rcnn_request_seconds',
            'Time of the detection requests with an answer, from the header to the answer.',
            buckets=_SECONDS,
            **options,
        )
        self.images = prometheus.Counter('mask_rcnn_images', 'Images in which objects were detected.', **options)
        self.detections = prometheus.Counter('mask_rcnn_detections', 'Objects that were detected.', **options)
        self.batch_size = prometheus.Histogram(
            'mask_rcnn_batch_size', 'Images in a batch of the model.', buckets=_BATCH_SIZES, **options
        )
        self._queue = prometheus.Gauge('mask_rcnn_queue_length', 'Requests that wait for the model or run.', **options)
        self._uploads = prometheus.Gauge('mask_rcnn_uploads', 'Request bodies that are being received.', **options)
        info = prometheus.Gauge('mask_rcnn_info', 'The program and its model.', ('version', 'model'), **options)
        info.labels(mask_rcnn.__version__, model_name).set(1)
        prometheus.ProcessCollector(registry=self.registry)

    def observe_state(self, queue_length: Callable[[], int], n_uploads: Callable[[], int]) -> None:
        """Set the functions that return the present numbers of requests."""
        self._queue.set_function(queue_length)
        self._uploads.set_function(n_uploads)

    def count_batch(self, n_images: int) -> None:
        """Count a batch of the model."""
        self.batch_size.observe(n_images)

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return prometheus.generate_latest(self.registry)


#: The media type of :meth:`Metrics.text`.
METRICS_TYPE = prometheus.CONTENT_TYPE_LATEST
