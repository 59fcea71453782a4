"""Small networks with random weights for tests."""

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.models.initializers import no_initial_weights
from tests.support.small_resnet import use_shallow_resnet

#: Configuration of a network that is fast on small images and detects something in each of them.
SMALL = {
    'n_fg_class': 3,
    'min_size': 64,
    'max_size': 96,
    'rpn_pre_nms': 200,
    'rpn_post_nms': 16,
    'score_threshold': 0.01,
    'max_detections': 5,
}

#: Numbers of channels of narrow heads and of a narrow pyramid.
NARROW = {'fpn_channels': 64, 'head_channels': 128, 'mask_channels': 64}

#: The fewest channels, for tests of the code around the network.
VERY_NARROW = {'fpn_channels': 16, 'rpn_channels': 16, 'head_channels': 32, 'mask_channels': 16}


def small_model(preset='resnet50', **changes):
    """Build a network with random weights that detects something in every image; every call returns the same weights.

    Proposals stay near their anchors.  Otherwise several are clipped to the same box and their scores are equal, and
    the order of the detections depends on rounding, that is, on the batch size and on the BLAS library.

    Args:
        preset: Name of a preset.
        changes: Arguments of :func:`mask_rcnn.build` that differ from :data:`SMALL`.
    """
    np.random.seed(0)
    model = mask_rcnn.build(preset, **{**SMALL, **changes})
    limit_activations(model)
    model.rpn.delta.W.array[...] *= 0.1
    return model


def shallow_model(preset='resnet50', **changes):
    """Build a :func:`small_model` with a shallow ResNet and narrow heads; it cannot be loaded."""
    with pytest.MonkeyPatch.context() as patch:
        use_shallow_resnet(patch)
        return small_model(preset, **{**NARROW, **changes})


def constant_model(preset='resnet50', **changes):
    """Build a network whose parameters are all 0.1, which takes a fraction of the time that random ones take."""
    with no_initial_weights():
        model = mask_rcnn.build(preset, **changes)
    fill_parameters(model)
    return model


def fill_parameters(link):
    """Set all parameters of a link to 0.1."""
    for param in link.params():
        param.array[...] = 0.1


def limit_activations(model):
    """Scale residual branches down, so that sums of 16 of them stay near 1 and scores are not saturated."""
    for path, parameter in model.namedparams():
        if path.endswith(('conv3/norm/scale', 'conv3/norm/gamma')):
            parameter.array[...] = 0.2
