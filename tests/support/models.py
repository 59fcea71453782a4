"""Small networks with random weights for tests."""

import numpy as np

import mask_rcnn

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


def limit_activations(model):
    """Scale residual branches down, so that sums of 16 of them stay near 1 and scores are not saturated."""
    for path, parameter in model.namedparams():
        if path.endswith(('conv3/norm/scale', 'conv3/norm/gamma')):
            parameter.array[...] = 0.2
