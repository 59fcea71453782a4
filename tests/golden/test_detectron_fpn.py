"""R-50-FPN with masks and with keypoints, compared with Detectron: every stage and the detections."""

import zlib

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from mask_rcnn.preprocessing.image_io import read_image
from tests.support.golden import (
    MAX_SCORE_DIFFERENCE,
    MAX_SCORE_ROUNDING,
    MIN_BOX_IOU,
    XY,
    Recorder,
    as_detectron,
    compare_boxes,
    compare_masks,
    golden_rois,
    match,
    to_host,
    without_padding,
)

pytestmark = pytest.mark.slow

MASKS, KEYPOINTS = 'R-50-FPN_seed0', 'keypoint_R-50-FPN_seed0'

#: Largest difference, in standard deviations of a blob: float32 sums in another order, in the backbone and the pyramid.
MAPS = 1e-4

#: The same for the heads of four and eight convolutions, each of which adds its rounding.
DEEP = 4e-4

#: Largest absolute difference of the box head's outputs for given RoIs.
HEADS = 5e-5

#: The last blocks of res2 to res5, whose names are part of the names of the pyramid's levels.
BLOCKS = 'res2_2_sum', 'res3_3_sum', 'res4_5_sum', 'res5_2_sum'


@pytest.fixture(scope='module', autouse=True)
def inference():
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


class Look:
    """A model's first stages on its case's photo, with the inputs and outputs of their links."""

    def __init__(self, model, case):
        self.model, self.case = model, case
        self.x, _ = Predictor(model).prepare(read_image(case.photo))
        self.links = Recorder(
            model,
            'rpn/conv',
            *(f'extractor/body/{stage}' for stage in ('conv1', 'res2', 'res3', 'res4', 'res5')),
            *(f'extractor/{kind}{level}' for kind in ('lateral', 'output') for level in range(2, 6)),
        )
        with self.links:
            self.maps = [features.array for features in model.extractor(self.x)]
            self.logits, self.deltas = model.rpn(self.maps)


@pytest.fixture(scope='module')
def masks(load_model):
    return Look(*load_model(MASKS))


@pytest.fixture(scope='module')
def keypoints(load_model):
    return Look(*load_model(KEYPOINTS))


@pytest.fixture(params=['masks', 'keypoints'])
def look(request, gpu):  # a fixture that is requested by name has no parameters of its own
    return request.getfixturevalue(request.param)


def test_the_photo_gives_the_golden_input(look):
    """Every bit is the same, so the later stages start from the golden input."""
    assert zlib.crc32(np.ascontiguousarray(to_host(look.x))) == int(look.case.arrays['data_crc32'])
    assert look.x.shape[2:] == tuple(look.case.arrays['im_info'][0, :2])


def test_body(look):
    backbone = 'extractor/body'
    conv1 = ConvNorm.forward(look.model.extractor.body.conv1, look.x, relu=True)  # without the pooling
    assert look.case.compare_blob('conv1', conv1.array) < MAPS
    (pooled,) = look.links.inputs[f'{backbone}/res2']
    assert look.case.compare_blob('pool1', pooled) < MAPS
    for stage, blob in zip(('res2', 'res3', 'res4', 'res5'), BLOCKS, strict=True):
        (out,) = look.links.outputs[f'{backbone}/{stage}']
        assert look.case.compare_blob(blob, out) < MAPS, blob


def test_pyramid(look):
    case, links = look.case, look.links
    (top,) = links.outputs['extractor/lateral5']
    assert case.compare_blob('fpn_inner_res5_2_sum', top) < MAPS
    for level, blob in enumerate(BLOCKS[:3], start=2):
        (lateral,) = links.outputs[f'extractor/lateral{level}']
        (above,) = links.inputs[f'extractor/output{level + 1}']
        (summed,) = links.inputs[f'extractor/output{level}']
        assert case.compare_blob(f'fpn_inner_{blob}_lateral', lateral) < MAPS
        upsampled = above.repeat(2, axis=2).repeat(2, axis=3)
        assert case.compare_blob(f'fpn_inner_{blob}_topdown', upsampled) < MAPS
        assert case.compare_blob(f'fpn_inner_{blob}', summed) < MAPS
    names = [f'fpn_{blob}' for blob in BLOCKS] + ['fpn_res5_2_sum_subsampled_2x']
    for name, features in zip(names, look.maps, strict=True):
        assert case.compare_blob(name, features) < MAPS, name


