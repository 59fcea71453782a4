"""Training targets for anchors and RoIs.

Targets are computed in NumPy, so they do not depend on the device of the network.  Matching by IoU is
deterministic; sampling uses a :class:`numpy.random.RandomState` that the caller passes.
"""

from mask_rcnn.targets.foreground_masks import foreground_mask_targets
from mask_rcnn.targets.input_masks import bitmap_targets, input_polygon_targets, roi_align_targets
from mask_rcnn.targets.keypoints import KeypointRoIs, sample_keypoint_rois, share_rois
from mask_rcnn.targets.masks import mask_targets
from mask_rcnn.targets.rois import SampledRoIs, sample_rois
from mask_rcnn.targets.rpn import RPNTargets, rpn_targets
from mask_rcnn.targets.sampling import IGNORED, Sampling, network_sampling

__all__ = [
    'IGNORED',
    'KeypointRoIs',
    'RPNTargets',
    'SampledRoIs',
    'Sampling',
    'bitmap_targets',
    'foreground_mask_targets',
    'input_polygon_targets',
    'mask_targets',
    'network_sampling',
    'roi_align_targets',
    'rpn_targets',
    'sample_keypoint_rois',
    'sample_rois',
    'share_rois',
]
