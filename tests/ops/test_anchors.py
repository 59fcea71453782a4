"""Anchors against those of Detectron and Matterport, and against formulas."""

import numpy as np
import pytest

from mask_rcnn.ops.boxes.anchors import (
    cell_anchors,
    detectron_cell_anchors,
    matterport_cell_anchors,
    shift_anchors,
    strides_of_size,
)
from tests.support.arrays import swap_xy


@pytest.mark.parametrize(
    ('name', 'stride', 'sizes'),
    [
        ('c4', 16, (32, 64, 128, 256, 512)),
        *[(f'fpn{k}', 2**k, (2 ** (k + 3),)) for k in range(2, 7)],
    ],
)
def test_detectron_cell_anchors_equal_detectron(data, name, stride, sizes):
    golden = np.load(data / 'ops_boxes.npz')[f'anchors_{name}']
    anchors = detectron_cell_anchors(stride, sizes, (0.5, 1, 2))
    np.testing.assert_array_equal(swap_xy(anchors), golden)


def test_anchors_of_a_location_are_the_inner_loop():
    cell = np.array([[0, 0, 1, 1], [-1, -2, 3, 4]], np.float64)
    anchors = shift_anchors(cell, 8, 3, 4)
    assert anchors.shape == (24, 4) and anchors.dtype == np.float32
    for y in range(3):
        for x in range(4):
            for a in range(2):
                expected = cell[a] + [8 * y, 8 * x, 8 * y, 8 * x]
                np.testing.assert_array_equal(anchors[(y * 4 + x) * 2 + a], expected)


@pytest.mark.parametrize(
    ('case', 'image_size', 'sizes'),
    [('coco_resnet50', 1024, (32, 64, 128, 256, 512)), ('shapes_resnet50_shapes7', 128, (8, 16, 32, 64, 128))],
)
def test_matterport_cell_anchors_equal_matterport(matterport_golden, case, image_size, sizes):
    """Compare the first anchors (first locations, finest level) and the last ones (last locations, coarsest level)."""
    arrays = np.load(matterport_golden / 'matterport' / f'case_{case}.npz')
    ratios = [1 / r for r in (0.5, 1, 2)]
    levels = [
        shift_anchors(matterport_cell_anchors((size,), ratios), 2**k, image_size // 2**k, image_size // 2**k)
        for k, size in enumerate(sizes, start=2)
    ]
    anchors = np.concatenate(levels)
    assert len(anchors) == arrays['anchors_count']
    ends = np.concatenate([anchors[:12], anchors[-12:]])
    np.testing.assert_allclose(ends + [0, 0, 1, 1], arrays['anchors_first_last'], rtol=1e-7, atol=1e-4)
    np.testing.assert_allclose(ends / (image_size - 1), arrays['anchors_norm_first_last'], rtol=1e-6, atol=1e-7)


def test_half_sides_of_torchvision_are_rounded():
    """Halves of the sides: 22.63 x 45.25, 32 x 32 and 2.5 x 2.5, which is rounded to the even number."""
    anchors = cell_anchors('torchvision', 16, (64, 5), (0.5, 1))
    assert anchors.dtype == np.float32
    half_sides = np.array([[23, 45], [2, 4], [32, 32], [2, 2]])  # 5 x 5 pixels at a ratio of 0.5: 1.77 x 3.54
    np.testing.assert_array_equal(anchors, np.concatenate([-half_sides, half_sides], axis=1))


def test_ratios_of_detectron2_are_the_inner_loop():
    """The order and the sides are those of the formula in float64, rounded to float32 once."""
    sizes, ratios = (32, 100.5), (0.5, 1, 3)
    expected = []
    for size in sizes:
        for ratio in ratios:
            width = (size**2 / ratio) ** 0.5
            expected.append([-ratio * width / 2, -width / 2, ratio * width / 2, width / 2])
    np.testing.assert_array_equal(cell_anchors('detectron2', 16, sizes, ratios), np.float32(expected))


@pytest.mark.parametrize(
    ('input_size', 'size', 'strides'),
    [((736, 1344), (12, 21), (61, 64)), ((736, 1344), (23, 42), (32, 32)), ((64, 96), (2, 3), (32, 32))],
)
def test_strides_of_torchvision_are_ratios_of_sizes(input_size, size, strides):
    assert strides_of_size(input_size, size) == strides
    anchors = shift_anchors(np.zeros((1, 4)), strides, *size)
    np.testing.assert_array_equal(anchors[-1, :2], (np.array(size) - 1) * strides)
    np.testing.assert_array_equal(anchors[1, :2], [0, strides[1]])
