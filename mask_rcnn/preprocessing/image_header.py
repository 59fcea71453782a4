"""The header of an image file: format, stored size and orientation, without decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

from mask_rcnn.io.file_kinds import N_KIND_BYTES
from mask_rcnn.preprocessing.image_errors import UnsupportedImageError, not_an_image, too_many_pixels
from mask_rcnn.preprocessing.image_formats import N_MAGIC_BYTES, detect_format, open_with_pillow
from mask_rcnn.preprocessing.jpeg_png import Parts, find_jpeg_parts, find_png_parts
from mask_rcnn.preprocessing.orientation import UPRIGHT, choose_orientation, exif_orientation
from mask_rcnn.preprocessing.tiff_directory import TiffDirectory, read_tiff_directory


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Args:
        format: The format's name, see :func:`mask_rcnn.preprocessing.image_formats.detect_format`.
        size: Stored height and width.
        orientation: Orientation, 1 to 8, as EXIF numbers it.
        structure: Where a JPEG, PNG or TIFF file stores its pixels.
    """

    format: str
    size: tuple[int, int]
    orientation: int = UPRIGHT
    structure: Parts | TiffDirectory | None = None

    @property
    def may_be_truncated(self) -> bool:
        """True if only decoding shows whether the file is complete."""
        return self.format == 'JPEG' and isinstance(self.structure, Parts) and not self.structure.is_complete


def read_header(file: BinaryIO) -> ImageHeader:
    """Read the header of an image file.

    Args:
        file: The file, which can seek.

    Raises:
        UnsupportedImageError: The file is empty, not an image, in an unsupported format, or too large.
        Exception: The header is damaged; the types of the errors are various.
    """
    file.seek(0)
    start = file.read(N_MAGIC_BYTES)
    if not start:
        raise UnsupportedImageError('the file is empty')
    name = detect_format(start)
    if name is None:
        file.seek(0)
        raise UnsupportedImageError(not_an_image(file.read(N_KIND_BYTES)))
    header = _read_structure(file, name)
    height, width = header.size
    if height < 1 or width < 1:
        raise ValueError(f'the header declares {height} x {width} pixels')
    if Image.MAX_IMAGE_PIXELS is not None and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise UnsupportedImageError(too_many_pixels())
    return header


def _read_structure(file: BinaryIO, name: str) -> ImageHeader:
    if name == 'JPEG' or name == 'PNG':
        parts = find_jpeg_parts(file) if name == 'JPEG' else find_png_parts(file)
        return ImageHeader(name, parts.size, choose_orientation(exif_orientation(parts.exif), parts.xmp), parts)
    if name == 'TIFF':
        directory = read_tiff_directory(file)
        return ImageHeader(name, directory.size, directory.orientation, directory)
    file.seek(0)
    with open_with_pillow(file, name) as image:
        width, height = image.size
        orientation = UPRIGHT
        if name in ('WEBP', 'AVIF'):  # Pillow reports the rotation of AVIF's container, which is decisive, as EXIF
            xmp = image.info.get('xmp') if name == 'WEBP' else None
            orientation = choose_orientation(exif_orientation(image.info.get('exif')), xmp)
        return ImageHeader(name, (height, width), orientation)
