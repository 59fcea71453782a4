"""Non-maximum suppression against Detectron's results and against its definition."""

import numpy as np
import pytest

from mask_rcnn.ops.boxes import nms as nms_module
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.boxes.nms import GroupShift, find_suppressors, nms
from tests.support.arrays import SWAP_XY, random_boxes


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_boxes.npz')


def shifted(boxes, scores, groups, first_group, max_boxes):
    """Return the boxes that torchvision's ``batched_nms`` compares, in float32."""
    is_box = scores > -np.inf
    if is_box.sum() > max_boxes:
        return boxes
    distances = np.float32(groups + first_group) * (boxes[is_box].max() + np.float32(1))
    return np.stack([boxes[:, i] + distances for i in range(4)], axis=1)


@np.errstate(invalid='ignore')  # the IoU of empty boxes is 0 / 0
def reference_nms(boxes, scores, threshold, offset=1, groups=None, limit=None, suppress_equal=True):
    """Apply the definition box by box."""
    offset = np.float32(offset)
    area = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in kept:
            if groups is not None and groups[i] != groups[j]:
                continue
            sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]) + offset
            overlap = np.prod(np.maximum(sides, 0), dtype=np.float32)
            iou = overlap / (area[i] + area[j] - overlap)
            if iou > np.float32(threshold) or (suppress_equal and iou == np.float32(threshold)):
                break
        else:
            kept.append(i)
    return kept[:limit]


def random_inputs(rng, n):
    """Return random boxes and scores."""
    boxes = random_boxes(rng, n, limit=200, min_side=0, max_side=60)
    return boxes, rng.uniform(size=n).astype(np.float32)


def run(backend, boxes, scores, threshold, groups=None, **kwargs):
    kept = nms(backend.array(boxes), backend.array(scores), threshold, groups=backend.array(groups), **kwargs)
    assert kept.dtype == np.int32 and isinstance(kept, backend.xp.ndarray)
    return backend.numpy(kept).tolist()


@pytest.mark.parametrize('name', ['nms', 'nms_exact'])
@pytest.mark.parametrize('threshold', [3, 5, 7])
def test_nms_equals_detectron(backend, golden, name, threshold):
    dets = golden[f'{name}_dets']
    kept = run(backend, dets[:, SWAP_XY], dets[:, 4], threshold / 10)
    assert sorted(kept) == golden[f'{name}_keep_0{threshold}'].tolist()


def test_the_first_of_tied_boxes_takes_precedence(backend, golden):
    dets = golden['nms_ties_dets']
    kept = run(backend, dets[:, SWAP_XY], dets[:, 4], 0.5)
    np.testing.assert_array_equal(dets[kept], golden['nms_ties_keep_boxes'])
    assert kept == reference_nms(dets[:, SWAP_XY], dets[:, 4], 0.5)


@pytest.mark.parametrize('n', [1, 63, 64, 65, 128, 300])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_equals_the_definition(backend, rng, n, offset):
    boxes, scores = random_inputs(rng, n)
    scores = np.round(scores, 2)  # ties
    kept = run(backend, boxes, scores, 0.4, offset=offset)
    assert kept == reference_nms(boxes, scores, 0.4, offset)


@pytest.mark.parametrize('limit', [None, 0, 1, 10, 64, 1000])
def test_groups_with_a_limit(backend, rng, limit):
    boxes, scores = random_inputs(rng, 200)
    groups = rng.randint(-2, 5, 200)
    kept = run(backend, boxes, scores, 0.3, groups=groups, limit=limit)
    assert kept == reference_nms(boxes, scores, 0.3, groups=groups, limit=limit)


@pytest.mark.parametrize('limit', [1, 10, 64])
def test_a_limit_without_groups(backend, rng, limit):
    boxes, scores = random_inputs(rng, 200)
    assert run(backend, boxes, scores, 0.7, limit=limit) == reference_nms(boxes, scores, 0.7, limit=limit)


def test_ties_between_groups_keep_the_order_of_the_input(backend):
    boxes = np.float32([[0, 0, 9, 9], [50, 50, 59, 59], [0, 0, 9, 9]])
    assert run(backend, boxes, np.float32([0.5, 0.5, 0.5]), 0.5, groups=np.array([2, 0, 1])) == [0, 1, 2]


