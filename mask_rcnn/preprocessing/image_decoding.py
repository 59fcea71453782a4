"""Decoding of image files into RGB, with Pillow, so that header and pixels come from one library.

Pillow and OpenCV decode JPEG with the same library and settings: the pixels equal those of ``cv2.imread``, which
Detectron uses.  OpenCV's other readers differ between versions in orientation, alpha and range.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageFile

from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing import tiff_directory as tiff
from mask_rcnn.preprocessing.image_errors import UnsupportedImageError
from mask_rcnn.preprocessing.image_formats import TOO_DEEP, open_with_pillow
from mask_rcnn.preprocessing.image_header import ImageHeader
from mask_rcnn.preprocessing.jpeg2000 import wrap_deep_colors
from mask_rcnn.preprocessing.jpeg_png import Parts, strip_jpeg, strip_png
from mask_rcnn.preprocessing.netpbm import decode_netpbm

#: Sample depths of cameras and microscopes whose files have 16 bits per sample.
_DEPTHS = (8, 10, 12, 14, 16)
_MAX_PIXELS_AT_ONCE, _PIXELS_PER_STRIP = 1 << 22, 1 << 18  # strips of smaller images save nothing
_MAX_TIFF_SAMPLES = 6  # of Pillow
_TIFF_JPEG = 7  # compression
_SIGN_OF_AB = np.array((0, 128, 128), np.uint8)  # Pillow's bytes of a and b are signed
_RAW_MODES_OF_LOW_BYTES = {
    f'{mode};16{order}': f'{mode};16{other}'
    for mode in ('RGB', 'RGBA', 'RGBX')
    for order, other in (('L', 'B'), ('B', 'L'), ('N', 'B' if np.little_endian else 'L'))
}


def decode(data: bytes, header: ImageHeader) -> np.ndarray:
    """Decode an image.

    Args:
        data: The file.
        header: Its header.

    Returns:
        ``(H, W, 3)`` uint8, RGB, as stored, possibly read-only;
        :func:`mask_rcnn.preprocessing.image_io.read_image` states the rules.

    Raises:
        UnsupportedImageError: The samples are not supported.
        Exception: The image is damaged; the types of the errors are various.
    """
    if isinstance(header.structure, tiff.TiffDirectory):
        return _decode_tiff(data, header.structure)
    if isinstance(header.structure, Parts):
        if header.format == 'PNG':
            return _decode_png(data, header.structure)
        data = strip_jpeg(data, header.structure)
    elif header.format == 'PPM' and (netpbm := decode_netpbm(data)) is not None:
        return _scale_netpbm(*netpbm)
    elif header.format == 'JPEG2000' and (deep := wrap_deep_colors(data)) is not None:
        return _decode_deep_jpeg2000(*deep)
    return _decode_with_pillow(data, header.format)


def _decode_png(data: bytes, parts: Parts) -> np.ndarray:
    data = strip_png(data, parts)
    grey_alpha = _as_rgba_bytes(data)
    return _decode_with_pillow(data, 'PNG') if grey_alpha is None else _decode_grey_of_rgba(grey_alpha, 'PNG', '>')


def _decode_grey_of_rgba(data: bytes, name: str, order: str, depth: int | None = None) -> np.ndarray:
    """Decode 16-bit grey and alpha that is declared as 8-bit RGBA; drop alpha."""
    with open_with_pillow(io.BytesIO(data), name) as image:
        pixels = np.asarray(image)
    samples = np.ascontiguousarray(pixels[:, :, :2]).view(f'{order}u2')
    return np.repeat(reduce_to_8_bits(samples, depth), 3, axis=2)


def _as_rgba_bytes(data: bytes) -> bytes | None:
    """Declare the pixels of a PNG file with 16-bit grey and alpha as RGBA with 8 bits, which has pixels of equal size.

    Pillow drops the lower bytes of such pixels.  Returns ``None`` for a file with other pixels.
    """
    start, stop = 12, 29  # name and content of IHDR
    if data[24:26] != bytes((16, 4)):
        return None
    ihdr = data[start:24] + bytes((8, 6)) + data[26:stop]
    return data[:start] + ihdr + zlib.crc32(ihdr).to_bytes(4, 'big') + data[stop + 4 :]


def _decode_deep_jpeg2000(data: bytes, depth: int) -> np.ndarray:
    """Decode colours of more than 8 bits with OpenCV: Pillow rounds, and white overflows to black (Pillow 12.3)."""
    with open_with_pillow(io.BytesIO(data), 'JPEG2000') as image:
        image.load()  # OpenCV would write lines about a damaged file
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.ndim != 3 or samples.dtype != np.uint16:
        raise UnsupportedImageError(f'JPEG 2000 images with {depth} bits per sample of this kind are not supported')
    return reduce_to_8_bits(samples[:, :, 2::-1], depth if depth < 16 else None)


def _scale_netpbm(samples: np.ndarray, largest: int) -> np.ndarray:
    """Convert samples from 0 to ``largest`` to RGB, ``(H, W, 3)`` uint8."""
    if largest == np.iinfo(np.uint16).max:
        samples = reduce_to_8_bits(samples)
    else:
        values = np.arange(largest + 1, dtype=np.uint32)
        table = values * 256 // (largest + 1) if largest > 255 else (values * 255 + largest // 2) // largest
        samples = table.astype(np.uint8)[np.minimum(samples, largest)]
    return samples if samples.shape[2] == 3 else np.repeat(samples, 3, axis=2)


def _decode_tiff(data: bytes, directory: tiff.TiffDirectory) -> np.ndarray:
    depth, photometric = directory.integer(tiff.BITS, 1), directory.integer(tiff.PHOTOMETRIC, tiff.BLACK_IS_ZERO)
    if depth >= 32:
        raise UnsupportedImageError(TOO_DEEP)
    tiff.check_strips(directory)
    is_inverted = depth > 8 and photometric == tiff.WHITE_IS_ZERO  # Pillow inverts up to 8 bits
    # Pillow reads YCbCr only in the form of JPEG.
    is_ycbcr = photometric == tiff.YCBCR and directory.integers(tiff.SUBSAMPLING) == (1, 1)
    is_ycbcr &= directory.integer(tiff.COMPRESSION, 1) != _TIFF_JPEG
    declared = tiff.BLACK_IS_ZERO if is_inverted else tiff.RGB if is_ycbcr else photometric
    silence_libtiff()
    try:
        pixels = _decode_tiff_samples(tiff.strip_tiff(data, directory, declared), directory)
    except SyntaxError as error:  # Pillow does not know this combination of tags
        samples, compression = directory.integer(tiff.SAMPLES, 1), directory.integer(tiff.COMPRESSION, 1)
        raise UnsupportedImageError(
            f'TIFF images with {counted(samples, "sample")} of {counted(depth, "bit")}, photometric interpretation '
            f'{photometric} and compression {compression} are not supported ({error}); convert the file to 8-bit RGB'
        ) from error
    if is_ycbcr:
        return np.asarray(Image.merge('YCbCr', Image.fromarray(pixels).split()).convert('RGB'))
    return 255 - pixels if is_inverted else pixels


def _decode_tiff_samples(files: list[bytes], directory: tiff.TiffDirectory) -> np.ndarray:
    """Decode the files that :func:`~mask_rcnn.preprocessing.tiff_directory.strip_tiff` returns."""
    depth = _stated_depth(directory)
    if len(files) > 1:
        return _decode_planes(files, depth)
    if directory.has_deep_alpha:
        return _decode_grey_of_rgba(files[0], 'TIFF', directory.order, depth)
    if directory.integer(tiff.SAMPLES, 1) > _MAX_TIFF_SAMPLES and not directory.has_planes:
        raise SyntaxError('too many samples')  # Pillow would log an error
    return _decode_with_pillow(files[0], 'TIFF', depth)


def _stated_depth(directory: tiff.TiffDirectory) -> int | None:
    """Return the number of significant bits of samples with more than 8 bits, if a TIFF file states it."""
    depth = directory.integer(tiff.BITS, 1)
    if 8 < depth < 16:
        return depth
    depth = max(directory.integers(tiff.MAX_SAMPLE), default=0).bit_length()
    return depth if 8 <= depth < 16 else None


def _decode_planes(files: list[bytes], depth: int | None) -> np.ndarray:
    """Decode R, G and B from three grey TIFF files."""
    planes = []
    for file in files:
        with open_with_pillow(io.BytesIO(file), 'TIFF') as image:
            planes.append(np.asarray(image))
    samples = np.dstack(planes)
    return samples if samples.dtype == np.uint8 else reduce_to_8_bits(samples, depth)


def _decode_with_pillow(data: bytes, name: str, stated_depth: int | None = None) -> np.ndarray:
    with open_with_pillow(io.BytesIO(data), name) as image:
        if image.mode == 'F':
            raise UnsupportedImageError(TOO_DEEP)
        tiles = list(image.tile)
        if image.mode.startswith('I'):
            return _repeat_grey(reduce_to_8_bits(np.asarray(image), stated_depth))
        if image.mode == 'LAB':
            return cv2.cvtColor(np.asarray(image) ^ _SIGN_OF_AB, cv2.COLOR_LAB2RGB)
        image.load()
        image.info.pop('transparency', None)  # Pillow would warn of some kinds, or apply it
        pixels = _copy_pixels(image)
    low_tiles = _tiles_of_low_bytes(tiles)
    if low_tiles is None or (stated_depth is None and pixels.max() >= 1 << (_DEPTHS[-2] - 8)):
        return pixels
    with open_with_pillow(io.BytesIO(data), name) as image:
        image.tile = low_tiles
        low = _copy_pixels(image)
    return reduce_to_8_bits(pixels.astype(np.uint16) << 8 | low, stated_depth)


def _copy_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image as ``(H, W, 3)`` uint8, RGB.

    Large images are copied in strips that fit into the cache of a CPU: Pillow converts a whole image in memory, and
    ``numpy.asarray`` copies it twice.  Of 0.43 s for a JPEG photo of 24 megapixels, 0.21 s were this.
    """
    width, height = image.size
    if width * height <= _MAX_PIXELS_AT_ONCE:
        return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
    pixels, n_rows = np.empty((height, width, 3), np.uint8), max(_PIXELS_PER_STRIP // width, 1)
    for top in range(0, height, n_rows):
        strip = image.crop((0, top, width, min(top + n_rows, height)))
        pixels[top : top + n_rows] = np.asarray(strip if strip.mode == 'RGB' else strip.convert('RGB'))
    return pixels


def _tiles_of_low_bytes(tiles: Sequence) -> list | None:
    """Return Pillow's tiles for the lower bytes of 16-bit colours, of which it usually decodes only the upper ones.

    With the other byte order, Pillow takes the lower bytes for the upper ones.  Returns ``None`` for other samples, and
    for decoders without tiles (WebP), whose samples have 8 bits.
    """
    changed = []
    for codec, box, offset, options in tiles:
        raw_mode, *others = (options,) if isinstance(options, str) else options
        if raw_mode not in _RAW_MODES_OF_LOW_BYTES:
            return None
        raw_mode = _RAW_MODES_OF_LOW_BYTES[raw_mode]
        changed.append((codec, box, offset, raw_mode if isinstance(options, str) else (raw_mode, *others)))
    make_tile = getattr(ImageFile, '_Tile', None)  # Pillow 11 or later
    return [make_tile(*tile) if make_tile else tile for tile in changed] or None


def reduce_to_8_bits(samples: np.ndarray, depth: int | None = None) -> np.ndarray:
    """Reduce samples of up to 16 bits to their upper 8 bits.

    Args:
        samples: Integers; negative ones become 0.
        depth: Number of bits of the samples.  By default, the smallest of 8, 10, 12, 14 and 16 bits that holds the
            largest sample: cameras and microscopes store 12 bits in 16 without a note in the file, and the upper 8
            of the 16 bits would be nearly black.

    Returns:
        The reduced samples, uint8.
    """
    if depth is None:
        largest = int(samples.max())
        depth = next((depth for depth in _DEPTHS if largest < 1 << depth), _DEPTHS[-1])
    if samples.dtype.kind == 'i':
        samples = np.maximum(samples, 0)
    return np.minimum(samples >> (depth - 8), 255).astype(np.uint8)


def _repeat_grey(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@functools.cache
def silence_libtiff() -> None:
    """Stop the libtiff of Pillow from writing lines to stderr; Pillow raises its errors as exceptions in any case.

    Pillow has no option for this.  The symbols of libtiff are not visible if it is linked statically (on Windows).
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
