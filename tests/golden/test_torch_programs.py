"""The networks of torchvision and detectron2, compared with the programs: every stage and the detections."""

import zlib

import chainer
import chainer.functions as F
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.preprocessing.image_io import read_image
from tests.support.golden import (
    MAX_SCORE_DIFFERENCE,
    MIN_BOX_IOU,
    XY,
    Recorder,
    as_detectron,
    match,
    send_rois,
    to_host,
    without_padding,
)
from tests.support.golden_torch import BLOBS, CASES, INPUT, MASK_IOU, PROGRAMS, compare_stable

pytestmark = pytest.mark.slow

#: The number of blocks in each stage of the backbone.
BLOCKS = 3, 4, 6, 3


class Look:
    """A model's first stages on its case's photo, with the inputs and outputs of their links."""

    def __init__(self, model, case):
        self.model, self.case = model, case
        self.backbone = 'extractor/body' if model.config.has_fpn else 'extractor'
        orientation = model.config.dialect.input.apply_orientation
        self.x, self.transform = Predictor(model).prepare(read_image(case.photo, apply_orientation=orientation))
        stages = range(2, 6 if model.config.has_fpn else 5)
        hidden = ('rpn/conv', *(f'rpn/conv{i}' for i in range(2, model.config.rpn_convs + 1)))
        self.links = Recorder(
            model,
            *hidden,
            f'{self.backbone}/res2',
            *(f'{self.backbone}/res{stage}/block{i}' for stage in stages for i in range(BLOCKS[stage - 2])),
            *(f'extractor/{kind}{level}' for kind in ('lateral', 'output') for level in stages if model.config.has_fpn),
        )
        with self.links:
            self.maps = [features.array for features in model.extractor(self.x)]
            self.logits, self.deltas = model.rpn(self.maps)
        self.hidden = [self.links.outputs[name] for name in hidden]

    def rois(self, name, rows=slice(None)):
        """Return boxes of the case in the network input and their image indices, on the model's device."""
        return send_rois(self.model, np.ascontiguousarray(self.case.arrays[name][rows][:, XY]))


@pytest.fixture(scope='module', params=CASES, ids=lambda case: '-'.join(case))
def look(request, golden, program_file, gpu):
    program, name = request.param
    case = PROGRAMS[program].case(golden, name)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield Look(mask_rcnn.load(program_file(program, case.settings['recipe']), gpu=gpu), case)


def compare(look, blobs):
    """Compare blobs by name with those samples that the case has, and assert that it has some."""
    differences = {name: look.case.differences(name, to_host(values)) for name, values in blobs.items()}
    largest = {name: float(values.max()) for name, values in differences.items()}
    assert largest and max(largest.values()) < BLOBS, largest


def test_the_photo_gives_the_golden_input(look):
    arrays, x = look.case.arrays, np.ascontiguousarray(to_host(look.x))
    assert x.shape == tuple(arrays['input_shape'])
    assert look.transform.input_size == tuple(arrays['input_size'])
    if 'resized_crc32' in arrays:  # detectron2: whole bytes
        assert zlib.crc32(x) == int(arrays['input_crc32'])
    values = np.abs(x.ravel()[arrays['blob/input/index']] - arrays['blob/input/value'])
    assert values.max() < INPUT


def test_backbone(look):
    outputs = look.links.outputs
    extractor = look.model.extractor
    stem = ConvNorm.forward((extractor.body if look.model.config.has_fpn else extractor).conv1, look.x).array
    (pooled,) = look.links.inputs[f'{look.backbone}/res2']
    blocks = {
        (stage, i): outputs[f'{look.backbone}/res{stage}/block{i}'][0]
        for stage in range(2, 6)
        for i in range(BLOCKS[stage - 2])
        if f'{look.backbone}/res{stage}/block{i}' in outputs
    }
    if look.case.program == 'torchvision':
        compare(
            look,
            {
                'backbone.body.bn1': stem,
                'backbone.body.maxpool': pooled,
                **{f'backbone.body.layer{stage - 1}.{i}': h for (stage, i), h in blocks.items()},
            },
        )
    else:
        prefix = 'backbone.bottom_up' if look.model.config.has_fpn else 'backbone'
        last = {stage: h for (stage, _), h in blocks.items()}
        compare(
            look,
            {
                f'{prefix}.stem.conv1': stem,
                f'{prefix}.stem': pooled,
                **{f'{prefix}.res{stage}': h for stage, h in last.items()},
            },
        )


def test_pyramid(look):
    if not look.model.config.has_fpn:
        assert len(look.maps) == 1  # a C4 network has none
        return
    names = {
        'torchvision': ('backbone.fpn.inner_blocks.{}', 'backbone.fpn.layer_blocks.{}', 'backbone.{}'),
        'detectron2': ('backbone.fpn_lateral{}', 'backbone.fpn_output{}', 'backbone.p{}'),
    }[look.case.program]
    first = 0 if look.case.program == 'torchvision' else 2
    blobs = {}
    for level in range(2, 6):
        for kind, name in zip(('lateral', 'output'), names, strict=False):
            (blobs[name.format(level - 2 + first)],) = look.links.outputs[f'extractor/{kind}{level}']
        blobs[names[2].format(level - 2 + first)] = look.maps[level - 2]
    blobs['backbone.pool' if look.case.program == 'torchvision' else 'backbone.p6'] = look.maps[4]
    compare(look, blobs)


