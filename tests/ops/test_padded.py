"""The padded variants of box selection: the same rows as without padding, and no synchronisation with a GPU."""

import numpy as np
import pytest

from mask_rcnn.config import DENA, DETECTRON, DETECTRON2, MATTERPORT, TORCHVISION, Config
from mask_rcnn.models import box_head
from mask_rcnn.ops.boxes import nms as nms_module
from mask_rcnn.ops.boxes import padded_selection, top_k
from mask_rcnn.ops.boxes.nms import GroupShift, nms, nms_padded
from mask_rcnn.ops.boxes.proposals import generate_proposals, select_detections
from mask_rcnn.preprocessing.image_transform import ImageTransform
from tests.support.arrays import random_boxes


class OnDevice(np.ndarray):
    """An array whose values the host must not read: an operation that would synchronise with a GPU is an error."""

    def _refuse(self, *_):
        raise AssertionError('the host reads a value')

    __bool__ = __int__ = __float__ = __index__ = __iter__ = item = tolist = _refuse

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        if any(getattr(part, 'dtype', None) == np.bool_ for part in parts):
            self._refuse()
        return super().__getitem__(index)

    def __array_function__(self, function, types, arguments, options):
        if function in (np.nonzero, np.flatnonzero, np.unique, np.argwhere) or (
            function is np.where and len(arguments) == 1
        ):
            self._refuse()
        plain = [_strip(argument) for argument in arguments]
        result = function(*plain, **{name: _strip(value) for name, value in options.items()})
        return result.view(OnDevice) if isinstance(result, np.ndarray) else result

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        options = {name: _strip(value) for name, value in options.items()}
        result = getattr(ufunc, method)(*map(_strip, inputs), **options)
        return result.view(OnDevice) if isinstance(result, np.ndarray) else result


def _strip(value):
    if isinstance(value, OnDevice):
        return value.view(np.ndarray)
    return type(value)(map(_strip, value)) if isinstance(value, (list, tuple)) else value


@pytest.fixture
def on_device(monkeypatch, emulated_kernels):
    """Return a function that makes arrays whose values the host must not read."""
    monkeypatch.setattr(nms_module, 'nms_cpu', lambda *arguments: nms_module.nms_gpu(*arguments).view(OnDevice))
    monkeypatch.setattr(
        top_k, 'top_k_indices_cpu', lambda *arguments: top_k.top_k_indices_gpu(*arguments).view(OnDevice)
    )
    return lambda values: np.asarray(values).view(OnDevice)


@pytest.mark.parametrize('limit', [None, 5, 100])
def test_padded_nms(backend, rng, limit):
    boxes, scores, groups = random_boxes(rng, 60), rng.uniform(0, 1, 60).astype('f'), rng.randint(0, 3, 60)
    arrays = [backend.array(values) for values in (boxes, scores)]
    kept = backend.numpy(nms(*arrays, 0.3, groups=backend.array(groups), limit=limit))
    padded = backend.numpy(nms_padded(*arrays, 0.3, groups=backend.array(groups), limit=limit))
    assert padded.dtype == np.int32 and len(padded) == min(limit or 60, 60) and 0 < len(kept) < 60
    assert padded.tolist() == kept.tolist() + [-1] * (len(padded) - len(kept))


def proposal_inputs(rng):
    scores = [np.round(rng.uniform(0, 1, (3, *size)), 2).astype('f') for size in ((6, 8), (3, 4))]
    deltas = [rng.normal(0, 0.3, (12, *level_scores.shape[1:])).astype('f') for level_scores in scores]
    return scores, deltas, [random_boxes(rng, level_scores.size) for level_scores in scores]


def proposals(inputs, **options):
    options = {'pre_nms': 100, 'nms_threshold': 0.5, 'min_size': 8.0, **options}
    return generate_proposals(*inputs, (64, 80), 1.0, **options)


@pytest.mark.parametrize('per_level', [True, False])
@pytest.mark.parametrize('post_nms', [10, 500])
@pytest.mark.parametrize('shift', [GroupShift(), GroupShift(1000, 100_000)])
def test_padded_proposals(backend, rng, per_level, post_nms, shift):
    inputs = proposal_inputs(rng)
    device_inputs = [[backend.array(values) for values in arrays] for arrays in inputs]
    options = {'post_nms': post_nms, 'per_level': per_level, 'shift': shift}
    expected_boxes, expected_scores = proposals(inputs, **options)
    padded = proposals(device_inputs, **options, padded=True)
    boxes, scores = map(backend.numpy, padded)
    n = len(expected_boxes)
    assert len(boxes) == (10 if post_nms == 10 else 136 if per_level else 100) >= n
    np.testing.assert_array_equal(scores[:n], expected_scores)
    # A coordinate is a difference of values up to 80, so its rounding error does not depend on its own size.
    np.testing.assert_allclose(boxes[:n], expected_boxes, rtol=0, atol=1e-5)
    assert np.isnan(boxes[n:]).all() and (scores[n:] == -np.inf).all()


