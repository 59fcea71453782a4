"""Reading of video files, cameras and network addresses with OpenCV."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from mask_rcnn.io.errors import BadFileError
from mask_rcnn.io.file_kinds import N_KIND_BYTES, VIDEO, describe_kind
from mask_rcnn.media.selection import FrameSelection, to_rate
from mask_rcnn.media.sources import FRAME_ERRORS, Frame

# The FFmpeg in OpenCV reads its level when the process opens its first video; -8 is quiet.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')

#: Suffixes of video files.
VIDEO_SUFFIXES = {
    *('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.mts', '.m2ts'),
    *('.3gp', '.ogv', '.mjpg', '.mjpeg', '.h264', '.h265', '.vob'),
}
#: The schemes of addresses that are read as videos.
_ADDRESS = re.compile(r'(?:rtsps?|rtmps?|https?|udp|srt)://', re.IGNORECASE)
#: The rate of a source that states none, frames per second.
_DEFAULT_RATE = Fraction(30)
#: Seconds without an answer after which an address fails.
TIMEOUT = 10.0
#: A video is reported as truncated if more than this part of its frames, and more than this number, are missing:
#: some containers state only the length, from which the number follows with an error.
_MISSING_PART, _MISSING_FRAMES = 0.02, 3


class VideoError(BadFileError):
    """A video, a camera or an address cannot be read; ``str()`` is one line, ``name: reason``."""


def is_address(text: str) -> bool:
    """Return whether a text is the address of a video, such as ``rtsp://camera.local/stream``."""
    return _ADDRESS.match(text) is not None


