"""Reading of label images: files whose pixels are indices or colours of instances or classes, not brightness."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing import tiff_directory as tiff
from mask_rcnn.preprocessing.image_decoding import silence_libtiff
from mask_rcnn.preprocessing.image_errors import UnsupportedImageError, image_file_errors
from mask_rcnn.preprocessing.image_formats import open_with_pillow
from mask_rcnn.preprocessing.image_header import ImageHeader, read_header
from mask_rcnn.preprocessing.image_io import read_bytes
from mask_rcnn.preprocessing.jpeg_png import Parts, strip_png
from mask_rcnn.preprocessing.orientation import make_upright

_FORMATS = ('PNG', 'TIFF', 'BMP')
_TIFF_JPEG = (6, 7)  # compressions
_PNG_DEPTH, _PNG_COLOR_TYPE = 24, 25  # places in the file
_PNG_GREY = 0  # colour type
_LARGEST_EXACT_FLOAT = 2**24


@dataclass(frozen=True)
class LabelImage:
    """The pixels of a label image.

    Args:
        values: ``(H, W)`` int32, at least 0: the stored integers (for a palette, the indices), or ``R << 16 | G << 8 |
            B`` if the pixels are colours.
        is_color: Whether the pixels are colours.
        palette: ``(N, 3)`` uint8, the RGB colour of each index, or ``None`` for a file without a palette.
    """

    values: np.ndarray
    is_color: bool
    palette: np.ndarray | None = None

    def describe(self, value: int) -> str:
        """Return a value as text: ``'value 7'``, ``'colour 128,0,0'``."""
        return f'colour {value >> 16},{value >> 8 & 255},{value & 255}' if self.is_color else f'value {value}'


def read_label_image(path: str | os.PathLike) -> LabelImage:
    """Read a label image.

    In contrast to :func:`mask_rcnn.preprocessing.image_io.read_image`, no value changes: palettes are not applied, and
    16-bit and 32-bit integers keep all bits.  Floats are accepted if they are integers.  An alpha channel is dropped.

    Args:
        path: A PNG, TIFF or BMP file; the first image of several.

    Raises:
        ImageFileError: The file is missing, unreadable, damaged or too large, is in a format that changes values
            (JPEG), or contains values that are not labels (negative, not integers).
    """
    data = read_bytes(path)
    with image_file_errors(path):
        header = read_header(io.BytesIO(data))
        if header.format not in _FORMATS:
            raise UnsupportedImageError(
                f'is a {header.format} file; save label images as PNG or TIFF, because other formats may change values'
            )
        if isinstance(header.structure, tiff.TiffDirectory):
            pixels, palette = _decode_tiff(data, header.structure)
        else:
            pixels, palette = _decode(data, header)
        values = make_upright(_to_integers(pixels)[:, :, None], header.orientation)[:, :, 0]
        return LabelImage(values, pixels.ndim == 3, palette)


def _decode(data: bytes, header: ImageHeader) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a PNG or BMP file; see :func:`_read_pixels`."""
    if not isinstance(header.structure, Parts):
        return _read_pixels(data, header.format)
    depth, color_type = data[_PNG_DEPTH], data[_PNG_COLOR_TYPE]
    if depth > 8 and color_type != _PNG_GREY:
        raise UnsupportedImageError('has several channels of 16 bits; save one integer for each pixel')
    return _read_pixels(strip_png(data, header.structure), 'PNG', depth)


def _decode_tiff(data: bytes, directory: tiff.TiffDirectory) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a TIFF file; see :func:`_read_pixels`."""
    depth, samples = directory.integer(tiff.BITS, 1), directory.integer(tiff.SAMPLES, 1)
    photometric = directory.integer(tiff.PHOTOMETRIC, tiff.BLACK_IS_ZERO)
    if directory.integer(tiff.COMPRESSION, 1) in _TIFF_JPEG or photometric == tiff.YCBCR:
        raise UnsupportedImageError('is compressed as JPEG, which changes values; use another compression')
    if samples > 1 and (depth > 8 or directory.has_planes):
        raise UnsupportedImageError(
            f'has {counted(samples, "channel")} of {counted(depth, "bit")}; save one integer for each pixel'
        )
    tiff.check_strips(directory)
    silence_libtiff()
    # Pillow inverts the values of this interpretation.
    declared = tiff.BLACK_IS_ZERO if photometric == tiff.WHITE_IS_ZERO else photometric
    (file,) = tiff.strip_tiff(data, directory, declared)
    try:
        return _read_pixels(file, 'TIFF', depth)
    except SyntaxError as error:  # Pillow does not know this combination of tags
        raise UnsupportedImageError(
            f'TIFF images with {counted(samples, "sample")} of {counted(depth, "bit")} of this kind are not '
            f'supported ({error}); save the label image as 16-bit PNG'
        ) from error


def _read_pixels(data: bytes, name: str, depth: int = 8) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ``(H, W)`` integers or floats, or ``(H, W, 3)`` colours, and the palette.

    Args:
        data: The file.
        name: Its format.
        depth: Number of bits of a sample.
    """
    with open_with_pillow(io.BytesIO(data), name) as image:
        if image.mode in ('LA', 'PA'):
            return np.asarray(image)[:, :, 0], None
        if image.mode in ('RGB', 'RGBA', 'RGBX'):
            return np.asarray(image)[:, :, :3], None
        if image.mode not in ('1', 'L', 'P') and image.mode[0] not in 'IF':
            raise UnsupportedImageError(f'has pixels of the kind {image.mode}; save one integer for each pixel')
        pixels = np.asarray(image)
        if image.mode == 'L' and depth in (2, 4):
            pixels = pixels // (255 // (2**depth - 1))  # Pillow spreads the samples to 0...255
        palette = image.getpalette('RGB') if image.mode == 'P' else None
        return pixels, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)


def _to_integers(pixels: np.ndarray) -> np.ndarray:
    """Return the label of each pixel as int32."""
    if pixels.ndim == 3:
        red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
        return red << 16 | green << 8 | blue
    if pixels.dtype.kind == 'f':
        if not ((pixels >= 0) & (pixels <= _LARGEST_EXACT_FLOAT) & (pixels == np.floor(pixels))).all():
            raise UnsupportedImageError('contains values that are not integers of at least 0; it is not a label image')
    elif pixels.dtype.kind == 'i' and pixels.min() < 0:
        raise UnsupportedImageError(f'contains the value {pixels.min()}; labels are 0 (background) or more')
    return pixels.astype(np.int32)
