"""Reading of images from files and arrays into the arrays that models expect."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mask_rcnn.ops.runtime.parallel import parallel_for
from mask_rcnn.preprocessing.image_decoding import decode
from mask_rcnn.preprocessing.image_errors import ImageFileError, image_file_errors, os_reason
from mask_rcnn.preprocessing.image_header import ImageHeader, read_header
from mask_rcnn.preprocessing.image_listing import list_images
from mask_rcnn.preprocessing.orientation import make_upright, upright_size

__all__ = [
    'ImageFileError',
    'decode_image',
    'list_images',
    'load_image',
    'read_image',
    'read_image_header',
    'read_image_size',
    'read_image_sizes',
    'to_chw',
    'to_image_array',
]

_SIZE_THREADS = 16
_VALUES_PER_THREAD = 1 << 19  # in the check for NaN and infinity; 0.1 ms


def read_image(path: str | os.PathLike, *, apply_orientation: bool = True) -> np.ndarray:
    """Read an image file into an array.

    The pixels of JPEG photos and 8-bit PNG files are those of ``cv2.imread``, which Detectron uses, except that OpenCV
    reads no XMP.  The same rules hold for every format and for all versions of Pillow:

    - Orientation: that of EXIF in JPEG, PNG and WebP files, and the tag of a TIFF image.  Where it is missing or not
      1 to 8, ``tiff:Orientation`` of the XMP data of the same formats; where this is missing or not valid also, the
      image is upright.  An AVIF image has the rotation of its container; other formats have no orientation.
    - Alpha: the channel or transparent colour is dropped, the colours are not multiplied by it.  Colours that a TIFF
      file declares as multiplied by alpha are divided by it.
    - Range: grey, palette, CMYK and Lab images are converted to RGB, without ICC profiles.  Samples of 16 bits are
      reduced to the upper 8 of their significant bits: those that the file states (TIFF's BitsPerSample and
      MaxSampleValue), otherwise the smallest of 8, 10, 12, 14 and 16 bits that holds the largest sample of the image.
      Samples of 32 bits are rejected.  PNG's sBIT is not read: it states how many bits were significant before the
      encoder scaled the samples to all 16, so that the upper 8 are the same, as in libpng, Pillow and OpenCV.  Files
      that are not scaled are not correct with sBIT, and the rule above reads them without it.
    - Several images in one file (animation, pages, MPO): the first.

    Image files can be read in several threads; neither the warning filters nor the log level of OpenCV are changed.

    Args:
        path: A JPEG, PNG, BMP, TIFF, WebP, GIF, PPM or JPEG 2000 file, or an AVIF file with Pillow 11.3 or later.  An
            image with more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` (2 x 89 million) pixels is rejected, a GIF image
            with more than that number.
        apply_orientation: Whether to apply the orientation, or to return the pixels as they are stored.

    Returns:
        ``(3, H, W)`` float32, RGB, 0 to 255.

    Raises:
        ImageFileError: The file is missing, unreadable, not an image, damaged, truncated or too large.
    """
    return to_chw(_read_pixels(path, apply_orientation))


def _read_pixels(path: str | os.PathLike, apply_orientation: bool) -> np.ndarray:
    """Read an image file into ``(H, W, 3)`` uint8, RGB; see :func:`read_image`."""
    return decode_image(read_bytes(path), path, apply_orientation=apply_orientation)


def decode_image(
    data: bytes, path: str | os.PathLike, *, header: ImageHeader | None = None, apply_orientation: bool = True
) -> np.ndarray:
    """Decode the content of an image file.

    Args:
        data: The content; see :func:`read_image`.
        path: The name of the image in errors.
        header: Its header, if it has been read.
        apply_orientation: See :func:`read_image`.

    Returns:
        ``(H, W, 3)`` uint8, RGB, possibly read-only.

    Raises:
        ImageFileError: The content is not an image, or is damaged, truncated or too large.
    """
    with image_file_errors(path):
        header = header or read_header(io.BytesIO(data))
        pixels = decode(data, header)
        return make_upright(pixels, header.orientation) if apply_orientation else pixels


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
    header = read_image_header(path)
    if header.may_be_truncated:
        read_image(path)
    return upright_size(header.size, header.orientation) if apply_orientation else header.size


def read_image_header(path: str | os.PathLike) -> ImageHeader:
    """Read the format, the stored size and the orientation of an image file.

    Raises:
        ImageFileError: The file is missing, unreadable, not an image or too large.
    """
    try:
        _check_regular(path)
        with open(path, 'rb') as file, image_file_errors(path):
            return read_header(file)
    except ImageFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ImageFileError(path, os_reason(error)) from error


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
    with ThreadPoolExecutor(_SIZE_THREADS) as pool:
        return list(pool.map(partial(_size_or_error, apply_orientation=apply_orientation), paths))


def _size_or_error(path: str | os.PathLike, *, apply_orientation: bool) -> tuple[int, int] | ImageFileError:
    try:
        return read_image_size(path, apply_orientation=apply_orientation)
    except ImageFileError as error:
        return error


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageFileError: The file is missing, unreadable or not a regular file.
    """
    try:
        _check_regular(path)
        return Path(path).read_bytes()
    except ImageFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ImageFileError(path, os_reason(error)) from error


def _check_regular(path: str | os.PathLike) -> None:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageFileError(path, 'is a folder, not a file')
    if not stat.S_ISREG(mode):  # reading from a pipe might never end
        raise ImageFileError(path, 'is not a regular file')


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
        ``(H, W, 3)`` uint8, possibly read-only, for a file; otherwise ``image``.

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


def to_chw(image: np.ndarray) -> np.ndarray:
    """Convert ``(H, W, 3)`` uint8 to ``(3, H, W)`` float32; return an array of floats unchanged."""
    if image.dtype != np.uint8:
        return image
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Convert ``(3, H, W)`` floats, 0 to 255, to ``(H, W, 3)`` uint8: rounded, clipped and contiguous.

    An array of uint8 is returned unchanged.
    """
    if image.dtype == np.uint8:
        return image
    return np.ascontiguousarray(np.rint(image.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0))
