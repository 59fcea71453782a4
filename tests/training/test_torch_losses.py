"""The train chain in the dialects of torchvision and detectron2: divisors of losses, masks, keypoints, and a GPU."""

import dataclasses

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DENA, DETECTRON, DETECTRON2, PRESETS, TORCHVISION
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import IGNORED, RPNTargets, SampledRoIs, Sampling, rpn_targets, sample_rois, share_rois
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import SAMPLING, example, run_backward

SMALL = {'fpn_channels': 16, 'rpn_channels': 16, 'head_channels': 16, 'mask_channels': 16}
DIALECTS = {'torchvision': TORCHVISION, 'detectron2': DETECTRON2}


def small_chain(dialect, preset='resnet50_fpn', **changes):
    """Return the chain of a randomly initialised narrow network."""
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        patch.setattr(KeypointHead, 'n_conv', 2)
        patch.setattr(KeypointHead, 'channels', 16)
        if preset != 'resnet50':
            changes = {**SMALL, 'anchor_sizes': (8, 16, 32, 64, 128), **changes}
        model = mask_rcnn.build(PRESETS[preset].replace(dialect=dialect, n_fg_class=3, **changes))
    if model.config.n_keypoint:
        model.keypoint_head.n_conv = 2
    freeze(model)
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


@pytest.fixture(scope='module', params=DIALECTS)
def chain(request):
    return small_chain(DIALECTS[request.param])


@pytest.mark.parametrize('preset', ['resnet50', 'resnet50_fpn'])
@pytest.mark.parametrize(
    ('dialect', 'divisors'), [(TORCHVISION, (10, 10)), (DETECTRON2, (32, 32)), (DETECTRON, (32, 10))]
)
def test_divisors_of_the_losses_of_anchors(rng, preset, dialect, divisors):
    """Ten anchors are sampled of 32 requested ones; formulas in double precision.

    Only FPNs of Detectron divide the objectness loss by the requested number.
    """
    chain = small_chain(dialect, preset)
    logits, deltas = rng.randn(1, 300).astype('f'), rng.randn(1, 300, 4).astype('f')
    labels = np.repeat([1, 0], [4, 6]).astype(np.int32)
    targets = np.zeros((10, 4), np.float32)
    targets[:4] = rng.randn(4, 4)
    anchors = RPNTargets(rng.permutation(300)[:10], labels, targets)
    found = chain.rpn_losses(chainer.Variable(logits), chainer.Variable(deltas), [anchors])
    z, d = logits[0, anchors.indices].astype('f8'), np.abs(deltas[0, anchors.indices[:4]].astype('f8') - targets[:4])
    beta = {'torchvision': 1 / 9, 'detectron2': 0, 'detectron': 1 / 9}[dialect.name]
    smooth = d if beta == 0 else np.where(d < beta, d**2 / (2 * beta), d - beta / 2)
    entropy = np.log1p(np.exp(np.where(labels == 1, -z, z))).sum()
    cls_divisor = 10 if dialect is DETECTRON and preset == 'resnet50' else divisors[0]
    np.testing.assert_allclose(float(found['rpn_cls_loss'].array), entropy / cls_divisor, rtol=1e-6)
    np.testing.assert_allclose(float(found['rpn_loc_loss'].array), smooth.sum() / divisors[1], rtol=1e-6)


