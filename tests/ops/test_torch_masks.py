"""Masks and keypoints in the dialects of torchvision and detectron2: against these programs and against formulas."""

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON2, TORCHVISION
from mask_rcnn.config import DIALECTS as ALL_DIALECTS
from mask_rcnn.inference.detections import Detections
from mask_rcnn.models.keypoint_head import upsample_bilinear_2x
from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from mask_rcnn.ops.masks.paste_masks import mask_runs, paste_masks
from mask_rcnn.ops.masks.rle import decode_rle, encode_runs
from tests.support.arrays import SWAP_XY

DIALECTS = [TORCHVISION, DETECTRON2]
NAMES = [dialect.name for dialect in DIALECTS]
SIZE = (60, 80)
#: Probabilities within this distance of the threshold may fall on either side of it; 2.6e-6 were measured.
LIMIT = 1e-5

each_dialect = pytest.mark.parametrize('dialect', DIALECTS, ids=NAMES)


@pytest.fixture(scope='module')
def load_operators(golden):
    """A function from a dialect to the results of the program's single operators."""

    def load(dialect):
        path = golden / dialect.name / f'ops_{dialect.name}.npz'
        if not path.is_file():
            pytest.skip(f'no results in {path}')
        return np.load(path)

    return load


def options_of(dialect, **changes):
    options = {**vars(dialect.masks), **changes}
    return {'offset': options.pop('box_offset'), **options}


def random_masks(rng, n, side=28):
    """Return smooth probabilities ``(n, side, side)`` and boxes inside and outside of the image, tiny and huge."""
    grid = np.linspace(-1, 1, side)
    y, x = np.meshgrid(grid, grid, indexing='ij')
    waves = rng.uniform(-4, 4, (4, n, 1, 1))
    logits = waves[0] * np.sin(3 * y + waves[1]) * np.cos(4 * x + waves[2]) + waves[3] + 1.5
    corners = rng.uniform(-0.4, 1.0, (n, 2)) * SIZE
    sides = np.exp(rng.uniform(np.log(0.1), np.log(300), (n, 2)))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    boxes[:5] = [[20, 30, 48, 58], [-900, -900, 900, 900], [-30, -30, -2, -2], [3.5, 4.5, 17.5, 32.5], [9, 9, 9.2, 50]]
    return (1 / (1 + np.exp(-logits))).astype(np.float32), boxes.astype(np.float32)


def hat(positions, n, *, repeat):
    """Return the weights of bilinear interpolation ``(P, n)`` in float64; outside are zeros, or the border."""
    positions = np.clip(positions, 0, n - 1) if repeat else positions
    return np.maximum(1 - np.abs(positions[:, None] - np.arange(n)), 0)


def reference_probs(dialect, probs, box):
    """Return the pasted probabilities in float64, by the formula of the program."""
    if dialect is DETECTRON2:
        sides = np.subtract(box[2:], box[:2], dtype=np.float64)
        rows, columns = (
            hat((np.arange(SIZE[i]) + 0.5 - box[i]) / sides[i] * len(probs) - 0.5, len(probs), repeat=False)
            for i in (0, 1)
        )
        for i, weights in enumerate((rows, columns)):
            pixels = np.arange(SIZE[i])
            weights[(pixels < np.floor(box[i]) - 1) | (pixels > np.ceil(box[i + 2]))] = 0
        return rows @ probs @ columns.T
    padded = np.pad(probs, 1)
    centre, half = (box[2:] + box[:2]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5)
    half = half * np.float32(len(padded) / len(probs))
    low, high = np.trunc(centre - half), np.trunc(centre + half)
    weights = []
    for i in (0, 1):
        n_pixels = max(high[i] - low[i] + 1, 1)
        pixels = np.arange(SIZE[i]) - float(low[i])
        axis = hat((pixels + 0.5) * len(padded) / n_pixels - 0.5, len(padded), repeat=True)
        axis[(pixels < 0) | (pixels >= n_pixels)] = 0
        weights.append(axis)
    return weights[0] @ padded @ weights[1].T


def assert_thresholded(masks, probs, threshold):
    """Compare masks with probabilities; pixels that are about as probable as the threshold may differ."""
    differ = masks != (probs > threshold)
    np.testing.assert_allclose(probs[differ], threshold, rtol=0, atol=LIMIT)


