"""One training step of torchvision and of detectron2 compared with the programs: targets, losses and every gradient."""

import json
import re

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON2, PRESETS, TORCHVISION
from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.ops.boxes.flatten_anchors import flatten_anchors
from mask_rcnn.ops.masks.rle import encode_mask
from mask_rcnn.preprocessing.image_io import read_image
from mask_rcnn.preprocessing.image_transform import prepare_image
from mask_rcnn.targets import SampledRoIs, Sampling
from mask_rcnn.targets.input_masks import input_bitmap, resize_nearest_torch
from mask_rcnn.targets.matching import match_proposals
from mask_rcnn.targets.rois import box_targets
from mask_rcnn.targets.rpn import anchor_candidates, match_anchors_of_image, rpn_targets
from mask_rcnn.targets.sampling import network_sampling
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.anchors import sampled_targets
from tests.support.golden import XY, to_host
from tests.support.python_files import import_file

pytestmark = pytest.mark.slow

LOSSES = ('rpn_cls_loss', 'rpn_loc_loss', 'roi_cls_loss', 'roi_loc_loss', 'roi_mask_loss')
#: The layers whose arrays the readers permute: their background and their order of x and y differ.
PERMUTED = ('rpn/delta', 'box_head/score', 'box_head/delta', 'mask_head/score')
FC = {'1': 'fc6', '2': 'fc7', '6': 'fc6', '7': 'fc7'}


class Step:
    """A golden step in the package's conventions."""

    program, name, dialect, losses = '', '', TORCHVISION, ()

    def __init__(self, golden):
        self.golden = golden
        path = golden / self.program / f'train_{self.name}.npz'
        if not path.is_file():
            pytest.skip(f'no outputs of {self.program} in {golden}')
        self.arrays = np.load(path)
        self.settings = json.loads(str(self.arrays['config']))

    def __getitem__(self, key):
        return self.arrays[key]

    def load_model(self, folder, gpu):
        """Return the network of the step, with the sizes of its input."""
        module = import_file(self.golden / self.program / f'{self.program}_weights.py')
        state, meta = module.load(str(self.golden / self.program / f'recipe_{self.name}.npz'))
        path = folder / f'{self.program}{self.suffix}'
        self.write(module, state, meta, str(path))
        model = mask_rcnn.load(path, gpu=gpu, min_size=300, max_size=500)
        path.unlink()
        assert model.config.dialect.name == self.dialect.name
        return model

    @property
    def size(self):
        height, width = self['image_shape'][:2].tolist()
        return height, width

    def example(self, config):
        x, transform = prepare_image(read_image(self.golden / 'photos' / self.settings['image']), config)
        return TrainingExample(x, transform, self.annotations, self.name, 0, 0)

    @property
    def annotations(self):
        boxes = self['gt_boxes'][:, XY]
        return Annotations(boxes, self.gt_labels, np.zeros(len(boxes), bool), self.segmentations)

    @property
    def gt_boxes(self):
        """The objects' boxes in the network input."""
        return self['gt_boxes_input'][:, XY]

    @property
    def anchors(self):
        """The program's sampled anchors and their targets."""
        n_anchors, positive = len(self['rpn_labels']), self['rpn_positive']
        labels, deltas = np.full(n_anchors, -1, np.int32), np.zeros((n_anchors, 4), np.float32)
        labels[self['rpn_negative']] = 0
        labels[positive] = 1
        deltas[positive] = self['rpn_positive_targets'][:, XY]
        return sampled_targets(labels, deltas)

    def rois(self, transform):
        """The program's sampled RoIs and their targets, foreground first."""
        order = np.argsort(~self.is_foreground, kind='stable')
        rois = self['rois'][order][:, XY]
        return SampledRoIs(rois, transform.invert_boxes(rois), self.labels[order], self.deltas[:, XY])