def test_suppression_at_an_iou_equal_to_the_threshold(backend):
    boxes = np.float32([[0, 0, 1, 1], [0, 0, 1, 3]])  # with offset 1: 4 of 8 pixels
    scores = np.float32([0.9, 0.8])
    assert run(backend, boxes, scores, 0.5) == [0]
    assert run(backend, boxes, scores, 0.5, suppress_equal=False) == [0, 1]
    for suppress_equal in (False, True):
        above, below = np.nextafter(np.float32(0.5), np.float32([1, 0]))
        assert run(backend, boxes, scores, above, suppress_equal=suppress_equal) == [0, 1]
        assert run(backend, boxes, scores, below, suppress_equal=suppress_equal) == [0]


def test_empty_boxes_do_not_overlap(backend):
    boxes = np.zeros((3, 4), np.float32)
    assert run(backend, boxes, np.float32([0.1, 0.3, 0.2]), 0.5, offset=0) == [1, 2, 0]


@pytest.mark.parametrize(('n', 'n_real'), [(200, 0), (200, 1), (200, 63), (200, 64), (200, 129), (3, 2)])
@pytest.mark.parametrize('limit', [None, 20])
@pytest.mark.parametrize('grouped', [False, True])
def test_padding_is_neither_kept_nor_suppresses(backend, rng, n, n_real, limit, grouped):
    """Padding boxes have scores of minus infinity; here they overlap the real boxes or are NaN."""
    (boxes, _), scores, groups = random_inputs(rng, n), np.full(n, -np.inf, 'f'), rng.randint(0, 3, n)
    real = np.sort(rng.permutation(n)[:n_real])
    scores[real] = rng.uniform(size=n_real)
    boxes[np.setdiff1d(np.arange(n), real)[::2]] = np.nan
    groups = groups if grouped else None
    expected = reference_nms(
        boxes[real], scores[real], 0.3, groups=groups if groups is None else groups[real], limit=limit
    )
    assert run(backend, boxes, scores, 0.3, groups=groups, limit=limit) == real[expected].tolist()


def test_nan_boxes_overlap_no_box(backend, rng):
    boxes, scores = random_inputs(rng, 150)
    boxes[::3] = np.nan
    boxes[1::30, 2] = np.nan
    kept = run(backend, boxes, scores, 0.3)
    assert kept == reference_nms(boxes, scores, 0.3)
    assert set(kept) > set(range(0, 150, 3)) | set(range(1, 150, 30))


def test_a_chain_of_overlaps_across_words(backend):
    """Each box overlaps only its neighbours, so every second box is kept."""
    corners = np.arange(300)[:, None] * np.float32([3, 0])
    boxes = np.concatenate((corners, corners + np.float32([8, 9])), axis=1).astype('f')
    scores = np.linspace(1, 0.5, 300).astype('f')
    assert run(backend, boxes, scores, 0.5) == list(range(0, 300, 2))


def test_many_disjoint_boxes_are_all_kept(backend, rng):
    """2200 boxes fill 35 words, more than a warp marks at a time."""
    boxes = (np.arange(2200)[:, None] * np.float32(20) + np.float32([0, 0, 9, 9])).astype('f')
    scores = rng.uniform(size=2200).astype('f')
    assert run(backend, boxes, scores, 0.5) == np.argsort(-scores, kind='stable').tolist()


def test_too_many_boxes_for_a_gpu_are_an_error(monkeypatch, rng):
    monkeypatch.setattr(nms_module, 'nms_cpu', nms_module.nms_gpu)
    monkeypatch.setattr(nms_module, '_MAX_BOXES', 64)
    with pytest.raises(ValueError, match='at most 64 boxes, not 65'):
        nms(*random_inputs(rng, 65), 0.5)


def test_no_boxes(backend):
    assert run(backend, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5) == []


def test_views_and_float64(backend, rng):
    boxes, scores = random_inputs(rng, 100)
    assert run(backend, boxes[::2].astype(np.float64), scores[::2].astype(np.float64), 0.5) == reference_nms(
        boxes[::2], scores[::2], 0.5
    )


@pytest.mark.parametrize(
    ('boxes', 'scores', 'groups'),
    [((3, 5), (3,), None), ((3, 4), (2,), None), ((3, 4), (3,), (2,)), ((12,), (3,), None)],
)
def test_wrong_shapes_are_an_error(boxes, scores, groups):
    groups = None if groups is None else np.zeros(groups, int)
    with pytest.raises(ValueError, match='must have the shape'):
        nms(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), 0.5, groups=groups)