@pytest.mark.parametrize(('dialect', 'beta'), [(TORCHVISION, 1 / 9), (DETECTRON2, 0)])
def test_losses_of_rois(rng, monkeypatch, dialect, beta):
    """Smooth L1 over all RoIs, and the mean cross entropy of fractions over the pixels of the foreground's masks."""
    chain = small_chain(dialect)
    image = example()
    rois = SampledRoIs(
        np.float32([[4, 6, 35, 37], [20, 40, 51, 71], [0, 0, 20, 20], [5, 5, 9, 60]]),
        np.zeros((4, 4), np.float32),
        np.int32([2, 1, 0, 0]),
        rng.randn(2, 4).astype('f'),
    )
    scores, deltas = rng.randn(4, 4).astype('f'), rng.randn(4, 16).astype('f')
    logits = rng.randn(2, 3, 28, 28).astype('f')
    outputs = [chainer.Variable(array) for array in (scores, deltas, logits)]
    monkeypatch.setattr(chain, '_run_heads', lambda *_: outputs)
    found = chain.roi_losses((), [rois], [image])
    predicted = np.stack([deltas[0, 8:12], deltas[1, 4:8]]).astype('f8')
    d = np.abs(predicted - rois.deltas)
    smooth = d if beta == 0 else np.where(d < beta, d**2 / (2 * beta), d - beta / 2)
    np.testing.assert_allclose(float(found['roi_loc_loss'].array), smooth.sum() / 4, rtol=1e-6)
    targets = chain._mask_targets([rois], [image], 28).astype('f8')
    assert targets.min() >= 0 and targets.any()
    z = np.stack([logits[0, 1], logits[1, 0]]).astype('f8')
    entropies = targets * np.log1p(np.exp(-z)) + (1 - targets) * np.log1p(np.exp(z))
    np.testing.assert_allclose(float(found['roi_mask_loss'].array), entropies.mean(), rtol=1e-6)
    found['roi_mask_loss'].backward()
    gradient = np.zeros(logits.shape)
    gradient[[0, 1], [1, 0]] = (1 / (1 + np.exp(-z)) - targets) / z.size
    np.testing.assert_allclose(outputs[2].grad, gradient, rtol=1e-4, atol=1e-9)


def test_every_trained_parameter_gets_a_finite_gradient(chain):
    loss, reported, gradients = run_backward(chain, [example(64, 96), example(64, 96, seed=2, boxes=(), crowd=())])
    assert np.isfinite(loss) and reported['roi_mask_loss'] > 0 and reported['rpn_loc_loss'] > 0
    trained = {path for path, param in chain.namedparams() if param.requires_grad}
    assert gradients.keys() == trained and all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_loss_of_a_batch_is_the_mean_of_its_images(chain):
    images = [example(64, 96), example(64, 96, seed=2, boxes=((8, 8, 39, 39),), crowd=(False,))]
    losses = [run_backward(chain, [image])[0] for image in images]
    np.testing.assert_allclose(run_backward(chain, images)[0], np.mean(losses), rtol=1e-5)


def test_anchors_outside_of_the_image_take_part(rng):
    """An object in the corner has its best anchor there; Detectron's straddles are ignored."""
    anchors = np.float32([[-20, -20, 20, 20], [0, 0, 10, 10], [30, 30, 70, 70]])
    objects = np.float32([[0, 0, 18, 18]])
    sampling = Sampling(rpn_batch=8)
    for dialect, expected in ((DETECTRON, [1]), (TORCHVISION, [1]), (DETECTRON2, [1])):
        targets = rpn_targets(anchors, objects, (40, 40), sampling=sampling, dialect=dialect, rng=rng)
        assert targets.indices[targets.labels == 1].tolist() == expected
        assert (0 in targets.indices) == (dialect is not DETECTRON)
        assert (2 in targets.indices) == (dialect is not DETECTRON)


def stretched(transform, factors):
    return dataclasses.replace(transform, factors=factors)


def test_rois_are_matched_in_the_network_input(rng):
    """The sampled proposals keep their bits; the axes have different factors."""
    image = example()
    transform = stretched(image.image_transform, (1.9, 2.1))
    gt_boxes = transform.apply_boxes(image.annotations.boxes)
    proposals = gt_boxes[[0, 1, 1]] + rng.uniform(-1, 1, (3, 4)).astype('f')
    found = sample_rois(
        proposals, image.annotations, transform, sampling=Sampling(), dialect=TORCHVISION, rng=np.random.RandomState(0)
    )
    assert found.n_foreground == 5
    for box in (*proposals, *gt_boxes):
        assert (found.rois == box).all(axis=1).any()
    np.testing.assert_allclose(found.boxes, transform.invert_boxes(found.rois), rtol=1e-6)
    for box, label, delta in zip(found.rois.astype('f8'), found.labels, found.deltas, strict=True):
        target = gt_boxes[label - 1].astype('f8')
        sides, target_sides = box[2:] - box[:2], target[2:] - target[:2]
        shift = 10 * (target[:2] + target_sides / 2 - box[:2] - sides / 2) / sides
        np.testing.assert_allclose(delta, [*shift, *5 * np.log(target_sides / sides)], rtol=0, atol=1e-5)


