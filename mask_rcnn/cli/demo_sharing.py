"""Images of ``mask-rcnn demo`` that several processes share: each writes its pictures, process 0 all other files."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.demo_jobs import Job
from mask_rcnn.cli.demo_sinks import Drawing
from mask_rcnn.cli.demo_sources import STANDARD_INPUT
from mask_rcnn.cli.demo_writer import FrameWriter, ReportedError, describe_error
from mask_rcnn.inference.detections import Detections
from mask_rcnn.media.sources import Frame, Source

#: Number of pictures per thread that wait for the thread or for process 0.
_PICTURES_PER_THREAD = 2


def check_can_share(args: argparse.Namespace) -> None:
    """Refuse options that need the images in one process.

    Args:
        args: ``camera``, ``image``, ``show`` and ``track``.

    Raises:
        UsageError: There is such an option.
    """
    reasons = {
        '--camera': (args.camera is not None, 'a camera cannot be shared by processes'),
        '--image': (STANDARD_INPUT in (args.image or ()), 'the standard input cannot be shared by processes'),
        '--show': (args.show, 'a window shows the pictures of one process'),
        '--track': (args.track, 'objects are followed from each image to the next one, in one process'),
    }
    for option, (is_given, reason) in reasons.items():
        if is_given:
            raise UsageError(f'{option}: {reason}; start mask-rcnn demo without mpiexec')


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse videos, whose frames are read and written in their order.

    Raises:
        UsageError: There is a video.
    """
    for source in sources:
        if source.is_video:
            raise UsageError(
                f'{source.name}: a video cannot be shared by processes; start mask-rcnn demo without mpiexec, or with '
                'the frames as images'
            )


@dataclass(frozen=True)
class Outcome:
    """The work of a process on an image, whose picture is written; see :class:`~mask_rcnn.cli.demo_sinks.Drawing`.

    Args:
        shown: The detections of the picture.
        results: The results for the files.
        place: The picture that was written, or ``None``.
        error: The first error, as a line.
        is_unreadable: Whether the image has no detections because of the error.
    """

    shown: Detections | None
    results: list[Any]
    place: str | None
    error: str | None
    is_unreadable: bool

    @classmethod
    def of(cls, drawing: Drawing) -> Outcome:
        """Return the outcome of a drawing."""
        job = drawing.job
        error = None if drawing.error is None else describe_error(job.frame.name, drawing.error)
        return cls(drawing.shown, drawing.results, drawing.place, error, job.error is not None)

    def to_drawing(self, source: Source) -> Drawing:
        """Return a drawing of an image, for :meth:`~mask_rcnn.cli.demo_writer.FrameWriter.write`."""
        error = None if self.error is None else ReportedError(self.error)
        job = Job(Frame(source, None, error=error if self.is_unreadable else None))
        return Drawing(job, self.shown, results=self.results, place=self.place, error=error)


def compute_outcomes(
    sources: Sequence[Source],
    detect: Callable[[Sequence[Source]], Generator[Job, None, None]],
    writer: FrameWriter,
    *,
    skipped: set[int],
    n_threads: int,
) -> Iterator[Outcome | None]:
    """Detect in images, and draw and write their pictures in threads.

    Args:
        sources: The images.
        detect: Returns the jobs of some images, in order.
        writer: Draws and writes the pictures.
        skipped: The identities of images that cannot be read.
        n_threads: Number of threads.

    Yields:
        The outcome of each image, ``None`` for the skipped ones.
    """
    pending: deque[Future[Outcome] | None] = deque()
    jobs = detect([source for source in sources if id(source) not in skipped])
    with ThreadPoolExecutor(n_threads, thread_name_prefix='drawing') as pool:
        for source in sources:
            if id(source) in skipped:
                pending.append(None)
            else:
                pending.append(pool.submit(_finish, writer, writer.begin(next(jobs))))
            if len(pending) > _PICTURES_PER_THREAD * n_threads:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def _finish(writer: FrameWriter, drawing: Drawing) -> Outcome:
    return Outcome.of(writer.store(writer.prepare(drawing)))


def _result(future: Future[Outcome] | None) -> Outcome | None:
    return None if future is None else future.result()
