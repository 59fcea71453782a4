"""Tests of image files and arrays: pixels, orientation, sizes and errors."""

import io
import os
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mask_rcnn.preprocessing.image_io import (
    ImageFileError,
    list_images,
    read_image,
    read_image_size,
    read_image_sizes,
    to_image_array,
)


def gradients(height=37, width=53):
    """A smooth RGB image (JPEG hardly changes it) without symmetry and with three different channels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    channels = [200 * y / height + 20, 220 * x / width + 10, 120 + 100 * np.sin((x + 2 * y) / 9)]
    return np.stack(channels, axis=2).astype(np.uint8)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(folder, name, image, image_format, **options):
    path = folder / name
    path.write_bytes(encode(image, image_format, **options))
    return path


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def without_opencv(monkeypatch):
    """Make OpenCV fail to decode, so that Pillow decodes."""
    monkeypatch.setattr(cv2, 'imdecode', lambda *arguments: None)


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


each_orientation = pytest.mark.parametrize(
    ('orientation', 'make_upright'),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)


@each_orientation
@pytest.mark.parametrize('image_format', ['JPEG', 'PNG'])
def test_exif_orientation_is_applied(tmp_path, image_format, orientation, make_upright):
    plain = write(tmp_path, 'plain', Image.fromarray(gradients()), image_format)
    turned = write(tmp_path, 'turned', Image.fromarray(gradients()), image_format, exif=with_orientation(orientation))
    np.testing.assert_array_equal(as_hwc(read_image(turned)), make_upright(as_hwc(read_image(plain))))


@each_orientation
@pytest.mark.parametrize(
    ('mode', 'image_format'),
    [('RGB', 'PNG'), ('P', 'PNG'), ('L', 'WEBP'), ('CMYK', 'JPEG'), ('CMYK', 'TIFF'), ('P', 'TIFF')],
)
@pytest.mark.usefixtures('without_opencv')
def test_exif_orientation_is_applied_where_pillow_decodes(tmp_path, mode, image_format, orientation, make_upright):
    image = Image.fromarray(gradients())
    image = image.quantize(64) if mode == 'P' else image.convert(mode)
    plain = write(tmp_path, 'plain', image, image_format)
    turned = write(tmp_path, 'turned', image, image_format, exif=with_orientation(orientation))
    upright = as_hwc(read_image(turned))
    np.testing.assert_array_equal(upright, make_upright(as_hwc(read_image(plain))))
    assert read_image_size(turned) == upright.shape[:2]


@each_orientation
@pytest.mark.parametrize('image_format', ['PNG', 'TIFF'])
@pytest.mark.usefixtures('without_opencv')
def test_exif_orientation_of_16_bit_images_is_applied_where_pillow_decodes(
    tmp_path, image_format, orientation, make_upright
):
    samples = np.random.RandomState(0).randint(0, 2**16, (20, 30)).astype(np.uint16)
    path = write(tmp_path, 'deep', Image.fromarray(samples), image_format, exif=with_orientation(orientation))
    expected = make_upright(samples >> 8)[:, :, None]
    np.testing.assert_array_equal(as_hwc(read_image(path)), np.broadcast_to(expected, (*expected.shape[:2], 3)))


def test_grey_and_palette_are_converted_to_rgb_and_alpha_is_dropped(tmp_path):
    rgb = gradients()
    grey = rgb[:, :, 0]
    alpha = np.full_like(grey, 3)
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    palette = Image.fromarray(rgb).quantize(16)
    cases = {
        'grey': (Image.fromarray(grey), as_rgb),
        'grey-alpha': (Image.merge('LA', [Image.fromarray(grey), Image.fromarray(alpha)]), as_rgb),
        'rgba': (Image.fromarray(np.dstack([rgb, alpha])), rgb),
        'palette': (palette, np.asarray(palette.convert('RGB'))),
        'bilevel': (Image.fromarray(grey > 100), 255 * (as_rgb > 100)),
    }
    for name, (image, expected) in cases.items():
        path = write(tmp_path, f'{name}.png', image, 'PNG')
        np.testing.assert_array_equal(as_hwc(read_image(path)), expected, err_msg=name)


@pytest.mark.parametrize('shape', [(20, 30, 3), (20, 30)])
@pytest.mark.parametrize('decoder', ['OpenCV', 'Pillow'])
def test_16_bit_images_keep_their_upper_8_bits(tmp_path, request, decoder, shape):
    if decoder == 'Pillow':
        request.getfixturevalue('without_opencv')
    samples = np.random.RandomState(0).randint(0, 2**16, shape).astype(np.uint16)
    path = tmp_path / 'deep.png'
    path.write_bytes(cv2.imencode('.png', samples)[1].tobytes())
    expected = (samples >> 8).reshape(20, 30, -1)[:, :, ::-1]
    np.testing.assert_array_equal(as_hwc(read_image(path)), np.broadcast_to(expected, (20, 30, 3)))


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray(gradients())
    path = write(tmp_path, 'cmyk.jpg', image.convert('CMYK'), 'JPEG', quality=95)
    assert np.abs(as_hwc(read_image(path)) - gradients()).max() < 12


def test_an_animation_yields_its_first_frame(tmp_path):
    first = Image.fromarray(gradients()).quantize(64)
    path = write(tmp_path, 'two.gif', first, 'GIF', save_all=True, append_images=[first.rotate(180)])
    np.testing.assert_array_equal(as_hwc(read_image(path)), np.asarray(first.convert('RGB')))


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
        (b'P6 100000 100000 255\n' + bytes(99), 'the image has more than 178956970 pixels'),
    ],
)
def test_files_that_are_not_usable_images(tmp_path, data, reason):
    path = tmp_path / 'file.jpg'
    path.write_bytes(data)
    with pytest.raises(ImageFileError) as error:
        read_image(path)
    assert str(error.value) == f'{path}: {reason}'
    assert error.value.path == path and error.value.reason == reason


def test_32_bit_samples_are_rejected(tmp_path):
    path = write(tmp_path, 'deep.tif', Image.fromarray(gradients()[:, :, 0].astype(np.float32)), 'TIFF')
    with pytest.raises(ImageFileError, match='32-bit'):
        read_image(path)


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


def test_list_images_expands_folders(tmp_path):
    for name in ('b.JPG', 'a.png', 'c.txt', '.hidden.png'):
        (tmp_path / name).write_bytes(b'x')
    (tmp_path / 'sub.png').mkdir()
    (tmp_path / 'sub.png' / 'd.png').write_bytes(b'x')
    text = tmp_path / 'c.txt'
    assert list_images([str(text), tmp_path]) == [text, tmp_path / 'a.png', tmp_path / 'b.JPG']


def test_list_images_reports_missing_and_empty_paths(tmp_path):
    with pytest.raises(ImageFileError, match='nowhere: no such file or folder'):
        list_images([tmp_path / 'nowhere'])
    with pytest.raises(ImageFileError, match='contains no image'):
        list_images([tmp_path])
    with pytest.raises(ValueError, match='no image'):
        list_images([])


@pytest.mark.parametrize(
    ('image_format', 'options'),
    [('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {}), ('TIFF', {}), ('WEBP', {}), ('GIF', {})],
)
def test_read_image_size_does_not_decode(tmp_path, image_format, options, monkeypatch):
    path = write(tmp_path, 'a', Image.fromarray(gradients()), image_format, **options)
    with monkeypatch.context() as patch:
        patch.setattr('mask_rcnn.preprocessing.image_io.read_image', None)
        assert read_image_size(path) == (37, 53)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_read_image_size_applies_the_exif_orientation(tmp_path, image_format, orientation):
    path = write(tmp_path, 'a', Image.fromarray(gradients()), image_format, exif=with_orientation(orientation))
    assert read_image_size(path) == read_image(path).shape[1:]


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


def test_read_image_sizes_restores_warnings_and_log_level(tmp_path):
    """The threads silence both."""
    level = getattr(cv2.utils, 'logging', cv2).getLogLevel
    before, filters = level(), list(warnings.filters)
    complete = encode(Image.fromarray(gradients(200, 300)), 'JPEG')
    for i in range(40):
        (tmp_path / f'{i}.jpg').write_bytes(complete if i % 2 else complete[:-300])
    results = read_image_sizes(tmp_path / f'{i}.jpg' for i in range(40))
    assert results[1::2] == [(200, 300)] * 20
    assert all(isinstance(error, ImageFileError) for error in results[::2])
    assert [error.path.name for error in results[::2]] == [f'{i}.jpg' for i in range(0, 40, 2)]
    assert level() == before and warnings.filters == filters
