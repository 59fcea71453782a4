"""The differences that the dialects of torchvision and detectron2 make in anchors, proposals, RoIs and detections."""

import chainer
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, DETECTRON2, MATTERPORT, PRESETS, TORCHVISION, Config
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models import box_head
from mask_rcnn.models.roi_pooling import RoIPooling, assign_levels
from mask_rcnn.models.rpn import RPN
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.preprocessing.image_transform import ImageTransform

DIALECTS = pytest.mark.parametrize('dialect', [TORCHVISION, DETECTRON2], ids=lambda dialect: dialect.name)
#: An image of 40 x 60 pixels, resized to 79 x 120 in an input of 96 x 128.
TRANSFORM = ImageTransform((40, 60), 2.0, (79 / 40, 2.0), (0.0, 0.0, 78.0, 119.0), (79, 120))
INPUT_SIZE = 96, 128


def make_rpn(dialect, **changes):
    """Return an RPN with one square anchor of 32 x 32 pixels per location, whose centre is the first pixel."""
    anchors = {'anchor_sizes': (32,), 'anchor_ratios': (1,)}
    return RPN(4, strides=(16,), config=Config(dialect=dialect, **{**anchors, **changes}))


def propose(rpn, *, deltas=(0, 0, 0, 0), padded=False, transform=TRANSFORM):
    """Return the proposals of a map with equal deltas; the last locations have the highest scores."""
    logits = np.arange(48, dtype=np.float32).reshape(1, 6, 8)
    deltas = np.broadcast_to(np.float32(deltas)[:, None, None], (4, 6, 8))
    boxes, scores = rpn.decode([logits], [deltas], INPUT_SIZE, transform, padded=padded)
    return boxes[scores > -np.inf], scores[scores > -np.inf]


