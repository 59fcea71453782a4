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


def picture(height=37, width=53):
    """A smooth RGB picture (JPEG keeps it nearly unchanged), no symmetry, all channels different."""
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
def test_pixels_are_those_of_imread(tmp_path, image_format, options):
    path = write(tmp_path, 'image', Image.fromarray(picture()), image_format, **options)
    np.testing.assert_array_equal(as_hwc(read_image(path)), cv2.imread(str(path))[:, :, ::-1])


def test_a_photo_is_read_as_the_reference_read_it(shared):
    case = np.load(shared / 'golden/detectron/case_R-50-C4_seed0_scale300_rois300.npz')
    image = read_image(shared / 'golden/photos/17790319373_bd19b24cfc_k.jpg')
    bgr = np.ascontiguousarray(image[::-1].transpose(1, 2, 0).astype(np.uint8))
    assert zlib.crc32(bgr.tobytes()) == int(case['image_crc32'])


@pytest.mark.parametrize(
    ('orientation', 'upright'),
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
@pytest.mark.parametrize('image_format', ['JPEG', 'PNG'])
def test_exif_orientation_is_applied(tmp_path, image_format, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = write(tmp_path, 'plain', Image.fromarray(picture()), image_format)
    turned = write(tmp_path, 'turned', Image.fromarray(picture()), image_format, exif=exif)
    np.testing.assert_array_equal(as_hwc(read_image(turned)), upright(as_hwc(read_image(plain))))


def test_grey_and_palette_become_rgb_and_alpha_is_dropped(tmp_path):
    rgb = picture()
    grey = rgb[:, :, 0]
    alpha = np.full_like(grey, 3)
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    palette = Image.fromarray(rgb).quantize(16)
    cases = {
        'grey': (Image.fromarray(grey), as_rgb),
        'grey-alpha': (Image.merge('LA', [Image.fromarray(grey), Image.fromarray(alpha)]), as_rgb),
        'rgba': (Image.fromarray(np.dstack([rgb, alpha])), rgb),
        'palette': (palette, np.asarray(palette.convert('RGB'))),
        'bilevel': (Image.fromarray(grey > 100), as_rgb // 101 * 0 + 255 * (as_rgb > 100)),
    }
    for name, (image, expected) in cases.items():
        path = write(tmp_path, f'{name}.png', image, 'PNG')
        np.testing.assert_array_equal(as_hwc(read_image(path)), expected, err_msg=name)


@pytest.mark.parametrize('shape', [(20, 30, 3), (20, 30)])
def test_16_bit_images_keep_their_upper_8_bits(tmp_path, shape):
    samples = np.random.RandomState(0).randint(0, 2**16, shape).astype(np.uint16)
    path = tmp_path / 'deep.png'
    path.write_bytes(cv2.imencode('.png', samples)[1].tobytes())
    expected = (samples >> 8).reshape(20, 30, -1)[:, :, ::-1]
    np.testing.assert_array_equal(as_hwc(read_image(path)), np.broadcast_to(expected, (20, 30, 3)))


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray(picture())
    path = write(tmp_path, 'cmyk.jpg', image.convert('CMYK'), 'JPEG', quality=95)
    assert np.abs(as_hwc(read_image(path)) - picture()).max() < 12


def test_first_picture_of_an_animation(tmp_path):
    first = Image.fromarray(picture()).quantize(64)
    path = write(tmp_path, 'two.gif', first, 'GIF', save_all=True, append_images=[first.rotate(180)])
    np.testing.assert_array_equal(as_hwc(read_image(path)), np.asarray(first.convert('RGB')))


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 90), (90, 1), (3, 2)])
@pytest.mark.parametrize('image_format', ['JPEG', 'PNG'])
def test_odd_sizes(tmp_path, height, width, image_format):
    path = write(tmp_path, 'odd', Image.fromarray(picture(height, width)), image_format)
    assert read_image(path).shape == (3, height, width)


def test_names_outside_ascii_and_both_kinds_of_path(tmp_path):
    path = write(tmp_path, '写真 é.png', Image.fromarray(picture()), 'PNG')
    np.testing.assert_array_equal(read_image(path), read_image(str(path)))


@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'PPM'])
@pytest.mark.parametrize('kept', [0.97, 0.5, 0.02])
def test_truncated_files(tmp_path, capfd, image_format, kept):
    data = encode(Image.fromarray(picture(80, 100)), image_format)
    path = tmp_path / 'cut'
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageFileError, match='cut: ') as error:
        read_image(path)
    assert '\n' not in str(error.value)
    assert str(path) not in capfd.readouterr().err  # no decoder chatter of its own