def test_rpn(look):
    outputs = look.links.outputs['rpn/conv'], look.logits, look.deltas
    for level, hidden, logits, deltas in zip(range(2, 7), *outputs, strict=True):
        blobs = {
            'conv_rpn': hidden,
            'rpn_cls_logits': logits.array,
            'rpn_cls_probs': F.sigmoid(logits).array,
            'rpn_bbox_pred': as_detectron(deltas.array),
        }
        for name, values in blobs.items():
            assert look.case.compare_blob(f'{name}_fpn{level}', values) < MAPS, (name, level)


def test_proposals(look):
    """All but two: the last bits decide the order of some, and on which side of the NMS threshold others are."""
    arrays = look.case.arrays
    (rois,) = look.model.rpn.propose(look.maps, look.x.shape[2:], [look.case.transform])
    rois = without_padding(rois)[:, XY]
    assert rois.shape == (1000, 4)
    nearest = np.abs(rois[:, None] - arrays['rois'][None, :, 1:]).max(axis=2).min(axis=0)
    assert np.count_nonzero(nearest > 0.01) <= 2, nearest.max()
    assert nearest[arrays['rois_stable_1e-5']].max() < 0.05


def test_box_head(look):
    model, case = look.model, look.case
    for blob in ('roi_feat', 'fc6', 'fc7', 'cls_score', 'cls_prob', 'bbox_pred'):
        rows = case.rows_of(blob)
        features = model.box_head.roi_features(look.maps, *golden_rois(model, case, rows))
        fc6 = F.relu(model.box_head.fc6(features))
        scores, deltas = model.box_head(features)
        values = {
            'roi_feat': features.array,
            'fc6': fc6.array,
            'fc7': F.relu(model.box_head.fc7(fc6)).array,
            'cls_score': scores.array,
            'cls_prob': F.softmax(scores).array,
            'bbox_pred': as_detectron(deltas.array),
        }[blob]
        values = values.reshape(len(rows), *case.arrays[f'blob/{blob}/shape'][1:])
        assert case.compare_blob(blob, values, rows=rows) < MAPS, blob


def test_box_head_of_the_first_rois(look):
    model, case = look.model, look.case
    scores, deltas = model.box_head(model.box_head.roi_features(look.maps, *golden_rois(model, case, slice(32))))
    values = {'cls_prob': F.softmax(scores).array, 'bbox_pred': as_detectron(deltas.array)}
    for name, value in values.items():
        np.testing.assert_allclose(to_host(value), case.arrays[f'{name}_first32'], rtol=0, atol=HEADS, err_msg=name)


def test_mask_head(masks):
    model, case = masks.model, masks.case
    rois = golden_rois(model, case, name='mask_rois')
    links = Recorder(model, 'mask_head/deconv', *(f'mask_head/conv{i}' for i in range(1, 5)))
    with links:
        features = model.mask_head.roi_features(masks.maps, *rois)
        probs = to_host(F.sigmoid(model.mask_head(features)))
    assert case.compare_blob('_[mask]_roi_feat', features.array) < MAPS
    for i in range(1, 5):
        (hidden,) = links.outputs[f'mask_head/conv{i}']
        if f'blob/_[mask]_fcn{i}/index' in case.arrays:
            assert case.compare_blob(f'_[mask]_fcn{i}', hidden) < MAPS, i
    (up,) = links.outputs['mask_head/deconv']
    assert case.compare_blob('conv5_mask', F.relu(up).array) < MAPS
    class_probs = probs[np.arange(len(probs)), case.arrays['classes'] - 1]
    np.testing.assert_allclose(class_probs, case.arrays['mask_probs'], rtol=0, atol=1.2e-4)


