"""The train chain: the terms of the loss, their gradients, and their independence of the division into batches."""

import dataclasses

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import Config
from mask_rcnn.datasets.example import TrainingExample, group_by_size
from mask_rcnn.ops.boxes.flatten_anchors import flatten_anchors
from mask_rcnn.targets import IGNORED, Sampling
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.anchors import dense_targets
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import SAMPLING, example, run_backward

LOSSES = ('rpn_cls_loss', 'rpn_loc_loss', 'roi_cls_loss', 'roi_loc_loss', 'roi_mask_loss')


@pytest.fixture(scope='module')
def chain():
    """A randomly initialised narrow network."""
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        model = mask_rcnn.build(Config(n_fg_class=3, anchor_sizes=(16, 32), rpn_channels=32, mask_channels=128))
    freeze(model)
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for path, grad in expected.items():
        difference = np.linalg.norm(found[path] - grad)
        assert difference <= 1e-5 * np.linalg.norm(grad), path


def test_the_loss_is_the_sum_of_five_losses(chain):
    loss, reported, _ = run_backward(chain, [example()])
    assert set(reported) == {*LOSSES, 'loss', 'n_positive_anchor', 'n_foreground_roi', 'roi_accuracy'}
    np.testing.assert_allclose(loss, sum(reported[name] for name in LOSSES), rtol=1e-6)
    assert all(reported[name] > 0 for name in LOSSES)
    assert reported['loss'] == loss
    assert 1 <= reported['n_positive_anchor'] <= 16 and reported['n_foreground_roi'] == 2
    assert 0 <= reported['roi_accuracy'] <= 1


def test_gamma_is_the_weight_of_the_mask_loss(chain):
    _, reported, grads = run_backward(chain, [example()])
    weighted = MaskRCNNTrainChain(chain.model, sampling=SAMPLING, gamma=3.0)
    loss, reported_3, grads_3 = run_backward(weighted, [example()])
    np.testing.assert_allclose(loss, reported['loss'] + 2 * reported['roi_mask_loss'], rtol=1e-6)
    assert reported_3['roi_mask_loss'] == reported['roi_mask_loss']
    path = '/model/mask_head/score/W'
    np.testing.assert_allclose(grads_3[path], 3 * grads[path], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    'batch',
    [
        [example(seed=1), example(seed=2, boxes=[(3, 3, 30, 30)], crowd=[False])],
        [example(seed=1), example(height=80, width=64, seed=2), example(height=70, width=90, seed=3)],
    ],
    ids=['one size', 'three sizes'],
)
def test_a_batch_is_the_mean_of_its_images(chain, batch):
    loss, reported, grads = run_backward(chain, batch)
    chain.cleargrads()
    parts = [run_backward(chain, [image], weight=1 / len(batch), clear=False) for image in batch]
    np.testing.assert_allclose(loss, np.mean([part[0] for part in parts]), rtol=1e-5)
    for name in reported:
        np.testing.assert_allclose(reported[name], np.mean([part[1][name] for part in parts]), rtol=1e-5, err_msg=name)
    assert_same_gradients(parts[-1][2], grads)


def test_no_examples_have_no_loss(chain):
    with pytest.raises(ValueError, match='^the loss needs at least one example$'):
        chain([])


def test_the_order_of_the_images_does_not_matter(chain):
    batch = [example(seed=1), example(height=80, width=64, seed=2), example(seed=3)]
    _, _, grads = run_backward(chain, batch)
    assert_same_gradients(run_backward(chain, batch[::-1])[2], grads)


def test_sampling_depends_on_the_seed_of_the_example(chain):
    first, same = example(seed=1), example(seed=1)
    changed = TrainingExample(**{**vars(first), 'seed': 99})
    loss, same_loss, changed_loss = (run_backward(chain, [image])[0] for image in (first, same, changed))
    assert loss == same_loss != changed_loss


