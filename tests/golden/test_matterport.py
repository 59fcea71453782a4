"""Matterport's network compared with Matterport: every stage, the detections and one training step."""

import functools
import json
import zlib

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.boxes.flatten_anchors import flatten_anchors
from mask_rcnn.preprocessing.image_transform import prepare_image
from mask_rcnn.targets import SampledRoIs
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.anchors import sampled_targets
from tests.support.golden import (
    MAX_SCORE_DIFFERENCE,
    MIN_BOX_IOU,
    mask_iou,
    match,
    send_rois,
    to_host,
    without_padding,
)
from tests.support.matterport import MatterportCase, load_h5

pytestmark = pytest.mark.slow

SHAPES, COCO = 'shapes_resnet50_shapes7', 'coco_resnet50'
CASES = (SHAPES, COCO)
STEP = 'train_shapes_resnet50'

#: Largest difference, in standard deviations of a blob: up to 50 layers add float32 numbers in another order.
BLOB = 2e-4

#: Largest difference of mask probabilities, whose boxes differ in the last bits: three times what was measured with
#: OpenBLAS's kernels for different processors (6e-5, 2.8e-3).
MASK_PROBS = {SHAPES: 2e-4, COCO: 8e-3}

#: Indices of the detections that may lie outside the suggested rule if the input is computed from the image.
OUTSIDE_RULE = {SHAPES: set(), COCO: {8, 9}}


@pytest.fixture(scope='module', params=CASES)
def extracted(request, matterport_golden, h5_file, gpu):
    """A model, its case, the golden network input, its transform and its feature maps."""
    case = MatterportCase(matterport_golden, request.param)
    model = load_h5(h5_file(case.settings['recipe']), case.settings['matterport'], gpu=gpu)
    _, transform = Predictor(model).prepare(case.image)
    x = model.xp.asarray(np.ascontiguousarray(case.molded.transpose(2, 0, 1)[None]))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model, case, x, transform, [features.array for features in model.extractor(x)]


@pytest.fixture
def seen(extracted):
    """The same in inference mode."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield extracted


def nhwc(features):
    return to_host(features)[0].transpose(1, 2, 0)


def corners(features):
    """Return the 3 x 3 corners of the first 8 channels in the case's order."""
    features = features[..., :8]
    n = min(3, len(features))
    rows = slice(None, n), slice(-n, None)
    return np.stack([features[row, column] for row in rows for column in rows])


