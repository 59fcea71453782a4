"""The formats of image files: suffixes, first bytes, and Pillow's readers."""

from __future__ import annotations

import functools
import importlib
from typing import BinaryIO

from PIL import Image, ImageFile

from mask_rcnn.preprocessing.gif import first_image_size
from mask_rcnn.preprocessing.image_errors import UnsupportedImageError, too_many_pixels

#: Suffixes of image files; a folder's files with other suffixes are judged by their content.
IMAGE_SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.mpo'),
    *('.png', '.apng', '.bmp', '.dib', '.tif', '.tiff', '.webp', '.gif', '.avif'),
    *('.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.j2c', '.jpc', '.jpx'),
)

#: The error of an image with 32 bits per sample.
TOO_DEEP = 'images with 32-bit samples are not supported; convert the file to 8 or 16 bits'

#: Number of first bytes that :func:`detect_format` needs.
N_MAGIC_BYTES = 32

# Pillow's reader of each format, module and class.  The readers are called directly: ``Image.open`` warns of large
# images, tries readers that start programs (EPS starts Ghostscript), and reads all images of an MPO file.
_READERS = {
    'JPEG': ('JpegImagePlugin', 'JpegImageFile'),
    'PNG': ('PngImagePlugin', 'PngImageFile'),
    'BMP': ('BmpImagePlugin', 'BmpImageFile'),
    'TIFF': ('TiffImagePlugin', 'TiffImageFile'),
    'WEBP': ('WebPImagePlugin', 'WebPImageFile'),
    'GIF': ('GifImagePlugin', 'GifImageFile'),
    'PPM': ('PpmImagePlugin', 'PpmImageFile'),
    'JPEG2000': ('Jpeg2KImagePlugin', 'Jpeg2KImageFile'),
    'AVIF': ('AvifImagePlugin', 'AvifImageFile'),
}
_MAGIC = (
    (b'\xff\xd8\xff', 'JPEG'),
    (b'\x89PNG\r\n\x1a\n', 'PNG'),
    *((magic, 'TIFF') for magic in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')),
    *((magic, 'GIF') for magic in (b'GIF87a', b'GIF89a')),
    *((magic, 'JPEG2000') for magic in (b'\xff\x4f\xff\x51', b'\0\0\0\x0cjP  \r\n\x87\n')),
)
_UNSUPPORTED_MAGIC = ((b'\xff\x0a', 'JPEG XL'), (b'\0\0\0\x0cJXL ', 'JPEG XL'), (b'8BPS', 'Photoshop'))
_BMP_HEADER_SIZES = {12, 16, 40, 52, 56, 64, 108, 124}
_AVIF_BRANDS = (b'avif', b'avis')
_HEIF_BRANDS = (b'heic', b'heix', b'hevc', b'hevx', b'heim', b'heis', b'mif1', b'msf1')


def detect_format(start: bytes) -> str | None:
    """Return the name of a file's format, ``None`` if it is not an image of a known format.

    Args:
        start: The first :data:`N_MAGIC_BYTES` bytes.

    Raises:
        UnsupportedImageError: The file is an image of a format that cannot be read.
    """
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if start[:2] == b'BM' and int.from_bytes(start[14:18], 'little') in _BMP_HEADER_SIZES:
        return 'BMP'
    if start[:1] == b'P' and start[1:2] in b'123456' and start[2:3].isspace():
        return 'PPM'
    if start[:3] in (b'Pf\n', b'PF\n'):
        raise UnsupportedImageError(TOO_DEEP)
    if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
        return 'WEBP'
    if start[4:8] == b'ftyp' and start[8:12] in _AVIF_BRANDS + _HEIF_BRANDS:
        if start[8:12] in _AVIF_BRANDS or any(brand in start[16:] for brand in _AVIF_BRANDS):
            return 'AVIF'
        raise UnsupportedImageError(_conversion_hint('HEIC'))
    for magic, name in _UNSUPPORTED_MAGIC:
        if start.startswith(magic):
            raise UnsupportedImageError(_conversion_hint(name))
    return None


def _conversion_hint(name: str) -> str:
    return f'{name} images are not supported; convert the file to JPEG or PNG (ImageMagick: magick FILE FILE.jpg)'


@functools.lru_cache(maxsize=len(_READERS))
def _reader(name: str) -> type[ImageFile.ImageFile]:
    module, class_name = _READERS[name]
    try:
        return getattr(importlib.import_module(f'PIL.{module}'), class_name)
    except ImportError:  # AVIF: before Pillow 11.3
        raise UnsupportedImageError(f'this version of Pillow does not read {name} images') from None


def open_with_pillow(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Read the header of an image with Pillow's reader of the format.

    Args:
        file: The file, which must stay open until the pixels are read.
        name: A name that :func:`detect_format` returns.

    Raises:
        UnsupportedImageError: Pillow was built without the format, or the image is too large.
        Exception: The header is damaged; the types of the errors are various.
    """
    if name in ('AVIF', 'WEBP') and not _is_built_in(name):
        raise UnsupportedImageError(f'this installation of Pillow does not read {name} images')
    if name == 'GIF':
        _check_gif(file)
    try:
        image = _reader(name)(file, '')
    except MemoryError:
        raise ValueError('the header declares more bytes than there is memory') from None
    # The size that Pillow reads from a damaged file can be another one than that of the first header.
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > 2 * Image.MAX_IMAGE_PIXELS:
        image.close()
        raise UnsupportedImageError(too_many_pixels())
    stored_size = getattr(image, '_tile_size', None)  # of TIFF files, in newer versions of Pillow
    if stored_size is not None:  # the reader would warn of a large image when it allocates this memory
        image.im = Image.core.new(image.mode, stored_size)
    return image


def _check_gif(file: BinaryIO) -> None:
    """Refuse a GIF file of a size of which Pillow's reader of this format would warn."""
    height, width = first_image_size(file)
    file.seek(0)
    if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
        raise UnsupportedImageError(
            f'GIF images of more than {Image.MAX_IMAGE_PIXELS} pixels are not supported; convert the file to PNG'
        )


def _is_built_in(name: str) -> bool:
    """Return whether Pillow was built with the library of an optional format."""
    try:
        importlib.import_module(f'PIL._{name.lower()}')
    except ImportError:
        return False
    return True
