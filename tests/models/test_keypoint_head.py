"""The keypoint head, its layers and its results."""

import chainer
import chainer.functions as F
import cv2
import numpy as np
import pytest
from chainercv.utils import assert_is_detection_link

import mask_rcnn
from mask_rcnn.config import DETECTRON, DIALECTS, PRESETS
from mask_rcnn.models import keypoint_head
from mask_rcnn.models.keypoint_head import KeypointHead, upsample_bilinear_2x
from mask_rcnn.preprocessing.image_transform import ImageTransform
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


@pytest.mark.parametrize('shape', [(2, 3, 5, 7), (1, 1, 1, 2)])
def test_upsampling_repeats_the_border(rng, monkeypatch, shape):
    """The maps are read at ``(i + 0.5) / 2 - 0.5``, positions outside are moved to the border (PyTorch)."""
    x = rng.randn(*shape).astype(np.float32)
    rows, columns = (
        np.maximum(1 - np.abs(np.clip(np.arange(2 * n) / 2 - 0.25, 0, n - 1)[:, None] - np.arange(n)), 0)
        for n in shape[2:]
    )
    expected = rows @ x @ columns.T
    for path in ('cpu', 'graph', 'cudnn_graph', 'cudnn'):
        monkeypatch.setattr(keypoint_head, 'select_path', lambda x, path=path: path)
        found = upsample_bilinear_2x(x, border='repeat').array
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('border', ['zero', 'repeat'])
def test_gradient_of_upsampling(rng, border):
    x = chainer.Variable(rng.randn(1, 2, 3, 3))
    dy = rng.randn(1, 2, 6, 6)
    F.sum(upsample_bilinear_2x(x, border=border) * dy).backward()
    numeric = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):  # linear: the gradient is the response to unit vectors
        unit = np.zeros(x.shape)
        unit[index] = 1
        numeric[index] = (upsample_bilinear_2x(unit, border=border).array * dy).sum()
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


@pytest.mark.parametrize('softmax_grid', ['resized', 'predicted'])
@pytest.mark.parametrize('decode_in_input', [False, True])
@pytest.mark.parametrize('in_input', [False, True])
def test_boxes_in_which_heat_maps_are_decoded(small_head, rng, monkeypatch, in_input, decode_in_input, softmax_grid):
    """The input has 2 x 1.5 times the size of the image, at (3, 4); the first box is lower than a pixel."""
    conventions = {'decode_in_input': decode_in_input, 'softmax_grid': softmax_grid}
    dialect = DETECTRON.replace(detections={'postprocess_in_input_space': in_input}, keypoints=conventions)
    head = KeypointHead(8, pool=None, config=PRESETS['keypoint_resnet50_fpn'].replace(dialect=dialect))
    transform = ImageTransform((50, 60), 2.0, (2.0, 1.5), (3.0, 4.0, 102.0, 93.0), (110, 100))
    in_image = np.float32([[10, 20, 10.25, 41], [5.5, 7.25, 40, 31]])
    input_boxes = in_image * np.float32([2, 1.5, 2, 1.5]) + np.float32([3, 4, 3, 4])
    heatmaps = rng.normal(0, 3, (4, 2, 28, 28)).astype(np.float32)

    def predict(features, rois, roi_indices):
        np.testing.assert_array_equal(rois, np.tile(input_boxes, (2, 1)))
        return (heatmaps,)

    monkeypatch.setattr(head, '_predict_heatmaps', predict)
    boxes = input_boxes if in_input else in_image
    features = [np.zeros((2, 8, 4, 4), np.float32)]
    keypoints = np.concatenate(head.predict(features, [boxes, boxes], [transform, transform]))
    for r, k in np.ndindex(4, 2):
        box = (input_boxes if decode_in_input else in_image)[r % 2]
        sides = np.maximum(box[2:] - box[:2], 1)
        height, width = map(int, np.ceil(sides))
        resized = cv2.resize(heatmaps[r, k], (width, height), interpolation=cv2.INTER_CUBIC)
        y, x = (np.array(np.unravel_index(resized.argmax(), resized.shape)) + 0.5) * sides / (height, width) + box[:2]
        if decode_in_input:
            y, x = (y - 3) / 2, (x - 4) / 1.5
        grid = resized if softmax_grid == 'resized' else heatmaps[r, k]
        expected = y, x, resized.max(), 1 / np.exp(grid.astype(np.float64) - resized.max()).sum()
        np.testing.assert_allclose(keypoints[r, k], expected, rtol=2e-5)


@pytest.mark.parametrize('dialect', DIALECTS)
def test_heat_maps_are_upsampled_by_the_dialect(dialect, small_head, rng):
    config = PRESETS['keypoint_resnet50_fpn'].replace(dialect=DIALECTS[dialect], max_size=1344)
    head = KeypointHead(8, pool=None, config=config)
    head.deconv.W.array[...], head.deconv.b.array[...] = 0, 1
    heatmaps = head(rng.randn(1, 8, 14, 14).astype(np.float32)).array
    border = 1 if config.dialect.keypoints.upsample_border == 'repeat' else 0.75
    np.testing.assert_allclose(heatmaps[0, 0, [0, -1, 20], [20, 20, -1]], border, rtol=1e-6)
    np.testing.assert_allclose(heatmaps[0, 0, [0, -1, 0], [0, -1, -1]], border**2, rtol=1e-6)
    np.testing.assert_allclose(heatmaps[:, :, 1:-1, 1:-1], 1, rtol=1e-6)


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
