"""Tests of the rules for orientation, alpha, range and several images, for every format and mode."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image, features

from mask_rcnn.preprocessing import image_decoding
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_size
from mask_rcnn.preprocessing.orientation import exif_orientation
from tests.preprocessing.image_files import MAKE_UPRIGHT, deep_png, gradients, png_chunk, tiff, with_orientation, write

HAS_AVIF = features.check('avif') if 'avif' in features.modules or 'avif' in features.features else False


def as_hwc(path, **options):
    return read_image(path, **options).transpose(1, 2, 0)


def image_in(mode):
    """An image of each mode; those with alpha have other colours where they are transparent."""
    rgb = Image.fromarray(gradients())
    alpha = Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53).astype(np.uint8))
    if mode == 'P':
        return rgb.quantize(64)
    if mode == 'P with transparency':
        image = rgb.quantize(64)
        image.info['transparency'] = bytes(range(64))
        return image
    if mode == 'I;16':
        return Image.fromarray(gradients()[:, :, 0].astype(np.uint16) << 8)
    if mode in ('LA', 'RGBA'):
        return Image.merge(mode, [*rgb.convert(mode[:-1]).split(), alpha])
    return rgb.convert(mode)


MODES = {
    'JPEG': ('RGB', 'L', 'CMYK'),
    'PNG': ('RGB', 'L', '1', 'P', 'P with transparency', 'LA', 'RGBA', 'I;16'),
    'TIFF': ('RGB', 'L', '1', 'P', 'LA', 'RGBA', 'CMYK', 'I;16', 'YCbCr'),
    'WEBP': ('RGB', 'RGBA'),
    'AVIF': ('RGB', 'RGBA') if HAS_AVIF else (),
}
OPTIONS = {
    'JPEG': {'quality': 95},
    'WEBP': {'lossless': True, 'exact': True},
    'AVIF': {'quality': 100, 'subsampling': '4:4:4'},
}


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize(
    ('image_format', 'mode'), [(image_format, mode) for image_format, modes in MODES.items() for mode in modes]
)
def test_orientation_of_every_format_and_mode(tmp_path, image_format, mode, orientation):
    image, options = image_in(mode), OPTIONS.get(image_format, {})
    plain = write(tmp_path, 'plain', image, image_format, **options)
    turned = write(tmp_path, 'turned', image, image_format, exif=with_orientation(orientation), **options)
    stored = as_hwc(plain)
    rgb = np.asarray(image_in(mode.split()[0]).convert('RGB')) if mode != 'I;16' else gradients()[:, :, :1]
    assert np.abs(stored - rgb).max() <= (0 if image_format in ('PNG', 'WEBP') else 9 if image_format == 'TIFF' else 20)
    np.testing.assert_array_equal(as_hwc(turned), MAKE_UPRIGHT[orientation](stored))
    assert read_image_size(turned) == MAKE_UPRIGHT[orientation](stored).shape[:2]
    np.testing.assert_array_equal(as_hwc(turned, apply_orientation=False), stored)
    assert read_image_size(turned, apply_orientation=False) == (37, 53)


@pytest.mark.parametrize('image_format', MODES)
def test_dark_images_of_8_bits_stay_dark(tmp_path, image_format):
    """Samples below 64 are not taken for those of 14 bits in 16."""
    if not MODES[image_format]:
        pytest.skip('this Pillow has no AVIF')
    dark = gradients() // 4
    path = write(tmp_path, 'dark', Image.fromarray(dark), image_format, **OPTIONS.get(image_format, {}))
    assert 50 < dark.max() < 64 and np.abs(as_hwc(path) - dark).max() <= (8 if image_format in ('JPEG', 'AVIF') else 0)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('options', [{}, {'quality': 60, 'progressive': True}, {'subsampling': '4:2:2'}])
def test_jpeg_equals_imread_in_every_orientation(tmp_path, orientation, options):
    path = write(tmp_path, 'a', Image.fromarray(gradients()), 'JPEG', exif=with_orientation(orientation), **options)
    np.testing.assert_array_equal(as_hwc(path), cv2.imread(str(path))[:, :, ::-1])


def test_exif_after_the_pixels_of_a_png_file(tmp_path):
    data = write(tmp_path, 'a', Image.fromarray(gradients()), 'PNG').read_bytes()
    exif = with_orientation(6).tobytes().removeprefix(b'Exif\0\0')
    (tmp_path / 'late').write_bytes(data[:-12] + png_chunk(b'eXIf', exif) + data[-12:])
    assert read_image_size(tmp_path / 'late') == read_image(tmp_path / 'late').shape[1:] == (53, 37)


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('kind', [3, 4])
def test_exif_orientation(order, kind):
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, 2)
    other = struct.pack(f'{order}HHIHH', 0x010F, 3, 1, 5, 0)

    def exif(value):
        packed = struct.pack(f'{order}{"H" if kind == 3 else "I"}', value).ljust(4, b'\0')
        return head + other + struct.pack(f'{order}HHI', 0x0112, kind, 1) + packed

    assert [exif_orientation(exif(value)) for value in (1, 6, 8)] == [1, 6, 8]
    assert [exif_orientation(exif(value)) for value in (0, 9, 300)] == [None] * 3
    assert exif_orientation(b'Exif\0\0' + exif(3)) == 3
    assert {exif_orientation(exif(6)[:n]) for n in range(len(exif(6)) - 4)} == {None}
    assert exif_orientation(None) == exif_orientation(b'no EXIF') is None


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('depth', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('image_format', ['png', 'tiff', 'planar tiff'])
def test_samples_of_16_bits_are_reduced_by_their_largest_value(tmp_path, image_format, channels, depth, order):
    samples = np.random.RandomState(0).randint(0, 1 << depth, (20, 30, channels)).astype(np.uint16)
    samples[0, 0] = (1 << depth) - 1
    if image_format == 'png':
        data = deep_png(samples)
    else:
        alpha = [(338, [2])] if channels in (2, 4) else []
        data = tiff(samples, order=order, planar=image_format.startswith('planar'), tags=alpha)
    path = tmp_path / 'deep'
    path.write_bytes(data)
    colors = samples[:, :, :3] if channels > 2 else samples[:, :, :1]
    expected = np.broadcast_to(colors // 2 ** (depth - 8), (20, 30, 3))
    np.testing.assert_array_equal(as_hwc(path), expected)


def test_the_stated_depth_comes_before_the_largest_value(tmp_path):
    samples = np.arange(200, dtype=np.uint16).reshape(10, 20, 1)
    (tmp_path / 'a.tif').write_bytes(tiff(samples, tags=[(281, [4095])]))
    (tmp_path / 'a.pgm').write_bytes(b'P5\n# 12 bits\n20 10\n4095\n' + samples.astype('>u2').tobytes())
    for name in ('a.tif', 'a.pgm'):
        np.testing.assert_array_equal(as_hwc(tmp_path / name)[:, :, :1], samples // 16)


@pytest.mark.parametrize(('largest', 'dtype'), [(1, 'u1'), (100, 'u1'), (255, 'u1'), (1000, '>u2'), (65535, '>u2')])
@pytest.mark.parametrize('channels', [1, 3])
def test_netpbm_samples_are_scaled_by_the_largest_value_of_the_header(tmp_path, channels, largest, dtype):
    samples = np.random.RandomState(0).randint(0, largest + 1, (20, 30, channels))
    samples[0, 0] = largest
    path = tmp_path / 'a.pnm'
    path.write_bytes(b'P%d 30 20 %d\n' % (5 if channels == 1 else 6, largest) + samples.astype(dtype).tobytes())
    image = as_hwc(path)
    assert np.abs(image - samples * (255 / largest)).max() <= 1 and image.max() == 255


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_significant_bits_of_png_change_nothing(tmp_path, channels):
    """The encoder scales 12 significant bits to all 16; without scaling, the largest value is the rule."""
    samples = np.random.RandomState(0).randint(0, 1 << 12, (20, 30, channels)).astype(np.uint16)
    samples[0, 0] = (1 << 12) - 1
    for name, stored in (('scaled', samples << 4 | samples >> 8), ('not scaled', samples)):
        data = deep_png(stored)
        (tmp_path / name).write_bytes(data[:33] + png_chunk(b'sBIT', bytes([12] * channels)) + data[33:])
        colors = samples[:, :, :3] if channels > 2 else samples[:, :, :1]
        np.testing.assert_array_equal(as_hwc(tmp_path / name), np.broadcast_to(colors >> 4, (20, 30, 3)))


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_white_is_zero(tmp_path, dtype, order):
    samples = np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, (20, 30, 1)).astype(dtype)
    (tmp_path / 'a').write_bytes(tiff(samples, order=order, photometric=0))
    expected = 255 - (samples >> (8 * (samples.itemsize - 1)))
    np.testing.assert_array_equal(as_hwc(tmp_path / 'a')[:, :, :1], expected)


@pytest.mark.parametrize('kind', [0, 2, None])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_alpha_of_tiff_is_dropped(tmp_path, dtype, kind):
    rgba = np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, (20, 30, 4)).astype(dtype)
    (tmp_path / 'a').write_bytes(tiff(rgba, tags=[(338, [kind])] if kind is not None else []))
    np.testing.assert_array_equal(as_hwc(tmp_path / 'a'), rgba[:, :, :3] >> (8 * (rgba.itemsize - 1)))


def test_colours_multiplied_by_alpha_are_divided(tmp_path):
    alpha = np.full((37, 53, 1), 128)
    multiplied = gradients() * alpha // 255
    (tmp_path / 'a').write_bytes(tiff(np.dstack([multiplied, alpha]).astype(np.uint8), tags=[(338, [1])]))
    assert np.abs(as_hwc(tmp_path / 'a') - gradients()).max() <= 2


def test_further_channels_of_tiff_are_dropped(tmp_path):
    rgb = gradients()
    for name, pixels in (('grey', rgb[:, :, :2]), ('rgb', np.dstack([rgb, rgb[:, :, :2]]))):
        (tmp_path / name).write_bytes(tiff(pixels))
        colors = rgb if name == 'rgb' else rgb[:, :, :1]
        np.testing.assert_array_equal(as_hwc(tmp_path / name), np.broadcast_to(colors, rgb.shape))


def test_lab(tmp_path):
    bgr = np.ascontiguousarray(gradients()[:, :, ::-1])
    lab = cv2.cvtColor(bgr, cv2.COLOR_BGR2LAB) ^ np.array((0, 128, 128), np.uint8)  # TIFF's a and b are signed
    (tmp_path / 'a').write_bytes(tiff(lab, photometric=8))
    difference = np.abs(as_hwc(tmp_path / 'a') - gradients())
    assert difference.mean() < 2


@pytest.mark.parametrize('dtype', [np.float32, np.int32, np.float64])
@pytest.mark.parametrize('channels', [1, 3])
def test_samples_of_32_bits_are_rejected(tmp_path, channels, dtype):
    (tmp_path / 'a.tif').write_bytes(tiff(np.ones((4, 5, channels), dtype), tags=[(339, [3] * channels)]))
    with pytest.raises(ImageFileError, match=r'a\.tif: images with 32-bit samples are not supported; convert'):
        read_image(tmp_path / 'a.tif')


@pytest.mark.parametrize(
    ('image_format', 'options'),
    [('GIF', {}), ('WEBP', {'lossless': True}), ('PNG', {}), ('TIFF', {}), ('MPO', {'quality': 95})],
)
def test_the_first_of_several_images(tmp_path, image_format, options):
    first = Image.fromarray(gradients())
    if image_format == 'GIF':
        first = first.quantize(64)
    other = first.transpose(Image.Transpose.ROTATE_180)
    path = write(tmp_path, 'two', first, image_format, save_all=True, append_images=[other], **options)
    assert np.abs(as_hwc(path) - np.asarray(first.convert('RGB'))).max() <= (20 if image_format == 'MPO' else 0)


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg', 'group4'])
def test_compressed_tiff(tmp_path, compression):
    image = image_in('1' if compression == 'group4' else 'RGB')
    path = write(tmp_path, 'a', image, 'TIFF', compression=compression, exif=with_orientation(6))
    expected = np.rot90(np.asarray(image.convert('RGB')), -1)
    assert np.abs(as_hwc(path) - expected).max() <= (40 if compression == 'jpeg' else 0)
    assert read_image_size(path) == (53, 37)


def test_jpeg_with_12_bits_and_unknown_tiff_are_named(tmp_path):
    data = bytearray(write(tmp_path, 'a.jpg', Image.fromarray(gradients()), 'JPEG').read_bytes())
    data[data.index(b'\xff\xc0') + 4] = 12
    (tmp_path / 'a.jpg').write_bytes(data)
    with pytest.raises(ImageFileError, match='JPEG images with 12 bits per sample are not supported'):
        read_image(tmp_path / 'a.jpg')
    (tmp_path / 'b.tif').write_bytes(tiff(np.zeros((3, 4, 9), np.uint8)))
    with pytest.raises(ImageFileError, match='TIFF images with 9 samples of 8 bits'):
        read_image(tmp_path / 'b.tif')


def test_colours_of_16_bits_in_jpeg_2000(tmp_path, capfd):
    """Pillow rounds them, and white overflows to black."""
    samples = np.random.RandomState(0).randint(0, 1 << 16, (64, 80, 3)).astype(np.uint16)
    samples[:32] = 65535
    cv2.imwrite(str(tmp_path / 'a.jp2'), samples[:, :, ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    data = (tmp_path / 'a.jp2').read_bytes()
    (tmp_path / 'a.j2k').write_bytes(data[data.index(b'\xff\x4f\xff\x51') :])
    for name in ('a.jp2', 'a.j2k'):
        np.testing.assert_array_equal(as_hwc(tmp_path / name), samples >> 8)
        assert read_image_size(tmp_path / name) == (64, 80)
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'CMYK'])
def test_strips_of_large_images_are_the_whole_image(tmp_path, monkeypatch, mode):
    image_format = 'PNG' if mode == 'P' else 'JPEG'
    path = write(tmp_path, 'a', image_in(mode), image_format)
    whole = as_hwc(path)
    monkeypatch.setattr(image_decoding, '_MAX_PIXELS_AT_ONCE', 0)
    for n_pixels in (1, 5 * 53, 36 * 53, 37 * 53):
        monkeypatch.setattr(image_decoding, '_PIXELS_PER_STRIP', n_pixels)
        np.testing.assert_array_equal(as_hwc(path), whole)


def test_tiff_with_missing_strips_is_damaged(tmp_path):
    (tmp_path / 'a.tif').write_bytes(tiff(gradients(), tags=[(278, [10])]))
    with pytest.raises(ImageFileError, match='1 of 4 strips'):
        read_image(tmp_path / 'a.tif')
