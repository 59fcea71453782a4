"""The trace of a training pass equals the train chain, to the bit, and changes nothing."""

import copy
import dataclasses
import pydoc

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DENA, DETECTRON2, MATTERPORT, TORCHVISION
from mask_rcnn.inspect import input_annotations, trace_training
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.ops.masks.rle import decode_rle
from mask_rcnn.targets import Sampling
from mask_rcnn.training import train_chain
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.models import VERY_NARROW, small_model
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import example
from tests.training.test_keypoint_training import example as keypoint_example

SAMPLING = Sampling(rpn_batch=24, roi_batch=8, train_pre_nms=100, train_post_nms=20)
PYRAMID = {**VERY_NARROW, 'anchor_sizes': (8, 16, 32, 64, 128)}

#: Name -> preset and changes: all kinds of extractors, dialects and heads.
NETWORKS = {
    'c4': ('resnet50', {}),
    'dena': ('resnet50', {'dialect': DENA}),
    'fpn': ('resnet50_fpn', PYRAMID),
    'matterport': ('resnet50_fpn', {**PYRAMID, 'dialect': MATTERPORT, 'norm': 'bn', 'max_size': 128}),
    'torchvision': ('keypoint_resnet50_fpn', {**PYRAMID, 'n_fg_class': 3, 'masks': True, 'dialect': TORCHVISION}),
    'detectron2': ('resnet50_fpn', {**PYRAMID, 'dialect': DETECTRON2}),
    'mobilenet': ('mobilenet_v1_fpn', {**PYRAMID, 'width': 0.25}),
    'keypoints': ('keypoint_resnet50_fpn', {**PYRAMID, 'n_fg_class': 3, 'masks': True}),
}


@pytest.fixture(scope='module', params=NETWORKS)
def model(request):
    return narrow_model(request.param)


def small_keypoint_model():
    """Return a network with mask and keypoint heads."""
    return narrow_model('keypoints')


def narrow_model(name):
    """Return a network of :data:`NETWORKS`."""
    preset, changes = NETWORKS[name]
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        patch.setattr(KeypointHead, 'n_conv', 2)
        patch.setattr(KeypointHead, 'channels', 16)
        model = small_model(preset, **changes)
    if model.config.n_keypoint:
        model.keypoint_head.n_conv = 2
    return model


def example_for(model, **changes):
    return with_squares(keypoint_example(**changes)) if model.config.n_keypoint else example(64, 96, **changes)


def with_squares(image):
    """Give the objects of an example outlines, those of their boxes."""
    outlines = tuple((np.array([x1, y1, x2, y1, x2, y2, x1, y2], 'f'),) for y1, x1, y2, x2 in image.annotations.boxes)
    return dataclasses.replace(image, annotations=dataclasses.replace(image.annotations, segmentations=outlines))


def run_training(model, image, monkeypatch):
    """Run the train chain on a copy of the model; return the reported values and the targets that it used."""
    used = {}

    def recording(name, function):
        def recorded(*args, **kwargs):
            used[name] = function(*args, **kwargs)
            return used[name]

        return recorded

    for name in ('rpn_targets', 'sample_rois', 'sample_keypoint_rois', 'share_rois', 'foreground_mask_targets'):
        monkeypatch.setattr(train_chain, name, recording(name, getattr(train_chain, name)))
    copied = copy.deepcopy(model)
    freeze(copied)
    chain, reporter, reported = MaskRCNNTrainChain(copied, sampling=SAMPLING, gamma=2.0), chainer.Reporter(), {}
    reporter.add_observer('main', chain)
    with reporter.scope(reported):
        chain([image])
    monkeypatch.undo()
    return {name.removeprefix('main/'): float(value) for name, value in reported.items()}, used


