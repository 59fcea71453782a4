"""Detection for requests: admission, decoding, the model and the encoding of answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from mask_rcnn.serving.answers import AnswerFormat, DefaultScores, encode_answer
from mask_rcnn.serving.batching import DetectionThread
from mask_rcnn.serving.errors import ClientDisconnected, RequestError
from mask_rcnn.serving.limits import RETRY_AFTER, Deadline, Limits
from mask_rcnn.serving.metrics import Metrics
from mask_rcnn.serving.uploads import Upload, decode_image, open_upload, read_upload

_Result = TypeVar('_Result')


class DetectionService:
    """A model with the limits of a server; a context manager that runs the threads.

    The event loop's thread admits requests and reads their images.  A few threads decode images and encode answers, and
    one thread runs the model (:mod:`mask_rcnn.serving.batching`).  The numbers of requests change on the event
    loop's thread only.

    Args:
        model (mask_rcnn.MaskRCNN): The model.
        name: Its name in answers.
        limits: The limits.
        picture_score: Minimum score in pictures without a parameter.
        precision: Arithmetic precision of convolutions.
        warm_up: Whether to run the model once before the server is ready.

    Attributes:
        metrics (Metrics): The metrics.
        is_stopping (bool): True if further requests are refused.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        *,
        limits: Limits | None = None,
        picture_score: float = 0.0,
        precision: str = 'fp32',
        warm_up: bool = True,
    ):
        self.model, self.limits = model, limits or Limits()
        self.name = name.encode('utf-8', 'replace').decode()  # names of files may have bytes that are not UTF-8
        self.default_scores = DefaultScores(model.config.score_threshold, picture_score)
        self.metrics = Metrics(self.name)
        self.is_stopping = False
        self.n_admitted = self.n_uploads = 0
        self.metrics.observe_state(lambda: self.n_admitted, lambda: self.n_uploads)
        self._worker = DetectionThread(
            model,
            batch_size=self.limits.batch_size,
            precision=precision,
            on_batch=self.metrics.count_batch,
            warm_up=warm_up,
        )
        self._executor = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix='image')
        self._decoded = asyncio.Semaphore(2 * self._worker.batch_size + 1)

    def __enter__(self) -> DetectionService:
        self._worker.__enter__()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        finish = error_type is None
        self.stop()
        self._worker.close(finish=finish)
        self._executor.shutdown(wait=finish, cancel_futures=not finish)

    def stop(self) -> None:
        """Refuse further requests; those that have been taken are answered."""
        self.is_stopping = True

    @property
    def batch_size(self) -> int:
        """Maximum number of images in a batch."""
        return self._worker.batch_size

    @property
    def is_alive(self) -> bool:
        """True if the thread of the model runs."""
        return self._worker.is_alive

    @property
    def state(self) -> str:
        """The state of the server: ``'loading'``, ``'ready'`` or ``'stopping'``."""
        if self.is_stopping:
            return 'stopping'
        return 'ready' if self._worker.is_ready and self._worker.is_alive else 'loading'

    async def detect(self, request: Request) -> Response:
        """Answer a detection request.

        Raises:
            RequestError: The request is refused.
        """
        start, deadline = time.perf_counter(), Deadline(self.limits.timeout)
        self._check_open()
        parameters = request.query_params
        answer = AnswerFormat.parse(dict(parameters), len(parameters.multi_items()), request.headers.get('accept'))
        with self._count_upload():
            upload = await read_upload(request.receive, request.headers, self.limits, deadline)
        with self._admit():
            response = await _run_until_disconnect(self._answer(upload, answer), request.receive, deadline)
        self.metrics.seconds.observe(time.perf_counter() - start)
        return response

    def _check_open(self) -> None:
        if self.is_stopping:
            raise RequestError(503, 'the server is stopping', retry_after=RETRY_AFTER)
        if self.n_admitted >= self.limits.queue or self.n_uploads >= self.limits.max_uploads:
            raise _queue_full()

    @contextlib.contextmanager
    def _count_upload(self) -> Iterator[None]:
        self.n_uploads += 1
        try:
            yield
        finally:
            self.n_uploads -= 1

    @contextlib.contextmanager
    def _admit(self) -> Iterator[None]:
        if self.n_admitted >= self.limits.queue:
            raise _queue_full()
        self.n_admitted += 1
        try:
            yield
        finally:
            self.n_admitted -= 1

    async def _answer(self, upload: Upload, answer: AnswerFormat) -> Response:
        """Decode an image, detect in it and encode the answer."""
        start = time.perf_counter()
        apply_orientation = self.model.config.dialect.input.apply_orientation
        try:
            data, header = await self._run(lambda: open_upload(upload, self.limits))
            answer.check_size(header.size)
            async with self._decoded:  # few images are in memory, however many requests wait
                pixels = await self._run(lambda: decode_image(data, header, apply_orientation=apply_orientation))
                decoded = time.perf_counter()
                detections = await asyncio.wrap_future(self._worker.submit(pixels))
                detected = time.perf_counter()
                content = await self._run(
                    lambda: encode_answer(detections, pixels, answer, self.default_scores, self.name, start)
                )
        except MemoryError:
            raise RequestError(503, 'not enough memory for this image', retry_after=RETRY_AFTER) from None
        self.metrics.images.inc()
        self.metrics.detections.inc(len(detections))
        timing = f'decode;dur={1000 * (decoded - start):.1f}, detect;dur={1000 * (detected - decoded):.1f}'
        headers = {'Server-Timing': timing, 'Vary': 'Accept'}
        return Response(content, media_type=answer.media_type, headers=headers)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _queue_full() -> RequestError:
    return RequestError(429, 'too many requests wait; try again later', retry_after=RETRY_AFTER)


async def _run_until_disconnect(work: Coroutine[Any, Any, _Result], receive: Receive, deadline: Deadline) -> _Result:
    """Return the result of a coroutine, which is cancelled if the client disconnects or the request's time ends.

    Raises:
        ClientDisconnected: The client has closed the connection.
        RequestError: The time has ended.
    """
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, timeout=deadline.remaining, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if disconnect.done():
            raise ClientDisconnected
        raise RequestError(
            503, f'no answer within {deadline.seconds:g} s, the limit of this server', retry_after=RETRY_AFTER
        )
    finally:
        for future in (task, disconnect):
            future.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())['type'] != 'http.disconnect':
        pass
