"""The differences that Matterport's dialect makes in the network, one by one."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON, FPN_STRIDES, MATTERPORT, PRESETS
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.box_head import clip_to_image
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.models.roi_pooling import RoIPooling, assign_levels
from mask_rcnn.ops.boxes.boxes import decode_boxes
from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import Sampling, sample_rois
from mask_rcnn.training.losses import box_loss_weights
from mask_rcnn.training.train_chain import MaskRCNNTrainChain

CONFIG = PRESETS['resnet50_fpn'].replace(
    dialect=MATTERPORT, n_fg_class=2, min_size=64, max_size=64, rpn_post_nms=20, max_detections=5
)
STRIDES = (4, 8, 16, 32)


@pytest.fixture(scope='module')
def model():
    np.random.seed(0)
    return mask_rcnn.build(CONFIG, norm='bn')


def test_epsilon_is_that_of_keras(model):
    epsilons = {link.eps for link in model.links() if isinstance(link, chainer.links.BatchNormalization)}
    assert epsilons == {1e-3}


def test_stem_pooling_pads_below_and_to_the_right(rng):
    """TensorFlow's SAME padding: with an even number of rows, the first window begins at the first row."""
    backbone = ResNet('resnet50', norm='affine', outputs=(2,), pool_pad=0)
    x = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
    h = ConvNorm.forward(backbone.conv1, x, relu=True).array
    padded = np.pad(h, ((0, 0), (0, 0), (0, 1), (0, 1)))
    expected = np.max([padded[:, :, i : i + 16 : 2, j : j + 16 : 2] for i in range(3) for j in range(3)], axis=0)
    np.testing.assert_array_equal(backbone.conv1(x).array, expected)


def test_anchors_are_centred_on_the_first_pixels(model):
    finest, *_ = model.rpn.anchors([(2, 3)] * 5, (128, 192))
    height, width = 32 * np.sqrt(0.5), 32 / np.sqrt(0.5)  # ratio 0.5: the width is twice the height
    np.testing.assert_allclose(finest[0], [-height / 2, -width / 2, height / 2 - 1, width / 2 - 1], rtol=1e-6)
    np.testing.assert_array_equal(finest[4 * 3] - finest[0], [4, 4, 4, 4])


@pytest.mark.parametrize(
    ('side', 'level'), [(1, 0), (79, 0), (80, 1), (158, 1), (159, 2), (316, 2), (317, 3), (1000, 3)]
)
def test_levels_are_rounded_to_the_nearest(side, level):
    """The borders lie at 224 times 2 ** (n + 0.5): 79.2, 158.4 and 316.8."""
    roi = np.float32([[0, 0, side, side]])
    assert assign_levels(roi, STRIDES, canonical_size=224, dialect=MATTERPORT) == [level]


def test_empty_roi_belongs_to_the_finest_level():
    assert assign_levels(np.zeros((1, 4), np.float32), STRIDES, canonical_size=224, dialect=MATTERPORT) == [0]


def test_rois_are_cropped_and_resized(rng):
    """The level is that of normalised boxes: their sides are (x2 - x1) / (S - 1), and sizes are relative to S."""
    pool = RoIPooling((*STRIDES, 64), 7, config=CONFIG)
    maps = [rng.standard_normal((1, 2, 1024 // s, 1024 // s)).astype(np.float32) for s in (*STRIDES, 64)]
    rois = np.zeros((46, 4), np.float32)
    rois[:40, 2:] = np.exp(rng.uniform(3, 6.8, (40, 2)))
    borders = 224 * 2 ** (np.arange(-2, 1) + 0.5) * 1023 / 1024  # sides of squares between two levels
    rois[40:, 2:] = np.append(borders - 0.03, borders + 0.03)[:, None]
    pooled = pool(maps, rois, np.zeros(46, np.int32)).array
    normalised = rois / np.float32(1023)
    sizes = np.sqrt(np.prod(normalised[:, 2:], axis=1))
    levels = np.clip(np.rint(np.log2(sizes * 1024 / 224)), -2, 1).astype(int) + 2
    assert len(set(levels)) == 4 and levels[40:].tolist() == [0, 1, 2, 1, 2, 3]
    for i, level in enumerate(levels):
        alone = crop_and_resize(maps[level], normalised[i : i + 1], np.zeros(1, np.int32), output_size=7)
        np.testing.assert_allclose(pooled[i : i + 1], alone.array, rtol=0, atol=1e-5)


def test_boxes_are_integers_and_empty_boxes_are_dropped(model):
    """The second corner is excluded from a box; boxes that are empty after rounding are dropped."""
    transform = ImageTransform.letterbox((32, 64), 1.0, 64)
    boxes = np.float32([[16, 0, 47, 63], [20.2, 3.1, 20.4, 9.4], [17, 5.4, 16.4, 6]])
    labels, scores = np.int32([0, 1, 0]), np.float32([0.9, 0.8, 0.7])
    found = Predictor(model).postprocess(boxes, labels, scores, None, None, transform)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 32, 64], [4, 3, 5, 10]])
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.8]))
    assert found.to_coco(1)[0]['bbox'] == [0, 0, 64, 32]