def test_the_trace_equals_the_train_chain(model, monkeypatch):
    image = example_for(model)
    reported, used = run_training(model, image, monkeypatch)
    (trace,) = trace_training(model, [image], sampling=SAMPLING, gamma=2.0)
    anchors, rois = trace.anchors, trace.rois
    expected = used['rpn_targets']
    np.testing.assert_array_equal(anchors.indices, expected.indices)
    np.testing.assert_array_equal(anchors.labels, expected.labels)
    np.testing.assert_array_equal(anchors.deltas, expected.deltas)
    np.testing.assert_array_equal(anchors.with_role('positive'), np.sort(expected.indices[expected.labels == 1]))
    np.testing.assert_array_equal(anchors.with_role('negative'), np.sort(expected.indices[expected.labels == 0]))
    expected = used['sample_rois']
    np.testing.assert_array_equal(rois.boxes, expected.rois)
    np.testing.assert_array_equal(rois.labels, expected.labels)
    np.testing.assert_array_equal(rois.deltas, expected.deltas)
    assert (trace.masks is not None) == model.config.masks
    np.testing.assert_array_equal(trace.masks.targets, used['foreground_mask_targets'])
    assert (trace.keypoints is not None) == (model.config.n_keypoint > 0)
    if trace.keypoints is not None:
        keypoint_rois = used['share_rois'][0] if 'share_rois' in used else used['sample_keypoint_rois']
        np.testing.assert_array_equal(trace.keypoints.boxes, keypoint_rois.rois)
        np.testing.assert_array_equal(trace.keypoints.locations, keypoint_rois.locations)
        gt_keypoints = image.annotations.keypoints[trace.keypoints.best_object]
        assert gt_keypoints.shape[:2] == trace.keypoints.locations.shape
    names = {name for name in reported if name.endswith('loss')}
    assert set(trace.losses) == names
    for name in names - {'loss'}:
        assert trace.losses[name] == reported[name], name
    assert trace.losses['loss'] == pytest.approx(reported['loss'], rel=1e-6)


def terms_of(trace):
    """Return name of the loss -> its terms."""
    anchors, rois = trace.anchors, trace.rois
    terms = {
        'rpn_cls_loss': anchors.classification,
        'rpn_loc_loss': anchors.regression,
        'roi_cls_loss': rois.classification,
        'roi_loc_loss': rois.regression,
    }
    terms |= {'roi_mask_loss': trace.masks.terms} if trace.masks is not None else {}
    return terms | ({'roi_keypoint_loss': trace.keypoints.terms} if trace.keypoints is not None else {})


SPECIAL = {'objects': {}, 'no objects': {'boxes': ()}, 'only crowds': {'boxes': ((0, 0, 63, 79),)}}


@pytest.mark.parametrize('special', SPECIAL)
def test_the_terms_add_up_to_the_losses(model, special):
    changes = SPECIAL[special]
    if not model.config.n_keypoint and changes:
        changes = {**changes, 'crowd': (True,) * len(changes['boxes'])}
    image = example_for(model, **changes)
    if special == 'only crowds' and model.config.n_keypoint:
        annotations = dataclasses.replace(image.annotations, crowd=np.array([True]))
        image = dataclasses.replace(image, annotations=annotations)
    (trace,) = trace_training(model, [image], sampling=SAMPLING)
    terms = terms_of(trace)
    assert set(terms) == set(trace.losses) - {'loss'}
    for name, part in terms.items():
        assert float(part.values.sum(dtype=np.float64)) == pytest.approx(trace.losses[name], rel=1e-6, abs=1e-9), name
    n_sampled, n_rois, n_foreground = len(trace.anchors.indices), len(trace.rois.labels), trace.rois.n_foreground
    assert terms['rpn_cls_loss'].losses.shape == trace.anchors.logits.shape == (n_sampled,)
    assert terms['rpn_loc_loss'].losses.shape == (n_sampled, 4)
    assert terms['roi_cls_loss'].losses.shape == trace.rois.best_object.shape == (n_rois,)
    assert terms['roi_loc_loss'].losses.shape == trace.rois.target_boxes.shape == (n_foreground, 4)
    assert len(terms['roi_mask_loss'].losses) == len(trace.masks.probabilities) == n_foreground
    assert (n_foreground > 0) == (special == 'objects')
    if trace.keypoints is not None:
        assert terms['roi_keypoint_loss'].losses.shape == trace.keypoints.predicted.shape == (n_foreground and 2, 17)


