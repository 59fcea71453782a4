"""Anchors, boxes, NMS and RoI features of torchvision and detectron2 against the outputs of their operators."""

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON2, TORCHVISION, Config
from mask_rcnn.inference.predictor import has_area, map_to_image
from mask_rcnn.models.box_head import clip_to_image
from mask_rcnn.models.roi_pooling import RoIPooling, assign_levels
from mask_rcnn.models.rpn import RPN
from mask_rcnn.ops.boxes.anchors import cell_anchors, shift_anchors, strides_of_size
from mask_rcnn.ops.boxes.boxes import decode_boxes
from mask_rcnn.ops.boxes.nms import GroupShift, nms
from mask_rcnn.preprocessing.image_transform import ImageTransform
from tests.support.golden import XY

DIALECTS = {'torchvision': TORCHVISION, 'detectron2': DETECTRON2}
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1, 2)
CASES = [
    ('torchvision', 'maskrcnn_resnet50_fpn_seed0'),
    ('torchvision', 'keypointrcnn_resnet50_fpn_seed0'),
    ('detectron2', 'mask_rcnn_R_50_FPN_3x_seed0'),
    ('detectron2', 'mask_rcnn_R_50_C4_3x_seed0'),
]


@pytest.fixture(scope='module', params=DIALECTS)
def program(request, golden):
    """The dialect of a program and the outputs of its operators."""
    return DIALECTS[request.param], load(golden, request.param, f'ops_{request.param}')


def load(golden, program, name):
    path = golden / program / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'no outputs of {program} in {golden}')
    return np.load(path)


def swapped(values):
    """Swap the axes of boxes or deltas ``(R, 4 * K)``."""
    return values.reshape(len(values), -1, 4)[:, :, XY].reshape(len(values), -1)


def test_cell_anchors(program):
    dialect, ops = program
    name = dialect.rpn.anchors
    expected = ops['cell_anchors' if name == 'torchvision' else 'cell_anchors_fpn']
    found = np.concatenate([cell_anchors(name, 4, (size,), RATIOS) for size in SIZES])
    np.testing.assert_array_equal(found[:, XY], expected)


def test_anchors_of_a_small_map(golden):
    """The last map of an input of 800 x 1088 pixels has strides of 61 and 64."""
    ops = load(golden, 'torchvision', 'ops_torchvision')
    cell = cell_anchors('torchvision', 64, (512,), RATIOS)
    found = shift_anchors(cell, strides_of_size((800, 1088), (13, 17)), 13, 17)
    np.testing.assert_array_equal(found[:, XY], ops['anchors_800x1088_last_map'])


def test_anchors_of_a_c4_network(golden):
    ops = load(golden, 'detectron2', 'ops_detectron2')
    cell = cell_anchors('detectron2', 16, SIZES, RATIOS)
    np.testing.assert_array_equal(cell[:, XY], ops['cell_anchors_c4'])
    np.testing.assert_array_equal(shift_anchors(cell, 16, 2, 3)[:, XY], ops['anchors_c4_2x3'])


@pytest.mark.parametrize('name', CASES, ids=lambda name: name[1])
def test_anchors_of_a_case(golden, name):
    """The first and the last anchors of every map."""
    arrays = load(golden, name[0], f'case_{name[1]}')
    maps = arrays['anchors_maps']
    strides, sizes = ((4, 8, 16, 32, 64), SIZES) if len(maps) > 1 else ((16,), SIZES)
    rpn = RPN(1, strides=strides, config=Config(dialect=DIALECTS[name[0]], anchor_sizes=sizes, anchor_ratios=RATIOS))
    levels = rpn.anchors(maps[:, :2].tolist(), arrays['input_shape'][2:].tolist())
    n = len(arrays['anchors_first_last']) // len(maps) // 2
    found = np.concatenate([part for level in levels for part in (level[:n], level[-n:])])
    np.testing.assert_array_equal(found[:, XY], arrays['anchors_first_last'])


def test_decoding(program):
    """The boxes reach 10,000 pixels, where the last bit is 1e-3."""
    dialect, ops = program
    boxes, deltas = ops['decode_boxes'][:, XY], swapped(ops['decode_deltas'])
    options = {'offset': dialect.boxes.offset, 'max_log_scale': dialect.boxes.max_log_scale}
    for name, weights in (('rpn', dialect.boxes.rpn_delta_weights), ('head', dialect.boxes.box_delta_weights)):
        found = decode_boxes(boxes, deltas, weights=weights, **options)
        np.testing.assert_allclose(found, swapped(ops[f'decode_{name}']), rtol=2e-7, atol=1e-4)
    transform = ImageTransform.top_left((300, 500), 1.0)
    clipped = clip_to_image(found, transform, dialect).reshape(-1, 4)
    np.testing.assert_allclose(clipped, swapped(ops['decode_head_clipped_300x500']).reshape(-1, 4), rtol=0, atol=2e-4)


def test_levels(program):
    """Also just at the borders of levels."""
    dialect, ops = program
    found = assign_levels(ops['level_boxes'][:, XY], (4, 8, 16, 32), canonical_size=224, dialect=dialect)
    np.testing.assert_array_equal(found + 2, ops['levels'])


@pytest.mark.parametrize('size', [7, 14])
def test_roi_align(program, size):
    dialect, ops = program
    ratio = 0 if dialect.rois.aligned else 2
    pool = RoIPooling((16,), size, config=Config(dialect=dialect, sampling_ratio=ratio))
    rois = ops['roi_boxes']
    found = pool([ops['roi_map']], rois[:, 1:][:, XY], rois[:, 0].astype(np.int32)).array
    expected = ops[f'roi_{size}_ratio{ratio}' + ('_aligned' if dialect.rois.aligned else '')]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_nms(golden):
    """Also at an IoU that equals the threshold."""
    ops = load(golden, 'torchvision', 'ops_torchvision')
    boxes = TORCHVISION.boxes
    options = {'offset': boxes.offset, 'suppress_equal': boxes.nms_suppress_equal}
    shift = GroupShift(boxes.nms_shift_limit)
    groups = ops['nms_classes']
    kept = nms(ops['nms_boxes'][:, XY], ops['nms_scores'], 0.5, groups=groups, shift=shift, **options)
    np.testing.assert_array_equal(kept, ops['nms_keep_0.5'])
    scores = np.float32([0.9, 0.8, 0.7, 0.6])
    kept = nms(ops['nms_equal_boxes'][:, XY], scores, 0.5, **options)
    np.testing.assert_array_equal(kept, ops['nms_equal_keep_0.5'])


@pytest.mark.parametrize('name', CASES, ids=lambda name: name[1])
def test_boxes_in_the_image(golden, name):
    """The detections in the network input become those in the image, to the bit."""
    arrays, dialect = load(golden, name[0], f'case_{name[1]}'), DIALECTS[name[0]]
    size, resized = arrays['image_shape'][:2].tolist(), arrays['input_size'].tolist()
    factors = resized[0] / size[0], resized[1] / size[1]
    transform = ImageTransform(tuple(size), factors[0], factors, (0, 0, resized[0] - 1, resized[1] - 1), tuple(resized))
    found = map_to_image(arrays['boxes_input'][:, XY], transform, dialect)
    np.testing.assert_array_equal(found[:, XY], arrays['boxes'])
    assert has_area(found).all()
