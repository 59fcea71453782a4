"""Label images keep every value; other files are refused by one line."""

import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.preprocessing.image_errors import ImageFileError
from mask_rcnn.preprocessing.label_image import read_label_image
from tests.preprocessing.image_files import MAKE_UPRIGHT, deep_png, encode, png_chunk, tiff, with_orientation
from tests.support.damage import bit_flips, truncations

SMALL = np.arange(24).reshape(4, 6)
SAMPLE_FORMAT = 339


@pytest.fixture
def read(tmp_path):
    """A function that writes bytes to a file and reads them as a label image."""

    def write_and_read(data):
        path = tmp_path / 'labels'
        path.write_bytes(data)
        return read_label_image(path)

    return write_and_read


def packed_png(values, depth, color_type):
    """A PNG file of one row with fewer than 8 bits per sample; the palette has the colours (0, 1, 2), (3, 4, 5), ..."""
    bits = ''.join(format(value, f'0{depth}b') for value in values)
    row = b'\0' + int(bits, 2).to_bytes(len(bits) // 8, 'big')
    palette = [(b'PLTE', bytes(range(3 * 2**depth)))] if color_type == 3 else []
    header = struct.pack('>IIBBBBB', len(values), 1, depth, color_type, 0, 0, 0)
    chunks = [(b'IHDR', header), *palette, (b'IDAT', zlib.compress(row)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(png_chunk(*chunk) for chunk in chunks)


def test_png_with_8_bits(read):
    assert (read(encode(Image.fromarray(SMALL.astype(np.uint8) * 11), 'PNG')).values == SMALL * 11).all()


@pytest.mark.parametrize('values', [SMALL * 2849, SMALL + 250, SMALL], ids=['all bits', 'over 8 bits', 'few values'])
def test_png_with_16_bits(read, values):
    label = read(deep_png(values[:, :, None]))
    np.testing.assert_array_equal(label.values, values)
    assert label.values.dtype == np.int32 and not label.is_color


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize(('dtype', 'kind'), [('u1', 1), ('u2', 1), ('i2', 2), ('i4', 2), ('f4', 3)])
def test_tiff(read, dtype, kind, order):
    values = (SMALL * (11 if dtype == 'u1' else 1300)).astype(dtype)
    label = read(tiff(values[:, :, None], order=order, tags=[(SAMPLE_FORMAT, [kind])]))
    np.testing.assert_array_equal(label.values, values)


def test_tiff_with_values_over_16_bits(read):
    values = (SMALL * 80_000).astype(np.int32)
    np.testing.assert_array_equal(read(tiff(values[:, :, None], tags=[(SAMPLE_FORMAT, [2])])).values, values)


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'packbits'])
def test_compressed_tiff(read, compression):
    image = Image.fromarray((SMALL * 2849).astype(np.uint16))
    np.testing.assert_array_equal(read(encode(image, 'TIFF', compression=compression)).values, SMALL * 2849)


def test_tiff_whose_zero_is_white_is_not_inverted(read):
    np.testing.assert_array_equal(read(tiff(SMALL.astype(np.uint8)[:, :, None], photometric=0)).values, SMALL)


@pytest.mark.parametrize('depth', [1, 2, 4])
@pytest.mark.parametrize('color_type', [0, 3], ids=['grey', 'palette'])
def test_png_with_few_bits(read, depth, color_type):
    values = [i % 2**depth for i in range(16)]
    label = read(packed_png(values, depth, color_type))
    assert label.values.tolist() == [values]
    if color_type == 3:
        assert label.palette[1].tolist() == [3, 4, 5]


def test_palette_is_not_applied(read):
    image = Image.fromarray(SMALL.astype(np.uint8)).convert('P')
    image.putpalette([255 - i // 3 for i in range(768)])
    label = read(encode(image, 'PNG', transparency=3))
    np.testing.assert_array_equal(label.values, SMALL)
    assert label.palette[2].tolist() == [253, 253, 253] and not label.is_color


@pytest.mark.parametrize('channels', [3, 4])
def test_colors_without_alpha(read, channels):
    pixels = np.zeros((2, 3, channels), np.uint8)
    pixels[1, 2] = (1, 2, 3, 77)[:channels]
    label = read(encode(Image.fromarray(pixels), 'PNG'))
    assert label.is_color and label.values.tolist() == [[0, 0, 0], [0, 0, 0x010203]]
    assert label.describe(0x010203) == 'colour 1,2,3'


def test_orientation_of_the_label_image_is_applied(read):
    data = encode(Image.fromarray(SMALL.astype(np.uint8)), 'PNG', exif=with_orientation(6))
    np.testing.assert_array_equal(read(data).values, MAKE_UPRIGHT[6](SMALL))


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (encode(Image.new('L', (9, 9)), 'JPEG'), 'is a JPEG file; save label images as PNG or TIFF'),
        (encode(Image.new('RGB', (9, 9)), 'WEBP'), 'is a WEBP file'),
        (encode(Image.new('L', (16, 16)), 'TIFF', compression='jpeg'), 'is compressed as JPEG'),
        (deep_png(np.zeros((2, 2, 3))), 'several channels of 16 bits'),
        (tiff(np.zeros((2, 2, 3), np.uint16)), 'has 3 channels of 16 bits'),
        (tiff(np.full((2, 2, 1), -3, np.int16), tags=[(SAMPLE_FORMAT, [2])]), 'contains the value -3'),
        (tiff(np.full((2, 2, 1), 0.5, np.float32), tags=[(SAMPLE_FORMAT, [3])]), 'not integers'),
        (tiff(np.full((2, 2, 1), np.nan, np.float32), tags=[(SAMPLE_FORMAT, [3])]), 'not integers'),
        (tiff(np.full((2, 2, 1), 1e9, np.float32), tags=[(SAMPLE_FORMAT, [3])]), 'not integers'),
        (tiff(np.zeros((2, 2, 1), np.int64), tags=[(SAMPLE_FORMAT, [2])]), 'save the label image as 16-bit PNG'),
        (b'', 'the file is empty'),
        (b'1 2 3\n', 'not an image'),
    ],
)
def test_refused_files(read, data, reason):
    with pytest.raises(ImageFileError, match=reason) as caught:
        read(data)
    assert '\n' not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ImageFileError, match='no such file'):
        read_label_image(tmp_path / 'missing.png')


def read_or_error(read, data):
    try:
        return read(data)
    except ImageFileError as error:
        return error


def test_damaged_files_raise_one_kind_of_error(read):
    generator = random.Random(0)
    values = SMALL.astype(np.uint16)[:, :, None]
    for data in (deep_png(values), packed_png([0, 1] * 8, 4, 3), tiff(values), encode(Image.new('P', (9, 9)), 'BMP')):
        results = [read_or_error(read, damaged) for damaged in (*truncations(data), *bit_flips(data, 150, generator))]
        errors = [str(result) for result in results if isinstance(result, ImageFileError)]
        assert len(errors) >= 40 and not any('\n' in error for error in errors)
        labels = [result for result in results if not isinstance(result, ImageFileError)]
        assert all(label.values.ndim == 2 and label.values.min() >= 0 for label in labels)