NO_OBJECTS = dict(boxes=(), crowd=())
CROWD = dict(boxes=[(0, 0, 63, 79)], crowd=[True])


@pytest.mark.parametrize('special', [NO_OBJECTS, CROWD], ids=['no objects', 'only crowds'])
def test_images_without_objects_contribute_background_only(chain, special):
    _, reference, reference_grads = run_backward(chain, [example(seed=1)])
    loss, reported, grads = run_backward(chain, [example(seed=2, **special)])
    assert np.isfinite(loss)
    assert grads.keys() == reference_grads.keys()  # processes must agree on the parameters with a gradient
    assert all(np.isfinite(grad).all() for grad in grads.values())
    assert reported['rpn_cls_loss'] > 0 and reported['roi_cls_loss'] > 0
    for name in ('rpn_loc_loss', 'roi_loc_loss', 'roi_mask_loss', 'n_positive_anchor', 'n_foreground_roi'):
        assert reported[name] == 0, name
    together, _, _ = run_backward(chain, [example(seed=1), example(seed=2, **special)])
    np.testing.assert_allclose(together, (reference['loss'] + loss) / 2, rtol=1e-5)


#: Sampling of which a proposal must overlap an object hardly at all to be background.
NO_BACKGROUND = dataclasses.replace(SAMPLING, roi_background_iou=(0.1, 0.5))


@pytest.mark.parametrize(
    ('image', 'sampling', 'absent'),
    [
        ({'height': 8, 'width': 8, 'boxes': [(0, 0, 7, 7)], 'crowd': [False]}, SAMPLING, LOSSES[:2]),
        ({**NO_OBJECTS}, NO_BACKGROUND, LOSSES[1:]),
        ({**CROWD}, dataclasses.replace(SAMPLING, roi_background_iou=(0.0, 1e-6)), LOSSES[2:]),
    ],
    ids=['no anchor inside', 'no background', 'only crowds'],
)
def test_losses_of_nothing_are_zero(chain, image, sampling, absent):
    """Their gradients are finite."""
    sparse = MaskRCNNTrainChain(chain.model, sampling=sampling)
    _, reported, grads = run_backward(sparse, [example(seed=2, **image)])
    assert [name for name in absent if reported[name] != 0] == []
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_images_without_proposals_train_on_their_objects(chain, monkeypatch):
    """Without objects, the heads run on an ignored RoI."""
    monkeypatch.setattr(chain.model.rpn, 'config', chain.model.rpn.config.replace(rpn_min_size=1000))
    _, reported, grads = run_backward(chain, [example(seed=1), example(seed=2, **NO_OBJECTS)])
    assert reported['n_foreground_roi'] == 1 and reported['roi_mask_loss'] > 0  # of the two objects of one image
    assert all(np.isfinite(grad).all() for grad in grads.values())
    with chainer.no_backprop_mode():
        chain([example(seed=2, **NO_OBJECTS)])


def test_an_image_filled_by_a_crowd_has_no_head_losses(chain):
    no_background = Sampling(
        rpn_batch=32,
        roi_batch=8,
        train_pre_nms=100,
        train_post_nms=20,
        roi_background_iou=(0.0, 1e-6),
        roi_foreground_iou=0.5,
    )
    ignoring = MaskRCNNTrainChain(chain.model, sampling=no_background)
    loss, reported, grads = run_backward(ignoring, [example(**CROWD)])
    assert np.isfinite(loss) and reported['rpn_cls_loss'] > 0
    assert all(reported[name] == 0 for name in LOSSES[2:])
    assert not grads['/model/box_head/score/W'].any()


def test_objects_without_segmentation_have_no_mask_loss(chain):
    _, reported, _ = run_backward(chain, [example(segmentations=((), ()))])
    assert reported['roi_mask_loss'] == 0
    assert reported['roi_loc_loss'] > 0 and reported['n_foreground_roi'] == 2


