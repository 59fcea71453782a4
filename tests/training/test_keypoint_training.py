"""The loss of a network with keypoints: what it consists of, and what it must not depend on."""

import dataclasses

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import Sampling
from mask_rcnn.training import losses
from mask_rcnn.training.optimizer import make_optimizer, set_rate
from mask_rcnn.training.train_chain import MaskRCNNTrainChain

SAMPLING = Sampling(rpn_batch=32, roi_batch=16, train_pre_nms=100, train_post_nms=20)
SMALL = dict(fpn_channels=16, rpn_channels=16, head_channels=16, anchor_sizes=(8, 16, 32, 64, 128))
BOX_LOSSES = ('rpn_cls_loss', 'rpn_loc_loss', 'roi_cls_loss', 'roi_loc_loss')


def small_chain(**changes):
    """A network with random weights: ResNet's stages have one block each, the head has two convolutions."""
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNET_BLOCKS, 'resnet50', (1, 1, 1, 1))
        patch.setattr(KeypointHead, 'n_conv', 2)
        patch.setattr(KeypointHead, 'channels', 16)
        model = mask_rcnn.build('keypoint_resnet50_fpn', **SMALL, **changes)
    model.keypoint_head.n_conv = 2
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


@pytest.fixture(scope='module')
def chain():
    return small_chain()


