"""The feature pyramid against its definition, and RoI pooling from its levels."""

from functools import partial

import chainer
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, MATTERPORT, PRESETS
from mask_rcnn.models import roi_pooling
from mask_rcnn.models.backbones.fpn import FPN
from mask_rcnn.models.layers import Backbone
from mask_rcnn.models.roi_pooling import RoIPooling, assign_levels
from mask_rcnn.ops.roi import crop_and_resize, roi_max_pooling
from mask_rcnn.ops.roi import roi_align as roi_align_module
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.ops.runtime import cuda_kernels

STRIDES = (4, 8, 16, 32)


class Pixels(Backbone):
    """A backbone without weights: average pooling over an increasing number of pixels."""

    outputs = (1, 2, 3, 4)
    strides = STRIDES
    out_channels = (3, 3, 3, 3)

    @property
    def stages(self):
        return tuple(partial(chainer.functions.average_pooling_2d, ksize=n, stride=n) for n in (4, 2, 2, 2))


def correlate(x, weights, bias):
    """Convolve by the definition, with padding that keeps the size."""
    pad = weights.shape[2] // 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), weights.shape[2:], axis=(2, 3)
    )
    return np.einsum('nchwij,ocij->nohw', windows, weights) + bias[:, None, None]


def test_levels_are_laterals_plus_upsampled_coarser_levels(rng):
    """Lin et al. 2017, figure 3, in NumPy."""
    fpn = FPN(Pixels(), 5)
    for param in fpn.params():
        param.array[...] = rng.uniform(-1, 1, param.shape)
    x = rng.uniform(-1, 1, (2, 3, 64, 96)).astype(np.float32)
    maps = [features.array for features in fpn(x)]
    above, expected = None, []
    for level, stride in reversed(list(enumerate(STRIDES, start=2))):
        pixels = x.reshape(2, 3, 64 // stride, stride, 96 // stride, stride).mean(axis=(3, 5))
        lateral, output = fpn[f'lateral{level}'], fpn[f'output{level}']
        merged = correlate(pixels, lateral.W.array, lateral.b.array)
        above = merged if above is None else merged + above.repeat(2, axis=2).repeat(2, axis=3)
        expected.insert(0, correlate(above, output.W.array, output.b.array))
    expected.append(expected[-1][:, :, ::2, ::2])
    assert [features.shape[2:] for features in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    for found, reference in zip(maps, expected, strict=True):
        np.testing.assert_allclose(found, reference, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize(
    ('side', 'level'), [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (896, 3), (2000, 3)]
)
def test_level_of_a_roi_by_its_width(side, level):
    """Widths of at least 224 pixels, corners included, belong to the map of stride 16."""
    roi = np.array([[0, 0, side - 1, side - 1]], np.float32)
    assert assign_levels(roi, STRIDES, canonical_size=224, dialect=DETECTRON) == [level]
    half = np.array([[0, 0, side / 2 - 1, side / 2 - 1]], np.float32)
    assert assign_levels(half, STRIDES, canonical_size=112, dialect=DETECTRON) == [level]


def pooled_levels(rois, **changes):
    """Return the stride of the feature map that each RoI is pooled from: every map is filled with its own stride."""
    pool = RoIPooling((*STRIDES, 64), 7, config=PRESETS['resnet50_fpn'].replace(**changes))
    maps = [np.full((1, 1, 2048 // stride, 2048 // stride), stride, np.float32) for stride in (*STRIDES, 64)]
    pooled = pool(maps, rois, np.zeros(len(rois), np.int32)).array
    np.testing.assert_allclose(pooled, pooled[:, :, :1, :1].repeat(7, axis=2).repeat(7, axis=3), rtol=1e-5)
    return np.rint(pooled[:, 0, 0, 0])


@pytest.mark.parametrize('canonical_size', [224, 112, 300])
@pytest.mark.parametrize('roi_align', [True, False])
def test_rois_are_pooled_from_the_level_of_equation_1(rng, canonical_size, roi_align):
    """Lin et al. 2017, equation 1: k = floor(4 + log2(sqrt(w h) / canonical size)), between P2 and P5."""
    heights, widths = np.exp(rng.uniform(np.log(20), np.log(1200), (2, 60)))
    for k in (3, 4, 5):  # just below and just above the borders between two levels
        border = canonical_size * 2.0 ** (k - 4)
        heights, widths = np.append(heights, [border - 1, border + 1]), np.append(widths, [border, border])
    levels = np.clip(np.floor(4 + np.log2(np.sqrt(heights * widths) / canonical_size)), 2, 5)
    assert set(levels) == {2, 3, 4, 5}
    rois = np.zeros((len(levels), 4), np.float32)
    rois[:, 2], rois[:, 3] = heights - 1, widths - 1  # Detectron's boxes include both corners
    found = pooled_levels(rois, roi_canonical_size=canonical_size, roi_align=roi_align)
    np.testing.assert_array_equal(found, 2**levels)


def test_pooling_keeps_the_order_of_rois(rng):
    """Features equal those of each RoI alone, and gradients flow to its level; P6 is not used."""
    config = PRESETS['resnet50_fpn']
    pool = RoIPooling((*STRIDES, 64), 7, config=config)
    maps = [
        chainer.Parameter(rng.uniform(-1, 1, (2, 3, 512 // s, 512 // s)).astype(np.float32)) for s in (*STRIDES, 64)
    ]
    sides = rng.permutation([20, 500, 130, 300, 60, 240, 480, 150])
    rois = np.stack([0 * sides, 0 * sides, sides, sides], axis=1).astype(np.float32)
    indices = (np.arange(8) % 2).astype(np.int32)
    found = pool(maps, rois, indices)
    for i, level in enumerate(assign_levels(rois, STRIDES, canonical_size=224, dialect=DETECTRON)):
        alone = roi_align(
            maps[level].array,
            rois[i : i + 1],
            indices[i : i + 1],
            output_size=7,
            spatial_scale=1 / STRIDES[level],
            sampling_ratio=2,
        )
        np.testing.assert_array_equal(found.array[i : i + 1], alone.array)
    chainer.functions.sum(found[sides == 500]).backward()
    assert maps[3].grad.any() and not any(features.grad.any() for features in maps[:3])


@pytest.mark.parametrize('count', [0, 1])
def test_pooling_of_zero_or_one_rois(rng, count):
    pool = RoIPooling((*STRIDES, 64), 7, config=PRESETS['resnet50_fpn'])
    maps = [rng.uniform(-1, 1, (1, 3, 64 // s, 64 // s)).astype(np.float32) for s in (*STRIDES, 64)]
    rois = np.array([[0, 0, 50, 60]], np.float32)[:count]
    assert pool(maps, rois, np.zeros(count, np.int32)).shape == (count, 3, 7, 7)


def test_levels_without_rois_get_zero_gradients(rng):
    pool = RoIPooling((*STRIDES, 64), 7, config=PRESETS['resnet50_fpn'])
    maps = [chainer.Variable(rng.uniform(-1, 1, (1, 3, 64 // s, 64 // s)).astype(np.float32)) for s in (*STRIDES, 64)]
    y = pool(maps, np.float32([[0, 0, 50, 60]]), np.zeros(1, np.int32))
    y.grad = np.ones_like(y.array)
    y.backward()
    assert maps[0].grad.any() and not any(features.grad.any() for features in maps[1:4]) and maps[4].grad is None


def test_degenerate_rois_belong_to_the_finest_level():
    """Empty RoIs, RoIs with a negative side, and RoIs of NaN."""
    rois = np.float32([[5, 5, 4, 4], [9, 0, 0, 9], [np.nan] * 4, [0, 0, np.nan, 5]])
    levels = assign_levels(rois, STRIDES, canonical_size=224, dialect=DETECTRON)
    assert levels.dtype == np.int32 and levels.tolist() == [0] * 4


class OtherModule:
    """NumPy under another name, which code does not take for the CPU's array module."""

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def on_gpu(monkeypatch, emulator):
    """Pool RoIs with the GPU implementation, with kernels emulated on the CPU."""
    module = OtherModule()
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    monkeypatch.setattr(roi_pooling, 'get_array_module', lambda *_: module)
    for ops, node in (
        (roi_align_module, '_RoIAlign'),
        (roi_max_pooling, '_RoIMaxPooling'),
        (crop_and_resize, '_CropAndResize'),
    ):
        monkeypatch.setattr(
            ops,
            'check_arguments',
            lambda x, rois, indices, step: (np.ascontiguousarray(rois, 'f'), np.ascontiguousarray(indices, 'i')),
        )
        monkeypatch.setattr(getattr(ops, node), 'forward_cpu', getattr(ops, node).forward_gpu)


@pytest.mark.parametrize(
    'changes', [{}, {'roi_align': False}, {'dialect': MATTERPORT, 'max_size': 1024}], ids=['align', 'max', 'crop']
)
def test_gpu_pooling_equals_cpu_pooling(rng, request, changes):
    """The features of padding RoIs (of image -1, or NaN) are zeros."""
    pool = RoIPooling((*STRIDES, 64), 7, config=PRESETS['resnet50_fpn'].replace(**changes))
    maps = [rng.uniform(-1, 1, (2, 8, 512 // s, 512 // s)).astype(np.float32) for s in (*STRIDES, 64)]
    sides = rng.permutation([20, 500, 130, 300, 60, 240, 480, 150])
    rois = np.stack([0 * sides, 0 * sides, sides, sides], axis=1).astype(np.float32)
    indices = (np.arange(8) % 2).astype(np.int32)
    expected = pool(maps, rois, indices).array
    request.getfixturevalue('on_gpu')
    rois[2], indices[[3, 6]] = np.nan, -1
    with chainer.no_backprop_mode():
        found = pool(maps, rois, indices).array
    padding = [2, 3, 6]
    assert not found[padding].any()
    np.testing.assert_allclose(np.delete(found, padding, 0), np.delete(expected, padding, 0), rtol=0, atol=1e-5)
