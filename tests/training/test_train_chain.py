"""The loss of a batch: what it consists of, and what it must not depend on."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import RESNET_BLOCKS, Config
from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import IGNORED, Sampling
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain, group_by_size

SAMPLING = Sampling(rpn_batch=32, roi_batch=8, train_pre_nms=100, train_post_nms=20)

LOSSES = ('rpn_cls_loss', 'rpn_loc_loss', 'roi_cls_loss', 'roi_loc_loss', 'roi_mask_loss')


@pytest.fixture(scope='module')
def chain():
    """A network with random weights: of ResNet's stages one block each, for speed."""
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNET_BLOCKS, 'resnet50', (1, 1, 1, 1))
        model = mask_rcnn.build(Config(n_fg_class=3, anchor_sizes=(16, 32)))
    freeze(model)
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


def square(y, x, side):
    return (np.array([x, y, x + side, y, x + side, y + side, x, y + side], np.float32),)


def example(
    height=64,
    width=80,
    *,
    boxes=((4, 6, 35, 37), (20, 40, 51, 71)),
    crowd=(False, False),
    seed=1,
    shapes=None,
    scale=2.0,
):
    boxes = np.array(boxes, np.float32).reshape(-1, 4) / scale
    shapes = shapes or tuple(square(y1, x1, y2 - y1) for y1, x1, y2, x2 in boxes)
    annotations = Annotations(boxes, np.arange(len(boxes), dtype=np.int32) % 3, np.array(crowd, bool), shapes)
    x = np.random.RandomState(seed).randn(3, height, width).astype(np.float32)
    for y1, x1, y2, x2 in (boxes * scale).astype(int):
        x[:, y1:y2, x1:x2] += 3
    size = round(height / scale), round(width / scale)
    return TrainingExample(x, ImageTransform.top_left(size, scale), annotations, f'{seed}.jpg', seed, seed)


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


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for path, grad in expected.items():
        difference = np.linalg.norm(found[path] - grad)
        assert difference <= 1e-5 * np.linalg.norm(grad), path


def test_the_loss_is_the_sum_of_the_five(chain):
    loss, reported, _ = learn(chain, [example()])
    assert set(reported) == {*LOSSES, 'loss', 'n_positive_anchor', 'n_foreground_roi', 'roi_accuracy'}
    np.testing.assert_allclose(loss, sum(reported[name] for name in LOSSES), rtol=1e-6)
    assert all(reported[name] > 0 for name in LOSSES)
    assert reported['loss'] == loss
    assert 1 <= reported['n_positive_anchor'] <= 16 and reported['n_foreground_roi'] == 2
    assert 0 <= reported['roi_accuracy'] <= 1


def test_gamma_is_the_weight_of_the_mask_loss(chain):
    _, reported, grads = learn(chain, [example()])
    weighted = MaskRCNNTrainChain(chain.model, sampling=SAMPLING, gamma=3.0)
    loss, reported_3, grads_3 = learn(weighted, [example()])
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
    loss, reported, grads = learn(chain, batch)
    chain.cleargrads()
    parts = [learn(chain, [one], weight=1 / len(batch), clear=False) for one in batch]
    np.testing.assert_allclose(loss, np.mean([part[0] for part in parts]), rtol=1e-5)
    for name in reported:
        np.testing.assert_allclose(reported[name], np.mean([part[1][name] for part in parts]), rtol=1e-5, err_msg=name)
    assert_same_gradients(parts[-1][2], grads)


def test_the_order_in_a_batch_does_not_matter(chain):
    batch = [example(seed=1), example(height=80, width=64, seed=2), example(seed=3)]
    _, _, grads = learn(chain, batch)
    assert_same_gradients(learn(chain, batch[::-1])[2], grads)


def test_the_seed_decides_what_is_drawn(chain):
    one, same, other = (example(seed=seed) for seed in (1, 1, 1))
    other = TrainingExample(**{**vars(other), 'seed': 99})
    assert learn(chain, [one])[0] == learn(chain, [same])[0] != learn(chain, [other])[0]


NOTHING = dict(boxes=(), crowd=())
CROWD = dict(boxes=[(0, 0, 63, 79)], crowd=[True])


