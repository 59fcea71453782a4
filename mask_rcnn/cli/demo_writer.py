"""Drawing and writing of the frames of ``mask-rcnn demo``, in threads beside the model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn.cli.demo_jobs import Job
from mask_rcnn.cli.demo_results import Results
from mask_rcnn.cli.demo_sinks import Drawing, Sink, VideoSink, make_sink
from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.tracking import Tracker
from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.io.console import print_error, print_line
from mask_rcnn.io.wording import counted
from mask_rcnn.media.sources import FRAME_ERRORS, Source
from mask_rcnn.media.video_source import VideoError
from mask_rcnn.preprocessing.image_io import ImageFileError, to_pixels
from mask_rcnn.weights import WeightFileError


class ReportedError(ValueError):
    """An error of an image in another process; ``str()`` is the line of :func:`describe_error`."""


class FrameWriter:
    """Draws, encodes and writes frames, and collects their results.

    :meth:`begin` is called in the thread of the model, :meth:`prepare` in several threads and :meth:`write` in one
    thread, both in the order of the frames.

    Args:
        outputs: The output of each source, by the source's identity.
        results: Receives the results, also of an image whose picture cannot be written.
        style: Arguments of :meth:`Detections.draw`.
        picture_threshold: Minimum score of the detections in pictures, or ``None`` for a pass without pictures.
        collects_results: Whether the detections are added to the JSON file.
        failed: Receives the identities of the sources with an error; those of an earlier pass have been reported.
        track: Whether instances are followed over the frames.
        progress: Called with each job after it was written.
        show: Called with each picture, ``None`` if there is no window.
    """

    def __init__(
        self,
        outputs: dict[int, Path | None],
        results: Results,
        style: dict[str, Any],
        *,
        picture_threshold: float | None,
        collects_results: bool,
        failed: set[tuple[int, bool]],
        track: bool = False,
        progress: Callable[[Job], None] = lambda job: None,
        show: Callable[[np.ndarray], None] | None = None,
    ):
        self._outputs, self._results, self._style = outputs, results, style
        self._threshold, self._collects_results, self._track = picture_threshold, collects_results, track
        self._progress, self._show = progress, show
        self._tracked: tuple[Source | None, Tracker] | None = None
        self._sinks: dict[int, Sink] = {}
        self._open: _OpenVideo | None = None
        self._failed = failed

    def begin(self, job: Job) -> Drawing:
        """Select the detections of the picture, and give them the ids of their tracks."""
        if job.error is not None or self._threshold is None:
            return Drawing(job, style=self._style)
        shown = job.detections.above(self._threshold)
        if not self._track:
            return Drawing(job, shown, self._style)
        sequence = job.frame.source if job.frame.source.is_video else None  # images are the frames of one sequence
        if self._tracked is None or self._tracked[0] is not sequence:
            self._tracked = sequence, Tracker()
        tracker = self._tracked[1]
        ids = tracker.update(shown)
        return Drawing(job, shown, {**self._style, 'ids': ids, 'traces': tracker.traces(ids)}, ids)

    def prepare(self, drawing: Drawing) -> Drawing:
        """Compute the results and the picture of a frame; an error becomes that of the drawing."""
        job = drawing.job
        try:
            if job.error is not None:
                raise job.error
            found = job.detections if self._collects_results else None
            # Before the picture, which can fail.
            drawing.results = self._results.encode(job.frame, found=found, shown=drawing.shown, ids=drawing.ids)
            if drawing.shown is not None:
                style = drawing.style
                if style['backdrop'] == 'cutout' and self._sink(job.frame.source).has_alpha:
                    style = {**style, 'transparent': True}
                drawing.picture = drawing.shown.draw(job.pixels, **style)
        except FRAME_ERRORS as error:
            drawing.error = error
        if (
            self._threshold is not None
            and drawing.picture is None
            and job.frame.number
            and job.frame.pixels is not None
        ):
            drawing.picture = to_pixels(job.frame.pixels)  # a frame without detections, so that none is missing
        if drawing.picture is not None:
            try:
                drawing.data = self._sink(job.frame.source).encode(drawing.picture)
            except FRAME_ERRORS as error:
                drawing.error = drawing.error or error
                drawing.picture = None
        job.frame.pixels = None
        return drawing

    def store(self, drawing: Drawing) -> Drawing:
        """Write the picture of an image before :meth:`write`; an error becomes that of the drawing."""
        try:
            if drawing.picture is not None:
                drawing.place = self._sink(drawing.job.frame.source).write(drawing)
        except FRAME_ERRORS as error:
            drawing.error = drawing.error or error
        drawing.picture = drawing.data = None
        return drawing

    def write(self, drawing: Drawing) -> None:
        """Write the picture, add the results, and report the frame or its error.

        Raises:
            mask_rcnn.io.atomic_file.FileError: A video or a file of results cannot be written.
        """
        job, source = drawing.job, drawing.job.frame.source
        if self._open is not None and self._open.source is not source:
            self.finish()
        if source.is_video and self._open is None and self._threshold is not None:
            self._open = _OpenVideo(source)
        self._results.write(drawing.results)
        try:
            if drawing.shown is not None:
                self._results.annotate(job.frame.path, drawing.shown)
            self._write_picture(drawing)
            if drawing.error is not None:
                raise drawing.error
        except FRAME_ERRORS as error:
            if isinstance(self._sink(source), VideoSink) and isinstance(error, FileError):
                raise
            self._fail(job, error)
        self._progress(job)

    def _write_picture(self, drawing: Drawing) -> None:
        if drawing.picture is None and drawing.place is None:
            return
        source = drawing.job.frame.source
        place = drawing.place if drawing.place is not None else self._sink(source).write(drawing)
        if self._show is not None:
            assert drawing.picture is not None
            self._show(drawing.picture)
        if self._open is not None:
            self._open.add(drawing.shown)
        elif drawing.shown is not None:
            self._print(f'{source.name}: {_describe_counts(Counter(drawing.shown.names))}', place)

    def _fail(self, job: Job, error: Exception) -> None:
        """Report an error; that of a video's frame only once, because the other frames often have the same."""
        source, is_frame = job.frame.source, job.frame.number > 0
        if not source.is_video or (id(source), is_frame) not in self._failed:
            print_error(describe_error(job.frame.name, error))
        self._failed.add((id(source), is_frame))
        if job.error is not None:
            self._results.n_failed += 1
        if self._open is not None and is_frame:
            self._open.n_failed += 1

    def finish(self) -> None:
        """Complete the output of the last source, also after an interrupt.

        Raises:
            mask_rcnn.io.atomic_file.FileError: A video cannot be written.
        """
        video, self._open = self._open, None
        if video is None:
            return
        place = self._sink(video.source).finish()
        self._sinks.pop(id(video.source), None)
        if video.n_frames:
            self._print(f'{video.source.name}: {video}', place)

    def abort(self) -> None:
        """Remove outputs that are not complete."""
        for sink in self._sinks.values():
            sink.abort()

    def _sink(self, source: Source) -> Sink:
        return self._sinks.setdefault(id(source), make_sink(source, self._outputs[id(source)]))

    def _print(self, line: str, place: str) -> None:
        stream = sys.stderr if self._results.use_standard_output else sys.stdout
        print_line(f'{line} -> {place}' if place else line, file=stream)


@dataclass
class _OpenVideo:
    """The video whose frames are being written, and its summary, ``str()``."""

    source: Source
    n_frames: int = 0
    n_failed: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, shown: Detections | None) -> None:
        """Count a written frame."""
        self.n_frames += 1
        if shown is not None:
            self.counts.update(shown.names)

    def __str__(self) -> str:
        failed = f' ({self.n_failed} without detections after an error)' if self.n_failed else ''
        return f'{counted(self.n_frames, "frame")}{failed}, {_describe_counts(self.counts)}'


def _describe_counts(counts: Counter[str]) -> str:
    return ', '.join(f'{count} {name}' for name, count in counts.most_common()) or 'nothing found'


def describe_error(name: str, error: Exception) -> str:
    """Return the error of a frame as one line that names it."""
    if isinstance(error, MemoryError):
        return f'{name}: not enough memory'
    if isinstance(error, (ImageFileError, VideoError, WeightFileError, ReportedError, OSError)):
        return str(error)  # names the file
    return f'{name}: {" ".join(str(error).split())}'