def example(height=64, width=96, *, boxes=((4, 6, 45, 37), (10, 48, 51, 81)), seed=1, visible=2):
    """Bright boxes; in each, every next keypoint is a 17th further down."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    x = np.random.RandomState(seed).randn(3, height, width).astype(np.float32)
    for y1, x1, y2, x2 in boxes.astype(int):
        x[:, y1:y2, x1:x2] += 3
    keypoints = np.zeros((len(boxes), 17, 3), np.float32)
    share = (np.arange(17) + 0.5) / 17
    if visible:
        keypoints[:, :, 0] = boxes[:, :1] + share * (boxes[:, 2:3] - boxes[:, :1])
        keypoints[:, :, 1] = boxes[:, 1:2] + share[::-1] * (boxes[:, 3:] - boxes[:, 1:2])
        keypoints[:, :, 2] = visible
    annotations = Annotations(
        boxes, np.zeros(len(boxes), np.int32), np.zeros(len(boxes), bool), ((),) * len(boxes), keypoints
    )
    return TrainingExample(x, ImageTransform.top_left((height, width), 1.0), annotations, f'{seed}.jpg', seed, seed)


def learn(chain, batch, *, weight=1.0, clear=True):
    """Return the loss, the reports and the gradients of a batch."""
    if clear:
        chain.cleargrads()
    reporter, reported = chainer.Reporter(), {}
    reporter.add_observer('main', chain)
    with reporter.scope(reported):
        loss = chain(batch)
    (loss * weight).backward()
    grads = {path: param.grad.copy() for path, param in chain.namedparams() if param.grad is not None}
    reported = {name.removeprefix('main/'): float(value) for name, value in reported.items()}
    return float(loss.array), reported, grads


def test_the_loss_is_the_sum_of_its_parts(chain):
    loss, reported, _ = learn(chain, [example()])
    parts = {name for name in reported if name.endswith('_loss')}
    assert parts == {*BOX_LOSSES, 'roi_keypoint_loss'}
    np.testing.assert_allclose(loss, sum(reported[name] for name in parts), rtol=1e-6)
    assert reported['roi_keypoint_loss'] > 0


def test_masks_and_keypoints_together():
    chain = small_chain(masks=True)
    one = example()
    annotations = dataclasses.replace(
        one.annotations,
        segmentations=tuple(
            (np.array([x1, y1, x2, y1, x2, y2], np.float32),) for y1, x1, y2, x2 in one.annotations.boxes
        ),
    )
    loss, reported, grads = learn(chain, [dataclasses.replace(one, annotations=annotations)])
    parts = {name for name in reported if name.endswith('_loss')}
    assert parts == {*BOX_LOSSES, 'roi_mask_loss', 'roi_keypoint_loss'}
    np.testing.assert_allclose(loss, sum(reported[name] for name in parts), rtol=1e-6)
    assert grads['/model/mask_head/score/W'].any() and grads['/model/keypoint_head/deconv/W'].any()


def test_a_head_that_knows_nothing_loses_the_logarithm_of_all_places(chain):
    deconv = chain.model.keypoint_head.deconv
    before = deconv.W.array.copy()
    deconv.W.array[...] = 0
    _, reported, _ = learn(chain, [example()])
    deconv.W.array[...] = before
    np.testing.assert_allclose(reported['roi_keypoint_loss'], np.log(56 * 56), rtol=1e-6)


@pytest.mark.parametrize(
    'batch',
    [
        [example(seed=1), example(seed=2, boxes=[(3, 3, 50, 40)])],
        [example(seed=1), example(height=96, width=64, seed=2, boxes=[(3, 3, 50, 40)]), example(seed=3, visible=0)],
    ],
    ids=['one size', 'two sizes, one without keypoints'],
)
def test_a_batch_is_the_mean_of_its_images(chain, batch):
    loss, reported, grads = learn(chain, batch)
    chain.cleargrads()
    parts = [learn(chain, [one], weight=1 / len(batch), clear=False) for one in batch]
    np.testing.assert_allclose(loss, np.mean([part[0] for part in parts]), rtol=1e-5)
    np.testing.assert_allclose(
        reported['roi_keypoint_loss'], np.mean([part[1]['roi_keypoint_loss'] for part in parts]), rtol=1e-5
    )
    assert parts[-1][2].keys() == grads.keys()
    for path, grad in grads.items():
        assert np.linalg.norm(parts[-1][2][path] - grad) <= 2e-5 * np.linalg.norm(grad), path


@pytest.mark.parametrize('special', [dict(visible=0), dict(boxes=())], ids=['none visible', 'no objects'])
def test_images_without_keypoints_teach_no_keypoints(chain, special):
    _, _, usual = learn(chain, [example()])
    loss, reported, grads = learn(chain, [example(**special)])
    assert np.isfinite(loss) and reported['roi_keypoint_loss'] == 0
    assert grads.keys() == usual.keys()  # processes must agree on what has a gradient
    for path in ('conv1/W', 'deconv/W', 'deconv/b'):
        assert not grads[f'/model/keypoint_head/{path}'].any()


def test_data_without_keypoints(chain):
    one = example()
    bare = dataclasses.replace(one, annotations=dataclasses.replace(one.annotations, keypoints=None))
    with pytest.raises(ValueError, match='keypoints are to be learned, but the data have none'):
        chain([bare])


def test_gradients_are_differences(monkeypatch):
    """Along the gradient, with fixed targets, in double precision (no ReLU turns on so short a way)."""
    chain, one = small_chain(), example(seed=4)
    model = chain.model
    with chainer.no_backprop_mode():
        maps = [features.array for features in model.extractor(one.x[None])]
        logits, deltas = ([own.array for own in outputs] for outputs in model.rpn(maps))
    (rois,) = chain.roi_targets([one], logits, deltas, [np.random.RandomState(0)])
    monkeypatch.setattr(losses.F, 'cast', lambda x, dtype: x)
    maps = [features.astype(np.float64) for features in maps]
    for param in model.params():
        param.array = param.array.astype(np.float64)

    def loss():
        return chain.keypoint_loss(maps, [rois.keypoints])

    model.cleargrads()
    loss().backward()
    for path in ('conv1/W', 'conv2/b', 'deconv/W', 'deconv/b'):
        param = dict(model.keypoint_head.namedparams())[f'/{path}']
        start, norm = param.array.copy(), np.linalg.norm(param.grad)
        values = []
        for step in (1e-7, -1e-7):
            param.array[...] = start + step / norm**2 * param.grad
            values.append(float(loss().array))
        param.array[...] = start
        np.testing.assert_allclose(values[0] - values[1], 2e-7, rtol=1e-6, err_msg=path)


def test_a_network_learns_keypoints():
    chain = small_chain()
    optimizer = make_optimizer(chain, clip=10.0)
    set_rate(optimizer, 0.01)
    one = example()
    first = learn(chain, [one])[1]['roi_keypoint_loss']
    for _ in range(20):
        optimizer.update(chain, [one])
    last = learn(chain, [one])[1]['roi_keypoint_loss']
    assert last < 0.8 * first, (first, last)
