"""The thread that runs the model on the images of all requests, in batches.

A model may be used by several threads at the same time (:meth:`mask_rcnn.inference.predictor.Predictor.detect`), but
they would compete for the same processors.  Therefore one thread runs it: the values that it caches exist once, each
image has all processors, and the images that arrive while a batch is computed form the next batches.

The thread passes :meth:`~mask_rcnn.inference.predictor.Predictor.iter_detections` a stream of images that ends when no
image is waiting.  On a GPU, the next batch is prepared while one is computed, and a batch is not delayed for images
that may arrive later.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.predictor import GPU_BATCH_SIZE
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.device import uses_padding
from mask_rcnn.ops.runtime.gpu_errors import clear_frames, has_failed, is_gpu_error
from mask_rcnn.preprocessing.image_transform import input_transform

_logger = logging.getLogger(__name__)

_WARM_UP_SIZE = (64, 96)  # pixels; the network input has the usual size


@dataclass
class _Job:
    """An image that waits for the model.

    Args:
        pixels: ``(H, W, 3)`` uint8, RGB.
        input_size: Size of its network input; images of equal size form batches.
    """

    pixels: np.ndarray
    input_size: tuple[int, int]
    future: Future[Detections] = field(default_factory=Future)


class DetectionThread:
    """A thread that detects objects in the images that other threads submit; a context manager.

    Args:
        model (mask_rcnn.MaskRCNN): The model, which must not be changed while the thread runs.
        batch_size: Maximum number of images in a batch; ``None`` for :data:`GPU_BATCH_SIZE` on a GPU and 1 on the CPU,
            where larger batches are not faster.
        precision: Arithmetic precision of convolutions (:func:`mask_rcnn.ops.cudnn_frontend.using_precision`).
        on_batch: Called with the number of images of each batch, on the thread.
        warm_up: Whether to detect in an image of noise first, so that kernels are compiled before the first request.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int | None = None,
        precision: str = 'fp32',
        on_batch: Callable[[int], Any] | None = None,
        warm_up: bool = True,
    ):
        self.batch_size = batch_size or (GPU_BATCH_SIZE if uses_padding(model.device) else 1)
        self.is_ready = False
        self._model, self._precision = model, precision
        self._on_batch = on_batch or (lambda n_images: None)
        self._warms_up = warm_up
        self._condition = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._is_closed = self._gpu_has_failed = False
        self._thread = threading.Thread(target=self._run, name='detection', daemon=True)

    def __enter__(self) -> DetectionThread:
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        self.close(finish=error_type is None)

    def close(self, *, finish: bool = True) -> None:
        """End the thread.

        Args:
            finish: Whether to process the images that wait; otherwise they are dropped, and the present batch is not
                waited for.
        """
        with self._condition:
            self._is_closed = True
            if not finish:
                for job in self._waiting:
                    job.future.cancel()
            self._condition.notify()
        if finish:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """True if the thread runs and its GPU works: one that has failed works again in another process only."""
        return self._thread.is_alive() and not self._gpu_has_failed

    @property
    def n_waiting(self) -> int:
        """The number of images that wait for the model."""
        return len(self._waiting)

    def submit(self, pixels: np.ndarray) -> Future[Detections]:
        """Add an image to the queue.

        Args:
            pixels: ``(H, W, 3)`` uint8, RGB.

        Returns:
            The future detections.  An image whose future is cancelled before the model takes it is skipped.

        Raises:
            RuntimeError: The thread is closed.
        """
        height, width = pixels.shape[:2]
        job = _Job(pixels, input_transform((height, width), self._model.config).input_size)
        with self._condition:
            if self._is_closed:
                raise RuntimeError('the thread is closed')
            self._waiting.append(job)
            self._condition.notify()
        return job.future

    def _run(self) -> None:
        with using_precision(self._precision), cache_weights():
            if self._warms_up:
                self._warm_up()
            self.is_ready = True
            while self._wait():
                self._detect_waiting()

    def _warm_up(self) -> None:
        """Detect in noise and compute all kinds of answers: this compiles kernels and loads fonts."""
        pixels = np.random.RandomState(0).randint(0, 256, (*_WARM_UP_SIZE, 3), np.uint8)
        try:
            (found,) = self._model.detect([pixels])
            detections = found if len(found) else _make_detections(self._model)
            detections.to_coco(0)
            detections.draw(pixels)
        except MemoryError as error:
            _logger.warning('the detection in an image of noise failed: not enough memory: %s', error)
        except Exception:
            _logger.exception('the detection in an image of noise failed')

    def _wait(self) -> bool:
        """Wait for an image; returns ``False`` if the thread is closed and there is none."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._is_closed)
            return bool(self._waiting)

    def _detect_waiting(self) -> None:
        """Detect in all images that wait; an error of one image does not concern the others."""
        begun: deque[_Job] = deque()
        try:
            for detections in self._model.iter_detections(self._take_images(begun), batch_size=self.batch_size):
                begun.popleft().future.set_result(detections)
        except Exception:
            pass  # further work must wait for the end of this block: until then, the error keeps its arrays
        while begun:
            self._detect_alone(begun.popleft())

    def _detect_alone(self, job: _Job) -> None:
        try:
            (detections,) = self._model.detect([job.pixels], batch_size=1)
        except Exception as error:
            clear_frames(error)  # the request keeps the error until it is answered
            self._gpu_has_failed = is_gpu_error(error) and has_failed(self._model.device)
            job.future.set_exception(error)
        else:
            job.future.set_result(detections)

    def _take_images(self, begun: deque[_Job]) -> Iterator[np.ndarray]:
        """Yield the images that wait and append their jobs to ``begun``; images of equal size follow each other."""
        n_images, input_size = 0, None
        while (job := self._take(input_size if n_images < self.batch_size else None)) is not None:
            if n_images and (job.input_size != input_size or n_images == self.batch_size):
                self._on_batch(n_images)
                n_images = 0
            n_images, input_size = n_images + 1, job.input_size
            begun.append(job)
            yield job.pixels
            del job
        if n_images:
            self._on_batch(n_images)

    def _take(self, input_size: tuple[int, int] | None) -> _Job | None:
        """Return the first job with an image of a size, otherwise the first one; ``None`` if no job waits.

        A job is overtaken by fewer than ``batch_size`` others, because the next batch begins with the first job.
        """
        with self._condition:
            while self._waiting:
                same = (i for i, job in enumerate(self._waiting) if job.input_size == input_size)
                index = next(same, 0)
                job = self._waiting[index]
                del self._waiting[index]
                if job.future.set_running_or_notify_cancel():
                    return job
        return None


def _make_detections(model: Any) -> Detections:
    """Return a detection in the image of noise, if the model has found none."""
    config = model.config
    return Detections(
        boxes=np.array([[8, 8, 40, 56]], np.float32),
        labels=np.zeros(1, np.int32),
        scores=np.ones(1, np.float32),
        size=_WARM_UP_SIZE,
        mask_probs=np.ones((1, 28, 28), np.float32) if config.masks else None,
        class_names=model.class_names,
        category_ids=model.category_ids,
        dialect=config.dialect,
    )