def detection_inputs(rng, n_rois=40, n_classes=4):
    logits = rng.normal(0, 2, (n_rois, 1 + n_classes))
    probs = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 2).astype('f')
    return probs, random_boxes(rng, n_rois, 1 + n_classes).reshape(n_rois, -1)


@pytest.mark.parametrize(
    ('keep_ties', 'best_class_only', 'last_of_ties_first'),
    [(True, False, False), (False, True, False), (True, False, True)],
)
@pytest.mark.parametrize('max_detections', [0, 1, 12, 100])
@pytest.mark.parametrize('torch_options', [{}, {'shift': GroupShift(1000, 100_000), 'min_box_size': 14.0}])
def test_padded_detections(backend, rng, keep_ties, best_class_only, last_of_ties_first, max_detections, torch_options):
    inputs = detection_inputs(rng)
    options = dict(
        score_threshold=0.05,
        nms_threshold=0.3,
        max_detections=max_detections,
        keep_ties=keep_ties,
        best_class_only=best_class_only,
        last_of_ties_first=last_of_ties_first,
        **torch_options,
    )
    expected = select_detections(*inputs, **options)
    padded = [backend.numpy(array) for array in select_detections(*map(backend.array, inputs), **options, padded=True)]
    n = len(expected[0])
    candidates = inputs[0] > 0.05
    if best_class_only:
        candidates &= np.arange(5) == inputs[0].argmax(axis=1)[:, None]
    sides = inputs[1].reshape(40, 5, 4)[:, :, 2:] - inputs[1].reshape(40, 5, 4)[:, :, :2]
    candidates &= sides.min(axis=2) >= torch_options.get('min_box_size', 0)
    n_candidates = np.count_nonzero(candidates[:, 1:])
    assert len(padded[0]) == (max_detections + 4 * keep_ties if max_detections else n_candidates) >= n
    for array, expected_array in zip(padded, expected, strict=True):
        assert array.dtype == expected_array.dtype
        np.testing.assert_array_equal(array[:n], expected_array)
    boxes, labels, scores = padded
    assert np.isnan(boxes[n:]).all() and not labels[n:].any() and (scores[n:] == -np.inf).all()


def test_all_candidates_enter_nms_without_a_limit():
    """The number of candidates with a limit is 8192."""
    n = 9000
    boxes = np.zeros((n, 8), np.float32)
    boxes[:, 4:] = np.arange(n, dtype=np.float32)[:, None] * 20 + np.float32([0, 0, 9, 9])
    options = {'score_threshold': 0.05, 'nms_threshold': 0.5, 'max_detections': 0}
    _, _, scores = select_detections(np.full((n, 2), 0.5, np.float32), boxes, padded=True, **options)
    assert np.count_nonzero(scores > 0) == n


def test_detections_without_candidates_are_padding(backend):
    boxes, labels, _ = select_detections(
        backend.array(np.zeros((5, 3), 'f')),
        backend.array(np.zeros((5, 12), 'f')),
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=4,
        padded=True,
    )
    assert np.isnan(backend.numpy(boxes)).all() and backend.numpy(labels).tolist() == [0] * len(boxes)


def test_padded_proposals_do_not_synchronise(on_device, rng):
    inputs = [[on_device(values) for values in arrays] for arrays in proposal_inputs(rng)]
    boxes, scores = proposals(inputs, post_nms=50, shift=GroupShift(1000), padded=True)
    assert boxes.shape == (50, 4) and isinstance(boxes, OnDevice) and isinstance(scores, OnDevice)
    with pytest.raises(AssertionError, match='the host reads a value'):
        proposals(inputs, post_nms=50)