class TorchvisionStep(Step):
    program, name, dialect, suffix = 'torchvision', 'maskrcnn_resnet50_fpn_seed0', TORCHVISION, '.pth'
    losses = ('loss_objectness', 'loss_rpn_box_reg', 'loss_classifier', 'loss_box_reg', 'loss_mask')

    def write(self, module, state, meta, path):
        module.write_pth(state, path, meta['metadata'])

    @property
    def gt_labels(self):
        return self['gt_labels'] - 1

    @property
    def segmentations(self):
        masks = np.unpackbits(self['gt_masks_packed'], axis=-1)[..., : self.size[1]]
        return tuple(encode_mask(mask.astype(bool)) for mask in masks)

    @property
    def labels(self):
        return self['labels']

    @property
    def is_foreground(self):
        return self.labels > 0

    @property
    def deltas(self):
        return self['bbox_targets'][self.is_foreground]

    @property
    def masks(self):
        return self['mask_targets']

    def path_of(self, name):
        """Return the path of the parameter that the program trains under a name."""
        name, kind = name.rsplit('.', 1)
        kind = {'weight': 'W', 'bias': 'b'}[kind]
        block = re.fullmatch(r'backbone\.body\.layer(\d)\.(\d+)\.(?:(conv\d)|downsample\.0)', name)
        if block:
            return f'extractor/body/res{int(block[1]) + 1}/block{block[2]}/{block[3] or "shortcut"}/conv/{kind}'
        fpn = re.fullmatch(r'backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0', name)
        if fpn:
            return fpn_path(fpn[1] == 'inner', int(fpn[2]), kind)
        mask = re.fullmatch(r'roi_heads\.mask_head\.(\d)\.0', name)
        if mask:
            return f'mask_head/conv{int(mask[1]) + 1}/{kind}'
        box = re.fullmatch(r'roi_heads\.box_head\.fc(\d)', name)
        if box:
            return f'box_head/{FC[box[1]]}/{kind}'
        layer = {
            'rpn.head.conv.0.0': 'rpn/conv',
            'rpn.head.cls_logits': 'rpn/objectness',
            'rpn.head.bbox_pred': 'rpn/delta',
            'roi_heads.box_predictor.cls_score': 'box_head/score',
            'roi_heads.box_predictor.bbox_pred': 'box_head/delta',
            'roi_heads.mask_predictor.conv5_mask': 'mask_head/deconv',
            'roi_heads.mask_predictor.mask_fcn_logits': 'mask_head/score',
        }[name]
        return f'{layer}/{kind}'


class Detectron2Step(Step):
    program, name, dialect, suffix = 'detectron2', 'mask_rcnn_R_50_FPN_3x_seed0', DETECTRON2, '.pkl'
    losses = ('loss_rpn_cls', 'loss_rpn_loc', 'loss_cls', 'loss_box_reg', 'loss_mask')

    def write(self, module, state, meta, path):
        module.write_pkl(module.zoo(state, meta), path)

    @property
    def gt_labels(self):
        return self['gt_labels']

    @property
    def segmentations(self):
        return tuple((polygon,) for polygon in self['gt_polygons'])

    @property
    def labels(self):
        labels = self['labels']
        return np.where(labels == 80, 0, labels + 1).astype(np.int32)

    @property
    def is_foreground(self):
        return self['foreground']

    @property
    def deltas(self):
        return self['foreground_bbox_targets']

    @property
    def masks(self):
        return np.unpackbits(self['mask_targets_packed'], axis=-1)[..., :28]

    def path_of(self, name):
        """Return the path of the parameter that the program trains under a name."""
        name, kind = name.rsplit('.', 1)
        kind = {'weight': 'W', 'bias': 'b'}[kind]
        block = re.fullmatch(r'backbone\.bottom_up\.(res\d)\.(\d+)\.(\w+)', name)
        if block:
            return f'extractor/body/{block[1]}/block{block[2]}/{block[3]}/conv/{kind}'
        fpn = re.fullmatch(r'backbone\.fpn_(lateral|output)(\d)', name)
        if fpn:
            return fpn_path(fpn[1] == 'lateral', int(fpn[2]) - 2, kind)
        mask = re.fullmatch(r'roi_heads\.mask_head\.mask_fcn(\d)', name)
        if mask:
            return f'mask_head/conv{mask[1]}/{kind}'
        box = re.fullmatch(r'roi_heads\.box_head\.fc(\d)', name)
        if box:
            return f'box_head/{FC[box[1]]}/{kind}'
        layer = {
            'proposal_generator.rpn_head.conv': 'rpn/conv',
            'proposal_generator.rpn_head.objectness_logits': 'rpn/objectness',
            'proposal_generator.rpn_head.anchor_deltas': 'rpn/delta',
            'roi_heads.box_predictor.cls_score': 'box_head/score',
            'roi_heads.box_predictor.bbox_pred': 'box_head/delta',
            'roi_heads.mask_head.deconv': 'mask_head/deconv',
            'roi_heads.mask_head.predictor': 'mask_head/score',
        }[name]
        return f'{layer}/{kind}'