def all_anchors(maps):
    """Return the RPN's outputs of all levels as one row per anchor."""
    return np.concatenate(
        [
            level[0].reshape(3, -1, *level.shape[2:]).transpose(2, 3, 0, 1).reshape(-1, level.shape[1] // 3)
            for level in map(to_host, maps)
        ]
    )


def test_the_golden_input_has_the_bits_of_matterport(seen):
    _, case, x, _, _ = seen
    assert case.differences('molded', nhwc(x)).max() == 0
    assert zlib.crc32(np.ascontiguousarray(nhwc(x)).tobytes()) == case.arrays['molded_crc32']


def test_input(seen):
    """At most one of 10,000 values differs from the golden input, by one grey level, and none without a resize.

    scikit-image truncates to integers and computes its sample positions from a least-squares fit, whose last bits
    differ between processors.
    """
    model, case, expected, _, _ = seen
    x, transform = Predictor(model).prepare(case.image)
    top, left, bottom, right = case.arrays['window']
    assert transform.window == (top, left, bottom - 1, right - 1)
    differences = np.abs(to_host(x) - to_host(expected)).astype(np.float64)
    differences = np.rint(differences * 1e3) / 1e3  # the mean rounds to 1e-5
    assert set(np.unique(differences)) <= {0, 1}
    resized = 3 * (bottom - top) * (right - left)
    assert np.count_nonzero(differences) <= (0 if case.name == SHAPES else resized // 10_000)


def test_body_and_pyramid(seen):
    """The pyramid contains the whole backbone, whose stages are compared for the small image only."""
    model, case, x, _, maps = seen
    backbone = model.extractor.body
    blobs = {'bn_conv1': ConvNorm.forward(backbone.conv1, x), 'feat_C1': backbone.conv1(x)}
    if case.name == SHAPES:
        blobs |= {f'feat_C{i}': features for i, features in enumerate(backbone(x), start=2)}
    blobs |= {f'feat_P{i}': features for i, features in enumerate(maps, start=2)}
    for name, features in blobs.items():
        assert case.differences(name, nhwc(features)).max() < BLOB, name
        scale = case.arrays[f'blob/{name}/stat'][1]
        np.testing.assert_allclose(
            corners(nhwc(features)), case.arrays[f'corner/{name}'], rtol=0, atol=BLOB * scale, err_msg=name
        )


def test_rpn(seen):
    model, case, _, _, maps = seen
    logits, deltas = model.rpn(maps)
    probs = all_anchors(map(F.sigmoid, logits))
    deltas = all_anchors(deltas)
    assert case.differences('rpn_class', np.concatenate([1 - probs, probs], axis=1)).max() < BLOB
    assert case.differences('rpn_bbox', deltas).max() < BLOB
    best = case.arrays['rpn_top200_index']
    np.testing.assert_allclose(probs[best, 0], case.arrays['rpn_top200_prob'], rtol=0, atol=4e-5)
    np.testing.assert_allclose(deltas[best], case.arrays['rpn_top200_bbox'], rtol=0, atol=2e-4)


def test_proposals(seen):
    """Each proposal has a partner; nearly equal scores may change places."""
    model, case, x, transform, maps = seen
    (found,) = model.rpn.propose(maps, x.shape[2:], [transform])
    found = without_padding(found)
    expected = case.in_pixels(case.arrays['proposals'])
    assert found.shape == expected.shape
    iou = box_iou(expected, found, offset=0)
    assert iou.max(axis=1).min() > 0.9999 and iou.max(axis=0).min() > 0.9999
    assert (np.abs(found - expected).max(axis=1) < 0.01).mean() > 0.9


def test_roi_features(seen):
    model, case, _, _, maps = seen
    arrays = case.arrays
    detected = arrays['detections'][:, :4]
    detected = np.concatenate([detected, np.zeros((100 - len(detected), 4), np.float32)])
    for name, pool, boxes in (
        ('roi_align_classifier', model.box_head.pool, arrays['proposals']),
        ('roi_align_mask', model.mask_head.pool, detected),
    ):
        rows = case.rows_of(name)
        pooled = pool(maps, *send_rois(model, case.in_pixels(boxes[rows]))).array.transpose(0, 2, 3, 1)
        assert case.differences(name, pooled, rows=rows).max() < BLOB, name


def test_box_head(seen):
    model, case, _, _, maps = seen
    for name in ('mrcnn_class_logits', 'mrcnn_class', 'mrcnn_bbox'):
        rows = case.rows_of(name)
        rois = send_rois(model, case.in_pixels(case.arrays['proposals'][rows]))
        scores, deltas = model.box_head(model.box_head.roi_features(maps, *rois))
        values = {
            'mrcnn_class_logits': scores.array,
            'mrcnn_class': F.softmax(scores).array,
            'mrcnn_bbox': deltas.array.reshape(len(rows), -1, 4),
        }[name]
        assert case.differences(name, values, rows=rows).max() < BLOB, name
    rois = send_rois(model, case.in_pixels(case.arrays['proposals'][:32]))
    scores, deltas = model.box_head(model.box_head.roi_features(maps, *rois))
    probs = to_host(F.softmax(scores))
    np.testing.assert_allclose(probs, case.arrays['mrcnn_class_first32'], rtol=0, atol=5e-5)
    best = to_host(deltas).reshape(32, -1, 4)[np.arange(32), probs.argmax(axis=1)]
    np.testing.assert_allclose(best, case.arrays['mrcnn_bbox_first32_best'], rtol=0, atol=1e-4)


def test_mask_head(seen):
    model, case, _, _, maps = seen
    rois = send_rois(model, case.in_pixels(case.arrays['detections'][:, :4]))
    probs = to_host(F.sigmoid(model.mask_head(model.mask_head.roi_features(maps, *rois))))
    class_probs = probs[np.arange(len(probs)), case.arrays['class_ids'] - 1]
    np.testing.assert_allclose(class_probs, case.arrays['mask28'], rtol=0, atol=2.5e-4)


def test_detections(seen):
    """From the golden input: boxes and scores are closer than the suggested rule demands.

    An unstable detection (one of each case) may be missing: it is with OpenBLAS's Haswell and Zen kernels.
    """
    model, case, x, transform, _ = seen
    (boxes,), (labels,), (scores,), (probs,), _ = model(x, [transform])
    detections = Predictor(model).postprocess(boxes, labels, scores, probs, None, transform)
    partners = match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=2e-4)
    arrays, stable = case.arrays, case.arrays['stable']
    found = detections[partners]
    assert np.abs(found.boxes - arrays['rois'][stable]).max() <= 1  # a rounded coordinate
    exact = (found.boxes == arrays['rois'][stable]).all(axis=1)
    assert exact.mean() > 0.9
    np.testing.assert_allclose(found.mask_probs, arrays['mask28'][stable], rtol=0, atol=MASK_PROBS[case.name])
    iou = mask_iou(found.masks, case.masks()[stable])
    kept = arrays['stable_1e-4'][stable]  # mask_iou_1e-4 is undefined for the others
    assert (iou[kept] >= arrays['mask_iou_1e-4'][stable][kept] - 0.02).all()
    assert iou[exact].min() > 0.999 and iou.min() > 0.95


def test_detections_from_the_image(seen):
    """Detections that survive noise of 1e-4 in Matterport have partners; two of them lie outside the suggested rule.

    About 100 values that differ by one grey level (test_input) change two detections more than that noise, the same
    ones with every processor's kernels. Measured: IoU 0.9935 and 0.9685, score differences 0.0086 and 0.0290. Without
    a resize all agree.
    """
    model, case, _, _, _ = seen
    (detections,) = model.detect([case.image])
    partners = match(case, detections, min_iou=0.968, max_score_difference=0.03, noise='1e-4')
    stable = case.arrays['stable_1e-4']
    found = detections[partners]
    iou = box_iou(case.boxes[stable], found.boxes, offset=0).diagonal()
    score_differences = np.abs(found.scores - case.arrays['scores'][stable])
    outside = (iou <= MIN_BOX_IOU) | (score_differences > MAX_SCORE_DIFFERENCE)
    assert set(np.flatnonzero(stable)[outside]) <= OUTSIDE_RULE[case.name]
    same_box = (found.boxes == case.boxes[stable]).all(axis=1)
    mask_ious = mask_iou(found.masks, case.masks()[stable])
    assert (mask_ious[same_box] >= case.arrays['mask_iou_1e-4'][stable][same_box] - 0.02).all()


# One training step


class Step:
    """The golden step in the package's conventions: two images with given RoIs and targets."""

    def __init__(self, golden, config):
        self.arrays = np.load(golden / 'matterport' / f'{STEP}.npz')
        self.config = config

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def settings(self):
        return json.loads(str(self['config']))

    def example(self, i):
        image = self['images_uint8'][i].transpose(2, 0, 1).astype(np.float32)
        x, transform = prepare_image(image, self.config)
        nothing = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), ())
        return TrainingExample(x, transform, nothing, STEP, i, i)

    def anchors(self, i):
        match = self['rpn_match'][i, :, 0].astype(np.int32)
        labels = np.where(match == 0, -1, np.maximum(match, 0)).astype(np.int32)
        deltas = np.zeros((len(labels), 4), np.float32)
        deltas[labels == 1] = self['rpn_bbox'][i, : np.count_nonzero(labels == 1)]
        return sampled_targets(labels, deltas)

    def rois(self, i):
        labels = self['target_class_ids'][i]
        n_foreground = np.count_nonzero(labels)
        assert (labels[:n_foreground] > 0).all()
        rois = self['target_rois'][i] * np.float32(127)
        return SampledRoIs(rois, rois, labels, self['target_bbox'][i, :n_foreground])

    def masks(self, i):
        return self['target_mask'][i, : np.count_nonzero(self['target_class_ids'][i])].astype(np.int32)