@pytest.mark.parametrize('size', [(2, 3), (3, 3)])
def test_anchors_have_the_distance_of_the_sizes(size):
    """A map of 3 rows of an input of 96 has a row every 32 pixels, whatever the stride."""
    (torchvision,) = make_rpn(TORCHVISION).anchors([size], (96, 100))
    (detectron2,) = make_rpn(DETECTRON2).anchors([size], (96, 100))
    last = np.array(size) - 1
    np.testing.assert_array_equal(torchvision[-1, :2], last * [96 // size[0], 33] - 16)
    np.testing.assert_array_equal(detectron2[-1, :2], last * 16 - 16)


def test_anchors_of_another_input_are_not_kept():
    """Two inputs may have feature maps of one size."""
    rpn = make_rpn(TORCHVISION)
    for height in (96, 80, 96):
        (anchors,) = rpn.anchors([(2, 2)], (height, 64))
        assert anchors[-1, 0] == height // 2 - 16
        np.testing.assert_array_equal(rpn.host_anchors([(2, 2)], (height, 64)), anchors)


@DIALECTS
@pytest.mark.parametrize('padded', [False, True])
def test_proposals_are_clipped_to_the_image_in_the_input(dialect, padded):
    """The last coordinates are its height and width, not those of the padded input."""
    rpn = make_rpn(dialect, rpn_min_size=0.0, rpn_nms_threshold=1.0)
    boxes, _ = propose(rpn, padded=padded)
    assert boxes[:, 2:].max(axis=0).tolist() == [79, 120] and boxes.min() == 0
    clipped, _ = rpn.decode([np.zeros((1, 6, 8), 'f')], [np.zeros((4, 6, 8), 'f')], INPUT_SIZE, TRANSFORM)
    assert clipped[:, 2:].max(axis=0).tolist() == [79, 120]
    padding, _ = rpn.decode(
        [np.zeros((1, 6, 8), 'f')], [np.zeros((4, 6, 8), 'f')], INPUT_SIZE, TRANSFORM, clip_to_image=False
    )
    assert padding[:, 2:].max(axis=0).tolist() == [96, 128]


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize(
    ('min_size', 'inclusive', 'count'),
    [(3, True, 48), (3, False, 40), (4, True, 40), (4, False, 28), (8, True, 28), (8, False, 0)],
)
def test_the_minimum_size_is_in_pixels_of_the_input(padded, min_size, inclusive, count):
    """Boxes of 8 pixels have 4 of them in the first row and column, and 3 in the last row, whatever the scale."""
    dialect = TORCHVISION.replace(rpn={'min_size_inclusive': inclusive})
    boxes, _ = propose(make_rpn(dialect, anchor_sizes=(8,), rpn_min_size=float(min_size)), padded=padded)
    assert len(boxes) == count


@pytest.mark.parametrize('padded', [False, True])
def test_detectron2_drops_empty_proposals(padded):
    """Clipped to the image, boxes below it have no height; torchvision's minimum of 0 would keep them."""
    for dialect, count in ((TORCHVISION, 48), (DETECTRON2, 0)):
        boxes, _ = propose(make_rpn(dialect, rpn_min_size=0.0), deltas=(10, 0, 0, 0), padded=padded)
        assert len(boxes) == count
    assert len(propose(make_rpn(DETECTRON2, rpn_min_size=0.0, rpn_nms_threshold=1.0), padded=padded)[0]) == 48


@pytest.mark.parametrize('padded', [False, True])
def test_saturated_probabilities_do_not_tie(padded):
    """The logits 40 to 87 have the probability 1; the last of them is the highest."""
    for dialect, first in ((TORCHVISION, 47), (DETECTRON2, 47), (DETECTRON, 0)):
        rpn = make_rpn(dialect, rpn_nms_threshold=1.0, rpn_min_size=0.0)
        logits = 40 + np.arange(48, dtype=np.float32).reshape(1, 6, 8)
        boxes, _ = rpn.decode([logits], [np.zeros((4, 6, 8), 'f')], (200, 200), TRANSFORM, clip_to_image=False)
        (anchors,) = rpn.anchors([(6, 8)], (200, 200))
        np.testing.assert_array_equal(boxes[0], np.maximum(anchors[first], 0))


@pytest.mark.parametrize(
    ('relative', 'torchvision', 'detectron2'),
    [
        (0.9, 1, 1),
        (1 - 2e-6, 1, 1),
        (1 - 3e-7, 2, 1),
        (1, 2, 2),
        (1.1, 2, 2),
        (1e-9, 0, 0),
        (2 - 6e-7, 3, 2),
        (9, 3, 3),
    ],
)
def test_levels_at_their_borders(relative, torchvision, detectron2):
    """Torchvision adds 1e-6 to the level: a size of (1 - 3e-7) * 224 pixels is of the level of 224 pixels."""
    side = np.float32(224) * np.float32(relative)
    roi = np.float32([[0, 0, side, side]])
    for dialect, level in ((TORCHVISION, torchvision), (DETECTRON2, detectron2)):
        assert assign_levels(roi, (4, 8, 16, 32), canonical_size=224, dialect=dialect) == [level]


@pytest.mark.parametrize(('dialect', 'aligned'), [(DETECTRON, False), (TORCHVISION, False), (DETECTRON2, True)])
@pytest.mark.parametrize('strides', [(16,), (4, 8, 16, 32, 64)])
def test_rois_are_aligned_in_detectron2(rng, dialect, aligned, strides):
    features = [rng.standard_normal((1, 2, 64 // stride, 96 // stride)).astype(np.float32) for stride in strides]
    pool = RoIPooling(strides, 7, config=Config(dialect=dialect, sampling_ratio=0, roi_canonical_size=224))
    rois, indices = np.float32([[3, 5, 40, 60]]), np.zeros(1, np.int32)
    options = {'output_size': 7, 'spatial_scale': 1 / strides[0], 'aligned': aligned}
    expected = roi_align(features[0], rois, indices, **options).array
    np.testing.assert_array_equal(pool(features, rois, indices).array, expected)


@DIALECTS
def test_detections_are_clipped_to_the_image_in_the_input(dialect):
    """Their last coordinates are its height and width; those of Matterport are its last pixels."""
    boxes = np.float32([[-3, 4, 90, 130], [10, -1, 20, 119.5]])
    found = box_head.clip_to_image(boxes, TRANSFORM, dialect)
    np.testing.assert_array_equal(found, np.float32([[0, 4, 79, 120], [10, 0, 20, 119.5]]))
    transform = ImageTransform.letterbox((40, 60), 2.0, 128)
    np.testing.assert_array_equal(transform.window, [24, 4, 103, 123])
    for other, last in ((dialect, (104, 124)), (MATTERPORT, (103, 123))):
        found = box_head.clip_to_image(np.float32([[0, 0, 128, 128]]), transform, other)
        np.testing.assert_array_equal(found, [[24, 4, *last]])


def head_of(dialect, **changes):
    return box_head.BoxHead(Config(n_fg_class=2, dialect=dialect, score_threshold=0.1, **changes))


def test_torchvision_drops_small_boxes_of_the_input():
    """A side of 0.0099 pixels of the input is too small, although no box is dropped by its size in the image."""
    rois = np.float32([[0, 0, 40, 40], [50, 50, 50.0099, 60], [60, 60, 60.02, 80]])
    probs, deltas = np.float32([[0.1, 0.9, 0]] * 3), np.zeros((3, 12), np.float32)
    for dialect, kept in ((TORCHVISION, [0, 2]), (DETECTRON2, [0, 1, 2])):
        boxes, labels, _ = head_of(dialect).decode(rois, probs, deltas, TRANSFORM)
        np.testing.assert_allclose(boxes, rois[kept], rtol=1e-6)
        assert not labels.any()


@pytest.mark.parametrize(('dialect', 'count'), [(TORCHVISION, 2), (DETECTRON2, 1)])
def test_shifts_count_from_the_background_in_torchvision(dialect, count):
    """Shifted by 1024 pixels, corners are multiples of 1/8192: the IoU of the first two boxes becomes 0.5."""
    rois = np.float32([[0, 0, 4, 2 - 4e-5], [0, 0, 4, 1 + 4e-5], [0, 0, 1023, 1023]])
    probs, deltas = np.float32([[0.1, 0.9, 0], [0.1, 0.8, 0], [0.1, 0, 0.9]]), np.zeros((3, 12), np.float32)
    transform = ImageTransform.top_left((1023, 1023), 1.0)
    _, labels, _ = head_of(dialect, nms_threshold=0.5).decode(rois, probs, deltas, transform)
    assert np.count_nonzero(labels == 0) == count and np.count_nonzero(labels == 1) == 1


class FixedNetwork:
    """The interface of a network that :meth:`Predictor.postprocess` uses."""

    class_names = category_ids = None
    device, xp = chainer.get_device('@numpy'), np

    def __init__(self, dialect):
        self.config = PRESETS['resnet50'].replace(dialect=dialect, n_fg_class=2)


@pytest.mark.parametrize(('dialect', 'kept'), [(TORCHVISION, [0, 1, 2, 3]), (DETECTRON2, [0, 2])])
def test_boxes_of_the_image(dialect, kept):
    """The factors of both axes differ; detectron2 clips the results, and drops empty boxes with their masks."""
    boxes = np.float32([[10, 20, 79, 120], [7, 30, 7, 60], [-1, 0, 79.5, 121], [79, 0, 81, 9]])
    expected = boxes.astype(np.float64) * np.tile([40 / 79, 60 / 120], 2)
    if dialect is DETECTRON2:
        expected = np.clip(expected, 0, [40, 60, 40, 60])
    labels, scores = np.int32([0, 1, 0, 1]), np.float32([0.9, 0.8, 0.7, 0.6])
    probs, keypoints = np.full((4, 14, 14), scores[:, None, None]), np.zeros((4, 3, 4), np.float32)
    keypoints[:, 0, 0] = scores
    found = Predictor(FixedNetwork(dialect)).postprocess(boxes, labels, scores, probs, keypoints, TRANSFORM)
    np.testing.assert_allclose(found.boxes, expected[kept], rtol=3e-7)
    np.testing.assert_array_equal(found.scores, scores[kept])
    np.testing.assert_array_equal(found.mask_probs[:, 0, 0], scores[kept])
    np.testing.assert_array_equal(found.keypoints[:, 0, 0], scores[kept])