def test_rle_and_polygons_have_the_same_mask_loss(chain):
    import pycocotools.mask

    polygons = example()
    rles = tuple(
        pycocotools.mask.frPyObjects([shape[0].tolist()], *polygons.image_transform.size)[0]
        for shape in polygons.annotations.segmentations
    )
    _, rasterised, _ = run_backward(chain, [polygons])
    _, decoded, _ = run_backward(chain, [example(segmentations=rles)])
    np.testing.assert_allclose(decoded['roi_mask_loss'], rasterised['roi_mask_loss'], rtol=0.02)


@pytest.mark.parametrize(
    'path',
    [
        'rpn/objectness/b',
        'rpn/delta/W',
        'box_head/score/W',
        'box_head/delta/b',
        'mask_head/score/b',
        'mask_head/deconv/b',
        'box_head/res5/block0/conv3/conv/W',
    ],
)
def test_gradients_equal_numerical_differences(chain, path):
    """The difference is taken along the gradient, with fixed targets."""
    model, batch = chain.model, [example(seed=4)]
    with chainer.no_backprop_mode():
        features = [level.array for level in model.extractor(batch[0].x[None])]
    logits, deltas = ([level.array for level in outputs] for outputs in model.rpn(features))
    rngs = [np.random.RandomState(0)]
    anchors = chain.anchor_targets(batch, [logits[0].shape[2:]], rngs)
    proposals = chain.propose(logits, deltas, batch[0].x.shape[1:], [batch[0].image_transform])
    rois, _ = chain.roi_targets(batch, proposals, rngs)

    def loss():
        logits, deltas = model.rpn(features)
        values = chain.rpn_losses(flatten_anchors(logits, 1), flatten_anchors(deltas, 4), anchors)
        values.update(chain.roi_losses(features, rois, batch))
        return sum(value for name, value in values.items() if name in LOSSES)

    param = dict(model.namedparams())['/' + path]
    model.cleargrads()
    loss().backward()
    grad, start = param.grad.copy(), param.array.copy()
    norm = float(np.linalg.norm(grad))
    step = 5e-4 / norm  # of the loss
    values = []
    for sign in (1, -1):
        param.array[...] = start + sign * step * grad / norm
        values.append(float(loss().array))
    param.array[...] = start
    np.testing.assert_allclose((values[0] - values[1]) / (2 * step), norm, rtol=1e-2)


@pytest.fixture
def proposals(chain, monkeypatch):
    """Record the arguments and the boxes of every call of the RPN's decode()."""
    calls, decode = [], type(chain.model.rpn).decode

    def recorded(self, logits, deltas, size, transform, **options):
        boxes, scores = decode(self, logits, deltas, size, transform, **options)
        calls.append((size, transform, options, boxes))
        return boxes, scores

    monkeypatch.setattr(type(chain.model.rpn), 'decode', recorded)
    return calls


def test_the_chain_uses_the_proposal_limits_of_training(chain, proposals):
    """The limits are those of Sampling, not of the configuration, and the proposals are clipped to the image."""
    few = Sampling(rpn_batch=32, roi_batch=64, train_pre_nms=30, train_post_nms=7)
    assert few.train_post_nms < chain.model.config.rpn_post_nms
    images = [example(seed=1), example(seed=2, scale=1.0)]
    MaskRCNNTrainChain(chain.model, sampling=few)(images)
    for image, (size, transform, options, boxes) in zip(images, proposals, strict=True):
        assert size == (64, 80) and transform == image.image_transform
        assert options == {'clip_to_image': True, 'pre_nms': 30, 'post_nms': 7, 'padded': False}
        assert len(boxes) == 7
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [63, 79]).all()


