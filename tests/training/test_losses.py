"""The losses and their gradients, against those of Detectron."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.ops.losses import elementwise
from mask_rcnn.ops.losses.softmax import softmax_cross_entropy
from mask_rcnn.training.losses import per_image_mean_weights


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_losses.npz')


def check(golden, name, predicted, loss, atol=1e-8):
    """Compare a loss and its gradient; ``atol`` is the tolerance of the gradient."""
    np.testing.assert_allclose(loss.array, golden[f'{name}_loss'], rtol=5e-7)
    assert loss.dtype == np.float32
    loss.backward()
    np.testing.assert_allclose(predicted.grad, golden[f'{name}_grad'], rtol=2e-6, atol=atol)


def sigmoid_cross_entropy(logits, labels, weights):
    """Return the loss of all elements."""
    flat = F.reshape(logits, (1, -1))
    return elementwise.sigmoid_cross_entropy(flat, all_of(flat), labels.ravel(), weights.ravel())


def smooth_l1(predicted, targets, weights, *, beta):
    """Return the loss of all elements."""
    flat = F.reshape(predicted, (1, -1))
    return elementwise.smooth_l1(flat, all_of(flat), targets.ravel(), weights.ravel(), beta=beta)


def all_of(x):
    return np.indices(x.shape, np.int32).reshape(2, -1)


def single_image_weights(counted):
    weights = per_image_mean_weights(counted.ravel(), np.zeros(counted.size, int), 1)
    return weights.reshape(counted.shape)


def test_objectness_loss(golden):
    logits = chainer.Variable(golden['rpn_cls_logits'])
    labels = golden['rpn_cls_labels']
    check(golden, 'rpn_cls', logits, sigmoid_cross_entropy(logits, labels, single_image_weights(labels >= 0)))


def test_anchor_box_loss(golden):
    predicted = chainer.Variable(golden['rpn_bbox_pred'])
    inside = golden['rpn_bbox_inside']
    assert set(np.unique(inside)) == {0, 1}  # so it can be a factor of the weights
    weights = golden['rpn_bbox_outside'] * inside
    loss = smooth_l1(predicted, golden['rpn_bbox_targets'], weights, beta=DETECTRON.losses.rpn_smooth_l1_beta)
    check(golden, 'rpn_bbox', predicted, loss)


def test_classification_loss(golden):
    scores = chainer.Variable(golden['cls_score'])
    labels = golden['cls_labels']
    check(golden, 'cls', scores, softmax_cross_entropy(scores, labels, single_image_weights(labels >= 0)))


def test_roi_box_loss(golden):
    predicted = chainer.Variable(golden['bbox_pred'])
    inside = golden['bbox_inside']
    assert set(np.unique(inside)) == {0, 1}
    loss = smooth_l1(
        predicted, golden['bbox_targets'], inside / np.float32(len(inside)), beta=DETECTRON.losses.box_smooth_l1_beta
    )
    check(golden, 'bbox', predicted, loss)


def test_mask_loss(golden):
    logits = chainer.Variable(golden['mask_logits'])
    labels = golden['mask_targets'].astype(np.int32)
    check(golden, 'mask', logits, sigmoid_cross_entropy(logits, labels, single_image_weights(labels >= 0)))


def test_keypoint_loss(golden):
    logits = chainer.Variable(golden['kps_logits_f16'].astype(np.float32))
    visible = golden['kps_weights'].ravel() > 0
    labels = np.where(visible, golden['kps_locations'].ravel(), -1).astype(np.int32)
    loss = softmax_cross_entropy(logits, labels, single_image_weights(visible))
    np.testing.assert_allclose(loss.array, golden['kps_loss'], rtol=5e-7)
    loss.backward()
    np.testing.assert_allclose(np.abs(logits.grad).sum(axis=1), golden['kps_grad_abs_sum'], rtol=2e-5)
    at_location = logits.grad[np.arange(len(labels)), golden['kps_locations'].ravel()]
    np.testing.assert_allclose(at_location, golden['kps_grad_at_location'], rtol=2e-6)


def test_float16_is_summed_in_float32(golden):
    scores = golden['cls_score'].astype(np.float16)
    labels = golden['cls_labels']
    weights = single_image_weights(labels >= 0)
    variable = chainer.Variable(scores)
    loss = softmax_cross_entropy(variable, labels, weights)
    np.testing.assert_array_equal(loss.array, softmax_cross_entropy(scores.astype(np.float32), labels, weights).array)
    loss.backward()
    assert loss.dtype == np.float32 and variable.grad.dtype == np.float16


def test_smooth_l1_is_continuous_at_beta():
    for beta in (DETECTRON.losses.rpn_smooth_l1_beta, DETECTRON.losses.box_smooth_l1_beta):
        x = np.array([0.999999, 1, 1.000001], np.float32) * np.float32(beta)
        values = [float(smooth_l1(v, np.zeros_like(v), np.ones_like(v), beta=beta).array) for v in x.reshape(3, 1)]
        np.testing.assert_allclose(values, beta / 2, rtol=3e-6)


def test_every_image_has_the_same_weight():
    counted = np.array([True, True, False, True, False, True, True])
    images = np.array([0, 0, 0, 1, 1, 3, 3])
    weights = per_image_mean_weights(counted, images, 4)
    np.testing.assert_allclose(weights, [1 / 8, 1 / 8, 0, 1 / 4, 0, 1 / 8, 1 / 8], rtol=1e-7)
    assert weights.dtype == np.float32


def test_elements_may_count_several_values():
    weights = per_image_mean_weights(np.array([3, 0, 1, 2]), np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(weights, [1 / 8, 0, 1 / 8, 1 / 4], rtol=1e-7)


def test_without_counted_elements_the_loss_is_zero():
    labels = np.full((2, 3), -1, np.int32)
    logits = chainer.Variable(np.ones((2, 3), np.float32))
    loss = sigmoid_cross_entropy(logits, labels, single_image_weights(labels >= 0))
    loss.backward()
    assert float(loss.array) == 0 and not logits.grad.any()
