"""Detectron's ResNeXt, group normalisation and Faster R-CNN models, compared with Detectron."""

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
    MIN_BOX_IOU,
    XY,
    Recorder,
    as_detectron,
    golden_rois,
    match,
    to_host,
    without_padding,
)
from tests.support.golden_torch import BLOBS, MASK_IOU, ZooCase, compare_stable

CASES = [
    pytest.param('R-50-FPN_GN_seed0', marks=pytest.mark.slow),
    pytest.param('X-101-32x8d-FPN_seed0', marks=pytest.mark.slow),
    pytest.param('faster_R-50-FPN_seed0', marks=pytest.mark.slow),
]


class Look:
    """A model's first stages on its case's photo, with the inputs and outputs of their links."""

    def __init__(self, model, case):
        self.model, self.case = model, case
        self.suffix = '_gn' if model.config.head_norm == 'gn' else ''
        body = model.extractor.body
        self.last = {stage: body[f'res{stage}'].n_blocks - 1 for stage in range(2, 6)}
        self.x, self.transform = Predictor(model).prepare(read_image(case.photo))
        self.links = Recorder(
            model,
            'rpn/conv',
            'extractor/body/res2',
            *(f'extractor/body/res{stage}/block0' for stage in range(2, 6)),
            *(f'extractor/body/res{stage}' for stage in range(2, 6)),
            *(f'extractor/{kind}{level}' for kind in ('lateral', 'output') for level in range(2, 6)),
        )
        with self.links:
            self.maps = [features.array for features in model.extractor(self.x)]
            self.logits, self.deltas = model.rpn(self.maps)


@pytest.fixture(scope='module', params=CASES)
def look(request, golden, program_file, gpu):
    case = ZooCase(golden, request.param)
    path = program_file('detectron_zoo', case.settings['recipe'])
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield Look(mask_rcnn.load(path, gpu=gpu, **case.config_changes), case)


def compare(look, blobs):
    largest = {name: look.case.compare_blob(name, values) for name, values in blobs.items()}
    assert max(largest.values()) < BLOBS, largest


def test_the_photo_gives_the_golden_input(look, golden):
    x = np.ascontiguousarray(to_host(look.x))
    assert zlib.crc32(x) == int(look.case.arrays['data_crc32'])
    if look.case.settings['scale'] == 400:
        np.testing.assert_array_equal(x, np.load(golden / 'detectron_zoo' / 'input_scale400.npz')['data'])


def test_backbone(look):
    links = look.links
    blobs = {'conv1' + look.suffix: ConvNorm.forward(look.model.extractor.body.conv1, look.x, relu=True).array}
    (blobs['pool1'],) = links.inputs['extractor/body/res2']
    for stage, last in look.last.items():
        (blobs[f'res{stage}_0_branch2c{look.suffix or "_bn"}'],) = links.outputs[f'extractor/body/res{stage}/block0']
        (blobs[f'res{stage}_{last}_sum'],) = links.outputs[f'extractor/body/res{stage}']
    compare(look, blobs)


def test_pyramid_and_rpn(look):
    links, blobs = look.links, {}
    for stage, last in look.last.items():
        name = f'res{stage}_{last}_sum'
        lateral = f'fpn_inner_{name}{"" if stage == 5 else "_lateral"}{look.suffix}'
        (blobs[lateral],) = links.outputs[f'extractor/lateral{stage}']
        (blobs[f'fpn_{name}{look.suffix}'],) = links.outputs[f'extractor/output{stage}']
    blobs[f'fpn_{name}{look.suffix}_subsampled_2x'] = look.maps[4]
    for i, hidden in enumerate(links.outputs['rpn/conv']):
        blobs[f'conv_rpn_fpn{i + 2}'] = hidden
        blobs[f'rpn_cls_logits_fpn{i + 2}'] = look.logits[i].array
        blobs[f'rpn_bbox_pred_fpn{i + 2}'] = as_detectron(look.deltas[i].array)
    compare(look, blobs)


def test_proposals(look):
    arrays = look.case.arrays
    (rois,) = look.model.rpn.propose(look.maps, look.x.shape[2:], [look.transform])
    rois = without_padding(rois)[:, XY]
    assert rois.shape == (1000, 4)
    nearest = np.abs(rois[:, None] - arrays['rois'][None, :, 1:]).max(axis=2).min(axis=0)
    assert np.count_nonzero(nearest > 0.02) <= 1, np.sort(nearest)[-10:]
    assert nearest[arrays['rois_stable_1e-5']].max() < 0.03


def test_heads_of_the_golden_rois(look):
    model, arrays = look.model, look.case.arrays
    rois = golden_rois(model, look.case, slice(32))
    scores, deltas = model.box_head(model.box_head.roi_features(look.maps, *rois))
    np.testing.assert_allclose(to_host(F.softmax(scores)), arrays['cls_prob_first32'], rtol=0, atol=3e-5)
    np.testing.assert_allclose(as_detectron(deltas.array), arrays['bbox_pred_first32'], rtol=0, atol=2e-4)
    if model.config.masks:
        rois = golden_rois(model, look.case, name='mask_rois')
        probs = to_host(F.sigmoid(model.mask_head(model.mask_head.roi_features(look.maps, *rois))))
        class_probs = probs[np.arange(len(probs)), look.case.labels]
        np.testing.assert_allclose(class_probs, arrays['mask_probs'], rtol=0, atol=2e-4)
    assert model.config.masks == ('mask_probs' in arrays)


def test_detections_of_the_photo(look):
    (detections,) = look.model.detect([look.case.photo])
    found = detections[match(look.case, detections, min_iou=MIN_BOX_IOU, max_score_difference=8e-4)]
    differences = compare_stable(look.case, found)
    assert differences['boxes'] < 0.1 and differences.get('mask_iou', 0) <= MASK_IOU, differences
