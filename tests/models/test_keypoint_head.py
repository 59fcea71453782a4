"""The keypoint head, its layers and its results."""

import chainer
import chainer.functions as F
import cv2
import numpy as np
import pytest
from chainercv.utils import assert_is_detection_link

import mask_rcnn
from mask_rcnn.config import PRESETS
from mask_rcnn.models import keypoint_head
from mask_rcnn.models.keypoint_head import KeypointHead, upsample_bilinear_2x
from tests.support.models import small_model
from tests.support.small_resnet import use_narrow_resnet

NARROW = {
    'n_fg_class': 1,
    'fpn_channels': 8,
    'rpn_channels': 8,
    'head_channels': 8,
    'rpn_pre_nms': 50,
    'rpn_post_nms': 8,
}


@pytest.fixture
def small_head(monkeypatch):
    use_narrow_resnet(monkeypatch)
    monkeypatch.setattr(KeypointHead, 'channels', 8)


@pytest.fixture
def model(small_head):
    return small_model('keypoint_resnet50_fpn', class_names=('person',), **NARROW)


def test_parameters_have_detectrons_shapes():
    head = KeypointHead(256, pool=None, config=PRESETS['keypoint_resnet50_fpn'])
    shapes = {path: param.shape for path, param in head.namedparams()}
    assert shapes.pop('/conv1/W') == (512, 256, 3, 3)
    assert shapes.pop('/deconv/W') == (512, 17, 4, 4) and shapes.pop('/deconv/b') == (17,)
    assert shapes == {
        f'/conv{i}/{kind}': (512, 512, 3, 3)[: 4 if kind == 'W' else 1]
        for i in range(1, 9)
        for kind in 'Wb'
        if (i, kind) != (1, 'W')
    }


def test_heat_maps_have_four_times_the_size_of_the_roi_grid(model, rng):
    heatmaps = model.keypoint_head(rng.randn(2, 8, 14, 14).astype(np.float32))
    assert heatmaps.shape == (2, 17, 56, 56) and heatmaps.dtype == np.float32


def test_upsampling_equals_detectrons_deconvolution(rng, monkeypatch):
    """Detectron's weight is (K, K, 4, 4) with the kernel on the diagonal."""
    x = rng.randn(2, 3, 5, 7).astype(np.float32)
    row = 1 - np.abs(np.arange(4) - 1.5) / 2
    weights = np.eye(3)[:, :, None, None] * np.outer(row, row)
    expected = F.deconvolution_2d(x, weights.astype(np.float32), stride=2, pad=1).array
    for path in ('cpu', 'cudnn'):
        monkeypatch.setattr(keypoint_head, 'select_path', lambda x, path=path: path)
        np.testing.assert_allclose(upsample_bilinear_2x(x).array, expected, rtol=0, atol=1e-6)


def test_gradient_of_upsampling(rng):
    x = chainer.Variable(rng.randn(1, 2, 3, 3))
    dy = rng.randn(1, 2, 6, 6)
    F.sum(upsample_bilinear_2x(x) * dy).backward()
    numeric = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):  # linear: the gradient is the response to unit vectors
        unit = np.zeros(x.shape)
        unit[index] = 1
        numeric[index] = (upsample_bilinear_2x(unit).array * dy).sum()
    np.testing.assert_allclose(x.grad, numeric, rtol=1e-10)


def test_keypoints_lie_in_their_boxes(model, image):
    (found,) = model.detect([image])
    assert len(found) >= 2 and found.keypoints.shape == (len(found), 17, 4)
    assert found.keypoints.dtype == np.float32
    assert not found.has_masks and found.masks is None
    low, high = found.boxes[:, None, :2], found.boxes[:, None, 2:]
    points = found.keypoints[:, :, :2]
    assert (points >= low).all() and (points <= np.maximum(high, low + 1)).all()
    assert (found.keypoints[:, :, 3] > 0).all() and (found.keypoints[:, :, 3] <= 1).all()


