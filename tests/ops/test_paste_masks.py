"""Mask pasting against OpenCV and against the results of Detectron and Matterport."""

import cv2
import numpy as np
import pytest

from mask_rcnn.ops.masks import paste_masks as paste_module
from mask_rcnn.ops.masks.paste_masks import mask_runs, paste_into, paste_masks
from tests.support.arrays import SWAP_XY


@pytest.fixture(scope='module')
def detectron(data):
    return np.load(data / 'ops_masks.npz')


def reference_paste(prob, box, size, offset, padding, threshold, squeeze=False):
    """Paste a mask as Detectron's ``segm_results`` does, with OpenCV's resize, or squeeze it into the visible part."""
    mask = np.pad(prob, padding)
    centre, half = (box[2:] + box[:2]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5)
    half = half * np.float32(len(mask) / len(prob))
    top, left, bottom, right = np.concatenate((centre - half, centre + half)).astype(np.int32)
    if squeeze:
        top, left = max(top, 0), max(left, 0)
        bottom, right = min(bottom, size[0] - offset), min(right, size[1] - offset)
        if bottom - top + offset < 1 or right - left + offset < 1:
            return np.zeros(size, bool)
    height, width = max(bottom - top + offset, 1), max(right - left + offset, 1)
    resized = cv2.resize(mask, (int(width), int(height))) > np.float32(threshold)
    out = np.zeros(size, bool)
    y0, y1 = max(top, 0), min(top + height, size[0])
    x0, x1 = max(left, 0), min(left + width, size[1])
    if y0 < y1 and x0 < x1:
        out[y0:y1, x0:x1] = resized[y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def smooth_masks(rng, n, side):
    """Return probabilities like those of a network: part of every mask is set, with curved borders."""
    return np.stack(
        [
            cv2.GaussianBlur(noise, (0, 0), 2, borderType=cv2.BORDER_REFLECT)
            for noise in rng.uniform(-1.5, 2.5, (n, side, side)).astype(np.float32)
        ]
    )


def random_boxes(rng, n, size):
    corners = rng.uniform(-0.2, 0.8, (n, 2)) * size
    sides = rng.uniform(0, 1, (n, 2)) ** 2 * size
    return np.concatenate((corners, corners + sides), axis=1).astype(np.float32)


def run(backend, probs, boxes, *args, **kwargs):
    out = paste_masks(backend.array(probs), backend.array(boxes), *args, **kwargs)
    assert out.dtype == np.bool_ and isinstance(out, backend.xp.ndarray)
    return backend.numpy(out)


@pytest.mark.parametrize('side', [14, 28])
def test_equals_detectron_to_the_pixel(backend, detectron, side):
    size = tuple(map(int, detectron[f'm{side}_image_size']))
    out = run(backend, detectron[f'm{side}_probs'], detectron[f'm{side}_boxes'][:, SWAP_XY], size)
    expected = np.unpackbits(detectron[f'm{side}_packed'], axis=-1)[..., : size[1]]
    np.testing.assert_array_equal(out, expected.astype(bool))


@pytest.mark.parametrize(
    ('offset', 'padding', 'threshold', 'squeeze'),
    [(1, 1, 0.5, False), (0, 0, 0.5, False), (1, 2, 0.3, False), (1, 1, 0.5, True), (0, 1, 0.5, True)],
)
def test_equals_opencv(backend, rng, offset, padding, threshold, squeeze):
    size = (90, 120)
    probs, boxes = smooth_masks(rng, 30, 14), random_boxes(rng, 30, size)
    options = {'offset': offset, 'padding': padding, 'threshold': threshold}
    out = run(backend, probs, boxes, size, **options, squeeze_at_border=squeeze)
    expected = np.stack(
        [reference_paste(p, b, size, **options, squeeze=squeeze) for p, b in zip(probs, boxes, strict=True)]
    )
    assert 0.02 < expected.mean() < 0.5
    # OpenCV's vector code may fuse a multiplication with an addition, a difference of one unit in the last place.
    assert np.count_nonzero(out != expected) <= 2


@pytest.mark.parametrize('case', ['coco_resnet50', 'shapes_resnet50_shapes7'])
def test_equals_matterport_to_the_pixel(backend, matterport_golden, case):
    arrays = np.load(matterport_golden / 'matterport' / f'case_{case}.npz')
    height, width, _ = arrays['masks_shape'].tolist()
    out = run(
        backend,
        arrays['mask28'],
        arrays['rois'].astype(np.float32),
        (height, width),
        offset=0,
        padding=0,
        margin=1,
        threshold_inclusive=True,
    )
    expected = np.unpackbits(arrays['masks_packed'], axis=-1)[..., :width]
    np.testing.assert_array_equal(out, expected.astype(bool))


def test_a_margin_interpolates_towards_zero_but_not_below_the_minimum(backend):
    probs, boxes = np.full((2, 4, 4), 0.6, np.float32), np.float32([[2, 2, 10, 10]] * 2)
    probs[1, 1, 1] = 0
    kwargs = dict(offset=0, padding=0, margin=1)
    masks = run(backend, probs, boxes, (12, 12), **kwargs)
    assert masks[0, 2:10, 2:10].all() and np.count_nonzero(masks[0]) == 64
    assert not masks[1, 2, 2:10].any() and masks[1, 7:9, 7:9].all()  # 0.75 * 0.6 < 0.5 at the border
    np.testing.assert_array_equal(run(backend, probs, boxes, (12, 12), offset=0, padding=0)[0], masks[0])


@pytest.mark.parametrize('threshold_inclusive', [True, False])
def test_probabilities_equal_to_the_threshold(backend, threshold_inclusive):
    probs = np.full((1, 4, 4), 0.5, np.float32)
    out = run(
        backend, probs, np.float32([[0, 0, 4, 4]]), (4, 4), offset=0, padding=0, threshold_inclusive=threshold_inclusive
    )
    assert out.all() if threshold_inclusive else not out.any()


def test_a_mask_in_a_box_of_its_size_is_copied(backend, rng):
    probs = rng.uniform(size=(1, 14, 14)).astype(np.float32)
    out = run(backend, probs, np.float32([[3, 5, 16, 18]]), (30, 30), padding=0)
    np.testing.assert_array_equal(out[0, 3:17, 5:19], probs[0] > 0.5)
    assert np.count_nonzero(out) == np.count_nonzero(probs > 0.5)


@pytest.mark.parametrize('box', [[-50, -50, -20, -20], [40, 0, 60, 10], [0, 40, 10, 60], [-90, 3, -80, 9]])
def test_boxes_outside_the_image(backend, box):
    out = run(backend, np.ones((1, 14, 14), np.float32), np.float32([box]), (20, 20))
    assert out.shape == (1, 20, 20) and not out.any()


def test_a_box_that_covers_the_image(backend):
    out = run(backend, np.ones((1, 14, 14), np.float32), np.float32([[-500, -500, 500, 500]]), (20, 20))
    assert out.all()


def test_reversed_and_infinite_boxes_are_accepted(backend):
    boxes = np.float32([[9, 9, 3, 3], [np.inf, 0, np.inf, 9], [np.nan, 0, 9, 9], [-np.inf, 0, 9, 9]])
    assert run(backend, np.ones((4, 14, 14), np.float32), boxes, (20, 20)).shape == (4, 20, 20)


def test_no_masks(backend):
    out = run(backend, np.zeros((0, 14, 14), np.float32), np.zeros((0, 4), np.float32), (20, 30))
    assert out.shape == (0, 20, 30)


def test_paste_into_overwrites_slices_of_an_array(backend, rng):
    size = (40, 50)
    probs, boxes = smooth_masks(rng, 5, 14), random_boxes(rng, 5, size)
    expected = run(backend, probs, boxes, size)
    out = backend.xp.ones((5, *size), bool)
    for part in (slice(0, 2), slice(2, 5)):
        assert paste_into(out[part], backend.array(probs[part]), backend.array(boxes[part])).base is not None
    np.testing.assert_array_equal(backend.numpy(out), expected)


def test_views_and_float64(backend, rng):
    size = (40, 50)
    probs, boxes = smooth_masks(rng, 4, 14), random_boxes(rng, 4, size)
    view = np.concatenate((probs, probs), axis=2)[::2, :, :14].astype(np.float64)
    np.testing.assert_array_equal(
        run(backend, view, boxes[::2].astype(np.float64), size),
        run(backend, probs[::2].copy(), boxes[::2].copy(), size),
    )


@pytest.mark.parametrize(
    ('probs', 'boxes', 'out'),
    [
        ((2, 14), (2, 4), (2, 9, 9)),
        ((2, 14, 14), (3, 4), (2, 9, 9)),
        ((2, 14, 14), (2, 4), (3, 9, 9)),
        ((2, 0, 0), (2, 4), (2, 9, 9)),
    ],
)
def test_wrong_shapes_are_an_error(probs, boxes, out):
    with pytest.raises(ValueError, match='must'):
        paste_into(np.zeros(out, bool), np.zeros(probs, np.float32), np.zeros(boxes, np.float32))


def test_an_out_array_that_is_not_contiguous_bool_is_an_error():
    probs, boxes = np.zeros((2, 14, 14), np.float32), np.zeros((2, 4), np.float32)
    for out in (np.zeros((2, 9, 9), np.uint8), np.zeros((2, 9, 18), bool)[:, :, ::2]):
        with pytest.raises(ValueError, match='out must be contiguous bool'):
            paste_into(out, probs, boxes)


def mask_of_runs(runs, size):
    """Return the mask that has the given runs."""
    pixels = np.zeros(size[0] * size[1], bool)
    for start, end in runs:
        assert 0 <= start < end and start // size[0] == (end - 1) // size[0]
        pixels[start:end] = True
    return pixels.reshape(size[::-1]).T


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'offset': 0, 'padding': 0, 'margin': 1, 'threshold_inclusive': True},
        {'padding': 2, 'threshold': 0.3},
        {'squeeze_at_border': True},
    ],
)
@pytest.mark.parametrize('size', [(90, 120), (3, 300)])
def test_runs_equal_those_of_the_pasted_masks(backend, rng, options, size):
    probs, boxes = smooth_masks(rng, 20, 14), random_boxes(rng, 20, size)
    boxes[:3] = [[-50, -50, -20, -20], [-500, -500, 500, 500], [9, 9, 3, 3]]
    probs[3] = 0
    masks = run(backend, probs, boxes, size, **options)
    runs = mask_runs(backend.array(probs), backend.array(boxes), size, **options)
    assert len(runs) == 20 and masks.any(axis=(1, 2)).sum() > 4
    for mask_run, mask in zip(runs, masks, strict=True):
        assert isinstance(mask_run, np.ndarray) and mask_run.dtype == np.int32 and mask_run.shape[1:] == (2,)
        assert (np.diff(mask_run.ravel()) >= 0).all()
        np.testing.assert_array_equal(mask_of_runs(mask_run, size), mask)