def test_padded_detections_do_not_synchronise(on_device, rng):
    inputs = list(map(on_device, detection_inputs(rng)))
    options = dict(score_threshold=0.05, nms_threshold=0.3, max_detections=10, shift=GroupShift(1000), min_box_size=9.0)
    assert all(isinstance(array, OnDevice) for array in select_detections(*inputs, **options, padded=True))
    with pytest.raises(AssertionError, match='the host reads a value'):
        select_detections(*inputs, **options)


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'offset': 0.0, 'clip_offset': 0.0, 'weights': (5, 5, 2, 3)},
        {'offset': 0.0, 'clip_offset': 0.0, 'require_centre_inside': False, 'min_size': np.nextafter(np.float32(0), 1)},
        {'last_of_ties_first': True, 'drop_small_first': True, 'require_centre_inside': False, 'offset': 0.0},
    ],
)
def test_padded_proposals_of_any_layout_and_dialect(backend, rng, dtype, channels_last, options):
    scores, deltas, anchors = proposal_inputs(rng)
    deltas = [level_deltas.astype(dtype) for level_deltas in deltas]
    options = {'post_nms': 500, 'max_log_scale': 0.4, 'suppress_equal': False, **options}
    expected_boxes, expected_scores = proposals((scores, deltas, anchors), **options)
    device_inputs = [[backend.array(values) for values in arrays] for arrays in (scores, deltas, anchors)]
    if channels_last:
        for arrays in device_inputs[:2]:
            arrays[:] = [backend.xp.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1) for a in arrays]
    boxes, found = map(backend.numpy, proposals(device_inputs, padded=True, **options))
    n = len(expected_boxes)
    np.testing.assert_array_equal(found[:n], expected_scores)
    np.testing.assert_allclose(boxes[:n], expected_boxes, rtol=0, atol=1e-5)
    assert (found[n:] == -np.inf).all()


def test_proposals_without_area_are_dropped(backend, rng):
    """In detectron2's dialect the least side is the next number above 0, which a GPU takes for 0."""
    scores, deltas, anchors = proposal_inputs(rng)
    anchors[0][::2] -= 200  # outside the image, which clips them to its border
    offsets = {'offset': 0.0, 'clip_offset': 0.0, 'require_centre_inside': False}
    options = {**offsets, 'post_nms': 500, 'min_size': np.nextafter(np.float32(0), 1)}
    inputs = scores, [np.zeros_like(level) for level in deltas], anchors
    expected, _ = proposals(inputs, **options)
    device_inputs = [[backend.array(level) for level in arrays] for arrays in inputs]
    boxes, found = map(backend.numpy, proposals(device_inputs, padded=True, **options))
    boxes = boxes[found > -np.inf]
    assert len(boxes) == len(expected) > 10 and (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize('dialect', [DETECTRON, MATTERPORT, DENA, TORCHVISION, DETECTRON2])
@pytest.mark.parametrize('max_detections', [0, 3, 200])
def test_the_box_head_decodes_on_a_gpu(backend, rng, monkeypatch, dialect, max_detections):
    """The kernels against the arithmetic of arrays, with a padding RoI and with ties."""
    rois = np.concatenate([random_boxes(rng, 40), np.full((1, 4), np.nan, 'f')])
    probs = np.concatenate([detection_inputs(rng)[0], np.full((1, 5), 0.2, 'f')])
    probs[3], probs[4, 1:] = probs[2], 0.3  # ties of RoIs, and of classes
    deltas = rng.normal(0, 2, (41, 20)).astype('f')
    transform = (
        ImageTransform.letterbox((50, 60), 1.3, 96) if dialect is MATTERPORT else ImageTransform.top_left((50, 60), 1.3)
    )
    limits = {'score_threshold': 0.1, 'max_detections': max_detections, 'max_size': 1024}
    head = box_head.BoxHead(Config(n_fg_class=4, dialect=dialect, **limits))
    expected = head.decode(rois[:-1], probs[:-1], deltas[:-1], transform)
    monkeypatch.setattr(box_head, 'uses_padding', lambda device: True)
    if backend.name == 'cuda':
        head.to_device('@cupy:0')
    padded = [backend.numpy(array) for array in head.decode(*map(backend.array, (rois, probs, deltas)), transform)]
    n = len(expected[0])
    assert n > 0 and len(padded[0]) >= n
    np.testing.assert_allclose(padded[0][:n], expected[0], rtol=0, atol=1e-4)
    for array, expected_array in zip(padded[1:], expected[1:], strict=True):
        assert array.dtype == expected_array.dtype
        np.testing.assert_array_equal(array[:n], expected_array)
    assert np.isnan(padded[0][n:]).all() and not padded[1][n:].any() and (padded[2][n:] == -np.inf).all()


@pytest.mark.parametrize('backend', ['emulated', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
def test_activations_of_the_heads(backend, rng):
    logits = rng.normal(0, 5, (6, 9)).astype('f')
    exact = np.exp(logits.astype('f8') - logits.max(axis=1, keepdims=True))
    probs = backend.numpy(padded_selection.softmax_gpu(backend.array(logits)))
    np.testing.assert_allclose(probs, exact / exact.sum(axis=1, keepdims=True), rtol=1e-6)
    for dtype in (np.float32, np.float16):
        rounded = logits.astype(dtype).reshape(3, 3, 6)
        scores = backend.numpy(padded_selection.sigmoid_gpu(backend.array(rounded)))
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-rounded.astype('f8'))), rtol=0, atol=2e-7)