def test_the_model_does_not_change(model):
    before = {path: (param, param.array.copy(), np.copy(param.grad)) for path, param in model.namedparams()}
    persistents = {
        f'{path}/{name}': np.copy(getattr(link, name)) for path, link in model.namedlinks() for name in link._persistent
    }
    list(trace_training(model, [example_for(model)], sampling=SAMPLING))
    after = dict(model.namedparams())
    assert after.keys() == before.keys()
    for path, (param, array, grad) in before.items():
        assert after[path] is param, path
        np.testing.assert_array_equal(param.array, array)
        np.testing.assert_array_equal(param.grad, grad)  # NaN before the first backward pass
    for path, link in model.namedlinks():
        for name in link._persistent:
            np.testing.assert_array_equal(getattr(link, name), persistents[f'{path}/{name}'])


def test_a_trace_does_not_depend_on_the_images_before(model):
    first, second = example_for(model, seed=1), example_for(model, seed=2)
    _, after = trace_training(model, [first, second], sampling=SAMPLING)
    (alone,) = trace_training(model, [second], sampling=SAMPLING)
    assert after.losses == alone.losses
    np.testing.assert_array_equal(after.rois.boxes, alone.rois.boxes)


def test_targets_of_the_foreground(model):
    """Deltas decode to the objects' boxes; the probabilities and IoUs are those of the RoIs."""
    (trace,) = trace_training(model, [example_for(model)], sampling=SAMPLING)
    rois = trace.rois
    owners, n = rois.best_object[: rois.n_foreground], rois.n_foreground
    assert n == 2
    np.testing.assert_allclose(rois.target_boxes, trace.objects.boxes[owners], atol=1e-3)
    np.testing.assert_array_equal(rois.labels[:n], trace.objects.labels[owners] + 1)
    np.testing.assert_array_equal(rois.iou[rois.is_annotated], 1)
    assert (rois.iou[:n] >= 0.5).all() and (rois.iou[n:] < 0.5).all() and not rois.is_annotated[n:].any()
    np.testing.assert_allclose(rois.probabilities.sum(axis=1), 1, rtol=1e-5)
    losses = -np.log(rois.probabilities[np.arange(len(rois.labels)), rois.labels])
    np.testing.assert_allclose(rois.classification.losses, losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(rois.foreground_of_object, [(owners == 0).sum(), (owners == 1).sum()])
    assert set(rois.objects_without_foreground) == {0, 1} - set(owners)
    assert rois.n_proposals <= 20 and (rois.best_proposal < 1).all()


def test_objects_in_the_network_input():
    """A mask in an image of 16 x 20 pixels, at twice the size, in an input with padding."""
    image = example(32, 40, boxes=((4, 8, 20, 24),), crowd=(False,), scale=2.0)
    image = dataclasses.replace(image, x=np.zeros((3, 64, 64), np.float32))
    keypoints = np.array([[[3, 5, 2]]], np.float32)
    image = dataclasses.replace(image, annotations=dataclasses.replace(image.annotations, keypoints=keypoints))
    found = input_annotations(image)
    np.testing.assert_array_equal(found.boxes, [[4, 8, 20, 24]])
    np.testing.assert_array_equal(found.keypoints, [[[6, 10, 2]]])
    mask = decode_rle(found.segmentations[0])
    expected = np.zeros((64, 64), np.uint8)
    expected[4:20, 8:24] = 1
    assert mask.shape == (64, 64) and (mask != expected).sum() <= 20  # the bilinear resize may move the border


def test_an_object_without_an_outline_has_no_mask():
    image = example(boxes=((4, 8, 20, 24),), crowd=(False,), segmentations=((),))
    assert input_annotations(image).segmentations == ((),)


def test_public_names():
    assert set(mask_rcnn.inspect.__all__) <= set(dir(mask_rcnn.inspect))
    with pytest.raises(AttributeError, match='no_such_name'):
        mask_rcnn.inspect.no_such_name  # noqa: B018  (the access is the test)


def test_help_lists_the_outcomes_of_boxes_without_the_methods_of_integers():
    text = pydoc.render_doc(mask_rcnn.inspect, renderer=pydoc.plaintext)
    constants = {name: value for name, value in vars(mask_rcnn.inspect.Fate).items() if name.isupper()}
    assert constants == {'KEPT': 0, 'INVALID': 1, 'SUPPRESSED': 2, 'BEYOND_LIMIT': 3}
    assert all(f'{name} = {value}\n' in text for name, value in constants.items())
    assert [name for name in ('bit_length', 'to_bytes', '__rdivmod__', '__index__') if name in text] == []
