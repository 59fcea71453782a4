"""The errors of image files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mask_rcnn.io.errors import BadFileError
from mask_rcnn.io.file_kinds import ARCHIVE, DOWNLOAD_HINTS, IMAGE, VIDEO, WEIGHTS, describe_kind

#: The continuation of the description of each kind.
_HINTS = DOWNLOAD_HINTS | {
    WEIGHTS: ', which belongs to --modelfile',
    VIDEO: '; extract its frames first (ffmpeg -i FILE frame_%06d.png)',
    ARCHIVE: '; unpack it first',
}


class ImageFileError(BadFileError):
    """A file cannot be read as an image; ``str()`` is one line, ``path: reason``."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)
        self.path = Path(path)


class UnsupportedImageError(ValueError):
    """The content of a file is not damaged, but not supported; the message is the reason, without the path."""


@contextlib.contextmanager
def image_file_errors(path: str | os.PathLike) -> Iterator[None]:
    """Convert every error that a bad file can cause into an :class:`ImageFileError`; pass on ``MemoryError``."""
    try:
        yield
    except (ImageFileError, MemoryError):
        raise
    except UnsupportedImageError as error:
        raise ImageFileError(path, str(error)) from error
    except Image.DecompressionBombError as error:  # of a frame of a GIF file
        raise ImageFileError(path, too_many_pixels()) from error
    except Exception as error:  # Pillow raises errors of many types for damaged data
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageFileError(path, f'the image is damaged ({reason})') from error


def not_an_image(start: bytes) -> str:
    """Return the reason for the rejection of another file, with its kind and the way on if they are known.

    Args:
        start: The first :data:`~mask_rcnn.io.file_kinds.N_KIND_BYTES` bytes.
    """
    reason, kind = 'not an image of a known format', describe_kind(start)
    if not kind or kind == IMAGE:
        return reason
    return f'{reason}: it is {kind}{_HINTS.get(kind, "")}'


def too_many_pixels() -> str:
    """Return the reason for the rejection of an image with more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels."""
    return f'the image has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; cut it into tiles first'


def os_reason(error: Exception) -> str:
    """Return the reason of an ``OSError`` without numbers and paths, or the message of another error."""
    reason = error.strerror if isinstance(error, OSError) else None
    return (reason or str(error)).lower()