def person(scale):
    """Two people in an image; keypoints 0 and 1 are labelled, those of the second person outside of its box."""
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[0, :2] = (10.5, 20.5, 2), (30, 40, 1)
    keypoints[1, :2] = (90, 90, 2), (95, 80, 2)
    boxes = np.float32([[10, 20, 40, 60], [50, 60, 70, 80]])
    annotations = Annotations(boxes, np.zeros(2, np.int32), np.zeros(2, bool), ((), ()), keypoints)
    return annotations, ImageTransform.top_left((100, 100), scale)


def test_the_keypoint_head_shares_the_rois_of_the_box_head():
    """Only foreground with a visible keypoint; cells are those of the box in the input."""
    annotations, transform = person(2.0)
    rois = np.float32([[20, 40, 80, 120], [18, 42, 82, 118], [100, 120, 140, 160], [0, 0, 9, 9]])
    sampled = SampledRoIs(rois, transform.invert_boxes(rois), np.int32([1, 1, 1, 0]), np.zeros((3, 4), np.float32))
    found, rows = share_rois(sampled, annotations, transform, 56, dialect=DETECTRON2)
    np.testing.assert_array_equal(found.rois, rois[:2])
    np.testing.assert_array_equal(rows, [0, 1])
    expected = np.full((2, 17), IGNORED)
    for i, (y1, x1, y2, x2) in enumerate(rois[:2].astype('f8')):
        for k, (y, x) in enumerate(((21, 41), (60, 80))):
            if y1 <= y <= y2 and x1 <= x <= x2:
                expected[i, k] = int((y - y1) * 56 / (y2 - y1)) * 56 + int((x - x1) * 56 / (x2 - x1))
    assert (expected >= 0).sum() == 3
    np.testing.assert_array_equal(found.locations, expected)


def test_without_foreground_the_keypoint_head_has_no_rois():
    annotations, transform = person(1.0)
    rois = np.float32([[0, 0, 9, 9]])
    sampled = SampledRoIs(rois, rois, np.int32([0]), np.zeros((0, 4), np.float32))
    found, rows = share_rois(sampled, annotations, transform, 56, dialect=TORCHVISION)
    assert found.rois.shape == (0, 4) and found.locations.shape == (0, 17) and len(rows) == 0


@pytest.mark.parametrize('dialect', [TORCHVISION, DETECTRON2, DETECTRON])
def test_the_dialect_selects_the_rois_of_the_keypoint_head(monkeypatch, dialect):
    chain = small_chain(dialect, 'keypoint_resnet50_fpn')
    annotations, transform = person(1.0)
    image = dataclasses.replace(example(), annotations=annotations, image_transform=transform)
    rois, keypoint_rois = chain.roi_targets([image], [annotations.boxes + 1], [np.random.RandomState(0)])
    shared = {tuple(box) for box in rois[0].rois[: rois[0].n_foreground].tolist()}
    assert len(keypoint_rois[0].rois)
    assert {tuple(box) for box in keypoint_rois[0].rois.tolist()} <= shared or dialect is DETECTRON
    calls = []
    monkeypatch.setattr(chain, '_share_rois', lambda *arguments: calls.append(1) or (keypoint_rois[0], []))
    chain.roi_targets([image], [annotations.boxes + 1], [np.random.RandomState(0)])
    assert bool(calls) == (dialect is not DETECTRON)


@pytest.mark.parametrize(
    ('dialect', 'preset', 'expected'),
    [
        (DETECTRON, 'resnet50_fpn', (2000, 2000, 512)),
        (DETECTRON, 'resnet50', (12000, 2000, 512)),
        (DETECTRON2, 'resnet50_fpn', (2000, 1000, 512)),
        (DENA, 'resnet50', (12000, 2000, 128)),
    ],
)
def test_the_default_sampling_is_that_of_the_network(dialect, preset, expected):
    """As in runs of the command line."""
    sampling = MaskRCNNTrainChain(small_chain(dialect, preset).model).sampling
    assert (sampling.train_pre_nms, sampling.train_post_nms, sampling.roi_batch) == expected