@each_dialect
def test_pasted_masks_equal_the_formula(backend, rng, dialect):
    probs, boxes = random_masks(rng, 40)
    expected = np.stack([reference_probs(dialect, p, b) for p, b in zip(probs, boxes, strict=True)])
    assert 0.05 < (expected > 0.5).mean() < 0.6
    for threshold in (0.05, 0.3, 0.5, 0.9):
        options = options_of(dialect, threshold=threshold)
        masks = backend.numpy(paste_masks(backend.array(probs), backend.array(boxes), SIZE, **options))
        assert_thresholded(masks, expected, threshold)
        assert np.count_nonzero(masks != (expected > threshold)) <= 3


@each_dialect
def test_pasted_masks_equal_the_program(backend, load_operators, dialect):
    golden = load_operators(dialect)
    size, boxes = tuple(map(int, golden['paste_size'])), golden['paste_boxes'][:, SWAP_XY]
    soft = golden['paste_soft'].copy()
    if dialect is DETECTRON2:  # the program evaluates no other pixels
        for probs, (top, left, bottom, right) in zip(soft, boxes, strict=True):
            y, x = np.ogrid[: size[0], : size[1]]
            is_near = (y >= np.floor(top) - 1) & (y <= np.ceil(bottom))
            probs[~(is_near & (x >= np.floor(left) - 1) & (x <= np.ceil(right)))] = 0
    arguments = backend.array(golden['paste_probs']), backend.array(boxes), size
    for threshold in np.linspace(0.02, 0.98, 25):
        masks = backend.numpy(paste_masks(*arguments, **options_of(dialect, threshold=float(threshold))))
        assert_thresholded(masks, soft, threshold)
    expected = soft > 0.5
    if dialect is DETECTRON2:
        expected = np.unpackbits(golden['paste_masks_packed'], axis=-1)[..., : size[1]].astype(bool)
    np.testing.assert_array_equal(backend.numpy(paste_masks(*arguments, **options_of(dialect))), expected)


@pytest.mark.parametrize('dialect', ALL_DIALECTS.values(), ids=ALL_DIALECTS)
def test_run_lengths_equal_the_pasted_masks(backend, rng, dialect):
    probs, boxes = random_masks(rng, 60)
    options = options_of(dialect)
    masks = backend.numpy(paste_masks(backend.array(probs), backend.array(boxes), SIZE, **options))
    runs = mask_runs(backend.array(probs), backend.array(boxes), SIZE, **options)
    np.testing.assert_array_equal([decode_rle(encode_runs(mask_run, SIZE)) for mask_run in runs], masks)


@pytest.mark.parametrize('dialect', ALL_DIALECTS.values(), ids=ALL_DIALECTS)
def test_detections_paste_by_their_dialect(rng, dialect):
    probs, boxes = random_masks(rng, 8)
    found = Detections(
        boxes=boxes, labels=np.zeros(8, int), scores=np.ones(8), size=SIZE, mask_probs=probs, dialect=dialect
    )
    masks = paste_masks(probs, boxes, SIZE, **options_of(dialect))
    np.testing.assert_array_equal([decode_rle(rle) for rle in found.encode_masks()], masks)
    np.testing.assert_array_equal(list(found.iter_masks()), masks)
    np.testing.assert_array_equal(found.masks, masks)


def test_a_mask_in_a_continuous_box_of_its_size_is_copied(backend, rng):
    """The border of the box is at the centres of pixels: half of the first and of the last row are outside."""
    probs = np.ones((2, 4, 4), np.float32)
    boxes = np.float32([[2, 3, 6, 7], [2.5, 3.5, 6.5, 7.5]])
    masks = paste_masks(backend.array(probs), backend.array(boxes), (10, 12), **options_of(DETECTRON2))
    expected = np.zeros((2, 10, 12), bool)
    expected[0, 2:6, 3:7] = expected[1, 2:7, 3:8] = True
    expected[1, [2, 2, 6, 6], [3, 7, 3, 7]] = False  # a quarter of the corners is inside
    np.testing.assert_array_equal(backend.numpy(masks), expected)


@pytest.mark.parametrize(
    'box',
    [[9, 9, 3, 3], [4, 4, 4, 9], [4.3, 4.3, 4.4, 4.4], [np.inf, 0, np.inf, 9], [np.nan] * 4, [5, 5, 5 + 5e-7, 9]],
)
def test_continuous_boxes_without_pixels(backend, box):
    probs, boxes = backend.array(np.ones((1, 14, 14), np.float32)), backend.array(np.float32([box]))
    assert not backend.numpy(paste_masks(probs, boxes, (20, 20), **options_of(DETECTRON2))).any()
    assert not len(mask_runs(probs, boxes, (20, 20), **options_of(DETECTRON2))[0])


