"""Reading of images from files and arrays into the arrays that models expect.

OpenCV decodes the files, so that the pixels are exactly those of ``cv2.imread``, which Detectron uses.  Pillow reads
the header first, so that files of other formats and enormous images are rejected before they are decoded.  It also
decodes the files that OpenCV cannot decode, and reports the reason for an error.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from mask_rcnn.ops.runtime.parallel import parallel_for

#: Suffixes of the files that :func:`list_images` finds in a folder.
IMAGE_SUFFIXES = (
    '.jpg',
    '.jpeg',
    '.jpe',
    '.png',
    '.bmp',
    '.tif',
    '.tiff',
    '.webp',
    '.gif',
    '.ppm',
    '.pgm',
    '.pbm',
    '.pnm',
    '.jp2',
)

# Pillow's names of the accepted formats.  Some of its other readers start programs (EPS starts Ghostscript) or are
# rarely used and poorly tested.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'DIB', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000')
_JPEG_FORMATS = ('JPEG', 'MPO')  # MPO: several JPEGs in one file, written by some cameras
_JPEG_END = b'\xff\xd9'
_JPEG_TAIL = 4096  # bytes read from the end of a file, to find the end marker before zero padding
_SIZE_THREADS = 16
_EXIF_ORIENTATION = 0x0112
_EXIF_TRANSPOSED = (5, 6, 7, 8)  # orientations with height and width exchanged
_VALUES_PER_THREAD = 1 << 19  # in the check for NaN and infinity; 0.1 ms


class ImageFileError(ValueError):
    """A file cannot be read as an image; the message is one line, ``path: reason``."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f'{os.fspath(path)}: {reason}')
        self.path = Path(path)
        self.reason = reason


def read_image(path: str | os.PathLike, *, apply_orientation: bool = True) -> np.ndarray:
    """Read an image file into an array.

    The pixels are those of ``cv2.imread``: the EXIF orientation is applied, grey and palette images are converted to
    RGB, an alpha channel is dropped, 16-bit samples are reduced to their upper 8 bits, and an animation yields its
    first frame.

    Args:
        path: A JPEG, PNG, BMP, TIFF, WebP, GIF, PPM or JPEG 2000 file.  An image with more than twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (2 x 89 million) pixels is rejected.
        apply_orientation: Whether to apply the EXIF orientation, or to return the pixels as they are stored.

    Returns:
        ``(3, H, W)`` float32, RGB, 0 to 255.

    Raises:
        ImageFileError: The file is missing, unreadable, not an image, damaged, truncated or too large.
    """
    return to_chw(_read_pixels(path, apply_orientation))