def test_empty_masks_and_no_masks_have_no_runs(backend):
    boxes = backend.array(np.zeros((2, 4), np.float32))
    runs = mask_runs(backend.array(np.zeros((2, 14, 14), np.float32)), boxes, (20, 30))
    assert [mask_run.shape for mask_run in runs] == [(0, 2)] * 2
    assert mask_runs(backend.array(np.zeros((0, 14, 14), np.float32)), boxes[:0], (20, 30)) == []
    with pytest.raises(ValueError, match='boxes must'):
        mask_runs(backend.array(np.zeros((3, 14, 14), np.float32)), boxes, (20, 30))


def test_more_masks_than_rows_of_a_grid_and_wide_images(backend, rng, monkeypatch):
    """Each block computes several masks, and a row has more pixels than a block has threads."""
    monkeypatch.setattr(paste_module, '_MAX_BLOCKS_Y', 3)
    size = (5, 600)
    probs, boxes = smooth_masks(rng, 8, 14), random_boxes(rng, 8, size)
    masks = run(backend, probs, boxes, size)
    np.testing.assert_array_equal(
        masks, np.concatenate([run(backend, probs[i : i + 1], boxes[i : i + 1], size) for i in range(8)])
    )
    runs = mask_runs(backend.array(probs), backend.array(boxes), size)
    for mask_run, mask in zip(runs, masks, strict=True):
        np.testing.assert_array_equal(mask_of_runs(mask_run, size), mask)


