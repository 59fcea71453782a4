"""Extractors, RPN and heads of ONNX graphs in ONNX Runtime, compared with the links that they are made from."""

import itertools

import chainer
import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DENA, DETECTRON2, MATTERPORT, TORCHVISION
from mask_rcnn.onnx_export.backbones import extract_features
from mask_rcnn.onnx_export.heads import classify_rois, predict_anchors, predict_heat_maps, predict_masks
from mask_rcnn.ops.masks.class_masks import class_mask_probs
from tests.support.models import VERY_NARROW, shallow_model, small_model
from tests.support.onnx_graphs import run_graph

MODELS = {
    'mobilenet': lambda: small_model('mobilenet_v1_fpn', width=0.25, rpn_convs=2, **VERY_NARROW),
    'resnet50_fpn_gn': lambda: shallow_model(
        'resnet50_fpn_gn', **VERY_NARROW | {'fpn_channels': 32, 'mask_channels': 32}
    ),
    'resnext': lambda: shallow_model('resnext50_32x4d_fpn', roi_align=False),
    'matterport': lambda: shallow_model('resnet50_fpn', dialect=MATTERPORT, norm='bn', max_size=128),
    'keypoints': lambda: shallow_model('keypoint_resnet50_fpn'),
    'torchvision': lambda: shallow_model('keypoint_resnet50_fpn', dialect=TORCHVISION),
    'c4': lambda: shallow_model('resnet50'),
    'c4 of detectron2': lambda: shallow_model('resnet50', dialect=DETECTRON2),
    'c4 of dena': lambda: shallow_model('resnet50', dialect=DENA, roi_size=7, roi_align=False),
}
FAST = ('mobilenet',)


@pytest.fixture(scope='module', params=[pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in MODELS])
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(0).normal(0, 30, (1, 3, 128, 96)).astype(np.float32)


@pytest.fixture(scope='module')
def features(model, image):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return [feature_map.array for feature_map in model.extractor(image)]


@pytest.fixture(scope='module')
def rois():
    """More RoIs than a chunk has."""
    rng = np.random.default_rng(1)
    centres, sides = rng.uniform(0, 90, (130, 2)), np.exp(rng.uniform(1, 5, (130, 2)))
    rois = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return np.clip(rois, 0, [127, 95, 127, 95]).astype(np.float32)


@pytest.fixture(autouse=True)
def inference():
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


def compare(found, expected):
    for array, reference in zip(found, map(chainer.as_array, expected), strict=True):
        assert array.shape == reference.shape
        np.testing.assert_allclose(array, reference, rtol=0, atol=4e-5 * reference.std() + 1e-6)


def test_extractor(model, image, features):
    compare(run_graph(lambda graph, x: extract_features(x, model.extractor), image), features)


def test_rpn(model, features):
    logits, deltas = model.rpn(features)
    found = run_graph(lambda graph, *maps: itertools.chain(*predict_anchors(maps, model.rpn)), *features)
    compare(found, [*logits, *deltas])


def test_box_head(model, features, rois):
    head = model.box_head
    expected = head._classify(features, rois, np.zeros(len(rois), np.int32))
    compare(run_graph(lambda graph, rois, *maps: classify_rois(maps, rois, head), rois, *features), expected)


def test_box_head_without_rois(model, features, rois):
    found = run_graph(lambda graph, rois, *maps: classify_rois(maps, rois, model.box_head), rois[:0], *features)
    n_class = 1 + model.config.n_fg_class
    assert [array.shape for array in found] == [(0, n_class), (0, 4 * n_class)]


def test_mask_head(model, features, rois):
    if not model.config.masks:
        pytest.skip('no masks')
    head, labels = model.mask_head, np.random.default_rng(2).integers(0, model.config.n_fg_class, len(rois))
    head.score.W.array *= 300  # away from the probability 0.5
    head.score.b.array[...] = np.arange(len(head.score.b))
    logits = head(head.roi_features(features, rois, np.zeros(len(rois), np.int32))).array
    expected = class_mask_probs(logits, labels)
    assert expected.std() > 0.1

    def predict(graph, rois, labels, *maps):
        return predict_masks(maps, rois, labels, head, model.box_head)

    compare(run_graph(predict, rois, labels, *features), [expected])
    assert run_graph(predict, rois[:0], labels[:0], *features)[0].shape == (0, *expected.shape[1:])


def test_keypoint_head(model, features, rois):
    if not model.config.n_keypoint:
        pytest.skip('no keypoints')
    head, rois = model.keypoint_head, rois[:70]
    expected = head(head.pool(features, rois, np.zeros(len(rois), np.int32)))
    compare(run_graph(lambda graph, rois, *maps: predict_heat_maps(maps, rois, head), rois, *features), [expected])
