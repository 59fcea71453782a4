"""The sources of frames: image files, the bytes of an image, and videos (:mod:`mask_rcnn.media.video_source`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from mask_rcnn.preprocessing.image_io import decode_image, read_image, to_chw

#: Errors of one image or one frame, after which the others are processed.
FRAME_ERRORS = (ValueError, OSError, MemoryError)


class Source(Protocol):
    """A source of frames."""

    @property
    def name(self) -> str:
        """The source in messages, as the user named it."""

    @property
    def path(self) -> Path:
        """Its file, or a name with the form of one, from which the names of outputs are made."""

    @property
    def is_video(self) -> bool:
        """True if there can be several frames."""

    @property
    def is_live(self) -> bool:
        """True if frames appear at their own time, like those of a camera, and cannot be read a second time."""

    @property
    def rate(self) -> Fraction | None:
        """Frames per second; ``None`` for an image."""

    @property
    def n_frames(self) -> int | None:
        """The expected number of frames, ``None`` if it is unknown."""

    def read(self, *, apply_orientation: bool = True) -> Iterator[Frame]:
        """Yield the frames; the last one can be without pixels and have an error."""

    def close(self) -> None:
        """Free the camera or the connection."""


@dataclass
class Frame:
    """A frame of a source.

    Args:
        source: The source.
        pixels: RGB: ``(3, H, W)`` float32, 0 to 255, or ``(H, W, 3)`` uint8; ``None`` if there is an error.
        number: The number of the frame in its video, 1 for the first; 0 for an image.
        seconds: The time of the frame in its video.
        error: The error of the frame, if it cannot be read.
    """

    source: Source
    pixels: np.ndarray | None
    number: int = 0
    seconds: float = 0.0
    error: Exception | None = None

    @property
    def name(self) -> str:
        """The frame in messages."""
        return f'{self.source.name}, frame {self.number}' if self.number else self.source.name

    @property
    def path(self) -> Path:
        """The image file; for a frame of a video the name that it would have as a file beside the video."""
        path = self.source.path
        return path.with_name(f'{path.stem}_{self.number:06d}.png') if self.number else path

    @property
    def n_bytes(self) -> int:
        """The size of the pixels."""
        return 0 if self.pixels is None else self.pixels.nbytes


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Args:
        path: The file.
    """

    path: Path
    is_video = False
    is_live = False
    rate = None
    n_frames = 1

    @property
    def name(self) -> str:
        """The file in messages."""
        return str(self.path)

    def read(self, *, apply_orientation: bool = True) -> Iterator[Frame]:
        """Yield the image."""
        yield _read_frame(self, lambda: read_image(self.path, apply_orientation=apply_orientation))

    def close(self) -> None:
        """Do nothing: no file is open."""


@dataclass(frozen=True)
class ImageBytes:
    """An image in memory, such as that of the standard input.

    Args:
        name: The image in messages.
        path: The name of a file, from which the names of outputs are made.
        data: The content of an image file.
    """

    name: str
    path: Path
    data: bytes
    is_video = False
    is_live = False
    rate = None
    n_frames = 1

    def read(self, *, apply_orientation: bool = True) -> Iterator[Frame]:
        """Yield the image."""
        yield _read_frame(self, lambda: to_chw(decode_image(self.data, self.name, apply_orientation=apply_orientation)))

    def close(self) -> None:
        """Do nothing."""


def _read_frame(source: Source, read: Callable[[], np.ndarray]) -> Frame:
    try:
        return Frame(source, read())
    except FRAME_ERRORS as error:
        return Frame(source, None, error=error)
