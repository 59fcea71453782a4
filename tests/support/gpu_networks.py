"""One small network with random weights for each path that a network can take on a GPU, and a training example."""

import dataclasses

import numpy as np
import pytest

from mask_rcnn.config import (
    DENA,
    DETECTRON,
    DETECTRON2,
    MATTERPORT,
    MINDSPORE,
    PRESETS,
    RESNET_BLOCKS,
    TORCHVISION,
)
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.targets import Sampling
from tests.support.models import small_model
from tests.support.small_resnet import use_narrow_resnet, use_shallow_resnet
from tests.support.training_examples import example

#: Sampling sizes for training.
SAMPLING = Sampling(rpn_batch=32, roi_batch=16, train_pre_nms=60, train_post_nms=20)

#: Channels of the pyramid and the heads; each group of a group normalisation has several of them.
_NARROW = {'fpn_channels': 32, 'rpn_channels': 32, 'head_channels': 64, 'mask_channels': 32}
#: Few proposals for the emulated GPU, which is slow; small anchors, because the images are small.
_FEW = {'rpn_pre_nms': 60, 'rpn_post_nms': 12, 'max_detections': 6, 'anchor_sizes': (8, 16, 32, 64, 128)}
#: The C4 networks of DeNA's program return all detections.
_DENA_CHANGES = {
    name: getattr(PRESETS['resnet50'].in_dialect(DENA), name)
    for name in ('dialect', 'sampling_ratio', 'rpn_min_size', 'max_detections')
}

#: The preset of each network, and the fields of its configuration that differ.
NETWORKS = {
    'detectron': ('resnet50_fpn', {}),
    'dena': ('resnet50', _DENA_CHANGES),
    'matterport': ('resnet50_fpn', {'dialect': MATTERPORT, 'norm': 'bn', 'min_size': 64, 'max_size': 128}),
    'mindspore': ('resnet50_fpn', {'dialect': MINDSPORE, 'norm': 'bn'}),
    'torchvision': ('resnet50_fpn', {'dialect': TORCHVISION, 'rpn_min_size': 1e-3}),
    'torchvision_v2': (
        'resnet50_fpn',
        {
            'dialect': TORCHVISION.replace(training={'freeze_norms': False}),
            'rpn_min_size': 1e-3,
            **dict.fromkeys(('norm', 'head_norm'), 'bn'),
            **dict.fromkeys(('rpn_convs', 'box_convs'), 2),
            'box_fcs': 1,
        },
    ),
    'detectron2': ('resnet50_fpn', {'dialect': DETECTRON2, 'sampling_ratio': 0}),
    'detectron2_c4': ('resnet50', {'dialect': DETECTRON2, 'sampling_ratio': 0}),
    'keypoints': ('keypoint_resnet50_fpn', {'n_fg_class': 1}),
    'keypoints_torchvision': ('keypoint_resnet50_fpn', {'n_fg_class': 1, 'dialect': TORCHVISION}),
    'keypoints_detectron2': ('keypoint_resnet50_fpn', {'n_fg_class': 1, 'dialect': DETECTRON2, 'sampling_ratio': 0}),
    'group_norm': (
        'resnet50_fpn_gn',
        {'dialect': DETECTRON.replace(backbone={'gn_groups': 8, 'stride_in_3x3': True}), 'box_convs': 2},
    ),
    'resnext': ('resnext50_32x4d_fpn', {}),
}


def make_network(name, **changes):
    """Return a network of :data:`NETWORKS` on the CPU; every call returns the same weights.

    Args:
        name: A key of the table.
        changes: Further fields of the configuration.
    """
    preset, fields = NETWORKS[name]
    with pytest.MonkeyPatch.context() as patch:
        if name == 'resnext':  # with its own channels: the numbers of each group decide which engines cuDNN has
            use_shallow_resnet(patch)
            patch.setitem(RESNET_BLOCKS, 'resnext50_32x4d', (1, 1, 1, 1))
        else:
            use_narrow_resnet(patch)
        patch.setattr(KeypointHead, 'n_conv', 2)
        patch.setattr(KeypointHead, 'channels', 32)
        model = small_model(preset, **{**_NARROW, **_FEW, **fields, **changes})
    if model.config.n_keypoint:
        model.keypoint_head.n_conv = 2
    return model


def make_example(seed):
    """Return an image whose two objects are of the first class, with a polygon and keypoints on a diagonal."""
    image = example(64, 96, seed=seed)
    boxes, fraction = image.annotations.boxes, (np.arange(17, dtype=np.float32) + 0.5)[:, None] / 17
    keypoints = np.full((len(boxes), 17, 3), 2, np.float32)
    keypoints[:, :, :2] = boxes[:, None, :2] + fraction * (boxes[:, None, 2:] - boxes[:, None, :2])
    labels = np.zeros_like(image.annotations.labels)
    return dataclasses.replace(
        image, annotations=dataclasses.replace(image.annotations, labels=labels, keypoints=keypoints)
    )
