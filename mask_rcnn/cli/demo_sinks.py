"""The outputs of ``mask-rcnn demo`` for drawn frames: pictures, a video, or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mask_rcnn.cli.demo_jobs import Job
from mask_rcnn.cli.demo_outputs import frame_path, is_video_output
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.console import print_note
from mask_rcnn.media.sources import Source
from mask_rcnn.media.video_source import VideoSource
from mask_rcnn.media.video_writer import VideoWriter
from mask_rcnn.visualization.pictures import ALPHA_SUFFIXES, encode_picture


@dataclass
class Drawing:
    """A job on its way through the threads.

    Args:
        job: The job.
        shown: The detections of the picture, ``None`` for a pass without pictures or after an error.
        style: Arguments of :meth:`Detections.draw`.
        ids: The ids of ``shown`` if objects are tracked.
        results: The results for the files.
        picture: The drawn picture.
        data: The content of its file.
        place: The file of the picture, if it has been written.
        error: The first error, of the job or of its picture.
    """

    job: Job
    shown: Detections | None = None
    style: dict[str, Any] = field(default_factory=dict)
    ids: np.ndarray | None = None
    results: list[Any] = field(default_factory=list)
    picture: np.ndarray | None = None
    data: bytes | None = None
    place: str | None = None
    error: Exception | None = None


class Sink(Protocol):
    """A destination of the drawn frames of one source.

    Attributes:
        has_alpha: Whether pictures can be transparent.
    """

    has_alpha: bool

    def encode(self, picture: np.ndarray) -> bytes | None:
        """Return the content of a file, if each picture is one; called in several threads."""

    def write(self, drawing: Drawing) -> str:
        """Write a picture; returns the destination for the user."""

    def finish(self) -> str:
        """Complete the output; returns the destination for the user."""

    def abort(self) -> None:
        """Remove what is not complete."""


class PictureSink:
    """Writes each picture as a file.

    Args:
        output: The picture, or the path from which those of the frames of a video are made.
    """

    def __init__(self, output: Path):
        self._output = output
        self.has_alpha = output.suffix.lower() in ALPHA_SUFFIXES

    def encode(self, picture: np.ndarray) -> bytes:
        """Return the content of the file."""
        return encode_picture(picture, self._output.suffix)

    def write(self, drawing: Drawing) -> str:
        """Write a picture."""
        number = drawing.job.frame.number
        path = frame_path(self._output, number) if number else self._output
        assert drawing.data is not None
        with open_for_writing(path) as file:
            file.write(drawing.data)
        return str(path)

    def finish(self) -> str:
        """Do nothing: the files are written."""
        return str(self._output.with_name(f'{self._output.stem}_NNNNNN{self._output.suffix}'))

    def abort(self) -> None:
        """Do nothing: each file is complete."""


class VideoSink:
    """Writes the frames of a source as a video.

    The frames of a live source, of which some are skipped, are shown as long as they were the newest one.

    Args:
        output: The video.
        source: The source.
    """

    has_alpha = False

    def __init__(self, output: Path, source: VideoSource):
        start = source.span[0]
        self._writer = VideoWriter(output, source.rate, sound=source.file, start=start, report=print_note)
        self._source = source
        self._begin: float | None = None
        self._last: np.ndarray | None = None

    def encode(self, picture: np.ndarray) -> None:
        """Do nothing: the video is encoded in the order of the frames."""

    def write(self, drawing: Drawing) -> str:
        """Append a frame."""
        assert drawing.picture is not None
        if self._source.is_live:
            self._write_until(drawing.job.frame.seconds)
            self._last = drawing.picture
        else:
            self._writer.write(drawing.picture)
        return str(self._writer.path)

    def _write_until(self, seconds: float) -> None:
        """Repeat the last frame up to a time."""
        if self._begin is None:
            self._begin = seconds
        n_frames = round((seconds - self._begin) * self._source.rate)
        if self._last is not None and n_frames > self._writer.n_frames:
            self._writer.write(self._last, n_frames - self._writer.n_frames)

    def finish(self) -> str:
        """Complete the video."""
        if self._last is not None:
            self._writer.write(self._last)
            self._last = None
        self._writer.finish()
        return str(self._writer.path)

    def abort(self) -> None:
        """Remove the incomplete video."""
        self._writer.abort()


class NoSink:
    """Writes no pictures, because a window shows them."""

    has_alpha = False

    def encode(self, picture: np.ndarray) -> None:
        """Do nothing."""

    def write(self, drawing: Drawing) -> str:
        """Do nothing."""
        return ''

    def finish(self) -> str:
        """Do nothing."""
        return ''

    def abort(self) -> None:
        """Do nothing."""


def make_sink(source: Source, output: Path | None) -> Sink:
    """Return the sink of a source.

    Args:
        source: The source.
        output: The path of its output, ``None`` for no output.
    """
    if output is None:
        return NoSink()
    if isinstance(source, VideoSource) and is_video_output(output):
        return VideoSink(output, source)
    return PictureSink(output)
