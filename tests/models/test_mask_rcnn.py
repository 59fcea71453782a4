import chainer
import chainercv
import numpy as np
import pytest
from chainercv.utils import apply_to_iterator, assert_is_instance_segmentation_link

import mask_rcnn
from mask_rcnn.models.layers import conv_norm

SMALL = dict(
    n_fg_class=3, min_size=64, max_size=96, rpn_pre_nms=200, rpn_post_nms=16, score_threshold=0.01, max_detections=5
)


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
    (at_once,) = small_model.detect([image])
    for head in (small_model.box_head, small_model.mask_head):
        monkeypatch.setattr(head, 'cpu_chunk_size', 3, raising=True)
    (in_parts,) = small_model.detect([image])
    np.testing.assert_allclose(in_parts.boxes, at_once.boxes, atol=1e-3)
    np.testing.assert_array_equal(in_parts.labels, at_once.labels)


def test_the_map_is_convolved_once_an_image(small_model, image, monkeypatch):
    """For all parts of the box head and for the mask head, by res5's two first convolutions."""
    for head in (small_model.box_head, small_model.mask_head):
        monkeypatch.setattr(head, 'cpu_chunk_size', 4)
    (before,) = small_model.detect([image])
    sizes = []
    convolve = conv_norm._convolve_plainly
    monkeypatch.setattr(conv_norm, '_convolve_plainly', lambda x, *rest: sizes.append(x.shape) or convolve(x, *rest))
    for after in small_model.detect([image, image]):
        np.testing.assert_array_equal(after.mask_probs, before.mask_probs)
    assert sizes == [(1, 1024, 4, 5)] * 4


@pytest.fixture(scope='module')
def small_pyramid():
    np.random.seed(0)
    model = mask_rcnn.build('resnet50_fpn', **SMALL)
    for path, param in model.namedparams():
        if path.endswith('conv3/norm/scale'):
            param.array[...] = 0.2
    return model


@pytest.mark.parametrize('name', ['small_model', 'small_pyramid'])
def test_images_of_one_size_go_together(name, rng, request, monkeypatch):
    """As many as asked for, while they follow one another; what is found is what is found in each alone."""
    model = request.getfixturevalue(name)
    sizes = [(48, 60), (48, 60), (48, 60), (70, 50), (24, 30), (48, 60), (48, 61)]
    images = [rng.uniform(0, 255, (3, *size)).astype(np.float32) for size in sizes]
    alone = [model.detect([image])[0] for image in images]
    batches, extract = [], model.extract
    monkeypatch.setattr(model, 'extract', lambda x: batches.append(len(x)) or extract(x))
    together = model.detect(images, batch_size=2)
    assert batches == [2, 1, 1, 2, 1]  # 24 x 30 is enlarged to what 48 x 60 is; 48 x 61 is not
    assert [found.size for found in together] == sizes and len(alone[0]) > 0
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=5e-5)
        np.testing.assert_allclose(one.mask_probs, other.mask_probs, rtol=0, atol=5e-5)
    masks, labels, scores = model.predict(images[:3], batch_size=3)
    assert [len(own) for own in masks] == [len(own) for own in labels] == [len(own) for own in alone[:3]]


def test_batches_are_halved_where_there_is_no_memory(small_model, image, monkeypatch):
    expected = small_model.detect([image])[0]
    tried, extract = [], small_model.extract

    def limited(x, most=1):
        tried.append(len(x))
        if len(x) > most:
            raise MemoryError('no memory')
        return extract(x)

    monkeypatch.setattr(small_model, 'extract', limited)
    for found in small_model.detect([image] * 4, batch_size=3):
        np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert tried == [3, 1, 2, 1, 1, 1]
    monkeypatch.setattr(small_model, 'extract', lambda x: limited(x, 0))
    with pytest.raises(MemoryError, match='no memory'):
        small_model.detect([image])


def test_images_are_asked_for_as_they_are_needed(small_model, image):
    """By default the CPU looks at one at a time, and what it finds need not wait for another."""
    for batch_size, expected in ((None, [1, 2, 3, 4, 5]), (2, [2, 2, 4, 4, 5]), (9, [5] * 5)):
        given = []
        detections = small_model.iter_detections((given.append(i) or image for i in range(5)), batch_size=batch_size)
        assert given == [] and [len(given) for _ in detections] == expected
    assert small_model.detect([]) == []


def test_the_caller_of_the_iterator_keeps_its_settings(small_model, image):
    for _ in small_model.iter_detections([image, image]):
        assert chainer.config.train and chainer.config.enable_backprop


def test_a_batch_has_an_image(small_model, image):
    for method in (small_model.detect, small_model.iter_detections, small_model.predict):
        with pytest.raises(ValueError, match='batch_size must be at least 1, not 0'):
            method([image], batch_size=0)


def test_stages_take_an_image_or_several(small_model, image):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        x, transform = small_model.prepare(image)
        maps = small_model.extract(np.concatenate([x, x]))
        several = small_model.propose(maps, [x.shape[2:]] * 2, [transform.scale] * 2)
        one = small_model.propose(maps, x.shape[2:], transform.scale)
        found = small_model.detect_boxes(maps, several, [transform] * 2)
        found_in_one = small_model.detect_boxes(maps, one, transform)
        probs = small_model.predict_masks(maps, *found[:2], [transform] * 2)
        probs_of_one = small_model.predict_masks(maps, *found_in_one[:2], transform)
    np.testing.assert_array_equal(several[0], one)
    for parts, own in zip((*found, probs), (*found_in_one, probs_of_one)):
        assert len(parts) == 2
        np.testing.assert_allclose(parts[1], own, rtol=1e-4, atol=1e-4)


def test_nothing_found(small_model, image):
    model = mask_rcnn.build(small_model.config, score_threshold=1.0)
    (nothing,) = model.detect([image])
    assert len(nothing) == 0 and nothing.masks.shape == (0, 48, 60)
    assert nothing.to_coco(1) == []
    masks, labels, scores = model.predict([image])
    assert masks[0].shape == (0, 48, 60) and labels[0].shape == scores[0].shape == (0,)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (33, 2)])
def test_odd_sizes(small_model, size):
    (detections,) = small_model.detect([np.full((3, *size), 100, np.float32)])
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
        masks,
        labels,
        scores,
        list(small_model.predict([image, image])[0]),
        [detected.labels for detected in small_model.detect([image, image])],
    )
    assert result['map/iou=0.50:0.95/area=all/max_dets=100'] > 0.9  # against itself


def test_chainercv_draws_it(small_model, image):
    matplotlib = pytest.importorskip('matplotlib')
    matplotlib.use('Agg')
    (masks,), (labels,), (scores,) = small_model.predict([image])
    axes = chainercv.visualizations.vis_instance_segmentation(
        image, masks, labels, scores, label_names=small_model.class_names
    )
    assert len(axes[0].texts if isinstance(axes, tuple) else axes.texts) == len(masks)


def test_names_must_fit_the_classes():
    with pytest.raises(ValueError, match='2 class_names for 3 classes'):
        mask_rcnn.build('resnet50', n_fg_class=3, class_names=['a', 'b'])
