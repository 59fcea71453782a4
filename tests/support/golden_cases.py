"""All cases of the original programs: program and name."""

from tests.support.golden_torch import CASES as TORCH_CASES

CASES = [
    ('matterport', 'shapes_resnet50_shapes7'),
    ('matterport', 'coco_resnet50'),
    ('detectron', 'R-50-C4_seed0'),
    ('detectron', 'R-50-C4_seed0_scale300'),
    ('detectron', 'R-50-C4_seed0_scale300_rois300'),
    ('detectron', 'R-50-FPN_seed0'),
    ('detectron', 'keypoint_R-50-FPN_seed0'),
    ('detectron_zoo', 'R-50-FPN_GN_seed0'),
    ('detectron_zoo', 'X-101-32x8d-FPN_seed0'),
    ('detectron_zoo', 'faster_R-50-FPN_seed0'),
    *TORCH_CASES,
    ('dena', 'detectron_R-50-C4_seed0'),
    ('dena', 'detectron_R-50-C4_seed0_scale300'),
    ('dena', 'detectron_R-50-C4_seed0_scale300_nobn2affine'),
    ('dena', 'snapshot_R-50-C4_seed0_scale300'),
    ('dena', 'snapshot_R-50-C4_seed0_scale300_bn2affine'),
    ('dena', 'snapshot_R-50-C4_seed0_scale300_roi7'),
    ('dena', 'snapshot_R-50-C4_seed0_scale300_roipool'),
]
