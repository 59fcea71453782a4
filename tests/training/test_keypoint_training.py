"""The train chain of a network with a keypoint head: its losses and their gradients."""

import dataclasses

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import Sampling
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import run_backward

SAMPLING = Sampling(rpn_batch=32, roi_batch=16, train_pre_nms=100, train_post_nms=20)
SMALL = dict(fpn_channels=16, rpn_channels=16, head_channels=16, anchor_sizes=(8, 16, 32, 64, 128))
BOX_LOSSES = ('rpn_cls_loss', 'rpn_loc_loss', 'roi_cls_loss', 'roi_loc_loss')


def small_chain(**changes):
    """Return a randomly initialised narrow network with two convolutions in the head."""
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        patch.setattr(KeypointHead, 'n_conv', 2)
        patch.setattr(KeypointHead, 'channels', 16)
        model = mask_rcnn.build('keypoint_resnet50_fpn', **SMALL, **changes)
    model.keypoint_head.n_conv = 2
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


@pytest.fixture(scope='module')
def chain():
    return small_chain()


def example(height=64, width=96, *, boxes=((4, 6, 45, 37), (10, 48, 51, 81)), seed=1, visible=2):
    """Return an image with bright boxes, whose keypoints lie on a diagonal."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    x = np.random.RandomState(seed).randn(3, height, width).astype(np.float32)
    for y1, x1, y2, x2 in boxes.astype(int):
        x[:, y1:y2, x1:x2] += 3
    keypoints = np.zeros((len(boxes), 17, 3), np.float32)
    fraction = (np.arange(17) + 0.5) / 17
    if visible:
        keypoints[:, :, 0] = boxes[:, :1] + fraction * (boxes[:, 2:3] - boxes[:, :1])
        keypoints[:, :, 1] = boxes[:, 1:2] + fraction[::-1] * (boxes[:, 3:] - boxes[:, 1:2])
        keypoints[:, :, 2] = visible
    annotations = Annotations(
        boxes, np.zeros(len(boxes), np.int32), np.zeros(len(boxes), bool), ((),) * len(boxes), keypoints
    )
    return TrainingExample(x, ImageTransform.top_left((height, width), 1.0), annotations, f'{seed}.jpg', seed, seed)


def test_the_loss_is_the_sum_of_its_parts(chain):
    loss, reported, _ = run_backward(chain, [example()])
    parts = {name for name in reported if name.endswith('_loss')}
    assert parts == {*BOX_LOSSES, 'roi_keypoint_loss'}
    np.testing.assert_allclose(loss, sum(reported[name] for name in parts), rtol=1e-6)
    assert reported['roi_keypoint_loss'] > 0


def test_mask_and_keypoint_heads_together():
    chain = small_chain(masks=True)
    image = example()
    annotations = dataclasses.replace(
        image.annotations,
        segmentations=tuple(
            (np.array([x1, y1, x2, y1, x2, y2], np.float32),) for y1, x1, y2, x2 in image.annotations.boxes
        ),
    )
    loss, reported, grads = run_backward(chain, [dataclasses.replace(image, annotations=annotations)])
    parts = {name for name in reported if name.endswith('_loss')}
    assert parts == {*BOX_LOSSES, 'roi_mask_loss', 'roi_keypoint_loss'}
    np.testing.assert_allclose(loss, sum(reported[name] for name in parts), rtol=1e-6)
    assert grads['/model/mask_head/score/W'].any() and grads['/model/keypoint_head/deconv/W'].any()


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_number_of_cells(chain):
    deconv = chain.model.keypoint_head.deconv
    before = deconv.W.array.copy()
    deconv.W.array[...] = 0
    _, reported, _ = run_backward(chain, [example()])
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
    loss, reported, grads = run_backward(chain, batch)
    chain.cleargrads()
    parts = [run_backward(chain, [image], weight=1 / len(batch), clear=False) for image in batch]
    np.testing.assert_allclose(loss, np.mean([part[0] for part in parts]), rtol=1e-5)
    np.testing.assert_allclose(
        reported['roi_keypoint_loss'], np.mean([part[1]['roi_keypoint_loss'] for part in parts]), rtol=1e-5
    )
    assert parts[-1][2].keys() == grads.keys()
    for path, grad in grads.items():
        assert np.linalg.norm(parts[-1][2][path] - grad) <= 2e-5 * np.linalg.norm(grad), path


@pytest.mark.parametrize('special', [dict(visible=0), dict(boxes=())], ids=['none visible', 'no objects'])
def test_images_without_keypoints_have_no_keypoint_loss(chain, special):
    _, _, reference = run_backward(chain, [example()])
    loss, reported, grads = run_backward(chain, [example(**special)])
    assert np.isfinite(loss) and reported['roi_keypoint_loss'] == 0
    assert grads.keys() == reference.keys()  # processes must agree on the parameters with a gradient
    for path in ('conv1/W', 'deconv/W', 'deconv/b'):
        assert not grads[f'/model/keypoint_head/{path}'].any()


def test_annotations_without_keypoints_are_rejected(chain):
    image = example()
    bare = dataclasses.replace(image, annotations=dataclasses.replace(image.annotations, keypoints=None))
    with pytest.raises(ValueError, match='the network has a keypoint head, but the annotations have no keypoints'):
        chain([bare])


def test_gradients_equal_numerical_differences():
    """The difference is taken along the gradient in double precision, with fixed targets.

    The step is so short that no ReLU changes its state.
    """
    chain, image = small_chain(), example(seed=4)
    model = chain.model
    with chainer.no_backprop_mode():
        features = [level.array for level in model.extractor(image.x[None])]
        logits, deltas = ([level.array for level in outputs] for outputs in model.rpn(features))
    proposals = chain.propose(logits, deltas, image.x.shape[1:], [image.image_transform])
    _, keypoint_rois = chain.roi_targets([image], proposals, [np.random.RandomState(0)])
    features = [level.astype(np.float64) for level in features]
    for param in model.params():
        param.array = param.array.astype(np.float64)

    def loss():
        return chain.keypoint_loss(features, keypoint_rois)

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
        np.testing.assert_allclose(values[0] - values[1], 2e-7, rtol=1e-7, err_msg=path)


@pytest.mark.slow
def test_training_reduces_the_keypoint_loss():
    chain = small_chain()
    optimizer = make_optimizer(chain, clip=10.0)
    set_learning_rate(optimizer, 0.01)
    image = example()
    first = run_backward(chain, [image])[1]['roi_keypoint_loss']
    for _ in range(20):
        optimizer.update(chain, [image])
    last = run_backward(chain, [image])[1]['roi_keypoint_loss']
    assert last < 0.8 * first, (first, last)
