"""Images in: from files and arrays to the one form that the models take.

OpenCV decodes, because Detectron's numbers rest on ``cv2.imread``: an ordinary file gives exactly the
pixels that it gives, in RGB order.  Pillow looks at the header first (so that a wrong or an enormous
file is refused before anything is decoded), decodes what OpenCV cannot, and says what is wrong.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

#: What a folder is searched for.
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

# Pillow's names of the formats that are read.  A closed list: some of its other readers start programs
# (EPS starts Ghostscript) or are seldom used and little tested.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'DIB', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000')
_JPEG_FORMATS = ('JPEG', 'MPO')  # MPO: several JPEGs in one file, as some cameras write them
_JPEG_END = b'\xff\xd9'
_JPEG_TAIL = 4096  # bytes at a file's end among which the end marker must be, padding aside
_SIZE_THREADS = 16
_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange height and width


class ImageFileError(ValueError):
    """A file that cannot be read as an image; the message is one line, ``path: reason``."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f'{os.fspath(path)}: {reason}')
        self.path = Path(path)
        self.reason = reason


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as the models want it.

    The pixels are ``cv2.imread``'s: EXIF orientation is applied, grey and palette images become RGB,
    an alpha channel is dropped, of 16-bit samples the upper 8 bits are taken, the first picture of an
    animation is read.

    Args:
        path: A JPEG, PNG, BMP, TIFF, WebP, GIF, PPM or JPEG 2000 file.  An image of more than twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million, so more than 178 million) pixels is refused.

    Returns:
        A float32 array of shape ``(3, H, W)``, RGB, values in [0, 255].

    Raises:
        ImageFileError: The file is missing, unreadable, no image, damaged, truncated or too large.
    """
    data = _read_bytes(path)
    image_format = _check_header(path, data)
    bgr = _decode_with_opencv(data)
    if bgr is None:
        rgb = _decode_with_pillow(path, data)
    else:
        rgb = bgr[:, :, ::-1]
        # Older OpenCV (4.10, for one) fills the rest of a truncated JPEG with grey; Pillow can tell.
        if image_format in _JPEG_FORMATS and not data.rstrip(b'\0').endswith(_JPEG_END):
            _decode_with_pillow(path, data)
    return _to_chw(rgb)


def read_image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the height and width that :func:`read_image` will give, without decoding the image.

    Made for looking through a whole data set: it reads the header and the last bytes.  Only a JPEG file
    that does not end as it should is decoded, to see whether it is damaged.

    Args:
        path: See :func:`read_image`.

    Raises:
        ImageFileError: The file is missing, unreadable, no image, a truncated JPEG or too large.
    """
    try:
        with open(path, 'rb') as file:
            with _pillow_errors(path), Image.open(file, formats=_FORMATS) as header:
                image_format, (width, height) = header.format, header.size
                turned = header.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS
            file.seek(-min(_JPEG_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
            complete = image_format not in _JPEG_FORMATS or file.read().rstrip(b'\0').endswith(_JPEG_END)
    except ImageFileError:
        if os.path.isfile(path) and not os.path.getsize(path):
            raise ImageFileError(path, 'the file is empty') from None
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ImageFileError(path, _os_reason(error)) from error
    if not complete:
        return read_image(path).shape[1:]
    return (width, height) if turned else (height, width)


def read_image_sizes(paths: Iterable[str | os.PathLike]) -> list[tuple[int, int] | ImageFileError]:
    """Call :func:`read_image_size` for many files, several at a time.

    Args:
        paths: The files.

    Returns:
        Sizes in the order of ``paths``; in the place of a file that cannot be read, its error.
    """
    # The threads, which mostly wait for the disk, silence warnings and OpenCV each for itself and may undo
    # one another's restoring.  The blocks around them restore both in the end.
    with warnings.catch_warnings(), _quiet_opencv(), ThreadPoolExecutor(_SIZE_THREADS) as pool:
        return list(pool.map(_size_or_error, paths))


def _size_or_error(path: str | os.PathLike) -> tuple[int, int] | ImageFileError:
    try:
        return read_image_size(path)
    except ImageFileError as error:
        return error


def to_image_array(image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """Turn what a caller has into what the models take.

    Args:
        image: A file name (see :func:`read_image`); a float32 array ``(3, H, W)``, RGB in [0, 255]
            (ChainerCV's convention), which is returned as it is; or a uint8 array ``(H, W, 3)``, RGB.

    Returns:
        A float32 array of shape ``(3, H, W)``, RGB.

    Raises:
        ImageFileError: See :func:`read_image`.
        TypeError: ``image`` is neither a path nor an array.
        ValueError: The array has another dtype or shape, no pixels, or values that are not finite.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
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
    if is_bytes:
        return _to_chw(image)
    if not np.isfinite(image).all():
        raise ValueError('an image array must not contain NaN or infinity')
    return image


def list_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Replace folders by the images in them.

    Args:
        paths: Files, kept in their order whatever their suffix, and folders, replaced by their files
            with one of :data:`IMAGE_SUFFIXES` (in either case), sorted by name; folders inside a
            folder and hidden files are left out.

    Returns:
        The files, at least one.

    Raises:
        ImageFileError: A path does not exist, a folder cannot be read or holds no image.
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
        raise ImageFileError(folder, 'the folder holds no image')
    return images


def _read_bytes(path: str | os.PathLike) -> bytes:
    # Not cv2.imread: it cannot say why it fails, nor open every name on every system.
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageFileError(path, 'is a folder, not a file')
        if not stat.S_ISREG(mode):  # a pipe might never end
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
    return (getattr(error, 'strerror', None) or str(error)).lower()


def _check_header(path: str | os.PathLike, data: bytes) -> str:
    """Return Pillow's name of the format; nothing is decoded."""
    with _pillow_errors(path), Image.open(io.BytesIO(data), formats=_FORMATS) as header:
        return header.format


def _decode_with_opencv(data: bytes) -> np.ndarray | None:
    with _quiet_opencv():
        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            return None


def _decode_with_pillow(path: str | os.PathLike, data: bytes) -> np.ndarray:
    with _pillow_errors(path), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.mode in ('I', 'F'):
            raise ImageFileError(path, 'images with 32-bit samples are not supported')
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


@contextlib.contextmanager
def _pillow_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever Pillow raises for a bad file into an :class:`ImageFileError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except (ImageFileError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise ImageFileError(path, f'the image has more than {limit} pixels') from error
    except Image.UnidentifiedImageError as error:
        raise ImageFileError(path, 'not an image of a known format') from error
    except Exception as error:  # Pillow's readers raise almost anything for damaged data
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageFileError(path, f'the image is damaged ({reason})') from error


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from writing to stderr about files whose fault is reported anyway."""
    set_level = getattr(cv2.utils, 'logging', cv2).setLogLevel  # OpenCV 5 has moved it
    level = set_level(0)  # LOG_LEVEL_SILENT
    try:
        yield
    finally:
        set_level(level)


def _to_chw(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32)