@pytest.fixture(scope='module')
def backward(matterport_golden, h5_file, gpu):
    """The step, the model after a backward pass, and the losses by name.

    Matterport divides by the number of terms of a batch, the package by the number of terms of an image. So each image
    has a pass of its own, weighted with its share of the terms.
    """
    settings = json.loads(str(np.load(matterport_golden / 'matterport' / f'{STEP}.npz')['config']))
    model = load_h5(h5_file(settings['recipe']), settings['matterport'], gpu=gpu)
    freeze(model, freeze_bn=True, stages=0)
    chain = MaskRCNNTrainChain(model)
    chain.to_device(model.device)
    chain.cleargrads()
    step = Step(matterport_golden, model.config)
    losses = {}
    for i in range(2):
        example, anchors, rois = step.example(i), step.anchors(i), step.rois(i)
        shares = {
            name: len(counted[i]) / sum(map(len, counted))
            for name, counted in {
                'rpn_cls_loss': [np.flatnonzero(step.anchors(k).labels >= 0) for k in range(2)],
                'rpn_loc_loss': [np.flatnonzero(step.anchors(k).labels == 1) for k in range(2)],
                'roi_cls_loss': [step.rois(k).labels for k in range(2)],
                'roi_loc_loss': [step.rois(k).deltas for k in range(2)],
                'roi_mask_loss': [step.masks(k) for k in range(2)],
            }.items()
        }
        maps = model.extractor(model.xp.asarray(example.x[None]))
        chain._mask_targets = functools.partial(lambda targets, *_: targets, step.masks(i))
        flat = map(flatten_anchors, model.rpn(maps), (1, 4))
        values = {**chain.rpn_losses(*flat, [anchors]), **chain.roi_losses(maps, [rois], [example])}
        for name, share in shares.items():
            losses[name] = losses.get(name, 0) + values[name] * share
    sum(losses.values()).backward()
    return step, model, losses


