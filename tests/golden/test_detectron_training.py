"""One training step of R-50-C4 compared with Detectron: targets, losses and every gradient."""

import json
import re

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON
from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.ops.boxes.flatten_anchors import flatten_anchors
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import SampledRoIs, Sampling, mask_targets, sample_rois
from mask_rcnn.targets.rois import box_targets
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.anchors import sampled_targets
from tests.support.golden import XY, to_host

NAME = 'train_R-50-C4_seed0_scale300'

#: Detectron's layers and their paths.
LAYERS = {
    'conv_rpn': 'rpn/conv',
    'rpn_cls_logits': 'rpn/objectness',
    'rpn_bbox_pred': 'rpn/delta',
    'cls_score': 'box_head/score',
    'bbox_pred': 'box_head/delta',
    'conv5_mask': 'mask_head/deconv',
    'mask_fcn_logits': 'mask_head/score',
}
OUTPUTS = ('rpn_cls_logits', 'rpn_bbox_pred', 'cls_score', 'bbox_pred', 'mask_fcn_logits')
BRANCHES = {'branch2a': 'conv1', 'branch2b': 'conv2', 'branch2c': 'conv3', 'branch1': 'shortcut'}


def path_of(blob):
    """Return the path of the parameter that Detectron trains under a name."""
    conv = re.fullmatch(r'(res(\d))_(\d)_(branch\w+)_w', blob)
    if conv:
        prefix = 'box_head' if conv[2] == '5' else 'extractor'
        return f'{prefix}/{conv[1]}/block{conv[3]}/{BRANCHES[conv[4]]}/conv/W'
    layer, kind = blob.rsplit('_', 1)
    return f'{LAYERS[layer]}/{"W" if kind == "w" else "b"}'


def as_detectron(blob, grad):
    """Return a gradient in Detectron's order: dx before dy, and masks with a background channel."""
    grad = to_host(grad)
    if blob == 'rpn_bbox_pred_grad':  # the gradient of the output
        return grad.reshape(1, -1, 4, *grad.shape[2:])[:, :, XY].reshape(grad.shape)
    if 'bbox_pred' in blob:
        return grad.reshape(-1, 4, *grad.shape[1:])[:, XY].reshape(grad.shape)
    if 'mask_fcn_logits' in blob:
        return np.concatenate([np.zeros_like(grad[:1]), grad])
    return grad


class Step:
    """The golden step in the package's conventions."""

    def __init__(self, golden):
        self.arrays = np.load(golden / 'detectron' / f'{NAME}.npz')
        self.settings = json.loads(str(self.arrays['config']))
        self.x = np.load(golden / 'detectron' / 'input_scale300.npz')['data']

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def scale(self):
        return float(self['im_scale'])

    @property
    def image_transform(self):
        return ImageTransform.top_left(tuple(map(int, self['image_size'])), self.scale)

    @property
    def sampling(self):
        settings = self.settings
        return Sampling(
            rpn_batch=settings['rpn_batch_size_per_im'],
            roi_batch=settings['batch_size_per_im'],
            roi_foreground_fraction=settings['fg_fraction'],
            train_pre_nms=settings['rpn_pre_nms'],
            train_post_nms=settings['rpn_post_nms'],
        )

    @property
    def annotations(self):
        boxes = self['gt_boxes'][:, XY]
        polygons = tuple((self[f'gt_poly{i}'],) for i in range(len(boxes)))
        return Annotations(boxes, self['gt_classes'] - 1, np.zeros(len(boxes), bool), polygons)

    @property
    def example(self):
        return TrainingExample(self.x[0], self.image_transform, self.annotations, NAME, 0, 0)

    @property
    def anchors(self):
        """Detectron's labels and targets of the anchors."""
        labels = self['rpn_labels'].astype(np.int32)
        deltas = np.zeros((*labels.shape, 4), np.float32)
        deltas[tuple(self['rpn_positive'].T)] = self['rpn_positive_targets'][:, XY]
        return sampled_targets(labels.transpose(1, 2, 0).ravel(), deltas.transpose(1, 2, 0, 3).reshape(-1, 4))

    @property
    def rois(self):
        """Detectron's sampled RoIs and their targets."""
        rois, labels = self['rois'][:, 1:][:, XY], self['labels']
        n_foreground = np.count_nonzero(labels)
        assert (labels[:n_foreground] > 0).all()
        return SampledRoIs(rois, rois / np.float32(self.scale), labels, self['bbox_targets'][:n_foreground, XY])


@pytest.fixture(scope='module')
def step(golden):
    return Step(golden)


@pytest.fixture(scope='module')
def backward(step, weight_file, gpu):
    """The chain after a backward pass from Detectron's targets, its losses, its features and the RPN's outputs."""
    model = mask_rcnn.load(weight_file(step.settings['recipe']), gpu=gpu)
    freeze(model)
    chain = MaskRCNNTrainChain(model, sampling=step.sampling)
    chain.to_device(model.device)
    chain.cleargrads()
    maps = model.extractor(model.xp.asarray(step.x))
    logits, deltas = model.rpn(maps)
    flat = flatten_anchors(logits, 1), flatten_anchors(deltas, 4)
    values = {**chain.rpn_losses(*flat, [step.anchors]), **chain.roi_losses(maps, [step.rois], [step.example])}
    sum(value for name, value in values.items() if name.endswith('loss')).backward(retain_grad=True)
    return chain, values, maps[0], logits[0], deltas[0]


def test_anchor_targets(step, backward):
    chain, _, _, logits, _ = backward
    (found,) = chain.anchor_targets([step.example], [logits.shape[2:]], [np.random.RandomState(step.settings['seed'])])
    np.testing.assert_array_equal(found.indices, step.anchors.indices)
    np.testing.assert_array_equal(found.labels, step.anchors.labels)
    np.testing.assert_allclose(found.deltas, step.anchors.deltas, rtol=0, atol=1e-6)


