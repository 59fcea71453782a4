"""The network input of a GPU, which has the bits of the CPU's."""

import numpy as np
import pytest

from mask_rcnn.config import DENA, DETECTRON2, MATTERPORT, MINDSPORE, PRESETS, TORCHVISION
from mask_rcnn.ops.images import network_input
from mask_rcnn.preprocessing import image_transform
from mask_rcnn.preprocessing.image_transform import prepare_image, prepare_image_gpu

CONFIGS = {
    'C4': PRESETS['resnet50'].replace(min_size=80, max_size=133),
    'FPN': PRESETS['resnet50_fpn'].replace(min_size=80, max_size=133),
    'MindSpore': PRESETS['resnet50'].replace(dialect=MINDSPORE, min_size=80, max_size=133),
    'DeNA': PRESETS['resnet50'].in_dialect(DENA).replace(min_size=80, max_size=133),
    'Matterport': PRESETS['resnet50_fpn'].replace(dialect=MATTERPORT, min_size=96, max_size=128),
    'torchvision': PRESETS['resnet50_fpn'].replace(dialect=TORCHVISION, min_size=80, max_size=133),
    'detectron2': PRESETS['resnet50_fpn'].replace(dialect=DETECTRON2, min_size=80, max_size=133),
    'detectron2 C4': PRESETS['resnet50'].replace(
        dialect=DETECTRON2.replace(input={'pixel_std': (57.375, 57.12, 58.395)}), min_size=80, max_size=133
    ),
}
#: Upscaling, downscaling, no resizing, limits on the longer side, and few pixels.
SIZES = [(48, 71), (150, 210), (80, 100), (96, 128), (31, 300), (300, 31), (1, 1), (1, 9), (7, 1)]
#: Those that are left to the slow tests.
MORE_SIZES = [(80, 100), (96, 128), (31, 300), (1, 9)]


@pytest.fixture(params=['emulated', pytest.param('cuda', marks=pytest.mark.gpu)])
def xp(request):
    """The array module of the kernels: NumPy with emulated kernels, or CuPy."""
    if request.param == 'cuda':
        return pytest.importorskip('cupy')
    request.getfixturevalue('emulated_kernels')
    return np


def random_image(rng, size, dtype):
    if dtype == np.uint8:
        return rng.randint(0, 256, (*size, 3)).astype(np.uint8)
    return rng.uniform(0, 255, (3, *size)).astype(np.float32)


def assert_equal_to_the_cpu(image, config, xp):
    chw = image.transpose(2, 0, 1).astype(np.float32) if image.dtype == np.uint8 else image
    expected, expected_transform = prepare_image(chw, config)
    np.testing.assert_array_equal(prepare_image(image, config)[0], expected)
    x, transform = prepare_image_gpu(image, config, xp)
    assert transform == expected_transform and isinstance(x, xp.ndarray) and x.dtype == np.float32
    assert x.flags.c_contiguous
    host = x if xp is np else x.get()
    np.testing.assert_array_equal(host, expected[None])


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    'size', [pytest.param(size, marks=pytest.mark.slow) if size in MORE_SIZES else size for size in SIZES]
)
def test_bits_are_those_of_the_cpu(rng, xp, size, config, dtype):
    assert_equal_to_the_cpu(random_image(rng, size, dtype), config, xp)


@pytest.mark.parametrize('config', [CONFIGS[name] for name in ('C4', 'Matterport', 'torchvision', 'detectron2')])
def test_views(rng, xp, config):
    image = random_image(rng, (40, 60), np.uint8)
    for view in (image[::-1], image[:, ::2], image[:, :, ::-1], image.transpose(1, 0, 2)):
        assert_equal_to_the_cpu(view, config, xp)
    assert_equal_to_the_cpu(random_image(rng, (40, 60), np.float32)[:, 3:30, ::2], config, xp)


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_more_rows_than_a_grid_and_more_columns_than_a_block(rng, xp, config, monkeypatch):
    monkeypatch.setattr(network_input, '_THREADS', 32)
    monkeypatch.setattr(network_input, '_MAX_BLOCKS_Y', 7)
    assert_equal_to_the_cpu(random_image(rng, (30, 47), np.uint8), config, xp)


def test_large_images_have_the_bits_of_the_cpu(rng, xp):
    """Positions far from 0 are rounded coarsely."""
    for dialect in (PRESETS['resnet50_fpn'].dialect, TORCHVISION, DETECTRON2):
        config = PRESETS['resnet50_fpn'].replace(dialect=dialect)
        for size in ((480, 640), (1000, 1503)):
            assert_equal_to_the_cpu(random_image(rng, size, np.uint8), config, xp)


def test_bytes_as_floats_are_resized_as_bytes(rng, xp):
    """An array of integers has the network input of the picture, also on a GPU."""
    image = random_image(rng, (70, 151), np.uint8)
    x, _ = prepare_image_gpu(image.transpose(2, 0, 1).astype(np.float32), CONFIGS['detectron2'], xp)
    expected, _ = prepare_image_gpu(image, CONFIGS['detectron2'], xp)
    assert (x == expected).all()


def test_values_that_are_not_finite_are_refused(rng, xp):
    image = random_image(rng, (40, 60), np.float32)
    image[1, 2, 3] = np.nan
    for name in ('torchvision', 'detectron2'):
        with pytest.raises(ValueError, match='NaN or infinity'):
            prepare_image_gpu(image, CONFIGS[name], xp)


def test_a_constant_image_of_matterport_keeps_its_value_at_the_border(xp):
    """Interpolation with the zeros outside the image does not fall below the minimum of the image."""
    image = np.full((40, 60, 3), 200, np.uint8)
    x, transform = image_transform.prepare_image_gpu(image, CONFIGS['Matterport'], xp)
    top, left, bottom, right = map(int, transform.window)
    inside = x[0, :, top : bottom + 1, left : right + 1]
    assert (inside.min(axis=(1, 2)) == inside.max(axis=(1, 2))).all()