@pytest.mark.parametrize(
    ('name', 'matterport_name'),
    [
        ('rpn_cls_loss', 'rpn_class_loss'),
        ('rpn_loc_loss', 'rpn_bbox_loss'),
        ('roi_cls_loss', 'mrcnn_class_loss'),
        ('roi_loc_loss', 'mrcnn_bbox_loss'),
        ('roi_mask_loss', 'mrcnn_mask_loss'),
    ],
)
def test_losses(backward, name, matterport_name):
    step, _, losses = backward
    np.testing.assert_allclose(float(losses[name].array), step[f'loss/{matterport_name}'], rtol=2e-5)


#: The heads' kernels, their paths here, and the normalisations folded into them. Before the heads Matterport's gradient
#: is another: it does not detach the box targets from the proposals.
KERNELS = {
    'mrcnn_class_conv1': ('box_head/fc6', 'mrcnn_class_bn1'),
    'mrcnn_class_conv2': ('box_head/fc7', 'mrcnn_class_bn2'),
    'mrcnn_class_logits': ('box_head/score', None),
    'mrcnn_bbox_fc': ('box_head/delta', None),
    'mrcnn_mask_conv1': ('mask_head/conv1', 'mrcnn_mask_bn1'),
    'mrcnn_mask_conv4': ('mask_head/conv4', 'mrcnn_mask_bn4'),
    'mrcnn_mask_deconv': ('mask_head/deconv', None),
}


def test_gradients(backward, h5_file):
    """Norms agree within 2e-4, elements within 0.2 % of the largest, because inputs near zero pass a ReLU or not.

    Matterport's gradient is that of the total loss, which contains 1e-4 times each kernel's mean square.
    """
    step, model, _ = backward
    params = dict(model.namedparams())
    h5py = pytest.importorskip('h5py')
    with h5py.File(h5_file(step.settings['recipe'])) as file:
        for layer, (path, norm) in KERNELS.items():
            kernel = file[f'{layer}/{layer}/kernel:0'][()]
            grad = to_host(params[f'/{path}/W'].grad)
            if norm:
                gamma, var = (file[f'{norm}/{norm}/{name}:0'][()] for name in ('gamma', 'moving_variance'))
                grad = grad * (gamma / np.sqrt(var + 1e-3)).reshape(-1, *[1] * (grad.ndim - 1))
            height, width = kernel.shape[:2] if kernel.ndim == 4 else (1, 1)
            grad = grad.reshape(len(grad), -1, height, width).transpose(2, 3, 1, 0).reshape(kernel.shape)
            grad = grad + 2e-4 / kernel.size * kernel
            name = f'grad/{layer}/kernel:0'
            norm_of_grad = np.linalg.norm(grad.ravel().astype(np.float64))
            np.testing.assert_allclose(norm_of_grad, step[f'{name}/stat'][-1], rtol=2e-4, err_msg=layer)
            np.testing.assert_allclose(
                grad.ravel()[step[f'{name}/index']],
                step[f'{name}/value'],
                rtol=0,
                atol=2e-3 * np.abs(grad).max(),
                err_msg=layer,
            )