def fpn_path(is_lateral, index, kind):
    """Return the path of a convolution of the FPN; index 0 is that of res2."""
    return f'extractor/{"lateral" if is_lateral else "output"}{index + 2}/{kind}'


@pytest.fixture(scope='module', params=[TorchvisionStep, Detectron2Step], ids=['torchvision', 'detectron2'])
def step(request, golden):
    return request.param(golden)


@pytest.fixture(scope='module')
def chain(step, gpu, tmp_path_factory):
    model = step.load_model(tmp_path_factory.mktemp(step.program), gpu)
    freeze(model)
    chain = MaskRCNNTrainChain(model, sampling=network_sampling(model.config, roi_batch=64))
    chain.to_device(model.device)
    return chain


@pytest.fixture(scope='module')
def example(step, chain):
    return step.example(chain.model.config)


@pytest.fixture(scope='module')
def backward(step, chain, example):
    """The values and the proposals of a backward pass from the program's targets."""
    chain.cleargrads()
    with chainer.using_config('train', True):
        features = chain.model.extractor(chain.xp.asarray(example.x[None]))
        logits, deltas = chain.model.rpn(features)
        flat = flatten_anchors(logits, 1), flatten_anchors(deltas, 4)
        rois = step.rois(example.image_transform)
        values = {**chain.rpn_losses(*flat, [step.anchors]), **chain.roi_losses(features, [rois], [example])}
        sum(values[name] for name in LOSSES).backward()
    arrays = [level.array for level in logits], [level.array for level in deltas]
    (proposals,) = chain.propose(*arrays, example.x.shape[1:], [example.image_transform])
    return values, to_host(proposals), [level.shape[2:] for level in features]


def test_the_network_input(step, example):
    assert example.x.shape == tuple(step['input_shape'][1:])
    found = example.x.ravel()[step['blob/input/index']]
    np.testing.assert_allclose(found, step['blob/input/value'], rtol=0, atol=5e-7)
    boxes = example.image_transform.apply_boxes(step.annotations.boxes)
    np.testing.assert_allclose(boxes, step.gt_boxes, rtol=0, atol=6e-5)


def test_the_sampling_is_that_of_the_program(chain, step):
    expected = {'torchvision': (2000, 2000), 'detectron2': (2000, 1000)}[step.program]
    assert (chain.sampling.train_pre_nms, chain.sampling.train_post_nms) == expected
    assert (chain.sampling.rpn_batch, Sampling().roi_foreground_fraction) == (256, 0.25)


def test_labels_of_all_anchors(step, chain, example, backward):
    """Both samplers of the programs took the first candidates."""
    anchors, size = chain.model.rpn.host_anchors(backward[2], example.x.shape[1:]), example.image_transform.input_size
    best_iou, _, is_best = match_anchors_of_image(
        anchors, step.gt_boxes, size, sampling=chain.sampling, dialect=step.dialect
    )
    positive, negative = anchor_candidates(best_iou, is_best, chain.sampling, redraw_negatives=False)
    np.testing.assert_array_equal(np.flatnonzero(positive), step['rpn_positive'])
    n = len(step['rpn_negative'])
    np.testing.assert_array_equal(np.flatnonzero(negative)[:n], step['rpn_negative'])
    if np.count_nonzero(step['rpn_labels'] >= 0) > 256:  # labels before sampling
        np.testing.assert_array_equal(positive.astype(int) - (~positive & ~negative), step['rpn_labels'])
    targets = rpn_targets(
        anchors, step.gt_boxes, size, sampling=chain.sampling, dialect=step.dialect, rng=np.random.RandomState(0)
    )
    is_positive = targets.labels == 1
    np.testing.assert_array_equal(targets.indices[is_positive], step['rpn_positive'])
    assert np.count_nonzero(~is_positive) == n == len(np.unique(targets.indices[~is_positive]))
    np.testing.assert_allclose(targets.deltas[is_positive], step['rpn_positive_targets'][:, XY], rtol=0, atol=1e-5)


