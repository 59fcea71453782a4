import chainer
import chainercv
import numpy as np
import pytest
from chainercv.utils import apply_to_iterator, assert_is_instance_segmentation_link

import mask_rcnn
from mask_rcnn.models import conv_norm


@pytest.fixture
def image(rng):
    return rng.uniform(0, 255, (3, 48, 60)).astype(np.float32)


def test_detections_fit_the_image(small_model, image):
    detections, other = small_model.detect([image, image[:, :, :30]])
    assert len(detections) == 5 and detections.size == (48, 60)
    assert detections.boxes.dtype == np.float32 and detections.labels.dtype == np.int32
    assert (detections.boxes >= 0).all() and (detections.boxes[:, 2:] <= [47, 59]).all()
    assert (np.diff(detections.scores) <= 0).all() and detections.scores[-1] > 0.01
    assert detections.masks.shape == (5, 48, 60) and detections.masks.dtype == bool
    assert detections.mask_probs.shape == (5, 14, 14)
    assert set(detections.names) <= {'square', 'circle', 'triangle'}
    assert other.size == (48, 30)


def test_every_image_is_seen_alone(small_model, image, rng):
    """Neither order nor company changes what is found."""
    other = rng.uniform(0, 255, (3, 70, 50)).astype(np.float32)
    together = small_model.detect([image, other])
    for one, alone in zip(together, (small_model.detect([image])[0], small_model.detect([other])[0])):
        np.testing.assert_array_equal(one.boxes, alone.boxes)
        np.testing.assert_array_equal(one.mask_probs, alone.mask_probs)


def test_rois_in_parts_are_as_all_at_once(small_model, image, monkeypatch):
    at_once, = small_model.detect([image])
    for head in (small_model.box_head, small_model.mask_head):
        monkeypatch.setattr(head, 'rois_at_once', 3, raising=True)
    in_parts, = small_model.detect([image])
    np.testing.assert_allclose(in_parts.boxes, at_once.boxes, atol=1e-3)
    np.testing.assert_array_equal(in_parts.labels, at_once.labels)


def test_the_map_is_convolved_once_an_image(small_model, image, monkeypatch):
    """For all parts of the box head and for the mask head, by res5's two first convolutions."""
    for head in (small_model.box_head, small_model.mask_head):
        monkeypatch.setattr(head, 'rois_at_once', 4)
    before, = small_model.detect([image])
    sizes = []
    convolve = conv_norm._convolve_plainly
    monkeypatch.setattr(conv_norm, '_convolve_plainly',
                        lambda x, *rest: sizes.append(x.shape) or convolve(x, *rest))
    for after in small_model.detect([image, image]):
        np.testing.assert_array_equal(after.mask_probs, before.mask_probs)
    assert sizes == [(1, 1024, 4, 5)] * 4


def test_the_next_image_is_begun_before_the_last_is_waited_for(small_model, image, monkeypatch):
    events = []
    for name in ('prepare', 'assemble'):
        method = getattr(small_model, name)
        monkeypatch.setattr(small_model, name,
                            lambda *args, name=name, method=method: events.append(name) or method(*args))
    assert len(small_model.detect(image for _ in range(3))) == 3
    assert events == ['prepare', 'prepare', 'assemble', 'prepare', 'assemble', 'assemble']
    assert small_model.detect([]) == []


def test_nothing_found(small_model, image):
    model = mask_rcnn.build(small_model.config, score_threshold=1.0)
    nothing, = model.detect([image])
    assert len(nothing) == 0 and nothing.masks.shape == (0, 48, 60)
    assert nothing.to_coco(1) == []
    masks, labels, scores = model.predict([image])
    assert masks[0].shape == (0, 48, 60) and labels[0].shape == scores[0].shape == (0,)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (33, 2)])
def test_odd_sizes(small_model, size):
    detections, = small_model.detect([np.full((3, *size), 100, np.float32)])
    assert detections.masks.shape == (len(detections), *size)


def test_detecting_changes_nothing(small_model, image):
    before = {path: param.array.copy() for path, param in small_model.namedparams()}
    with chainer.using_config('train', True):
        small_model.detect([image])
        assert chainer.config.train
    for path, param in small_model.namedparams():
        np.testing.assert_array_equal(param.array, before[path])
        assert param.grad is None or not np.isfinite(param.grad).any(), path


def test_is_a_chainercv_link(small_model):
    assert_is_instance_segmentation_link(small_model, 3)


def test_chainercv_runs_and_evaluates_it(small_model, image):
    iterator = chainer.iterators.SerialIterator([image, image], 1, repeat=False, shuffle=False)
    images, (masks, labels, scores), _ = apply_to_iterator(small_model.predict, iterator)
    result = chainercv.evaluations.eval_instance_segmentation_coco(
        masks, labels, scores, [masks_ for masks_ in small_model.predict([image, image])[0]],
        [detected.labels for detected in small_model.detect([image, image])])
    assert result['map/iou=0.50:0.95/area=all/max_dets=100'] > 0.9  # against itself


def test_chainercv_draws_it(small_model, image):
    matplotlib = pytest.importorskip('matplotlib')
    matplotlib.use('Agg')
    (masks,), (labels,), (scores,) = small_model.predict([image])
    axes = chainercv.visualizations.vis_instance_segmentation(
        image, masks, labels, scores, label_names=small_model.class_names)
    assert len(axes[0].texts if isinstance(axes, tuple) else axes.texts) == len(masks)


def test_names_must_fit_the_classes():
    with pytest.raises(ValueError, match='2 class_names for 3 classes'):
        mask_rcnn.build('resnet50', n_fg_class=3, class_names=['a', 'b'])