@pytest.mark.parametrize(
    ('dialect', 'case'),
    [
        (TORCHVISION, 'maskrcnn_resnet50_fpn'),
        (DETECTRON2, 'mask_rcnn_R_50_FPN_3x'),
        (DETECTRON2, 'mask_rcnn_R_50_C4_3x'),
    ],
)
def test_masks_of_a_photo_equal_the_program(golden, dialect, case):
    """A box of hundreds of pixels has some pixels whose probability rounds to another side of the threshold."""
    path = golden / dialect.name / f'case_{case}_seed0.npz'
    if not path.is_file():
        pytest.skip(f'no results in {path}')
    arrays = np.load(path)
    size = tuple(map(int, arrays['image_shape'][:2]))
    masks = paste_masks(arrays['mask_probs'], arrays['boxes'][:, SWAP_XY], size, **options_of(dialect))
    expected = np.unpackbits(arrays['masks_packed'], axis=-1)[..., : size[1]].astype(bool)
    assert len(expected) and np.count_nonzero(masks != expected) <= 3  # measured: 1, 0, 0


@each_dialect
def test_keypoints_equal_the_program(backend, load_operators, dialect):
    golden = load_operators(dialect)
    found = backend.numpy(
        decode_heatmaps(
            backend.array(golden['keypoint_maps'].astype(np.float32)),
            backend.array(golden['keypoint_boxes'][:, SWAP_XY]),
            softmax_grid=dialect.keypoints.softmax_grid,
        )
    )
    # Measured: 9.5e-7 pixels, logits 3.6e-6, probabilities 3.5e-6.
    np.testing.assert_allclose(found[:, :, 1::-1], golden['keypoint_xy'], rtol=0, atol=5e-5)
    logits = golden['keypoint_scores' if dialect is TORCHVISION else 'keypoint_logits']
    np.testing.assert_allclose(found[:, :, 2], logits, rtol=0, atol=1e-5)
    if dialect is DETECTRON2:
        np.testing.assert_allclose(found[:, :, 3], golden['keypoint_scores'], rtol=1e-5)


def test_the_softmax_over_the_predicted_heat_map(backend, rng):
    """Its sum is over the cells of the map, relative to the highest logit of the resized map."""
    heatmaps = rng.normal(0, 3, (4, 3, 28, 28)).astype(np.float32)
    heatmaps[0, 0] *= 100  # the highest cell is far above the highest pixel of a small box: the probability is 0
    boxes = np.float32([[0, 0, 1.5, 2], [5, 5, 33, 33], [10, 20, 200, 90.5], [-3, 4, 60, 7]])
    resized, predicted = (
        backend.numpy(decode_heatmaps(backend.array(heatmaps), backend.array(boxes), softmax_grid=grid))
        for grid in ('resized', 'predicted')
    )
    np.testing.assert_array_equal(predicted[:, :, :3], resized[:, :, :3])
    relative = heatmaps.astype(np.float64) - resized[:, :, 2, None, None]
    with np.errstate(over='ignore'):
        expected = 1 / np.exp(relative).sum(axis=(2, 3))
    np.testing.assert_allclose(predicted[:, :, 3], expected, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(predicted[1, :, 3], resized[1, :, 3], rtol=1e-5)  # a box of the map's size


def test_heat_maps_far_above_their_resized_ones(backend):
    """Exponentials that overflow or vanish give the probabilities of detectron2: 0 and infinity."""
    heatmaps = np.zeros((2, 1, 28, 28), np.float32)
    heatmaps[0] -= 1000
    heatmaps[0, 0, 3, 3] = 1000
    heatmaps[1] -= 1e6
    heatmaps[1, 0, 3:5, 3:5] = 1e6  # bicubic interpolation overshoots
    boxes = backend.array(np.float32([[0, 0, 1, 1], [0, 0, 280, 280]]))
    found = backend.numpy(decode_heatmaps(backend.array(heatmaps), boxes, softmax_grid='predicted'))
    assert found[0, 0, 3] == 0 and np.isinf(found[1, 0, 3]) and found[1, 0, 2] > 1e6


def test_upsampling_equals_torchvision(load_operators):
    golden = load_operators(TORCHVISION)
    found = upsample_bilinear_2x(golden['upsample_in'], border='repeat').array
    np.testing.assert_allclose(found, golden['upsample_out'], rtol=0, atol=1e-6)