def is_video_file(path: Path) -> bool:
    """Return whether a file is a video: by its suffix, or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        return describe_kind(file.read(N_KIND_BYTES)) == VIDEO
    return False


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from writing to the standard error within the context, in all threads."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class VideoSource:
    """A video file, a camera or an address.

    It is opened at once, so that errors are known before a model is loaded.

    Args:
        target: The file, the number of a camera, or an address.
        selection: The frames to read.
        timeout: Seconds without an answer after which an address fails; by default :data:`TIMEOUT`.

    Raises:
        VideoError: There is no such camera, the address does not answer, or the file is not a video.
    """

    is_video = True

    def __init__(
        self, target: Path | int | str, selection: FrameSelection | None = None, *, timeout: float | None = None
    ):
        self._target, self._timeout = target, TIMEOUT if timeout is None else timeout
        self._selection = selection or FrameSelection()
        self.name = f'camera {target}' if isinstance(target, int) else str(target)
        self.path = _output_name(target)
        self._capture: cv2.VideoCapture | None = self._open()
        get = self._capture.get
        self._stated_rate = to_rate(get(cv2.CAP_PROP_FPS)) or _DEFAULT_RATE
        count = get(cv2.CAP_PROP_FRAME_COUNT)
        self._stated_count = int(count) if 0 < count < 2**40 else None
        self.is_live = isinstance(target, int) or (isinstance(target, str) and self._stated_count is None)
        self.n_read = 0
        if isinstance(target, Path):
            self.close()  # a command can have more videos than files can be open

    @property
    def file(self) -> Path | None:
        """The video file, ``None`` for a camera or an address."""
        return self._target if isinstance(self._target, Path) else None

    @property
    def span(self) -> tuple[float, float | None]:
        """The start and the end of the selected span in seconds."""
        return self._selection.start, self._selection.end

    @property
    def rate(self) -> Fraction:
        """The rate of the selected frames, per second."""
        return self._selection.rate(self._stated_rate)

    @property
    def n_frames(self) -> int | None:
        """The number of selected frames that the header leads to expect; ``None`` if it states nothing."""
        if self.is_live or self._stated_count is None:
            return None
        return self._selection.count(self._stated_count, self._stated_rate)

    def read(self, *, apply_orientation: bool = True) -> Iterator[Frame]:
        """Yield the selected frames, upright; after an error the last frame has no pixels.

        Args:
            apply_orientation: Has no effect: videos are always upright.
        """
        try:
            yield from self._read_live() if self.is_live else self._read_file()
        except FRAME_ERRORS as error:
            yield Frame(self, None, error=error)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, the camera or the connection."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        with contextlib.ExitStack() as stack:
            if isinstance(self._target, int):
                capture = cv2.VideoCapture(self._target)
            elif isinstance(self._target, Path):
                capture = cv2.VideoCapture(_openable(self._target, stack), *_file_backend())
            else:
                milliseconds = round(self._timeout * 1000)
                options = [
                    *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds),
                    *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds),
                ]
                capture = cv2.VideoCapture(self._target, cv2.CAP_FFMPEG, options)
        if not capture.isOpened():
            raise VideoError(self.name, self._reason())
        return capture

    def _reason(self) -> str:
        """Return the reason for which the source cannot be opened, as far as OpenCV lets it be known."""
        if isinstance(self._target, int):
            return 'there is no such camera, or another program uses it'
        if isinstance(self._target, Path):
            return 'OpenCV finds no video in it (damaged, truncated before its index, or of an unknown format)'
        return f'no video from this address (refused, not a video, or no answer within {self._timeout:g} s)'

    def _read_file(self) -> Iterator[Frame]:
        capture = self._capture or self._open()
        self._capture = capture
        start = self._seek(capture)
        index, is_ended = 0, False
        self.n_read = 0
        for number in _numbers(start + 1):
            if not _grab(capture):
                is_ended = True
                break
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if self._selection.is_before(seconds):
                continue
            if self._selection.is_after(seconds):
                break
            if self._selection.selects(index, self._stated_rate):
                pixels = _retrieve(capture)
                if pixels is None:
                    is_ended = True
                    break
                self.n_read += 1
                yield Frame(self, pixels, number, seconds)
                del pixels
            index += 1
        if is_ended:
            self._check_end(number - 1)
        elif self.n_read == 0:
            raise VideoError(self.name, self._selection.describe_absence())

    def _seek(self, capture: cv2.VideoCapture) -> int:
        """Move to the start of the span if the file can do that; returns the number of frames before the position."""
        if not self._selection.start:
            return 0
        target = int(self._selection.start * self._stated_rate) - 1
        if target > 0 and capture.set(cv2.CAP_PROP_POS_FRAMES, target):
            if round(capture.get(cv2.CAP_PROP_POS_FRAMES)) == target:
                return target
            self.close()
            self._capture = self._open()
        return 0

    def _check_end(self, n_frames: int) -> None:
        """Report a video that ends before the stated number of frames."""
        if self.n_read == 0 and self._selection.start:
            raise VideoError(self.name, self._selection.describe_absence())
        if n_frames == 0:
            raise VideoError(self.name, 'the video has no frame that can be read')
        stated = self._stated_count
        if stated is not None and stated - n_frames > max(_MISSING_FRAMES, _MISSING_PART * stated):
            raise VideoError(
                self.name, f'the video ends after {n_frames} of {stated} frames; it is truncated or damaged'
            )

    def _read_live(self) -> Iterator[Frame]:
        """Yield frames at the time at which they come, as many as the selection has."""
        capture = self._capture or self._open()
        self._capture = capture
        selection, rate = self._selection, self._selection.max_rate
        index, last, self.n_read = 0, -1.0, 0
        begin: float | None = None
        for number in _numbers(1):
            if not _grab(capture):
                break
            now = time.perf_counter()
            begin = now if begin is None else begin
            seconds = now - begin
            if selection.is_after(seconds):
                break
            if selection.is_before(seconds):
                continue
            is_selected = index % selection.every == 0 and (rate is None or last < 0 or seconds - last >= 1 / rate)
            index += 1
            if is_selected and (pixels := _retrieve(capture)) is not None:
                last = seconds
                self.n_read += 1
                yield Frame(self, pixels, number, seconds)
                del pixels
        if self.n_read == 0:
            raise VideoError(self.name, 'no frame came')


def _numbers(first: int) -> Iterator[int]:
    number = first
    while True:
        yield number
        number += 1


def _grab(capture: cv2.VideoCapture) -> bool:
    """Go to the next frame."""
    try:
        return capture.grab()
    except cv2.error:
        return False


def _retrieve(capture: cv2.VideoCapture) -> np.ndarray | None:
    """Return the current frame, ``(H, W, 3)`` uint8 RGB."""
    try:
        done, pixels = capture.retrieve()
    except cv2.error:
        return None
    if not done or pixels is None or not pixels.size:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)


def _file_backend() -> tuple[int, ...]:
    """Return OpenCV's FFmpeg, which applies rotations and reads no patterns of names, if it has that."""
    return (cv2.CAP_FFMPEG,) if cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends() else ()


def _openable(path: Path, stack: contextlib.ExitStack) -> str:
    """Return a name for OpenCV, which crashes with names that are not UTF-8 and reads others as addresses."""
    name = os.path.abspath(path)
    try:
        name.encode('utf-8')
        return name
    except UnicodeEncodeError:
        file = stack.enter_context(path.open('rb'))
        return f'/dev/fd/{file.fileno()}'


def _output_name(target: Path | int | str) -> Path:
    if isinstance(target, int):
        return Path(f'camera{target}')
    if isinstance(target, Path):
        return target
    name = re.sub(r'[?#].*', '', target).rstrip('/').rpartition('/')[2]
    return Path(re.sub(r'[^\w.-]+', '_', name).strip('._') or 'stream')
