"""Tests of image files and arrays: pixels, sizes and errors."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mask_rcnn.io.file_kinds import DOWNLOAD_HINTS, POINTER, REFUSAL
from mask_rcnn.preprocessing.image_errors import UnsupportedImageError
from mask_rcnn.preprocessing.image_formats import open_with_pillow
from mask_rcnn.preprocessing.image_io import (
    ImageFileError,
    read_image,
    read_image_size,
    read_image_sizes,
    to_image_array,
    to_pixels,
)
from tests.preprocessing.image_files import encode, gradients, write
from tests.support import wrong_files

OTHER = 'not an image of a known format: it is '
FFMPEG = 'ffmpeg -i FILE frame_%06d.png'


def as_hwc(image):
    assert image.dtype == np.float32 and image.shape[0] == 3 and image.flags.c_contiguous
    return image.transpose(1, 2, 0)


@pytest.mark.parametrize(
    ('image_format', 'options'),
    [
        ('JPEG', {'quality': 90}),
        ('JPEG', {'quality': 60, 'progressive': True}),
        ('PNG', {}),
        ('BMP', {}),
        ('TIFF', {}),
        ('WEBP', {}),
    ],
)
def test_pixels_equal_those_of_imread(tmp_path, image_format, options):
    path = write(tmp_path, 'image', Image.fromarray(gradients()), image_format, **options)
    np.testing.assert_array_equal(as_hwc(read_image(path)), cv2.imread(str(path))[:, :, ::-1])


def test_a_photo_has_the_pixels_of_the_reference(golden):
    case = np.load(golden / 'detectron/case_R-50-C4_seed0_scale300_rois300.npz')
    image = read_image(golden / 'photos/17790319373_bd19b24cfc_k.jpg')
    bgr = np.ascontiguousarray(image[::-1].transpose(1, 2, 0).astype(np.uint8))
    assert zlib.crc32(bgr.tobytes()) == int(case['image_crc32'])


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray(gradients())
    path = write(tmp_path, 'cmyk.jpg', image.convert('CMYK'), 'JPEG', quality=95)
    assert np.abs(as_hwc(read_image(path)) - gradients()).max() < 12


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 90), (90, 1), (3, 2)])
@pytest.mark.parametrize('image_format', ['JPEG', 'PNG'])
def test_tiny_images(tmp_path, height, width, image_format):
    path = write(tmp_path, 'odd', Image.fromarray(gradients(height, width)), image_format)
    assert read_image(path).shape == (3, height, width)


def test_paths_may_be_strings_and_contain_any_character(tmp_path):
    path = write(tmp_path, '写真 é.png', Image.fromarray(gradients()), 'PNG')
    np.testing.assert_array_equal(read_image(path), read_image(str(path)))


@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'PPM'])
@pytest.mark.parametrize('kept', [0.97, 0.5, 0.02])
def test_truncated_files_are_rejected(tmp_path, capfd, image_format, kept):
    data = encode(Image.fromarray(gradients(80, 100)), image_format)
    path = tmp_path / 'cut'
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageFileError, match='cut: ') as error:
        read_image(path)
    assert '\n' not in str(error.value)
    assert str(path) not in capfd.readouterr().err  # no message of a decoder


def test_a_jpeg_with_trailing_bytes_is_complete(tmp_path):
    data = encode(Image.fromarray(gradients()), 'JPEG')
    (tmp_path / 'plain').write_bytes(data)
    for tail in (b'\0' * 7, b'something else'):
        (tmp_path / 'tail').write_bytes(data + tail)
        np.testing.assert_array_equal(read_image(tmp_path / 'tail'), read_image(tmp_path / 'plain'))


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'the file is empty'),
        (b'no image at all, only words\n' * 9, 'not an image of a known format'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n', 'not an image of a known format'),
        *((data, f'{OTHER}a weight file, which belongs to --modelfile') for data in wrong_files.WEIGHTS.values()),
        *((data, f'{OTHER}a video; extract its frames first ({FFMPEG})') for data in wrong_files.VIDEOS.values()),
        *((data, f'{OTHER}an archive; unpack it first') for data in wrong_files.ARCHIVES.values()),
        *((data, f'{OTHER}{POINTER}{DOWNLOAD_HINTS[POINTER]}') for data in wrong_files.POINTERS.values()),
        *((data, f'{OTHER}{REFUSAL}{DOWNLOAD_HINTS[REFUSAL]}') for data in wrong_files.REFUSALS.values()),
        (b'{"images": []}', f'{OTHER}a JSON file'),
        (wrong_files.WEB_PAGE, f'{OTHER}a web page (HTML); the download was refused or redirected; download it again'),
        (b'P6 100000 100000 255\n' + bytes(99), 'the image has more than 178956970 pixels; cut it into tiles first'),
    ],
)
def test_files_that_are_not_usable_images(tmp_path, data, reason):
    path = tmp_path / 'file.jpg'
    path.write_bytes(data)
    with pytest.raises(ImageFileError) as error:
        read_image(path)
    assert str(error.value) == f'{path}: {reason}'
    assert error.value.path == path and error.value.reason == reason


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(ImageFileError, match='nowhere.jpg: no such file'):
        read_image(tmp_path / 'nowhere.jpg')
    with pytest.raises(ImageFileError, match='is a folder'):
        read_image(tmp_path)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ImageFileError, match='not a regular file'):
        read_image(tmp_path / 'pipe')
    with pytest.raises(ImageFileError, match='null'):
        read_image('a\0b.jpg')


def test_to_image_array_accepts_files_and_both_kinds_of_array(tmp_path):
    rgb = gradients()
    path = write(tmp_path, 'image.png', Image.fromarray(rgb), 'PNG')
    chw = rgb.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(to_image_array(path), chw)
    np.testing.assert_array_equal(to_image_array(str(path)), chw)
    converted = to_image_array(rgb)
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, chw)
    assert to_image_array(chw) is chw


@pytest.mark.parametrize(
    'array',
    [
        np.zeros((3, 4, 5), np.float64),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((1, 3, 4, 5), np.float32),
        np.zeros((3, 0, 5), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.full((3, 4, 5), np.nan, np.float32),
        np.full((3, 4, 5), np.inf, np.float32),
    ],
)
def test_to_image_array_rejects_other_arrays(array):
    with pytest.raises(ValueError, match='image array'):
        to_image_array(array)


def test_to_image_array_rejects_other_types():
    with pytest.raises(TypeError, match='not list'):
        to_image_array([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ('image_format', 'options'),
    [('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {}), ('TIFF', {}), ('WEBP', {}), ('GIF', {})],
)
def test_read_image_size_does_not_decode(tmp_path, image_format, options, monkeypatch):
    path = write(tmp_path, 'a', Image.fromarray(gradients()), image_format, **options)
    with monkeypatch.context() as patch:
        patch.setattr('mask_rcnn.preprocessing.image_io.decode', None)
        patch.setattr('PIL.ImageFile.ImageFile.load', None)
        assert read_image_size(path) == (37, 53)


def test_read_image_size_of_a_jpeg_with_trailing_bytes(tmp_path):
    path = write(tmp_path, 'a.jpg', Image.fromarray(gradients()), 'JPEG')
    path.write_bytes(path.read_bytes() + b'more')
    assert read_image_size(path) == (37, 53)


@pytest.mark.parametrize('content', [None, b'', b'no image', 'truncated', 'folder'])
def test_read_image_size_raises_the_errors_of_read_image(tmp_path, content):
    path = tmp_path / 'a.jpg'
    if content == 'folder':
        path.mkdir()
    elif content == 'truncated':
        path.write_bytes(encode(Image.fromarray(gradients(200, 300)), 'JPEG')[:-300])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageFileError) as size_error:
        read_image_size(path)
    with pytest.raises(ImageFileError) as read_error:
        read_image(path)
    assert str(size_error.value).startswith(f'{path}: ') and '\n' not in str(size_error.value)
    if content != 'folder':
        assert str(size_error.value) == str(read_error.value)


def test_read_image_sizes_returns_errors_in_place(tmp_path):
    complete = encode(Image.fromarray(gradients(200, 300)), 'JPEG')
    for i in range(40):
        (tmp_path / f'{i}.jpg').write_bytes(complete if i % 2 else complete[:-300])
    results = read_image_sizes(tmp_path / f'{i}.jpg' for i in range(40))
    assert results[1::2] == [(200, 300)] * 20
    assert all(isinstance(error, ImageFileError) for error in results[::2])
    assert [error.path.name for error in results[::2]] == [f'{i}.jpg' for i in range(0, 40, 2)]


def test_a_png_with_two_image_headers_is_refused(tmp_path):
    """Pillow reads the size from the last header: an image of 1 x 1 pixel would need any amount of memory."""
    data = cv2.imencode('.png', np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    content = struct.pack('>4sIIBBBBB', b'IHDR', 25_000_000, 2_000_000, 8, 2, 0, 0, 0)
    header = struct.pack('>I', 13) + content + struct.pack('>I', zlib.crc32(content))
    path = tmp_path / 'two.png'
    path.write_bytes(data[:33] + header + data[33:])
    for read in (read_image, read_image_size):
        with pytest.raises(ImageFileError, match='two image headers'):
            read(path)


def test_pillows_size_of_an_image_is_limited(monkeypatch):
    """Also where this package's reader of the header has found another size."""
    data = cv2.imencode('.bmp', np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 199)
    with pytest.raises(UnsupportedImageError, match='more than 398 pixels'):
        open_with_pillow(io.BytesIO(data), 'BMP')


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('place', ['screen', 'image'])
def test_a_large_gif_is_refused_without_a_warning(tmp_path, monkeypatch, place):
    """The size is that of the screen, or of an image that extends beyond it."""
    path = tmp_path / 'a.gif'
    Image.new('P', (20, 10)).save(path, comment=b'a comment before the image')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 200)
    assert read_image_size(path) == (10, 20) and read_image(path).shape == (3, 10, 20)
    data = bytearray(path.read_bytes())
    start = 6 if place == 'screen' else data.index(b',') + 5
    data[start : start + 2] = (21).to_bytes(2, 'little')
    path.write_bytes(data)
    for read in (read_image, read_image_size):
        with pytest.raises(ImageFileError, match='GIF images of more than 200 pixels'):
            read(path)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw'])
@pytest.mark.parametrize('orientation', [1, 6])
def test_a_large_tiff_is_read_without_a_warning(tmp_path, monkeypatch, compression, orientation):
    """It has more pixels than Pillow warns of, but fewer than twice as many."""
    pixels, path = gradients(10, 20), tmp_path / 'a.tif'
    Image.fromarray(pixels).save(path, compression=compression, tiffinfo={274: orientation})
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 150)
    np.testing.assert_array_equal(as_hwc(read_image(path, apply_orientation=False)), pixels)


def test_floats_become_pixels():
    image = np.float32([[[-3, 0.4]], [[0.6, 254.6]], [[255.4, 300]]])
    pixels = to_pixels(image)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, [[[0, 1, 255], [0, 255, 255]]])
    assert to_pixels(pixels) is pixels
