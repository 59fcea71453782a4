"""The RPN's proposals against formulas: the deltas, and the settings of the configuration."""

import chainer
import numpy as np
import pytest

from mask_rcnn.config import Config
from mask_rcnn.models.rpn import RPN
from mask_rcnn.ops.boxes.anchors import shift_anchors
from mask_rcnn.preprocessing.image_transform import ImageTransform

STRIDE, SIDE = 16, 32


def proposals(n_rows, n_columns, *, logits=None, deltas=None, scale=1.0, **changes):
    """Return the proposals of a map with one square anchor per location.

    The anchor of row ``i`` and column ``j`` has its centre at ``(16 * i + 8, 16 * j + 8)`` and, by Detectron's
    counting, the corners ``centre - 16`` and ``centre + 15``.
    """
    rpn = RPN(4, strides=(STRIDE,), config=Config(anchor_sizes=(SIDE,), anchor_ratios=(1,), **changes))
    if logits is None:
        logits = np.zeros((n_rows, n_columns))
    if deltas is None:
        deltas = np.zeros((4, n_rows, n_columns))
    transform = ImageTransform.top_left((round(64 / scale), round(64 / scale)), scale)
    boxes, _ = rpn.decode([np.float32(logits)[None]], [np.float32(deltas)], (64, 64), transform)
    return boxes


def test_deltas_are_in_units_of_the_anchor():
    """Ren et al. 2015, equation 2: the centre moves by ``dy`` heights, and the height is multiplied by ``exp(dh)``."""
    logits, deltas = np.full((3, 3), -5.0), np.zeros((4, 3, 3))
    logits[2, 1] = 5
    deltas[:, 2, 1] = 0.25, -0.125, np.log(0.5), np.log(0.75)
    y, x = 2 * STRIDE + 8 + 0.25 * SIDE, STRIDE + 8 - 0.125 * SIDE
    best = proposals(3, 3, logits=logits, deltas=deltas)[0]
    np.testing.assert_allclose(best, [y - 8, x - 12, y + 8 - 1, x + 12 - 1], rtol=1e-6)


@pytest.mark.parametrize(('threshold', 'count'), [(0.39, 1), (0.41, 2)])
def test_proposals_are_suppressed_at_the_threshold_of_the_rpn(threshold, count):
    """Clipped to the input, two neighbours are 24 and 32 pixels wide and share 16: their IoU is 16 / 40."""
    boxes = proposals(1, 2, rpn_nms_threshold=threshold)
    np.testing.assert_array_equal(boxes, np.float32([[0, 0, 23, 23], [0, 8, 23, 39]])[:count])


def test_small_proposals_are_dropped_in_pixels_of_the_original_image():
    """At a scale of 2, sides of 24 and 32 input pixels are 23 / 2 + 1 and 31 / 2 + 1 pixels of the image."""
    assert len(proposals(2, 2, scale=2.0, rpn_min_size=12.5)) == 4
    boxes = proposals(2, 2, scale=2.0, rpn_min_size=16.5)
    np.testing.assert_array_equal(boxes, [[8, 8, 39, 39]])
    assert len(proposals(2, 2, scale=2.0, rpn_min_size=17)) == 0


def test_the_numbers_of_proposals_are_limited():
    """``rpn_pre_nms`` limits the anchors before NMS, ``rpn_post_nms`` the proposals after it."""
    logits = np.arange(16.0).reshape(4, 4)[::-1, ::-1]  # the first anchor has the highest score
    assert len(proposals(4, 4, logits=logits)) == 16
    assert len(proposals(4, 4, logits=logits, rpn_pre_nms=5)) == 5
    few = proposals(4, 4, logits=logits, rpn_post_nms=2)
    np.testing.assert_array_equal(few, [[0, 0, 23, 23], [0, 8, 23, 39]])


def test_anchors_follow_the_sizes_of_the_maps():
    """The anchors of the last sizes are kept, and replaced for other sizes."""
    rpn = RPN(4, strides=(STRIDE,), config=Config(anchor_sizes=(SIDE,), anchor_ratios=(1,)))
    for height, width in ((2, 3), (3, 2), (3, 2), (1, 6)):
        (anchors,) = rpn.anchors([(height, width)], (96, 96))
        rows, columns = np.divmod(np.arange(6), width)
        corner = np.stack([rows, columns], axis=1) * STRIDE + 8 - SIDE / 2
        np.testing.assert_array_equal(anchors, np.concatenate([corner, corner + SIDE - 1], axis=1))


def test_host_anchors_are_those_of_all_maps():
    rpn = RPN(4, strides=(8, 16), config=Config(anchor_sizes=(32, 64), anchor_ratios=(0.5, 1)))
    for sizes in (((4, 6), (2, 3)), ((2, 4), (1, 2))):
        fine, coarse = rpn.anchors(sizes, (32, 48))
        assert len(fine) == 2 * sizes[0][0] * sizes[0][1] and len(coarse) == 2 * sizes[1][0] * sizes[1][1]
        np.testing.assert_array_equal(fine, shift_anchors(rpn.cell_anchors[0], 8, *sizes[0]))
        np.testing.assert_array_equal(coarse, shift_anchors(rpn.cell_anchors[1], 16, *sizes[1]))
        anchors = rpn.host_anchors(sizes, (32, 48))
        assert isinstance(anchors, np.ndarray)
        np.testing.assert_array_equal(anchors, np.concatenate([fine, coarse]))


def test_all_images_of_a_batch_have_their_own_scale():
    """The minimum size is 16.5 pixels of the image: at a scale of 2, only a box of 32 input pixels has that size."""
    config = Config(anchor_sizes=(SIDE,), anchor_ratios=(1,), rpn_min_size=16.5)
    rpn = RPN(4, strides=(STRIDE,), config=config)
    for layer in (rpn.objectness, rpn.delta):
        layer.W.array[...] = 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        transforms = [ImageTransform.top_left((64, 64), 1.0), ImageTransform.top_left((32, 32), 2.0)]
        first, second = rpn.propose([np.zeros((2, 4, 2, 2), np.float32)], (64, 64), transforms)
    assert len(first) == 4
    np.testing.assert_array_equal(second, [[8, 8, 39, 39]])