@pytest.mark.parametrize('special', [NOTHING, CROWD], ids=['no objects', 'only crowds'])
def test_images_without_objects_teach_the_background(chain, special):
    _, usual, usual_grads = learn(chain, [example(seed=1)])
    loss, reported, grads = learn(chain, [example(seed=2, **special)])
    assert np.isfinite(loss)
    assert grads.keys() == usual_grads.keys()  # processes must agree on what has a gradient
    assert all(np.isfinite(grad).all() for grad in grads.values())
    assert reported['rpn_cls_loss'] > 0 and reported['roi_cls_loss'] > 0
    for name in ('rpn_loc_loss', 'roi_loc_loss', 'roi_mask_loss', 'n_positive_anchor', 'n_foreground_roi'):
        assert reported[name] == 0, name
    together, _, _ = learn(chain, [example(seed=1), example(seed=2, **special)])
    np.testing.assert_allclose(together, (usual['loss'] + loss) / 2, rtol=1e-5)


def test_an_image_that_a_crowd_fills_teaches_the_heads_nothing(chain):
    everything = Sampling(
        rpn_batch=32,
        roi_batch=8,
        train_pre_nms=100,
        train_post_nms=20,
        roi_background_iou=(0.0, 1e-6),
        roi_foreground_iou=0.5,
    )
    silent = MaskRCNNTrainChain(chain.model, sampling=everything)
    loss, reported, grads = learn(silent, [example(**CROWD)])
    assert np.isfinite(loss) and reported['rpn_cls_loss'] > 0
    assert all(reported[name] == 0 for name in LOSSES[2:])
    assert not grads['/model/box_head/score/W'].any()


def test_objects_without_shapes_learn_boxes_only(chain):
    _, reported, _ = learn(chain, [example(shapes=((), ()))])
    assert reported['roi_mask_loss'] == 0
    assert reported['roi_loc_loss'] > 0 and reported['n_foreground_roi'] == 2


def test_run_lengths_are_shapes(chain):
    import pycocotools.mask

    polygons = example()
    encode_masks = tuple(
        pycocotools.mask.frPyObjects([shape[0].tolist()], *polygons.image_transform.size)[0]
        for shape in polygons.annotations.segmentations
    )
    _, drawn, _ = learn(chain, [polygons])
    _, decoded, _ = learn(chain, [example(shapes=encode_masks)])
    np.testing.assert_allclose(decoded['roi_mask_loss'], drawn['roi_mask_loss'], rtol=0.02)


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
def test_gradients_are_differences(chain, path):
    """Along the gradient, with fixed targets."""
    model, batch = chain.model, [example(seed=4)]
    with chainer.no_backprop_mode():
        maps = [features.array for features in model.extractor(batch[0].x[None])]
    logits, deltas = ([own.array for own in outputs] for outputs in model.rpn(maps))
    rngs = [np.random.RandomState(0)]
    anchors = chain.anchor_targets(batch, [logits[0].shape[2:]], rngs)
    rois = chain.roi_targets(batch, logits, deltas, rngs)

    def loss():
        logits, deltas = model.rpn(maps)
        values = chain.rpn_losses(logits, deltas, anchors)
        values.update(chain.roi_losses(maps, rois, batch))
        return sum(value for name, value in values.items() if name in LOSSES)

    param = dict(model.namedparams())['/' + path]
    model.cleargrads()
    loss().backward()
    grad, start = param.grad.copy(), param.array.copy()
    norm = float(np.linalg.norm(grad))
    step = 2e-3 / norm  # of the loss
    values = []
    for sign in (1, -1):
        param.array[...] = start + sign * step * grad / norm
        values.append(float(loss().array))
    param.array[...] = start
    np.testing.assert_allclose((values[0] - values[1]) / (2 * step), norm, rtol=1e-2)


def test_proposals_are_those_of_training(chain):
    """More than a detector looks at, and inside of the image."""
    one = example()
    logits, deltas = chain.model.rpn(chain.model.extractor(one.x[None]))
    boxes, _ = chain.model.rpn.decode(
        [logits[0].array[0]],
        [deltas[0].array[0]],
        one.image_transform.input_size,
        one.image_transform.scale,
        pre_nms=SAMPLING.train_pre_nms,
        post_nms=SAMPLING.train_post_nms,
    )
    assert 0 < len(boxes) <= SAMPLING.train_post_nms
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [63, 79]).all()


def test_groups_keep_the_order():
    batch = [example(seed=1), example(height=80, width=64, seed=2), example(seed=3)]
    assert [[one.seed for one in group] for group in group_by_size(batch)] == [[1, 3], [2]]


def test_labels_that_are_ignored_have_no_weight(chain):
    one = example(**CROWD)
    logits, deltas = chain.model.rpn(chain.model.extractor(one.x[None]))
    targets = chain.anchor_targets([one], [logits[0].shape[2:]], [np.random.RandomState(0)])
    logits = chainer.Variable(logits[0].array)
    chain.rpn_losses([logits], deltas, targets)['rpn_cls_loss'].backward()
    np.testing.assert_array_equal(logits.grad[0].transpose(1, 2, 0).ravel() != 0, targets[0].labels != IGNORED)


