"""R-50-C4 compared with Detectron: every stage and the detections."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.preprocessing.image_io import read_image
from tests.support.golden import (
    MAX_SCORE_DIFFERENCE,
    MAX_SCORE_ROUNDING,
    MIN_BOX_IOU,
    XY,
    as_detectron,
    compare_boxes,
    compare_masks,
    golden_rois,
    match,
    to_host,
    without_padding,
)

SMALL = 'R-50-C4_seed0_scale300'
FAST = 'R-50-C4_seed0_scale300_rois300'
FULL = 'R-50-C4_seed0'

#: Largest difference, in standard deviations of a blob. Float32 sums in another order stay below it; a wrong layer does
#: not.
BODY = 5e-5

#: Largest absolute difference of the heads' deltas (up to 5) and mask probabilities, from the golden input: 1e-5 of one
#: stage, and the rounding of the backbone and of Winograd convolution (measured with OpenBLAS's kernels for different
#: processors: 1.5e-5 to 2.3e-5).
HEADS = 3e-5


@pytest.fixture(scope='module', autouse=True)
def inference():
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


@pytest.fixture(scope='module')
def small(load_model):
    """The model, its case and its feature maps from the golden network input."""
    model, case = load_model(SMALL)
    x = model.xp.asarray(np.load(case.golden / 'detectron' / 'input_scale300.npz')['data'])
    return model, case, x, [features.array for features in model.extractor(x)]


def test_extractor(small):
    model, case, x, (features,) = small
    extractor = model.extractor
    assert case.compare_blob('conv1', ConvNorm.forward(extractor.conv1, x, relu=True).array) < BODY
    h = extractor.conv1(x)
    assert case.compare_blob('pool1', h.array) < BODY
    for stage, blob in (('res2', 'res2_2_sum'), ('res3', 'res3_3_sum'), ('res4', 'res4_5_sum')):
        h = extractor[stage](h)
        assert case.compare_blob(blob, h.array) < BODY, blob
    np.testing.assert_array_equal(to_host(h), to_host(features))


def test_rpn(small):
    model, case, _, (features,) = small
    rpn = model.rpn
    assert case.compare_blob('conv_rpn', F.relu(rpn.conv(features)).array) < BODY
    (logits,), (deltas,) = rpn((features,))
    assert case.compare_blob('rpn_cls_logits', logits.array) < BODY
    assert case.compare_blob('rpn_cls_probs', F.sigmoid(logits).array) < BODY
    assert case.compare_blob('rpn_bbox_pred', as_detectron(deltas.array)) < BODY


def test_proposals(small):
    model, case, x, maps = small
    (rois,) = model.rpn.propose(maps, x.shape[2:], [case.transform])
    rois = without_padding(rois)
    np.testing.assert_allclose(rois[:, XY], case.arrays['rois'][:, 1:], rtol=0, atol=0.01)


def test_roi_features(small):
    model, case, _, maps = small
    rows = case.rows_of('pool5')
    rois, indices = golden_rois(model, case, rows)
    pooled = roi_align(*maps, rois, indices, output_size=14, spatial_scale=1 / 16)
    assert case.compare_blob('pool5', pooled.array, rows=rows) < BODY
    rows = case.rows_of('res5_2_sum')
    res5 = model.box_head.roi_features(maps, *golden_rois(model, case, rows))
    assert case.compare_blob('res5_2_sum', res5.array, rows=rows) < BODY


def test_box_head(small):
    model, case, _, maps = small
    scores, deltas = model.box_head(model.box_head.roi_features(maps, *golden_rois(model, case, slice(32))))
    np.testing.assert_allclose(to_host(F.softmax(scores)), case.arrays['cls_prob_first32'], rtol=0, atol=1e-6)
    np.testing.assert_allclose(as_detectron(deltas.array), case.arrays['bbox_pred_first32'], rtol=0, atol=HEADS)


@pytest.mark.slow
def test_box_head_of_every_sampled_roi(small):
    model, case, _, maps = small
    for blob in ('res5_pool', 'cls_score', 'bbox_pred', 'cls_prob'):
        rows = case.rows_of(blob)
        h = model.box_head.roi_features(maps, *golden_rois(model, case, rows))
        scores, deltas = model.box_head(h)
        values = {
            'res5_pool': F.mean(h, axis=(2, 3), keepdims=True).array,
            'cls_score': scores.array,
            'bbox_pred': as_detectron(deltas.array),
            'cls_prob': F.softmax(scores).array,
        }[blob]
        assert case.compare_blob(blob, values, rows=rows) < BODY, blob


def test_mask_head(small):
    model, case, _, maps = small
    arrays = case.arrays
    h = model.box_head.roi_features(maps, *golden_rois(model, case, name='mask_rois'))
    assert case.compare_blob('_[mask]_res5_2_sum', h.array) < BODY
    up = F.relu(model.mask_head.deconv(h))
    assert case.compare_blob('conv5_mask', up.array) < BODY
    probs = to_host(F.sigmoid(model.mask_head(h)))
    class_probs = probs[np.arange(len(probs)), arrays['classes'] - 1]
    np.testing.assert_allclose(class_probs, arrays['mask_probs'], rtol=0, atol=HEADS)


@pytest.mark.parametrize('name', [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in (SMALL, FULL))])
def test_detections(load_model, name):
    """From the photo: the suggested rule, and a stricter one, because the network input has the same bits."""
    model, case = load_model(name)
    (detections,) = model.detect([case.photo])
    match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=MAX_SCORE_DIFFERENCE)
    found = detections[match(case, detections, min_iou=0.9995, max_score_difference=MAX_SCORE_ROUNDING)]
    compare_boxes(case, found)
    compare_masks(case, found)
    assert len(detections) == len(case.arrays['boxes'])


def test_the_photo_gives_the_golden_input(small):
    """So test_detections, which starts from the photo, starts from the golden input."""
    model, case, x, _ = small
    prepared, transform = Predictor(model).prepare(read_image(case.photo))
    np.testing.assert_array_equal(to_host(prepared), to_host(x))
    assert transform.scale == float(case.arrays['im_scale'])


@pytest.mark.slow
def test_batch_normalisation_and_affine_channels_agree(load_model):
    affine, case = load_model(FAST, bn2affine=True)
    bn, _ = load_model(FAST, norm='bn')
    assert not any(isinstance(link, chainer.links.BatchNormalization) for link in affine.links())
    assert sum(isinstance(link, chainer.links.BatchNormalization) for link in bn.links()) == 53
    image = read_image(case.photo)
    for model in (affine, bn):
        match(case, *model.detect([image]), min_iou=0.9995, max_score_difference=MAX_SCORE_ROUNDING)