@pytest.mark.parametrize('function', [paste_masks, mask_runs])
def test_unknown_options_are_an_error(function):
    probs, boxes = np.zeros((1, 14, 14), np.float32), np.zeros((1, 4), np.float32)
    with pytest.raises(TypeError, match='extent'):
        function(probs, boxes, (9, 9), extent=1)


@pytest.mark.parametrize(('n_cpus', 'n_bytes'), [(1, 1), (3, 1), (16, 1), (16, 4 * 37 * 45), (3, 1 << 21)])
def test_shares_of_the_threads_cover_all_masks(rng, monkeypatch, n_cpus, n_bytes):
    size = (37, 45)
    probs, boxes = smooth_masks(rng, 11, 14), random_boxes(rng, 11, size)
    expected = np.concatenate([paste_masks(probs[i : i + 1], boxes[i : i + 1], size) for i in range(11)])
    monkeypatch.setattr(paste_module.parallel, 'cpu_count', lambda: n_cpus)
    monkeypatch.setattr(paste_module.parallel, '_pool', None)
    monkeypatch.setattr(paste_module, '_BYTES_PER_THREAD', n_bytes)
    np.testing.assert_array_equal(paste_masks(probs, boxes, size), expected)
    np.testing.assert_array_equal(paste_into(np.ones((11, *size), bool), probs, boxes), expected)
