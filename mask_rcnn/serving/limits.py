"""The limits of a server, and the deadline of a request."""

from __future__ import annotations

import time
from dataclasses import dataclass

#: Bytes of a mebibyte, the unit of ``--max-size``.
MIB = 1 << 20

#: Seconds after which a refused client may try again.
RETRY_AFTER = 1


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Args:
        max_bytes: Maximum size of a request body.
        max_pixels: Maximum number of pixels of an image.
        queue: Maximum number of requests that wait for the model or run; further requests have status 429.
        batch_size: Maximum number of images in a batch; ``None`` for
            :data:`~mask_rcnn.inference.predictor.GPU_BATCH_SIZE` on a GPU and 1 on the CPU.
        timeout: Maximum time of a request from its header to its answer, in seconds.
        idle_timeout: Maximum time in seconds for the header of a request, between two parts of an upload or of an
            answer, and without a request on an open connection.
        min_upload_rate: Minimum number of bytes per second of an upload, after ``idle_timeout`` seconds.
    """

    max_bytes: int = 20 * MIB
    max_pixels: int = 50_000_000
    queue: int = 32
    batch_size: int | None = None
    timeout: float = 60.0
    idle_timeout: float = 10.0
    min_upload_rate: int = 4096

    @property
    def max_uploads(self) -> int:
        """Maximum number of request bodies that are received at the same time, which bounds their memory."""
        return 2 * self.queue + 16


class Deadline:
    """The end of a request's time.

    Args:
        seconds: The time from now.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """The seconds that are left, at least 0."""
        return max(self._end - time.monotonic(), 0.0)