def test_a_negative_limit_is_an_error():
    with pytest.raises(ValueError, match='limit must be 0 or more, not -1'):
        nms(np.zeros((3, 4), np.float32), np.zeros(3, np.float32), 0.5, limit=-1)


@pytest.mark.parametrize('suppress_equal', [True, False])
@pytest.mark.parametrize('limit', [None, 3])
def test_suppressors_are_the_best_kept_boxes_that_overlap(rng, suppress_equal, limit):
    """Against the definition, on boxes of few different sizes, so that IoUs equal the threshold."""
    corners = rng.randint(0, 6, (60, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.randint(1, 4, (60, 2))], axis=1).astype(np.float32)
    scores = np.float32(rng.randint(0, 20, 60) / 20)
    scores[:3] = -np.inf
    groups = rng.randint(0, 2, 60)
    options = {'offset': 1.0, 'groups': groups, 'suppress_equal': suppress_equal}
    kept = nms(boxes, scores, 0.5, limit=limit, **options)
    found = find_suppressors(boxes, scores, kept, 0.5, **options)
    iou = box_iou(boxes, boxes, offset=1.0)
    for i in range(60):
        overlaps = iou[kept, i] >= 0.5 if suppress_equal else iou[kept, i] > 0.5
        is_before = (scores[kept] > scores[i]) | ((scores[kept] == scores[i]) & (kept < i))
        rivals = kept[overlaps & is_before & (groups[kept] == groups[i]) & (scores[i] > -np.inf)]
        assert found[i] == (rivals[0] if len(rivals) and i not in kept else -1)
    assert (found >= 0).any() and (limit is None or ((found < 0) & (scores > -np.inf)).sum() > len(kept))


@pytest.mark.parametrize('max_boxes', [0, 149, 150, 1000])
@pytest.mark.parametrize('first_group', [0, 100_000])
@pytest.mark.parametrize('offset', [0, 1])
def test_few_boxes_are_shifted_apart(backend, rng, max_boxes, first_group, offset):
    """One NMS of all boxes whose corners are rounded; 150 of the 200 boxes are not padding."""
    boxes, scores = random_inputs(rng, 200)
    boxes, groups = boxes * np.float32(0.01), 50_000 * rng.randint(0, 3, 200)
    scores[rng.permutation(200)[:50]] = -np.inf
    real = np.flatnonzero(scores > -np.inf)
    inputs = boxes[real], scores[real]
    options = {'threshold': 0.4, 'offset': offset, 'suppress_equal': False}
    exact = reference_nms(*inputs, groups=groups[real], **options)
    expected = exact
    if max_boxes >= 150:
        corners = shifted(*inputs, groups[real], first_group, max_boxes)
        expected = reference_nms(corners, scores[real], **options)
    shift = GroupShift(max_boxes, first_group)
    assert run(backend, boxes, scores, groups=groups, shift=shift, **options) == real[expected].tolist()
    assert (expected != exact) == (max_boxes >= 150)  # corners of the last group are multiples of 1/32


def test_boxes_without_groups_are_not_shifted(backend, rng):
    boxes, scores = random_inputs(rng, 100)
    assert run(backend, boxes, scores, 0.5, shift=GroupShift(1000, 1)) == reference_nms(boxes, scores, 0.5)


def test_padding_alone_is_not_shifted(backend):
    boxes, scores = np.full((5, 4), np.nan, 'f'), np.full(5, -np.inf, 'f')
    assert run(backend, boxes, scores, 0.5, groups=np.arange(5), shift=GroupShift(1000)) == []


def test_suppressors_of_shifted_boxes(rng):
    """The IoU of two boxes of a class is 0.5002, and that of the rounded corners is not above the threshold."""
    boxes = np.float32([[0, 0, 4, 1.9998], [0, 0, 4, 1.0002], [0, 0, 900, 900]])
    scores, groups = np.float32([0.9, 0.8, 0.7]), np.array([9, 9, 0])
    options = {'offset': 0.0, 'groups': groups, 'suppress_equal': False}
    kept = nms(boxes, scores, 0.5, **options)
    assert kept.tolist() == [0, 2] and find_suppressors(boxes, scores, kept, 0.5, **options).tolist() == [-1, 0, -1]
    options['shift'] = GroupShift(3)
    kept = nms(boxes, scores, 0.5, **options)
    assert kept.tolist() == [0, 1, 2] and find_suppressors(boxes, scores, kept, 0.5, **options).tolist() == [-1] * 3
