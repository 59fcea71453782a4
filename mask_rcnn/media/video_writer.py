"""Writing of videos: with ffmpeg if the system has it, otherwise with OpenCV."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from mask_rcnn.io.atomic_file import FileError, path_for_writing
from mask_rcnn.media.ffmpeg import (
    FORMATS,
    FFmpegError,
    FrameEncoder,
    add_sound,
    choose_encoder,
    find_ffmpeg,
    has_sound,
)

#: By suffix: the codec that OpenCV's writer uses.
_OPENCV_CODECS = {'.avi': 'MJPG', '.webm': 'VP80'}


def can_write_video(suffix: str) -> bool:
    """Return whether a suffix is that of a video that can be written."""
    return suffix.lower() in FORMATS


class _Encoder(Protocol):
    note: str

    def write(self, frame: np.ndarray) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...


class _OpenCVEncoder:
    """Encodes frames with OpenCV; the arguments are those of :class:`mask_rcnn.media.ffmpeg.FrameEncoder`."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, suffix: str):
        self._path, (height, width) = path, size
        codec = _OPENCV_CODECS.get(suffix, 'mp4v')
        reason = f'ffmpeg has no encoder for {suffix}' if find_ffmpeg() else 'ffmpeg is not on the PATH'
        self.note = f'{reason}: OpenCV writes the video, without sound'
        if (height % 2 or width % 2) and codec != 'MJPG':
            self.note += f'; of {width}x{height} pixels, the last odd column or row is left out'
        self._n_frames = 0
        with _without_standard_error():  # OpenCV prints that WebM does not support the tag VP80, and replaces it
            self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), float(rate), (width, height))
        if not self._writer.isOpened():
            raise OSError(errno.EINVAL, f'OpenCV has no encoder for {suffix}; install ffmpeg')

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._n_frames += 1

    def finish(self) -> None:
        """Close the file, and compare its number of frames: OpenCV reports no errors."""
        self._writer.release()
        capture = cv2.VideoCapture(str(self._path))
        n_frames = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
        capture.release()
        if n_frames < self._n_frames:
            raise OSError(errno.EIO, f'only {n_frames:g} of {self._n_frames} frames were written (is the disk full?)')

    def abort(self) -> None:
        self._writer.release()


@contextlib.contextmanager
def _without_standard_error() -> Iterator[None]:
    """Discard what the process writes to the standard error within the context, also that of libraries."""
    try:
        saved = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class VideoWriter:
    """Writes a video, which appears under its name when it is complete.

    Args:
        path: The file; its suffix determines the format.
        rate: Frames per second.
        sound: A file whose sound is kept if ffmpeg is there, or ``None``.
        start: The start of the video in ``sound``, seconds.
        report: Receives notes, one line each.

    Raises:
        mask_rcnn.io.atomic_file.FileError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        *,
        sound: Path | None = None,
        start: float = 0.0,
        report: Callable[[str], None] = lambda line: None,
    ):
        self.path, self._rate, self._sound, self._start, self._report = path, rate, sound, start, report
        self._suffix = path.suffix.lower()
        self._program = find_ffmpeg()
        self._stack = contextlib.ExitStack()
        self._encoder: _Encoder | None = None
        self._size = (0, 0)
        self.n_frames = 0

    def write(self, frame: np.ndarray, n_times: int = 1) -> None:
        """Append a frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB; all frames have the size of the first.
            n_times: The number of frames of the video that show it.

        Raises:
            ValueError: The frame has another size than the first one.
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """
        size = frame.shape[:2]
        if self._encoder is not None and size != self._size:
            raise ValueError(f'the size changes from {_describe(self._size)} to {_describe(size)} pixels')
        with self._file_errors():
            encoder = self._encoder or self._open(size)
            for _ in range(n_times):
                encoder.write(frame)
                self.n_frames += 1

    def _open(self, size: tuple[int, int]) -> _Encoder:
        self._temporary = self._encoded = self._stack.enter_context(path_for_writing(self.path))
        codec = choose_encoder(self._program, self._suffix) if self._program else None
        self._program = self._program if codec else None
        if not self._program or not self._sound or not has_sound(self._program, self._sound):
            self._sound = None
        if self._sound or not codec:  # a file of its own, with the suffix by which OpenCV knows the format
            self._encoded = self._temporary.with_name(self._temporary.name + self._suffix)
            self._stack.callback(self._encoded.unlink, missing_ok=True)
        options = self._encoded, size, self._rate, self._suffix
        if self._program and codec:
            encoder: _Encoder = FrameEncoder(self._program, *options, codec)
        else:
            encoder = _OpenCVEncoder(*options)
        if encoder.note:
            self._report(f'{self.path}: {encoder.note}')
        self._encoder, self._size = encoder, size
        return encoder

    def finish(self) -> None:
        """Complete the file, also after an interrupt; do nothing if there was no frame.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        with self._file_errors():
            try:
                encoder.finish()
            except BaseException:  # also a further interrupt
                encoder.abort()
                raise
            if self._encoded != self._temporary and not self._add_sound():
                shutil.copyfile(self._encoded, self._temporary)
            self._stack.close()

    def _add_sound(self) -> bool:
        if self._sound is None or self._program is None:
            return False
        duration = float(self.n_frames / self._rate)
        files = self._encoded, self._temporary, self._sound
        try:
            add_sound(self._program, *files, self._suffix, start=self._start, duration=duration)
            return True
        except FFmpegError as error:
            self._report(f'{self.path}: the sound is left out ({error})')
            return False

    def abort(self) -> None:
        """Remove the incomplete file; do nothing after :meth:`finish`."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.abort()
            self._discard()

    def _discard(self) -> None:
        error = RuntimeError('the video is not complete')
        with contextlib.suppress(RuntimeError):
            self._stack.__exit__(RuntimeError, error, None)

    @contextlib.contextmanager
    def _file_errors(self) -> Iterator[None]:
        """Remove the file after an error, and convert that of an encoder."""
        try:
            yield
        except BaseException as error:
            self.abort()
            self._discard()
            if isinstance(error, OSError) and not isinstance(error, FileError):
                reason = f'cannot be written: {error.strerror or error}'
                raise FileError(error.errno or errno.EIO, reason, str(self.path)) from error
            raise


def _describe(size: tuple[int, int]) -> str:
    return f'{size[1]}x{size[0]}'