def _read_pixels(path: str | os.PathLike, apply_orientation: bool) -> np.ndarray:
    """Read an image file into ``(H, W, 3)`` uint8, RGB; see :func:`read_image`."""
    data = _read_bytes(path)
    image_format = _check_header(path, data)
    bgr = _decode_with_opencv(data, apply_orientation)
    if bgr is None:
        return _decode_with_pillow(path, data, apply_orientation)
    # Older versions of OpenCV (such as 4.10) fill the rest of a truncated JPEG with grey; Pillow raises an error.
    if image_format in _JPEG_FORMATS and not data.rstrip(b'\0').endswith(_JPEG_END):
        _decode_with_pillow(path, data, apply_orientation)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_image_size(path: str | os.PathLike, *, apply_orientation: bool = True) -> tuple[int, int]:
    """Return the height and width of :func:`read_image`'s result without decoding the image.

    The function reads only the header and the last bytes, to be fast on a whole dataset.  It decodes a JPEG file
    without an end marker to find out whether the file is damaged.

    Args:
        path: See :func:`read_image`.
        apply_orientation: See :func:`read_image`.

    Raises:
        ImageFileError: The file is missing, unreadable, not an image, a truncated JPEG or too large.
    """
    try:
        with open(path, 'rb') as file:
            with _pillow_errors(path), Image.open(file, formats=_FORMATS) as header:
                image_format, (width, height) = header.format, _stored_size(header)
                transposed = header.getexif().get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED
            file.seek(-min(_JPEG_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
            complete = image_format not in _JPEG_FORMATS or file.read().rstrip(b'\0').endswith(_JPEG_END)
    except ImageFileError:
        if os.path.isfile(path) and not os.path.getsize(path):
            raise ImageFileError(path, 'the file is empty') from None
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ImageFileError(path, _os_reason(error)) from error
    if not complete:
        height, width = read_image(path, apply_orientation=apply_orientation).shape[1:]
        return height, width
    return (width, height) if transposed and apply_orientation else (height, width)


def _stored_size(header: Image.Image) -> tuple[int, int]:
    """Return the width and height before the EXIF orientation is applied."""
    if isinstance(header, TiffImagePlugin.TiffImageFile):  # newer versions of Pillow have applied it to header.size
        return header.tag_v2[TiffImagePlugin.IMAGEWIDTH], header.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return header.size


def read_image_sizes(
    paths: Iterable[str | os.PathLike], *, apply_orientation: bool = True
) -> list[tuple[int, int] | ImageFileError]:
    """Call :func:`read_image_size` for many files in several threads.

    Args:
        paths: The files.
        apply_orientation: See :func:`read_image`.

    Returns:
        For each path the height and width, or the error if the file cannot be read.
    """
    # Each thread silences warnings and OpenCV and restores their state, possibly to the silenced state of another
    # thread.  The outer context managers restore the state that was there before.
    with warnings.catch_warnings(), _quiet_opencv(), ThreadPoolExecutor(_SIZE_THREADS) as pool:
        return list(pool.map(partial(_size_or_error, apply_orientation=apply_orientation), paths))


def _size_or_error(path: str | os.PathLike, *, apply_orientation: bool) -> tuple[int, int] | ImageFileError:
    try:
        return read_image_size(path, apply_orientation=apply_orientation)
    except ImageFileError as error:
        return error


def to_image_array(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """Convert a file or an array into the array that models expect.

    Args:
        image: A file name (see :func:`read_image`); ``(3, H, W)`` float32, RGB, 0 to 255 (ChainerCV's convention),
            which is returned unchanged; or ``(H, W, 3)`` uint8, RGB.

    Returns:
        ``(3, H, W)`` float32, RGB.

    Raises:
        ImageFileError: See :func:`read_image`.
        TypeError: ``image`` is neither a path nor an array.
        ValueError: The array has another dtype or shape, has no pixels, or contains values that are not finite.
    """
    return to_chw(load_image(image))


def load_image(
    image: str | os.PathLike | np.ndarray, *, check_finite: bool = True, apply_orientation: bool = True
) -> np.ndarray:
    """Read a file, or check an array, without a conversion to float32: a GPU converts faster.

    Args:
        image: See :func:`to_image_array`.
        check_finite: Whether to check that the values of an array are finite;
            :func:`mask_rcnn.preprocessing.image_transform.prepare_image_gpu` checks them also.
        apply_orientation: See :func:`read_image`.

    Returns:
        ``(H, W, 3)`` uint8 for a file, otherwise ``image``.

    Raises:
        ImageFileError, TypeError, ValueError: See :func:`to_image_array`.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_pixels(image, apply_orientation)
    if not isinstance(image, np.ndarray):
        raise TypeError(f'an image must be a file name or a NumPy array, not {type(image).__name__}')
    is_float = image.dtype == np.float32 and image.ndim == 3 and image.shape[0] == 3
    is_bytes = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not (is_float or is_bytes):
        raise ValueError(
            'an image array must be float32 of shape (3, H, W) or uint8 of shape (H, W, 3), '
            f'not {image.dtype} of shape {image.shape}'
        )
    if image.size == 0:
        raise ValueError(f'an image array of shape {image.shape} has no pixels')
    if check_finite and is_float and not _is_finite(image):
        raise ValueError('an image array must not contain NaN or infinity')
    return image


def _is_finite(image: np.ndarray) -> bool:
    """Return whether all values are finite; all CPUs check them."""
    values, results = image.reshape(-1), []

    def check(start: int, stop: int) -> None:
        results.append(bool(np.isfinite(values[start:stop]).all()))

    parallel_for(check, values.size, min_per_thread=_VALUES_PER_THREAD)
    return all(results)


def list_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the given files and the images in the given folders.

    Args:
        paths: Files and folders.  Files are kept with any suffix.  A folder is replaced by its files with one of
            :data:`IMAGE_SUFFIXES` (in upper or lower case), sorted by name, without hidden files and subfolders.

    Returns:
        The files, at least one.

    Raises:
        ImageFileError: A path does not exist, or a folder cannot be read or contains no image.
        ValueError: ``paths`` is empty.
    """
    files = []
    for path in map(Path, paths):
        files.extend(_images_in(path) if path.is_dir() else [_existing(path)])
    if not files:
        raise ValueError('no image was given')
    return files


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ImageFileError(path, 'no such file or folder')
    return path


def _images_in(folder: Path) -> list[Path]:
    try:
        images = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.') and path.is_file()
        )
    except OSError as error:
        raise ImageFileError(folder, _os_reason(error)) from error
    if not images:
        raise ImageFileError(folder, 'the folder contains no image')
    return images


def _read_bytes(path: str | os.PathLike) -> bytes:
    # cv2.imread does not give the reason for an error, and cannot open every file name on every system.
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageFileError(path, 'is a folder, not a file')
        if not stat.S_ISREG(mode):  # reading from a pipe might never end
            raise ImageFileError(path, 'is not a regular file')
        data = Path(path).read_bytes()
    except ImageFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ImageFileError(path, _os_reason(error)) from error
    if not data:
        raise ImageFileError(path, 'the file is empty')
    return data


def _os_reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return (reason or str(error)).lower()


def _check_header(path: str | os.PathLike, data: bytes) -> str:
    """Return Pillow's name of the format without decoding the image."""
    with _pillow_errors(path), Image.open(io.BytesIO(data), formats=_FORMATS) as header:
        return header.format or ''  # Image.open sets it


def _decode_with_opencv(data: bytes, apply_orientation: bool) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR if apply_orientation else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with _quiet_opencv():
        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            return None


def _decode_with_pillow(path: str | os.PathLike, data: bytes, apply_orientation: bool) -> np.ndarray:
    with _pillow_errors(path), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.mode in ('I', 'F'):
            raise ImageFileError(path, 'images with 32-bit samples are not supported')
        image.load()
        decoded = ImageOps.exif_transpose(image) if apply_orientation else image
        if decoded.mode.startswith('I;16'):  # Pillow would clip the samples at 255
            decoded = Image.fromarray((np.asarray(decoded) >> 8).astype(np.uint8))
        return np.asarray(decoded.convert('RGB'))


@contextlib.contextmanager
def _pillow_errors(path: str | os.PathLike) -> Iterator[None]:
    """Convert every error that Pillow raises for a bad file into an :class:`ImageFileError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except (ImageFileError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # None disables this error
        raise ImageFileError(path, f'the image has more than {limit} pixels') from error
    except Image.UnidentifiedImageError as error:
        raise ImageFileError(path, 'not an image of a known format') from error
    except Exception as error:  # Pillow raises errors of many types for damaged data
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageFileError(path, f'the image is damaged ({reason})') from error


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Suppress OpenCV's messages on stderr about bad files, which are reported as errors."""
    set_level = getattr(cv2.utils, 'logging', cv2).setLogLevel  # moved in OpenCV 5
    level = set_level(0)  # LOG_LEVEL_SILENT
    try:
        yield
    finally:
        set_level(level)


def to_chw(image: np.ndarray) -> np.ndarray:
    """Convert ``(H, W, 3)`` uint8 to ``(3, H, W)`` float32; return an array of floats unchanged."""
    if image.dtype != np.uint8:
        return image
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
