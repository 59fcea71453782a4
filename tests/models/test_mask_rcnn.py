"""Mask R-CNN as a whole: its stages, its results and ChainerCV's interface."""

import chainer
import chainercv
import numpy as np
import pytest
from chainercv.utils import apply_to_iterator, assert_is_instance_segmentation_link

import mask_rcnn
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.backbones import resnet
from tests.support.models import VERY_NARROW

#: Smallest difference between scores whose order float32 determines: more than 100 times its rounding errors.
MIN_SCORE_GAP = 1e-4


def test_detections_fit_the_image(small_model, image):
    detections, narrow = small_model.detect([image, image[:, :, :30]])
    assert len(detections) == 5 and detections.size == (48, 60)
    assert detections.boxes.dtype == np.float32 and detections.labels.dtype == np.int32
    assert (detections.boxes >= 0).all() and (detections.boxes[:, 2:] <= [47, 59]).all()
    assert (np.diff(detections.scores) <= 0).all() and detections.scores[-1] > 0.01
    assert detections.masks.shape == (5, 48, 60) and detections.masks.dtype == bool
    assert detections.mask_probs.shape == (5, 14, 14)
    assert set(detections.names) <= {'square', 'circle', 'triangle'}
    assert narrow.size == (48, 30)


def test_chunks_of_rois_do_not_change_detections(small_model, image, monkeypatch):
    (expected,) = small_model.detect([image])
    for head in (small_model.box_head, small_model.mask_head):
        monkeypatch.setattr(head, 'cpu_chunk_size', 3, raising=True)
    (detections,) = small_model.detect([image])
    np.testing.assert_allclose(detections.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_array_equal(detections.labels, expected.labels)


def test_res5_convolves_the_feature_map_once_per_image(small_model, image, monkeypatch):
    """All chunks of the box head and the mask head share the outputs of res5's first two convolutions."""
    for head in (small_model.box_head, small_model.mask_head):
        monkeypatch.setattr(head, 'cpu_chunk_size', 4)
    (expected,) = small_model.detect([image])
    inputs = []
    convolve = resnet.convolve
    monkeypatch.setattr(resnet, 'convolve', lambda x, W, **options: inputs.append((x, W)) or convolve(x, W, **options))
    for detections in small_model.detect([image, image]):
        np.testing.assert_array_equal(detections.mask_probs, expected.mask_probs)
    assert all(x.shape[:2] == (1, small_model.extractor.out_channels[0]) for x, _ in inputs)
    # Two images, two convolutions: every pair occurs once.
    assert len({(id(x), id(W)) for x, W in inputs}) == len(inputs) == 2 * 2


def test_stages_return_one_entry_per_image(small_model, image):
    """The stages give for each image of a batch the result that they give for the image alone."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        x, transform = Predictor(small_model).prepare(image)
        pair, single = small_model(np.concatenate([x, x]), [transform] * 2), small_model(x, [transform])
    (scores,) = single.scores
    assert (np.diff(scores) < -MIN_SCORE_GAP).all()  # otherwise their order may differ
    assert pair.keypoints is single.keypoints is None
    for name in ('boxes', 'labels', 'scores', 'masks'):
        arrays = getattr(pair, name)
        assert len(arrays) == 2
        for array in arrays:
            np.testing.assert_allclose(array, getattr(single, name)[0], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(('name', 'n_levels', 'size'), [('small_model', 1, (64, 80)), ('small_fpn_model', 5, (64, 96))])
def test_proposals_are_clipped_to_the_network_input(name, n_levels, size, image, request, monkeypatch):
    """The deltas make every box larger than the input, padding included; NMS leaves one box per level.

    Detectron's ``im_info`` contains the size of the padded input (``detectron/utils/blob.py``, ``get_image_blob``).
    """
    model, found = request.getfixturevalue(name), []
    detect = model.box_head.detect
    monkeypatch.setattr(
        model.box_head,
        'detect',
        lambda features, rois, transforms: found.extend(rois) or detect(features, rois, transforms),
    )
    bias = model.rpn.delta.b.array.copy()
    bias.reshape(-1, 4)[:, 2:] = 4  # dh and dw: 32 pixels become 32 * exp(4) = 1747
    monkeypatch.setattr(model.rpn.delta.b, 'array', bias)
    model.detect([image])
    (proposals,) = found
    np.testing.assert_array_equal(proposals, [[0, 0, size[0] - 1, size[1] - 1]] * n_levels)


def test_mask_rois_are_boxes_in_the_network_input(small_fpn_model, image, monkeypatch):
    """The mask head pools the detections' boxes times the scale of the image (Detectron: ``im_scale``)."""
    model, pooled = small_fpn_model, []
    pool = model.mask_head.pool
    monkeypatch.setattr(
        model.mask_head, 'pool', lambda features, rois, indices: pooled.append(rois) or pool(features, rois, indices)
    )
    (detections,) = model.detect([image])
    (rois,) = pooled
    scale = 64 / 48  # the shorter side of the image becomes min_size
    assert len(detections) > 0
    np.testing.assert_allclose(rois, detections.boxes * scale, rtol=1e-6)


@pytest.mark.parametrize('name', [pytest.param('small_model', marks=pytest.mark.slow), 'small_fpn_model'])
def test_mask_head_returns_the_map_of_each_detections_class(name, image, request):
    """The probabilities are the sigmoid of the logits of the detection's class, pooled from its box alone."""
    model = request.getfixturevalue(name)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        x, transform = Predictor(model).prepare(image)
        features = model.extractor(x)
        raw = model(x, [transform])
        (boxes,), (labels,), (masks,) = raw.boxes, raw.labels, raw.masks
        for box, label, mask in zip(boxes, labels, masks, strict=True):
            rois = (box * np.float32(transform.scale))[None]
            logits = model.mask_head(model.mask_head.roi_features(features, rois, np.zeros(1, np.int32))).array
            np.testing.assert_allclose(mask, 1 / (1 + np.exp(-logits[0, label])), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_no_detections(small_model, image):
    model = mask_rcnn.build(small_model.config, score_threshold=1.0)
    (nothing,) = model.detect([image])
    assert len(nothing) == 0 and nothing.masks.shape == (0, 48, 60)
    assert nothing.to_coco(1) == []
    masks, labels, scores = model.predict([image])
    assert masks[0].shape == (0, 48, 60) and labels[0].shape == scores[0].shape == (0,)


@pytest.mark.parametrize('size', [(1, 1), pytest.param((1, 40), marks=pytest.mark.slow), (33, 2)])
def test_extreme_image_sizes(small_model, size):
    (detections,) = small_model.detect([np.full((3, *size), 100, np.float32)])
    assert detections.masks.shape == (len(detections), *size)


def test_detection_does_not_change_the_model(small_model, image):
    before = {path: param.array.copy() for path, param in small_model.namedparams()}
    with chainer.using_config('train', True):
        small_model.detect([image])
        assert chainer.config.train
    for path, param in small_model.namedparams():
        np.testing.assert_array_equal(param.array, before[path])
        assert param.grad is None or not np.isfinite(param.grad).any(), path


def test_model_is_a_chainercv_link(small_model):
    assert_is_instance_segmentation_link(small_model, 3)


def test_chainercv_evaluates_the_model(small_model, image):
    """With the scores of the model and masks of known overlap, COCO's AP follows from its definition.

    Of five detections in descending order, the first, third and fifth are true: the precisions at the three recalls
    are 1, 2/3 and 3/5.  COCO averages their maxima to the right over 101 recalls: 34 up to 1/3, 33 up to 2/3, 34 up to
    1.
    """
    iterator = chainer.iterators.SerialIterator([image], 1, repeat=False, shuffle=False)
    _, (masks, labels, scores), _ = apply_to_iterator(small_model.predict, iterator)
    (masks,), (labels,), (scores,) = masks, labels, scores
    (expected,) = small_model.detect([image])
    np.testing.assert_array_equal(masks, expected.masks)
    np.testing.assert_array_equal(labels, expected.labels)
    assert (np.diff(scores) < -MIN_SCORE_GAP).all() and len(scores) == 5
    strips = np.zeros((5, 48, 60), bool)
    for i in range(5):  # disjoint masks of one class, so that every detection matches at most one object
        strips[i, 9 * i : 9 * i + 8] = True
    result = chainercv.evaluations.eval_instance_segmentation_coco(
        [strips], [np.zeros_like(labels)], [scores], [strips[::2]], [np.zeros(3, np.int32)]
    )
    ap = (34 * 1 + 33 * 2 / 3 + 34 * 3 / 5) / 101
    assert result['map/iou=0.50:0.95/area=all/max_dets=100'] == pytest.approx(ap, abs=1e-6)


def test_chainercv_draws_the_detections(small_model, image):
    matplotlib = pytest.importorskip('matplotlib')
    matplotlib.use('Agg')
    (masks,), (labels,), (scores,) = small_model.predict([image])
    axes = chainercv.visualizations.vis_instance_segmentation(
        image, masks, labels, scores, label_names=small_model.class_names
    )
    assert len(axes[0].texts if isinstance(axes, tuple) else axes.texts) == len(masks)


def test_number_of_class_names_must_be_the_number_of_classes():
    with pytest.raises(ValueError, match='2 class_names for 3 classes'):
        mask_rcnn.build('mobilenet_v1_fpn', width=0.25, n_fg_class=3, class_names=['a', 'b'], **VERY_NARROW)