def test_boxes_are_clipped_to_the_window(model):
    transform = ImageTransform.letterbox((32, 64), 1.0, 64)
    clipped = clip_to_image(np.float32([[0, -5, 63, 70]]), transform, MATTERPORT)
    np.testing.assert_array_equal(clipped, [[16, 0, 47, 63]])


def test_detection_runs(model, rng):
    image = rng.uniform(0, 255, (3, 40, 60)).astype(np.float32)
    (found,) = model.detect([image])
    assert found.size == (40, 60) and found.masks.shape == (len(found), 40, 60)


def test_box_loss_weights_of_both_dialects():
    weights = np.full(5, 0.1, np.float32)
    positive, images = np.array([True, False, True, False, True]), np.array([0, 0, 0, 1, 1])
    found = box_loss_weights(weights, positive, images, 2, DETECTRON)
    np.testing.assert_array_equal(found, weights * positive)
    found = box_loss_weights(weights, positive, images, 2, MATTERPORT)
    np.testing.assert_allclose(found, np.array([1 / 2, 0, 1 / 2, 0, 1]) / 2 / 4)


def test_targets_decode_to_the_objects(model):
    """Anchors and RoIs of a letterboxed image, moved by their targets, are the objects."""
    chain = MaskRCNNTrainChain(model, sampling=Sampling(rpn_straddle=-1))
    boxes = np.float32([[3, 4, 20, 30], [10, 30, 29, 58]])
    annotations = Annotations(boxes, np.int32([0, 1]), np.zeros(2, bool), ((), ()))
    image = np.zeros((3, 32, 61), np.float32)
    one = TrainingTransform(CONFIG, Augmentation(flip=False))(Example(image, annotations, 'a.png', 1), 0)
    objects = one.image_transform.apply_boxes(boxes)
    assert (objects[:, [0, 2]] > 16).all()  # shifted by the letterbox
    random = [np.random.RandomState(0)]
    sizes = [(64 // s, 64 // s) for s in FPN_STRIDES]
    (targets,) = chain.anchor_targets([one], sizes, random)
    positive = targets.labels == 1
    decoded = decode_boxes(
        np.concatenate(model.rpn.anchors(sizes, (64, 64)))[targets.indices[positive]],
        targets.deltas[positive],
        weights=MATTERPORT.boxes.rpn_delta_weights,
        offset=0,
    )
    distance = np.abs(decoded[:, None] - objects[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-3 and (distance.min(axis=0) < 1e-3).all()
    rois = sample_rois(
        objects + np.float32([1, -1, 2, 0]),
        annotations,
        one.image_transform,
        sampling=chain.sampling,
        dialect=MATTERPORT,
        rng=random[0],
    )
    foreground = slice(rois.n_foreground)
    decoded = decode_boxes(rois.rois[foreground], rois.deltas, weights=MATTERPORT.boxes.box_delta_weights, offset=0)
    np.testing.assert_allclose(decoded, objects[rois.labels[foreground] - 1], rtol=0, atol=1e-3)
