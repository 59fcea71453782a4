"""Detection in a stream of frames: each keeps its order and its errors while the model takes several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.media.sources import FRAME_ERRORS, Frame
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.runtime.gpu_errors import clear_frames


@dataclass
class Job:
    """A frame and its detections, or an error.

    Args:
        frame: The frame; one that could not be read has an error.
    """

    frame: Frame
    detections: Detections = field(init=False)
    error: Exception | None = field(init=False)

    def __post_init__(self) -> None:
        self.error = self.frame.error

    @property
    def pixels(self) -> np.ndarray:
        """The pixels of a frame without an error."""
        assert self.frame.pixels is not None
        return self.frame.pixels

    def detect(self, model: MaskRCNN) -> None:
        """Detect in this frame alone."""
        try:
            (self.detections,) = model.detect([self.pixels], batch_size=1)
        except FRAME_ERRORS as error:
            clear_frames(error)  # this keeps the error until its frame is written
            self.error = error


class _JobQueue:
    """Jobs in the order of their frames; the model takes pixels from one end, jobs with results leave at the other.

    Args:
        frames: The frames, which are requested when the model requests them.
    """

    def __init__(self, frames: Iterable[Frame]):
        self._frames = iter(frames)
        self._begun: deque[Job] = deque()

    def read_pixels(self) -> Iterator[np.ndarray]:
        """Yield the pixels of the readable frames; a further call continues after the last frame."""
        for frame in self._frames:
            self._begun.append(Job(frame))
            del frame  # so that its pixels are freed when its results are written, while this waits for the next one
            if self._begun[-1].error is None:
                yield self._begun[-1].pixels

    def pop_unreadable(self) -> Iterator[Job]:
        """Yield the jobs before the first readable frame, or all jobs if there is no readable frame."""
        while self._begun and self._begun[0].error is not None:
            yield self._begun.popleft()

    def pop(self) -> Job:
        """Return the first job."""
        return self._begun.popleft()

    def pop_all(self) -> Iterator[Job]:
        """Yield all jobs whose frames have been read."""
        while self._begun:
            yield self._begun.popleft()


def detect_frames(model: MaskRCNN, frames: Iterable[Frame], *, batch_size: int | None = None) -> Iterator[Job]:
    """Yield a job for each frame with its detections or its error, in order.

    The model reads ahead, because it processes several images at once.  If it fails, the frames that it has read are
    processed one by one, so that only the frame that causes the error fails.

    Args:
        model: The model.
        frames: The frames.
        batch_size: See :meth:`mask_rcnn.models.MaskRCNN.iter_detections`.
    """
    queue = _JobQueue(frames)
    options = {} if batch_size is None else {'batch_size': batch_size}
    while True:
        try:
            for detections in model.iter_detections(queue.read_pixels(), **options):
                yield from queue.pop_unreadable()
                job = queue.pop()
                job.detections = detections
                yield job
                del job, detections  # free the memory before the next frame is read
        except FRAME_ERRORS:
            pass  # further work must wait for the end of this block: until then, the error keeps its arrays
        else:
            yield from queue.pop_unreadable()
            return
        for job in queue.pop_all():
            if job.error is None:
                job.detect(model)
            yield job