def test_keypoint_head(keypoints):
    model, case = keypoints.model, keypoints.case
    head, rois = model.keypoint_head, golden_rois(model, case, name='keypoint_rois')
    links = Recorder(model, *(f'keypoint_head/{name}' for name in ('conv1', 'conv8', 'deconv')))
    with links:
        features = head.pool(keypoints.maps, *rois)
        heatmaps = head(features).array
    assert case.compare_blob('_[pose]_roi_feat', features.array) < MAPS
    for name in ('conv1', 'conv8'):
        (hidden,) = links.outputs[f'keypoint_head/{name}']
        assert case.compare_blob(name.replace('conv', 'conv_fcn'), hidden) < DEEP, name
    (small,) = links.outputs['keypoint_head/deconv']
    assert case.compare_blob('kps_score_lowres', small) < DEEP
    assert case.compare_blob('kps_score', heatmaps) < DEEP
    found = to_host(decode_heatmaps(heatmaps, model.xp.asarray(case.boxes)))
    # Measured with OpenBLAS's kernels for different processors: 2.8e-4 and 1.5e-4.
    compare_keypoints(case, found, np.arange(len(found)), pixels=1e-3, logit=7e-4, probability=4e-4)


def compare_keypoints(case, found, rows, *, pixels, logit, probability, jumps=0):
    """Compare keypoints with those of some of a case's detections.

    Args:
        case: The case.
        found: ``(n, K, 4)`` keypoints.
        rows: The indices of their detections in the case.
        pixels: The largest distance.
        logit: The absolute tolerance of logits.
        probability: The relative tolerance of probabilities.
        jumps: The number of stable keypoints that may be at another maximum of nearly the same height.
    """
    expected = case.arrays['keypoints'][rows][:, [1, 0, 2, 3]].transpose(0, 2, 1)
    distance = np.hypot(*np.moveaxis(found[:, :, :2] - expected[:, :, :2], 2, 0))
    stable = case.arrays['keypoints_stable_1e-5'][rows]
    assert np.count_nonzero(distance[stable] > pixels) <= jumps, np.sort(distance[stable])[-jumps - 1]
    assert np.median(distance) < 2e-3 and (distance < 1).mean() > 0.99
    np.testing.assert_allclose(found[stable][:, 2], expected[stable][:, 2], rtol=0, atol=logit)
    np.testing.assert_allclose(found[stable][:, 3], expected[stable][:, 3], rtol=probability)


def test_mask_detections(masks):
    """From the photo: the suggested rule, and a stricter one, because the network input has the same bits."""
    model, case = masks.model, masks.case
    (detections,) = model.detect([case.photo])
    match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=MAX_SCORE_DIFFERENCE)
    found = detections[match(case, detections, min_iou=0.9995, max_score_difference=MAX_SCORE_ROUNDING)]
    compare_boxes(case, found)
    compare_masks(case, found)
    assert len(detections) == len(case.arrays['boxes'])


def test_keypoint_detections(keypoints):
    model, case = keypoints.model, keypoints.case
    (detections,) = model.detect([case.photo])
    match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=MAX_SCORE_DIFFERENCE)
    found = detections[match(case, detections, min_iou=0.9995, max_score_difference=MAX_SCORE_ROUNDING)]
    compare_boxes(case, found)
    # Measured with OpenBLAS's kernels for different processors: 0.026, 0.028, 0.021, and at most one jump.
    compare_keypoints(
        case, found.keypoints, np.flatnonzero(case.arrays['stable']), pixels=0.06, logit=0.07, probability=0.05, jumps=2
    )
    assert len(detections) == len(case.arrays['boxes'])
    assert not detections.has_masks and detections.names == ['person'] * len(detections)
