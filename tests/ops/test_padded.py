"""The forms of choices that read nothing back: the same rows as the others, and nobody asks for their
number.
"""

import numpy as np
import pytest

from mask_rcnn.ops.boxes import nms as nms_module
from mask_rcnn.ops.boxes.nms import nms, nms_padded
from mask_rcnn.ops.boxes.proposals import generate_proposals, select_detections


class OnDevice(np.ndarray):
    """An array whose values the host may not look at: what would make it wait for a GPU is an error."""

    def _refuse(self, *_):
        raise AssertionError('the host looks at a value')

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
def on_device(monkeypatch, emulator):
    """Make arrays that the host may not look at; kernels run on the CPU."""
    from mask_rcnn.ops.boxes import top_k
    from mask_rcnn.ops.runtime import cuda_kernels

    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    monkeypatch.setattr(nms_module, 'nms_cpu', lambda *arguments: nms_module.nms_gpu(*arguments).view(OnDevice))
    monkeypatch.setattr(
        top_k, 'top_k_indices_cpu', lambda *arguments: top_k.top_k_indices_gpu(*arguments).view(OnDevice)
    )
    return lambda values: np.asarray(values).view(OnDevice)


def random_boxes(rng, *shape):
    corner = rng.uniform(0, 60, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 30, (*shape, 2))], axis=-1).astype('f')


@pytest.mark.parametrize('limit', [None, 5, 100])
def test_nms(backend, rng, limit):
    boxes, scores, groups = random_boxes(rng, 60), rng.uniform(0, 1, 60).astype('f'), rng.randint(0, 3, 60)
    arrays = [backend.array(values) for values in (boxes, scores)]
    kept = backend.numpy(nms(*arrays, 0.3, groups=backend.array(groups), limit=limit))
    padded = backend.numpy(nms_padded(*arrays, 0.3, groups=backend.array(groups), limit=limit))
    assert padded.dtype == np.int32 and len(padded) == min(limit or 60, 60) and 0 < len(kept) < 60
    assert padded.tolist() == kept.tolist() + [-1] * (len(padded) - len(kept))


def proposal_inputs(rng):
    scores = [np.round(rng.uniform(0, 1, (3, *size)), 2).astype('f') for size in ((6, 8), (3, 4))]
    deltas = [rng.normal(0, 0.3, (12, *own.shape[1:])).astype('f') for own in scores]
    return scores, deltas, [random_boxes(rng, own.size) for own in scores]


def proposals(inputs, **options):
    return generate_proposals(*inputs, (64, 80), 1.0, pre_nms=100, nms_threshold=0.5, min_size=8.0, **options)


@pytest.mark.parametrize('per_level', [True, False])
@pytest.mark.parametrize('post_nms', [10, 500])
def test_proposals(backend, rng, per_level, post_nms):
    inputs = proposal_inputs(rng)
    there = [[backend.array(values) for values in part] for part in inputs]
    boxes, scores = proposals(inputs, post_nms=post_nms, per_level=per_level)
    padded = [backend.numpy(part) for part in proposals(there, post_nms=post_nms, per_level=per_level, padded=True)]
    n = len(boxes)
    assert len(padded[0]) == (10 if post_nms == 10 else 100 if not per_level else 136) >= n
    np.testing.assert_array_equal(padded[1][:n], scores)
    np.testing.assert_allclose(padded[0][:n], boxes, rtol=1e-6)
    assert np.isnan(padded[0][n:]).all() and (padded[1][n:] == -np.inf).all()


def detection_inputs(rng, n_roi=40, n_class=4):
    logits = rng.normal(0, 2, (n_roi, 1 + n_class))
    probs = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 2).astype('f')
    return probs, random_boxes(rng, n_roi, 1 + n_class).reshape(n_roi, -1)


@pytest.mark.parametrize(('keep_ties', 'best_class_only'), [(True, False), (False, True)])
@pytest.mark.parametrize('max_detections', [1, 12, 100])
def test_detections(backend, rng, keep_ties, best_class_only, max_detections):
    inputs = detection_inputs(rng)
    options = dict(
        score_threshold=0.05,
        nms_threshold=0.3,
        max_detections=max_detections,
        keep_ties=keep_ties,
        best_class_only=best_class_only,
    )
    expected = select_detections(*inputs, **options)
    padded = select_detections(*map(backend.array, inputs), **options, padded=True)
    padded = [backend.numpy(part) for part in padded]
    n = len(expected[0])
    assert len(padded[0]) == max_detections + 4 * keep_ties >= n
    for ours, theirs in zip(padded, expected):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours[:n], theirs)
    assert np.isnan(padded[0][n:]).all() and not padded[1][n:].any() and (padded[2][n:] == -np.inf).all()


def test_detections_of_nothing(backend):
    boxes, labels, scores = select_detections(
        backend.array(np.zeros((5, 3), 'f')),
        backend.array(np.zeros((5, 12), 'f')),
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=4,
        padded=True,
    )
    assert np.isnan(backend.numpy(boxes)).all() and backend.numpy(labels).tolist() == [0] * len(boxes)


def test_the_host_looks_at_nothing(on_device, rng):
    inputs = [[on_device(values) for values in part] for part in proposal_inputs(rng)]
    boxes, scores = proposals(inputs, post_nms=50, padded=True)
    assert boxes.shape == (50, 4) and isinstance(boxes, OnDevice)
    with pytest.raises(AssertionError, match='looks at a value'):
        proposals(inputs, post_nms=50)
    inputs = list(map(on_device, detection_inputs(rng)))
    options = dict(score_threshold=0.05, nms_threshold=0.3, max_detections=10)
    assert isinstance(select_detections(*inputs, **options, padded=True)[0], OnDevice)
    with pytest.raises(AssertionError, match='looks at a value'):
        select_detections(*inputs, **options)
