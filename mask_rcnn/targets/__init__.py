"""Which anchor and which RoI learns what (NumPy; the same numbers wherever the network is).

What is decided by overlaps alone is apart from what is drawn at random, and that takes its random numbers
from a :class:`numpy.random.RandomState` that is handed in.
"""

from mask_rcnn.targets.keypoints import KeypointRoIs, sample_keypoint_rois
from mask_rcnn.targets.masks import mask_targets
from mask_rcnn.targets.rois import SampledRoIs, sample_rois
from mask_rcnn.targets.rpn import RPNTargets, rpn_targets
from mask_rcnn.targets.sampling import IGNORED, Sampling

__all__ = [
    'IGNORED',
    'KeypointRoIs',
    'RPNTargets',
    'SampledRoIs',
    'Sampling',
    'mask_targets',
    'rpn_targets',
    'sample_keypoint_rois',
    'sample_rois',
]