def test_proposals(step, backward):
    """Almost equal scores may change places; measured: within 0.011 pixels, all found."""
    proposals, expected = backward[1], step['proposals_first500'][:, XY]
    assert len(proposals) == step['proposals_count']
    distances = np.abs(proposals[None, :600] - expected[:, None]).max(axis=2)
    assert distances.min(axis=1).max() <= 0.02
    assert np.median(np.abs(distances.argmin(axis=1) - np.arange(500))) == 0


def test_matched_rois(step, example):
    """The sampled RoIs of the program, as proposals, have its objects, labels and box targets."""
    rois = step.rois(example.image_transform)
    found = match_proposals(rois.rois, step.annotations, example.image_transform, dialect=step.dialect)
    n_objects = len(step.annotations)
    np.testing.assert_array_equal(found.labels[n_objects:] * (found.iou[n_objects:] >= 0.5), rois.labels)
    np.testing.assert_allclose(found.boxes[:n_objects], step.gt_boxes, rtol=0, atol=6e-5)
    deltas = box_targets(rois.rois[: rois.n_foreground], step.gt_boxes, dialect=step.dialect)
    np.testing.assert_allclose(deltas, rois.deltas, rtol=0, atol=1e-6)


def test_mask_targets(step, chain, example):
    rois = step.rois(example.image_transform)
    found = chain._mask_targets([rois], [example], 28)
    if step.program == 'detectron2':
        np.testing.assert_array_equal(found, step.masks)
    else:
        np.testing.assert_allclose(found, step.masks, rtol=0, atol=3e-7)
        assert ((found > 0) & (found < 1)).any()


def test_bitmaps_in_the_network_input(golden):
    step = TorchvisionStep(golden)
    config = PRESETS['resnet50_fpn'].replace(dialect=TORCHVISION, min_size=300, max_size=500)
    transform = step.example(config).image_transform
    expected = np.unpackbits(step['gt_masks_input_packed'], axis=-1)[..., : step['gt_masks_input_shape'][2]]
    for segmentation, mask in zip(step.segmentations, expected, strict=True):
        np.testing.assert_array_equal(input_bitmap(segmentation, transform, resize=resize_nearest_torch), mask)


@pytest.mark.parametrize('name', LOSSES)
def test_losses(step, backward, name):
    value = float(chainer.as_array(backward[0][name]))
    np.testing.assert_allclose(value, step[step.losses[LOSSES.index(name)]], rtol=4e-6)


def test_the_programs_train_the_same_parameters(step, chain, backward):
    trained = set(map(step.path_of, step['grad_names']))
    for path, param in chain.model.namedparams():
        assert (param.grad is not None and param.requires_grad) == (path[1:] in trained), path


def test_the_norm_of_every_gradient(step, chain, backward):
    """Half of the norms agree within 1e-4, all within 5e-3; measured: 2e-5 and 2.8e-3.

    ReLUs, max pooling and L1 losses have derivatives that jump: noise of 1e-6 on the network input moves single norms
    of torchvision by 7e-4 to 4.2e-3 (five draws), the other convolutions of PyTorch move one by 5.3e-4.
    """
    params = dict(chain.model.namedparams())
    norms = np.array([np.linalg.norm(gradient(step, params, name).astype(np.float64)) for name in step['grad_names']])
    np.testing.assert_allclose(norms, step['grad_norms'], rtol=5e-3)
    is_trained = step['grad_norms'] > 0
    assert np.median(np.abs(norms[is_trained] / step['grad_norms'][is_trained] - 1)) < 1e-4
    np.testing.assert_allclose(np.linalg.norm(norms), np.linalg.norm(step['grad_norms']), rtol=5e-4)
    np.testing.assert_allclose(np.linalg.norm(step['grad_norms']), step['grad_norm_all'], rtol=1e-6)


def test_single_numbers_of_gradients(step, chain, backward):
    """Relative to the largest one of an array; measured: 0.0072, with noise of 1e-6 on the network input 0.009."""
    params = dict(chain.model.namedparams())
    for name in step['grad_names']:
        if step.path_of(name).startswith(PERMUTED):
            continue
        grad = gradient(step, params, name)
        assert grad.shape == tuple(step[f'grad/{name}/shape'])
        found, expected = grad.ravel()[step[f'grad/{name}/index']], step[f'grad/{name}/value']
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.015 * np.abs(grad).max(), err_msg=name)


def gradient(step, params, name):
    """Return the gradient of the parameter with a name in the program."""
    return to_host(params['/' + step.path_of(name)].grad)