def test_rpn(look):
    hidden, logits, deltas = {
        'torchvision': ('rpn.head.conv.{}', 'rpn.head.cls_logits', 'rpn.head.bbox_pred'),
        'detectron2': ('rpn_head.conv', 'rpn_head.objectness_logits', 'rpn_head.anchor_deltas'),
    }[look.case.program]
    prefix = 'proposal_generator.' if look.case.program == 'detectron2' else ''
    blobs = {}
    for level in range(len(look.maps)):
        for i, outputs in enumerate(look.hidden):
            blobs[f'{prefix}{hidden.format(i)}.level{level}'] = outputs[level]
        blobs[f'{prefix}{logits}.level{level}'] = look.logits[level].array
        blobs[f'{prefix}{deltas}.level{level}'] = as_detectron(look.deltas[level].array)
    compare(look, blobs)


def test_anchors(look):
    arrays = look.case.arrays
    anchors = look.model.rpn.anchors([features.shape[2:] for features in look.maps], look.x.shape[2:])
    ends = len(arrays['anchors_first_last']) // len(look.maps) // 2
    found = np.concatenate([np.concatenate([a[:ends], a[-ends:]]) for a in map(to_host, anchors)])
    np.testing.assert_array_equal(found[:, XY], arrays['anchors_first_last'])
    assert [len(a) for a in anchors] == arrays['anchors_maps'][:, 2].tolist()


def test_proposals(look):
    arrays = look.case.arrays
    (rois,) = look.model.rpn.propose(look.maps, look.x.shape[2:], [look.transform])
    rois = without_padding(rois)[:, XY]
    assert rois.shape == (1000, 4)
    nearest = np.abs(rois[:, None] - arrays['proposals'][None]).max(axis=2).min(axis=0)
    assert np.count_nonzero(nearest > 0.02) <= 5, np.sort(nearest)[-10:]
    assert nearest[arrays['proposals_stable_1e-5']].max() < 0.07


def native_order(case, logits, deltas):
    """Return logits and deltas of the case with the background first and ``(dy, dx, dh, dw)`` of each class."""
    if case.program == 'detectron2':
        logits = np.roll(logits, 1, axis=1)
        deltas = np.pad(deltas, ((0, 0), (4, 0)))
    return logits, as_detectron(deltas)


def test_box_head_of_the_first_rois(look):
    model, arrays = look.model, look.case.arrays
    scores, deltas = model.box_head(model.box_head.roi_features(look.maps, *look.rois('proposals', slice(32))))
    expected, expected_deltas = native_order(look.case, arrays['cls_logits_first32'], arrays['bbox_deltas_first32'])
    np.testing.assert_allclose(to_host(scores), expected, rtol=0, atol=4e-4)
    deltas = to_host(deltas)
    if look.case.program == 'detectron2':
        assert not deltas[:, :4].any()  # detectron2 has no deltas of the background
    np.testing.assert_allclose(deltas, expected_deltas, rtol=0, atol=1e-4)
    probs, _ = native_order(look.case, arrays['cls_prob_first32'], arrays['bbox_deltas_first32'])
    np.testing.assert_allclose(to_host(F.softmax(scores)), probs, rtol=0, atol=4e-5)


def test_masks_of_the_golden_boxes(look):
    model, case = look.model, look.case
    if not model.config.masks:
        assert 'mask_probs' not in case.arrays
        return
    probs = to_host(F.sigmoid(model.mask_head(model.mask_head.roi_features(look.maps, *look.rois('boxes_input')))))
    class_probs = probs[np.arange(len(probs)), case.labels]
    np.testing.assert_allclose(class_probs, case.arrays['mask_probs'], rtol=0, atol=2e-4)


def test_detections_of_the_photo(look):
    """The suggested rule, and stricter limits than it has: scores within 1e-3."""
    model, case = look.model, look.case
    (detections,) = model.detect([case.photo])
    match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=MAX_SCORE_DIFFERENCE)
    found = detections[match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=1e-3)]
    differences = compare_stable(case, found)
    assert differences['boxes'] < 0.25 and differences.get('mask_iou', 0) <= MASK_IOU, differences
    if model.config.n_keypoint:
        compare_keypoints(case, found)


def compare_keypoints(case, detections):
    """Compare keypoints: those that noise does not move are within a pixel."""
    stable, expected = case.arrays['stable'], case.keypoints
    keypoints = detections.keypoints
    distance = np.hypot(*np.moveaxis(keypoints[..., :2] - expected[stable][..., :2], 2, 0))
    fixed = case.arrays['keypoints_stable_1e-5'][stable]
    assert np.count_nonzero(distance[fixed] > 1) <= 2 and np.median(distance) < 1e-3, np.sort(distance[fixed])[-5:]
    score = keypoints[..., 2 if case.program == 'torchvision' else 3]
    close = fixed & (distance < 1)
    np.testing.assert_allclose(score[close], expected[stable][..., 2][close], rtol=0.01, atol=0.01)
