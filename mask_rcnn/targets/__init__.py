"""Training targets for anchors and RoIs.

Targets are computed in NumPy, so they do not depend on the device of the network.  Matching by IoU is
deterministic; sampling uses a :class:`numpy.random.RandomState` that the caller passes.
"""

from mask_rcnn.targets.input_masks import (
    INPUT_MASK_TARGETS,
    bitmap_targets,
    input_polygon_targets,
    roi_align_targets,
)
from mask_rcnn.targets.keypoints import KeypointRoIs, sample_keypoint_rois, share_rois
from mask_rcnn.targets.masks import mask_targets
from mask_rcnn.targets.rois import SampledRoIs, sample_rois
from mask_rcnn.targets.rpn import RPNTargets, rpn_targets
from mask_rcnn.targets.sampling import IGNORED, Sampling

__all__ = [
    'IGNORED',
    'INPUT_MASK_TARGETS',
    'KeypointRoIs',
    'RPNTargets',
    'SampledRoIs',
    'Sampling',
    'bitmap_targets',
    'input_polygon_targets',
    'mask_targets',
    'roi_align_targets',
    'rpn_targets',
    'sample_keypoint_rois',
    'sample_rois',
    'share_rois',
]