def test_proposals_of_training_are_clipped_to_the_image_and_not_to_its_padding(chain, proposals):
    """An input of 64 x 80 pixels is padded to 96 x 128; the deltas make every box larger than both."""
    image = example(seed=1)
    image = dataclasses.replace(image, x=np.pad(image.x, ((0, 0), (0, 32), (0, 48))))
    bias = chain.model.rpn.delta.b.array
    before = bias.copy()
    bias.reshape(-1, 4)[:, 2:] = 4  # dh and dw: 16 pixels become 16 * exp(4) = 874
    try:
        chain([image])
    finally:
        bias[...] = before
    ((_, _, _, boxes),) = proposals
    np.testing.assert_array_equal(boxes, [[0, 0, 63, 79]])


def test_the_heads_get_rois_sampled_from_the_proposals(chain, proposals, monkeypatch):
    sampled = []
    features = type(chain.model.box_head).roi_features

    def recorded(self, x, rois, indices):
        sampled.append((rois.copy(), indices.copy()))
        return features(self, x, rois, indices)

    monkeypatch.setattr(type(chain.model.box_head), 'roi_features', recorded)
    images = [example(seed=1), example(seed=2, **NO_OBJECTS)]
    chain(images)
    ((rois, indices),) = sampled
    for i, (image, (_, _, _, boxes)) in enumerate(zip(images, proposals, strict=True)):
        candidates = np.concatenate([image.annotations.boxes * 2, boxes])
        image_rois = rois[indices == i]
        assert 0 < len(image_rois) <= SAMPLING.roi_batch
        distance = np.abs(image_rois[:, None] - candidates).max(axis=2).min(axis=1)
        np.testing.assert_allclose(distance, 0, atol=1e-4)


def test_groups_of_one_size_keep_their_order():
    batch = [example(seed=1), example(height=80, width=64, seed=2), example(seed=3)]
    assert [[image.seed for image in group] for group in group_by_size(batch)] == [[1, 3], [2]]


def test_ignored_anchors_have_no_gradient(chain):
    image = example(**CROWD)
    logits, deltas = chain.model.rpn(chain.model.extractor(image.x[None]))
    targets = chain.anchor_targets([image], [logits[0].shape[2:]], [np.random.RandomState(0)])
    logits = chainer.Variable(logits[0].array)
    flat = flatten_anchors([logits], 1)
    chain.rpn_losses(flat, flatten_anchors(deltas, 4), targets)['rpn_cls_loss'].backward()
    labels, _ = dense_targets(targets[0], flat.shape[1])
    assert (labels == IGNORED).any() and (labels != IGNORED).any()
    np.testing.assert_array_equal(logits.grad[0].transpose(1, 2, 0).ravel() != 0, labels != IGNORED)


def test_float16_outputs_have_float32_losses_and_proposals(chain):
    image = example()
    single = [[level.array for level in outputs] for outputs in chain.model.rpn(chain.model.extractor(image.x[None]))]
    halves = [[chainer.Variable(level.astype(np.float16)) for level in outputs] for outputs in single]
    targets = chain.anchor_targets([image], [single[0][0].shape[2:]], [np.random.RandomState(0)])
    expected, found = (chain.rpn_losses(*map(flatten_anchors, x, (1, 4)), targets) for x in (single, halves))
    for name in ('rpn_cls_loss', 'rpn_loc_loss'):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name].array, chainer.as_array(expected[name]), rtol=2e-3)
    found['rpn_cls_loss'].backward()
    assert halves[0][0].grad.dtype == np.float16 and halves[0][0].grad.any()
    logits, deltas = ([level.array for level in outputs] for outputs in halves)
    proposals = chain.propose(logits, deltas, image.x.shape[1:], [image.image_transform])
    (rois,), _ = chain.roi_targets([image], proposals, [np.random.RandomState(0)])
    assert rois.rois.dtype == np.float32


