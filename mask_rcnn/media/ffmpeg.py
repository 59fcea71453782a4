"""The program ffmpeg: its encoders, a process that encodes frames, and the sound of a video."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from mask_rcnn.io.programs import own_group

#: By suffix: the container, and the encoders in order of preference, each with its options.
_X264 = ('libx264', '-preset', 'veryfast', '-crf', '20')
_OPENH264 = ('libopenh264', '-b:v', '6M')
_MPEG4 = ('mpeg4', '-q:v', '3')
_VP9 = ('libvpx-vp9', '-crf', '30', '-b:v', '0', '-deadline', 'realtime', '-cpu-used', '8', '-row-mt', '1')
_VP8 = ('libvpx', '-crf', '10', '-b:v', '6M', '-deadline', 'realtime', '-cpu-used', '8')
FORMATS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    '.mp4': ('mp4', (_X264, _OPENH264, _MPEG4)),
    '.m4v': ('mp4', (_X264, _OPENH264, _MPEG4)),
    '.mov': ('mov', (_X264, _OPENH264, _MPEG4)),
    '.mkv': ('matroska', (_X264, _OPENH264, _MPEG4)),
    '.avi': ('avi', (_MPEG4,)),
    '.webm': ('webm', (_VP9, _VP8)),
}
#: Encoders of H.264, whose usual pixels, with half the resolution of colours, have even sides.
_H264 = ('libx264', 'libopenh264')
#: Errors of writing, after which ffmpeg before version 6 can exit with status 0 and leave an incomplete file.
_WRITE_ERROR = re.compile(rb'Error (?:writing trailer|closing file)|av_interleaved_write_frame|No space left')
#: Seconds that a question to ffmpeg may take.
_QUESTION_TIMEOUT = 20


def find_ffmpeg() -> str | None:
    """Return the path of ffmpeg, or ``None`` if the system has none."""
    return shutil.which('ffmpeg')


def choose_encoder(program: str, suffix: str) -> tuple[str, ...] | None:
    """Return the encoder for a suffix and its options, or ``None`` if ffmpeg has none for it."""
    available = _encoders(program)
    return next((encoder for encoder in FORMATS[suffix][1] if encoder[0] in available), None)


@functools.cache
def _encoders(program: str) -> frozenset[str]:
    listing = _ask(program, '-encoders')
    return frozenset(re.findall(r'^ V[\w.]{5} (\S+)', listing, re.MULTILINE))


def has_sound(program: str, video: Path) -> bool:
    """Return whether a video file has sound."""
    return re.search(r'^\s*Stream #.*: Audio: ', _ask(program, '-i', _file(video)), re.MULTILINE) is not None


def _ask(program: str, *arguments: str) -> str:
    """Return the text that ffmpeg writes; it fails without an output, which does not matter."""
    command = [program, '-hide_banner', '-nostdin', *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_QUESTION_TIMEOUT, check=False, **own_group())
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return (done.stdout + done.stderr).decode('utf-8', 'replace')


def _file(path: Path) -> str:
    """Return a name that ffmpeg takes for a file, whatever characters it begins with."""
    return f'file:{os.path.abspath(path)}'


class FFmpegError(OSError):
    """ffmpeg has failed; ``str()`` is the last line that it wrote."""


class FrameEncoder:
    """A process of ffmpeg that encodes frames into a file.

    Args:
        program: The path of ffmpeg.
        path: The file to write; one that exists is replaced.
        size: ``(H, W)`` of the frames.
        rate: Frames per second.
        suffix: The suffix that determines the format, one of :data:`FORMATS`.
        encoder: The result of :func:`choose_encoder`.

    Attributes:
        note (str): A limitation of the encoded video, or an empty string.
    """

    def __init__(
        self, program: str, path: Path, size: tuple[int, int], rate: Fraction, suffix: str, encoder: Sequence[str]
    ):
        height, width = size
        is_odd = encoder[0] in _H264 and (height % 2 or width % 2)
        self.note = (
            f'frames of {width}x{height} pixels, an odd number, are H.264 with full colours (4:4:4), '
            'which some players do not play'
            if is_odd
            else ''
        )
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # closed by finish and abort
        self._process = subprocess.Popen(
            [
                *(program, '-hide_banner', '-nostdin', '-loglevel', 'error', '-y'),
                *('-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', f'{width}x{height}', '-r', str(rate), '-i', 'pipe:0'),
                *('-an', '-c:v', *encoder, '-pix_fmt', 'yuv444p' if is_odd else 'yuv420p', '-r', str(rate)),
                *('-f', FORMATS[suffix][0], _file(path)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            **own_group(),
        )

    def write(self, frame: np.ndarray) -> None:
        """Encode a frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB.

        Raises:
            FFmpegError: ffmpeg has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except (BrokenPipeError, OSError) as error:
            self._process.wait()
            raise FFmpegError(last_line(self._read_messages())) from error

    def finish(self) -> None:
        """Write the end of the file; :meth:`abort` is to follow an error.

        Raises:
            FFmpegError: ffmpeg has failed, for example because the disk is full.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # ffmpeg has ended, and its status indicates the error
            self._process.stdin.close()
        status = self._process.wait()
        messages = self._read_messages()
        if status or _WRITE_ERROR.search(messages):
            raise FFmpegError(last_line(messages))
        self._messages.close()

    def abort(self) -> None:
        """End the process; its file is incomplete."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._messages.close()

    def _read_messages(self) -> bytes:
        self._messages.seek(0)
        return self._messages.read()


def last_line(messages: bytes) -> str:
    """Return the last line of what ffmpeg has written, which states the reason of a failure."""
    lines = [line.strip() for line in messages.decode('utf-8', 'replace').splitlines() if line.strip()]
    full = [line for line in lines if 'No space left' in line]
    if full:
        return 'No space left on device'
    return f'ffmpeg: {lines[-1]}' if lines else 'ffmpeg has failed without a message'


def add_sound(
    program: str, path: Path, output: Path, source: Path, suffix: str, *, start: float, duration: float
) -> None:
    """Join an encoded video and the sound of another file.

    The sound is copied if the format allows this, otherwise encoded.

    Args:
        program: The path of ffmpeg.
        path: The video.
        output: The file to write; one that exists is replaced.
        source: The file with the sound.
        suffix: The suffix that determines the format, one of :data:`FORMATS`.
        start: The start of the video in ``source``, seconds.
        duration: The length of the video, seconds.

    Raises:
        FFmpegError: ffmpeg cannot do that.
    """
    for codec in (('-c:a', 'copy'), ()):
        done = subprocess.run(
            [
                *(program, '-hide_banner', '-nostdin', '-loglevel', 'error', '-y'),
                *('-f', FORMATS[suffix][0], '-i', _file(path)),
                *('-ss', f'{start:.6f}', '-t', f'{duration:.6f}', '-i', _file(source)),
                *('-map', '0:v', '-map', '1:a', '-c:v', 'copy', *codec, '-f', FORMATS[suffix][0], _file(output)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            **own_group(),
        )
        if done.returncode == 0 and not _WRITE_ERROR.search(done.stderr):
            return
    raise FFmpegError(last_line(done.stderr))