def test_proposals(step, backward):
    """Almost equal scores may change places."""
    chain, _, _, logits, deltas = backward
    proposals, _ = chain.model.rpn.decode(
        [logits.array[0]],
        [deltas.array[0]],
        step.example.x.shape[1:],
        step.image_transform,
        clip_to_image=True,
        pre_nms=step.sampling.train_pre_nms,
        post_nms=step.sampling.train_post_nms,
    )
    proposals, expected = to_host(proposals)[:, XY], step['rpn_rois'][:, 1:]
    assert len(proposals) == len(expected)
    distances = np.abs(proposals[None] - expected[:, None]).max(axis=2)
    assert distances.min(axis=1).max() <= 0.01 and distances.min(axis=0).max() <= 0.01
    assert np.mean(distances.argmin(axis=1) == np.arange(len(expected))) > 0.99


def test_roi_targets(step):
    """All foreground RoIs, and those background RoIs that Detectron sampled, are among the candidates."""
    proposals = step['rpn_rois'][:, 1:][:, XY]
    found = sample_rois(
        proposals,
        step.annotations,
        step.image_transform,
        sampling=Sampling(roi_batch=10**4),
        dialect=DETECTRON,
        rng=np.random.RandomState(0),
    )
    distance = np.abs(step.rois.rois[:, None] - found.rois[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-4
    partners = distance.argmin(axis=1)
    np.testing.assert_array_equal(found.labels[partners], step.rois.labels)
    n = step.rois.n_foreground
    assert found.n_foreground == n and len(set(partners[:n])) == n
    np.testing.assert_allclose(found.deltas[partners[:n]], step.rois.deltas, rtol=0, atol=1e-4)


def test_box_and_mask_targets_of_the_golden_rois(step):
    rois = step.rois
    foreground = rois.boxes[: rois.n_foreground]
    deltas = box_targets(foreground, step.annotations.boxes, dialect=DETECTRON)
    np.testing.assert_allclose(deltas, rois.deltas, rtol=0, atol=2e-5)
    masks = mask_targets(foreground, step.annotations, 14, offset=1)
    np.testing.assert_array_equal(masks, step['mask_targets'])


@pytest.mark.parametrize(
    ('name', 'detectron_name'),
    [
        ('rpn_cls_loss', 'loss_rpn_cls'),
        ('rpn_loc_loss', 'loss_rpn_bbox'),
        ('roi_cls_loss', 'loss_cls'),
        ('roi_loc_loss', 'loss_bbox'),
        ('roi_mask_loss', 'loss_mask'),
        ('roi_accuracy', 'accuracy_cls'),
    ],
)
def test_losses(step, backward, name, detectron_name):
    value = float(chainer.as_array(backward[1][name]))
    np.testing.assert_allclose(value, step[detectron_name], rtol=0, atol=1e-5)


def test_frozen_parameters_have_no_gradient(step, backward):
    trained = {path_of(blob) for blob in step['trainable']}
    for path, param in backward[0].model.namedparams():
        assert (param.grad is not None) == (path[1:] in trained), path


def test_the_norm_of_every_gradient(step, backward):
    """The norms agree within 1e-4 in the heads and within 5e-4 in the backbone; that of all together within 4.4e-5.

    In the backbone, a few inputs of ReLUs are so close to zero that the order of float32 sums decides their sign. The
    same step in float64 differs by up to 2.8e-4 from Detectron's. The norm of all gradients differs by 2e-5 with
    OpenBLAS's SkylakeX kernels and by 2.2e-5, half of the limit, with Haswell and Zen.
    """
    params = dict(backward[0].model.namedparams())
    squares = np.zeros(2)
    for blob in step['trainable']:
        norm = np.linalg.norm(to_host(params['/' + path_of(blob)].grad).ravel().astype(np.float64))
        expected = step[f'grad/{blob}/stat'][-1]
        tolerance = 5e-4 if blob.startswith(('res3', 'res4')) else 1e-4
        np.testing.assert_allclose(norm, expected, rtol=tolerance, err_msg=blob)
        squares += norm**2, expected**2
    np.testing.assert_allclose(*np.sqrt(squares), rtol=4.4e-5)


def test_single_numbers_of_every_gradient(step, backward):
    """Elements agree within 2 % of the largest, because of the ReLUs above, and within 2e-4 where no ReLU follows."""
    params = dict(backward[0].model.namedparams())
    for blob in step['trainable']:
        grad = as_detectron(blob, params['/' + path_of(blob)].grad)
        assert grad.shape == tuple(step[f'grad/{blob}/shape'])
        tolerance = (2e-4 if blob.rsplit('_', 1)[0] in OUTPUTS else 0.02) * np.abs(grad).max()
        np.testing.assert_allclose(
            grad.ravel()[step[f'grad/{blob}/index']], step[f'grad/{blob}/value'], rtol=0, atol=tolerance, err_msg=blob
        )


def test_gradients_of_the_maps(step, backward):
    _, _, features, logits, deltas = backward
    passed = features.grad * (features.array > 0)  # Detectron's gradient is that of the ReLU's input
    maps = {'res4_5_sum': (passed, 5e-3), 'rpn_cls_logits': (logits.grad, 1e-4), 'rpn_bbox_pred': (deltas.grad, 1e-4)}
    for blob, (grad, tolerance) in maps.items():
        expected = step[f'outgrad/{blob}_grad/value']
        found = as_detectron(f'{blob}_grad', grad).ravel()[step[f'outgrad/{blob}_grad/index']]
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=blob)