def test_keypoint_rois_are_boxes_in_the_network_input(model, image, monkeypatch):
    """The head pools the detections' boxes times the scale of the image (Detectron: ``im_scale``)."""
    head, pooled = model.keypoint_head, []
    pool = head.pool
    monkeypatch.setattr(
        head, 'pool', lambda features, rois, indices: pooled.append(rois) or pool(features, rois, indices)
    )
    (found,) = model.detect([image])
    (rois,) = pooled
    scale = 64 / 48  # the shorter side of the image becomes min_size
    assert len(found) > 0
    np.testing.assert_allclose(rois, found.boxes * scale, rtol=1e-6)


def test_keypoints_are_the_maxima_of_the_heat_maps(model, image, monkeypatch):
    """The maps are resized to the boxes by OpenCV; the probability is that of a softmax over the pixels."""
    maps, forward = [], KeypointHead.forward
    monkeypatch.setattr(KeypointHead, 'forward', lambda *args: maps.append(forward(*args)) or maps[-1])
    (found,) = model.detect([image])
    (heatmaps,) = maps
    assert heatmaps.shape[:2] == found.keypoints.shape[:2]
    for r, k in np.ndindex(heatmaps.shape[:2]):
        sides = np.maximum(found.boxes[r, 2:] - found.boxes[r, :2], 1)
        height, width = map(int, np.ceil(sides))
        resized = cv2.resize(heatmaps.array[r, k], (width, height), interpolation=cv2.INTER_CUBIC)
        point = np.array(np.unravel_index(resized.argmax(), resized.shape)) + 0.5
        y, x = point * sides / (height, width) + found.boxes[r, :2]
        expected = y, x, resized.max(), 1 / np.exp(resized.astype(np.float64) - resized.max()).sum()
        np.testing.assert_allclose(found.keypoints[r, k], expected, rtol=2e-5)  # measured: 8e-6


def test_chunks_of_rois_do_not_change_keypoints(model, image, monkeypatch):
    (expected,) = model.detect([image])
    monkeypatch.setattr(KeypointHead, 'cpu_chunk_size', 2)
    (found,) = model.detect([image])
    np.testing.assert_array_equal(found.keypoints[..., :2], expected.keypoints[..., :2])
    # Measured with five kinds of BLAS: logits up to 50 differ by 2.3e-5, probabilities by 1.1e-5.
    np.testing.assert_allclose(found.keypoints[..., 2], expected.keypoints[..., 2], rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.keypoints[..., 3], expected.keypoints[..., 3], rtol=3e-5)


def test_no_detections(model, image):
    (nothing,) = mask_rcnn.build(model.config, score_threshold=1.0).detect([image])
    assert nothing.keypoints.shape == (0, 17, 4) and nothing.to_coco(1) == []


def test_model_without_masks_is_a_chainercv_detection_link(model, image):
    assert_is_detection_link(model, 1)
    (boxes,), _, _ = model.predict([image])
    np.testing.assert_array_equal(boxes, model.detect([image])[0].boxes)


def test_model_with_masks_and_keypoints(small_head, image):
    (found,) = small_model('keypoint_resnet50_fpn', masks=True, **NARROW).detect([image])
    assert len(found) >= 2 and len(found.masks) == len(found.keypoints) == len(found)
    assert {'segmentation', 'keypoints'} <= set(found.to_coco(1)[0])


def test_loaded_model_finds_the_same_keypoints(model, image, tmp_path):
    mask_rcnn.save(tmp_path / 'model.npz', model)
    again = mask_rcnn.load(tmp_path / 'model.npz')
    assert again.config == model.config and again.class_names == ('person',)
    np.testing.assert_array_equal(again.detect([image])[0].keypoints, model.detect([image])[0].keypoints)


def test_keypoints_require_a_feature_pyramid():
    with pytest.raises(ValueError, match="keypoint networks need an FPN extractor, not 'resnet50'"):
        PRESETS['resnet50'].replace(n_keypoint=17)
