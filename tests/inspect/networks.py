"""Networks for the tests of inspection: small ones of every kind, and one with given outputs."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DENA, DETECTRON2, MATTERPORT, TORCHVISION
from mask_rcnn.models.keypoint_head import KeypointHead
from tests.support.models import NARROW, small_model
from tests.support.small_resnet import use_narrow_resnet

#: Name -> preset and changes of the configuration, for each kind of network.
NETWORKS = {
    'c4': ('resnet50', {}),
    'dena': ('resnet50', {'dialect': DENA, 'rpn_min_size': 4.0, 'max_detections': 0, 'sampling_ratio': 2}),
    'fpn': ('resnet50_fpn', {}),
    'matterport': (
        'resnet50_fpn',
        {'dialect': MATTERPORT, 'norm': 'bn', 'max_size': 128, 'rpn_post_nms': 60, 'nms_threshold': 0.3},
    ),
    'torchvision': ('resnet50_fpn', {'dialect': TORCHVISION}),
    'detectron2': ('resnet50', {'dialect': DETECTRON2, 'rpn_min_size': 0.0, 'sampling_ratio': 0}),
    'mobilenet': ('mobilenet_v1_fpn', {'width': 0.25}),
    'keypoints': ('keypoint_resnet50_fpn', {'n_fg_class': 1, 'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 8}),
}


def make_network(name):
    """Build a narrow network of :data:`NETWORKS` that detects something in every image."""
    preset, changes = NETWORKS[name]
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        patch.setattr(KeypointHead, 'channels', 8)
        model = small_model(preset, **{**NARROW, **changes})
    if model.config.dialect.detections.best_class_only:
        model.box_head.score.b.array[0] = -8  # the background would be the best class everywhere
    return model


def scripted_network(logits, deltas=None, scores=None, box_deltas=None, **changes):
    """Build a C4 network for images of 128 x 128 pixels whose layers return given values.

    The feature map has 8 x 8 locations with one anchor of 32 x 32 pixels each.

    Args:
        logits: (row, column) -> logit of the anchor; all others have -10.
        deltas: (row, column) -> ``(dy, dx, dh, dw)``; all others have zeros.
        scores: Index of a RoI -> class probabilities, with the background first; all others are background.
        box_deltas: Index of a RoI -> ``(dy, dx, dh, dw)`` of all classes, multiplied by the weights (10, 10, 5, 5).
        changes: Fields of the configuration.
    """
    options = {'n_fg_class': 2, 'min_size': 128, 'max_size': 128, 'anchor_sizes': (32,), 'anchor_ratios': (1,)}
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        model = small_model('resnet50', **{**options, 'rpn_post_nms': 100, 'rpn_pre_nms': 100, **changes})
    model.class_names = ('cat', 'dog')
    level_logits, level_deltas = np.full((1, 1, 8, 8), -10, np.float32), np.zeros((1, 4, 8, 8), np.float32)
    for cell, value in logits.items():
        level_logits[(0, 0, *cell)] = value
    for cell, values in (deltas or {}).items():
        level_deltas[(0, slice(None), *cell)] = values
    feature_map = np.zeros((1, model.rpn.conv.W.shape[1], 8, 8), np.float32)

    def classify(roi_features):
        probs = np.tile(np.float32([0.98, 0.01, 0.01]), (len(roi_features), 1))
        regressions = np.zeros((len(roi_features), 3, 4), np.float32)
        for i, values in (scores or {}).items():
            probs[i] = values
        for i, values in (box_deltas or {}).items():
            regressions[i] = values
        return chainer.Variable(np.log(probs)), chainer.Variable(regressions.reshape(len(probs), 12))

    model.extractor.forward = lambda x: (chainer.Variable(feature_map),)
    model.rpn.forward = lambda features: ([chainer.Variable(level_logits)], [chainer.Variable(level_deltas)])
    model.box_head.forward = classify
    return model


def anchor_box(model, row, column):
    """Return the box of an anchor of a :func:`scripted_network`."""
    return model.rpn.host_anchors([(8, 8)], (128, 128))[8 * row + column]


def bundled_model(root):
    """Load the bundled model of generated shapes."""
    return mask_rcnn.load(root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz')