def test_a_jpeg_with_trailing_bytes_is_whole(tmp_path):
    data = encode(Image.fromarray(picture()), 'JPEG')
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
def test_files_that_are_no_usable_image(tmp_path, data, reason):
    path = tmp_path / 'file.jpg'
    path.write_bytes(data)
    with pytest.raises(ImageFileError) as error:
        read_image(path)
    assert str(error.value) == f'{path}: {reason}'
    assert error.value.path == path and error.value.reason == reason


def test_32_bit_samples_are_refused_not_clipped(tmp_path):
    path = write(tmp_path, 'deep.tif', Image.fromarray(picture()[:, :, 0].astype(np.float32)), 'TIFF')
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


def test_to_image_array_takes_files_and_both_kinds_of_array(tmp_path):
    rgb = picture()
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
def test_to_image_array_refuses_other_arrays(array):
    with pytest.raises(ValueError, match='image array'):
        to_image_array(array)


def test_to_image_array_refuses_other_things():
    with pytest.raises(TypeError, match='not list'):
        to_image_array([[1, 2], [3, 4]])


def test_list_images_expands_folders(tmp_path):
    for name in ('b.JPG', 'a.png', 'c.txt', '.hidden.png'):
        (tmp_path / name).write_bytes(b'x')
    (tmp_path / 'sub.png').mkdir()
    (tmp_path / 'sub.png' / 'd.png').write_bytes(b'x')
    text = tmp_path / 'c.txt'
    assert list_images([str(text), tmp_path]) == [text, tmp_path / 'a.png', tmp_path / 'b.JPG']


def test_list_images_names_what_is_missing_or_empty(tmp_path):
    with pytest.raises(ImageFileError, match='nowhere: no such file or folder'):
        list_images([tmp_path / 'nowhere'])
    with pytest.raises(ImageFileError, match='holds no image'):
        list_images([tmp_path])
    with pytest.raises(ValueError, match='no image'):
        list_images([])


@pytest.mark.parametrize(
    ('image_format', 'options'),
    [('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {}), ('TIFF', {}), ('WEBP', {}), ('GIF', {})],
)
def test_size_is_known_without_decoding(tmp_path, image_format, options, monkeypatch):
    path = write(tmp_path, 'a', Image.fromarray(picture()), image_format, **options)
    with monkeypatch.context() as patch:
        patch.setattr('mask_rcnn.preprocessing.image_io.read_image', None)
        assert read_image_size(path) == (37, 53)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_size_is_that_of_the_turned_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path, 'a.jpg', Image.fromarray(picture()), 'JPEG', exif=exif)
    assert read_image_size(path) == read_image(path).shape[1:]


def test_size_of_a_jpeg_with_something_behind_it(tmp_path):
    path = write(tmp_path, 'a.jpg', Image.fromarray(picture()), 'JPEG')
    path.write_bytes(path.read_bytes() + b'more')
    assert read_image_size(path) == (37, 53)


@pytest.mark.parametrize('content', [None, b'', b'no image', 'truncated', 'folder'])
def test_size_of_what_cannot_be_read(tmp_path, content):
    path = tmp_path / 'a.jpg'
    if content == 'folder':
        path.mkdir()
    elif content == 'truncated':
        path.write_bytes(encode(Image.fromarray(picture(200, 300)), 'JPEG')[:-300])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageFileError) as error:
        read_image_size(path)
    with pytest.raises(ImageFileError) as full:
        read_image(path)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)
    if content != 'folder':
        assert str(error.value) == str(full.value)


def test_sizes_of_many_files_leave_no_trace(tmp_path):
    """In threads: whatever they silence is as before afterwards."""
    level = getattr(cv2.utils, 'logging', cv2).getLogLevel
    before, filters = level(), list(warnings.filters)
    whole = encode(Image.fromarray(picture(200, 300)), 'JPEG')
    for i in range(40):
        (tmp_path / f'{i}.jpg').write_bytes(whole if i % 2 else whole[:-300])
    results = read_image_sizes(tmp_path / f'{i}.jpg' for i in range(40))
    assert results[1::2] == [(200, 300)] * 20
    assert all(isinstance(error, ImageFileError) for error in results[::2])
    assert [error.path.name for error in results[::2]] == [f'{i}.jpg' for i in range(0, 40, 2)]
    assert level() == before and warnings.filters == filters