def test_float16_maps_have_float32_losses_and_proposals(chain):
    one = example()
    maps = [[v.array for v in outputs] for outputs in chain.model.rpn(chain.model.extractor(one.x[None]))]
    halves = [[chainer.Variable(own.astype(np.float16)) for own in outputs] for outputs in maps]
    targets = chain.anchor_targets([one], [maps[0][0].shape[2:]], [np.random.RandomState(0)])
    expected, found = chain.rpn_losses(*maps, targets), chain.rpn_losses(*halves, targets)
    for name in ('rpn_cls_loss', 'rpn_loc_loss'):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name].array, chainer.as_array(expected[name]), rtol=2e-3)
    found['rpn_cls_loss'].backward()
    assert halves[0][0].grad.dtype == np.float16 and halves[0][0].grad.any()
    (rois,) = chain.roi_targets([one], *([v.array for v in outputs] for outputs in halves), [np.random.RandomState(0)])
    assert rois.rois.dtype == np.float32


def test_the_network_is_fed_in_its_own_precision(chain, monkeypatch):
    class Fed(Exception):
        pass

    def extractor(x):
        raise Fed(x.dtype)

    monkeypatch.setattr(type(chain.model.extractor), 'forward', lambda self, x: extractor(x))
    first = next(chain.model.extractor.params())
    monkeypatch.setattr(first, 'array', first.array.astype(np.float16))
    with pytest.raises(Fed, match='float16'):
        chain([example()])


@pytest.fixture(scope='module')
def pyramid():
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNET_BLOCKS, 'resnet50', (1, 1, 1, 1))
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


def test_losses_of_a_pyramids_anchors(pyramid):
    """Detectron's, level by level: cross entropy over the anchors asked for, smooth L1 over those there are."""
    batch = [example(64, 96, seed=1), example(64, 96, boxes=((0, 0, 60, 60),), crowd=(False,), seed=2)]
    rpn = pyramid.model.rpn
    logits, deltas = rpn(pyramid.model.extractor(np.stack([one.x for one in batch])))
    targets = pyramid.anchor_targets(
        batch, [own.shape[2:] for own in logits], [np.random.RandomState(i) for i in range(2)]
    )
    found = pyramid.rpn_losses(logits, deltas, targets)
    entropy = distance = 0.0
    for i, target in enumerate(targets):
        start, counted = 0, (target.labels != IGNORED).sum()
        assert counted < SAMPLING.rpn_batch or (target.labels == 1).any()
        for own_logits, own_deltas in zip(logits, deltas):
            n_anchor, height, width = own_logits.shape[1:]
            for y, x, a in np.ndindex(height, width, n_anchor):
                label, wanted = target.labels[start], target.deltas[start]
                start += 1
                if label != IGNORED:
                    value = float(own_logits.array[i, a, y, x])
                    entropy += np.log1p(np.exp(value if label == 0 else -value)) / SAMPLING.rpn_batch / 2
                if label == 1:
                    d = np.abs(own_deltas.array[i, 4 * a : 4 * a + 4, y, x].astype(np.float64) - wanted)
                    distance += np.where(d < 1 / 9, 4.5 * d * d, d - 1 / 18).sum() / counted / 2
        assert start == len(target.labels)
    np.testing.assert_allclose(found['rpn_cls_loss'].array, entropy, rtol=1e-5)
    np.testing.assert_allclose(found['rpn_loc_loss'].array, distance, rtol=1e-5)


def test_every_layer_of_a_pyramid_learns(pyramid):
    batch = [example(128, 192, boxes=((4, 6, 35, 37), (10, 20, 110, 120)), seed=1), example(128, 192, seed=2)]
    _, reported, grads = learn(pyramid, batch)
    assert np.isfinite(list(reported.values())).all()
    silent = [path for path, grad in grads.items() if not grad.any()]
    assert not silent and not any('/norm/' in path for path in grads)
    assert not any(path.startswith(('/model/extractor/body/conv1', '/model/extractor/body/res2')) for path in grads)
    trained = {path.split('/')[3] for path in grads if path.startswith('/model/extractor/')}
    assert trained == {'body', *(f'{name}{level}' for name in ('lateral', 'output') for level in (2, 3, 4, 5))}


def test_a_pyramids_batch_has_the_gradient_of_its_parts(pyramid):
    batch = [example(64, 96, seed=1), example(64, 96, seed=2)]
    _, _, expected = learn(pyramid, batch)
    pyramid.cleargrads()
    for one in batch:
        _, _, found = learn(pyramid, [one], weight=0.5, clear=False)
    assert_same_gradients(found, expected)
