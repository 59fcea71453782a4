"""The sampled RoIs of several images as one batch, and the losses of the heads' outputs for them."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import Config
from mask_rcnn.targets import SampledRoIs
from mask_rcnn.training.roi_batch import RoIBatch
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.small_resnet import use_narrow_resnet

N_CLASSES, MASK_SIZE = 4, 6


def image_rois(labels, start):
    """Return RoIs whose coordinates and deltas are distinct numbers."""
    boxes = np.arange(4 * len(labels), dtype=np.float32).reshape(-1, 4) + start
    deltas = boxes[: sum(label > 0 for label in labels)] / 100
    return SampledRoIs(boxes, boxes / 2, np.array(labels, np.int32), deltas)


def test_the_foreground_of_all_images_is_first():
    first, second = image_rois([3, 1, 0, -1], 0), image_rois([2, 0], 100)
    batch = RoIBatch.join([first, second])
    np.testing.assert_array_equal(batch.labels, [3, 1, 2, 0, -1, 0])
    np.testing.assert_array_equal(batch.images, [0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(batch.boxes[:, 0], [0, 4, 100, 8, 12, 104])
    np.testing.assert_array_equal(batch.deltas, np.concatenate([first.deltas, second.deltas]))
    np.testing.assert_array_equal(batch.class_indices, [[0, 1, 2], [3, 1, 2]])
    assert (batch.n_foreground, batch.n_mask_rois, batch.n_images) == (3, 3, 2)
    assert {array.dtype for array in (batch.labels, batch.images, batch.class_indices)} == {np.dtype(np.int32)}


@pytest.mark.parametrize('label', [0, -1])
def test_without_foreground_the_first_roi_has_the_first_class(label):
    """An index of -1 would be outside the outputs of the heads."""
    batch = RoIBatch.join([image_rois([label, 0], 0)])
    np.testing.assert_array_equal(batch.class_indices, [[0], [1]])
    np.testing.assert_array_equal(batch.deltas, np.zeros((1, 4)))
    assert (batch.n_foreground, batch.n_mask_rois) == (0, 1)


@pytest.mark.parametrize('labels', [([3, 1, 0], [2, 0]), ([0, 0], [2, 1, 0]), ([0], [-1])])
def test_the_losses_are_those_of_the_classes_of_the_rois(rng, monkeypatch, labels):
    """Against loops over the RoIs, their deltas and their pixels, in double precision."""
    use_narrow_resnet(monkeypatch)
    chain = MaskRCNNTrainChain(mask_rcnn.build(Config(n_fg_class=N_CLASSES - 1)))
    rois = [image_rois(image_labels, 100 * i) for i, image_labels in enumerate(labels)]
    order = sorted((label <= 0, i, k) for i, image in enumerate(labels) for k, label in enumerate(image))
    n_foreground = sum(not is_background for is_background, *_ in order)
    shapes = (len(order), N_CLASSES), (len(order), 4 * N_CLASSES), (max(n_foreground, 1), 3, MASK_SIZE, MASK_SIZE)
    outputs = [chainer.Variable(rng.normal(size=shape).astype('f')) for shape in shapes]
    masks = rng.randint(0, 2, (n_foreground, MASK_SIZE, MASK_SIZE)).astype(np.int32)
    if not n_foreground:
        masks = np.full((1, MASK_SIZE, MASK_SIZE), -1, np.int32)
    monkeypatch.setattr(chain, '_run_heads', lambda *arguments: outputs)
    monkeypatch.setattr(chain, '_mask_targets', lambda *arguments: masks)
    losses = chain.roi_losses([], rois, [])

    scores, deltas, logits = (output.array.astype('d') for output in outputs)
    expected = dict.fromkeys(('roi_cls_loss', 'roi_loc_loss', 'roi_mask_loss', 'roi_accuracy'), 0.0)
    gradients = [np.zeros(shape) for shape in shapes[1:]]
    for row, (is_background, i, k) in enumerate(order):
        label, share = labels[i][k], 1 / len(labels) / max(sum(label >= 0 for label in labels[i]), 1)
        if label >= 0:
            expected['roi_cls_loss'] += share * (np.log(np.exp(scores[row]).sum()) - scores[row, label])
            expected['roi_accuracy'] += share * (scores[row].argmax() == label)
        if is_background:
            continue
        for c in range(4):
            d = deltas[row, 4 * label + c] - rois[i].deltas[k, c]
            expected['roi_loc_loss'] += share * (d * d / 2 if abs(d) < 1 else abs(d) - 0.5)
            gradients[0][row, 4 * label + c] = share * np.clip(d, -1, 1)
        n_masks = sum(label > 0 for label in labels[i])
        for pixel in np.ndindex(MASK_SIZE, MASK_SIZE):
            x, target = logits[(row, label - 1, *pixel)], masks[(row, *pixel)]
            mask_share = 1 / len(labels) / n_masks / MASK_SIZE**2
            expected['roi_mask_loss'] += mask_share * (np.log1p(np.exp(x)) - target * x)
            gradients[1][(row, label - 1, *pixel)] = mask_share * (1 / (1 + np.exp(-x)) - target)
    for name, value in expected.items():
        np.testing.assert_allclose(chainer.as_array(losses[name]), value, rtol=5e-7, err_msg=name)
    for name, output, gradient in zip(('roi_loc_loss', 'roi_mask_loss'), outputs[1:], gradients, strict=True):
        losses[name].backward()
        np.testing.assert_allclose(output.grad, gradient, rtol=2e-6, atol=1e-8, err_msg=name)