def test_the_input_has_the_dtype_of_the_weights(chain, monkeypatch):
    class Input(Exception):
        pass

    def extractor(x):
        raise Input(x.dtype)

    monkeypatch.setattr(type(chain.model.extractor), 'forward', lambda self, x: extractor(x))
    first = next(chain.model.extractor.params())
    monkeypatch.setattr(first, 'array', first.array.astype(np.float16))
    with pytest.raises(Input, match='float16'):
        chain([example()])


@pytest.fixture(scope='module')
def pyramid():
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        model = mask_rcnn.build(
            'resnet50_fpn',
            n_fg_class=3,
            anchor_sizes=(8, 16, 32, 64, 128),
            fpn_channels=8,
            head_channels=16,
            mask_channels=8,
            rpn_channels=0,
        )
    freeze(model)
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


def test_rpn_losses_of_a_pyramid_equal_detectron(pyramid):
    """Cross entropy is divided by the configured number of anchors, smooth L1 by the sampled number."""
    batch = [example(64, 96, seed=1), example(64, 96, boxes=((0, 0, 60, 60),), crowd=(False,), seed=2)]
    rpn = pyramid.model.rpn
    logits, deltas = rpn(pyramid.model.extractor(np.stack([image.x for image in batch])))
    targets = pyramid.anchor_targets(
        batch, [level.shape[2:] for level in logits], [np.random.RandomState(i) for i in range(2)]
    )
    found = pyramid.rpn_losses(flatten_anchors(logits, 1), flatten_anchors(deltas, 4), targets)
    entropy = distance = 0.0
    n_anchors = sum(level.size for level in logits) // 2
    for i, target in enumerate(targets):
        labels, delta_targets = dense_targets(target, n_anchors)
        start, counted = 0, (labels != IGNORED).sum()
        assert counted < SAMPLING.rpn_batch or (labels == 1).any()
        for level_logits, level_deltas in zip(logits, deltas, strict=True):
            n_anchor, height, width = level_logits.shape[1:]
            for y, x, a in np.ndindex(height, width, n_anchor):
                label, expected = labels[start], delta_targets[start]
                start += 1
                if label != IGNORED:
                    value = float(level_logits.array[i, a, y, x])
                    entropy += np.log1p(np.exp(value if label == 0 else -value)) / SAMPLING.rpn_batch / 2
                if label == 1:
                    d = np.abs(level_deltas.array[i, 4 * a : 4 * a + 4, y, x].astype(np.float64) - expected)
                    distance += np.where(d < 1 / 9, 4.5 * d * d, d - 1 / 18).sum() / counted / 2
        assert start == n_anchors
    np.testing.assert_allclose(found['rpn_cls_loss'].array, entropy, rtol=1e-5)
    np.testing.assert_allclose(found['rpn_loc_loss'].array, distance, rtol=1e-5)


def test_every_trained_layer_of_a_pyramid_has_a_gradient(pyramid):
    batch = [example(128, 192, boxes=((4, 6, 35, 37), (10, 20, 110, 120)), seed=1), example(128, 192, seed=2)]
    _, reported, grads = run_backward(pyramid, batch)
    assert np.isfinite(list(reported.values())).all()
    without_gradient = [path for path, grad in grads.items() if not grad.any()]
    assert not without_gradient and not any('/norm/' in path for path in grads)
    assert not any(path.startswith(('/model/extractor/body/conv1', '/model/extractor/body/res2')) for path in grads)
    trained = {path.split('/')[3] for path in grads if path.startswith('/model/extractor/')}
    assert trained == {'body', *(f'{name}{level}' for name in ('lateral', 'output') for level in (2, 3, 4, 5))}


def test_a_batch_of_a_pyramid_has_the_gradient_of_its_parts(pyramid):
    batch = [example(64, 96, seed=1), example(64, 96, seed=2)]
    _, _, expected = run_backward(pyramid, batch)
    pyramid.cleargrads()
    for image in batch:
        _, _, found = run_backward(pyramid, [image], weight=0.5, clear=False)
    assert_same_gradients(found, expected)
