"""The thresholds of a model's detections, and the dialect in which it is loaded."""

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DENA, DETECTRON
from mask_rcnn.weights import ModelMeta, write_weights
from tests.support import models


@pytest.fixture(scope='module')
def dena_model():
    """A small C4 network with the conventions of DeNA's program; it detects overlapping objects."""
    return models.small_model(dialect=DENA, sampling_ratio=2, rpn_min_size=4.0, max_detections=0)


@pytest.fixture(scope='module')
def dena_file(dena_model, tmp_path_factory):
    path = tmp_path_factory.mktemp('models') / 'dena.npz'
    arrays = {name.lstrip('/'): param.array for name, param in dena_model.namedparams()}
    write_weights(path, arrays, ModelMeta('model', dena_model.config, ('a', 'b', 'c'), (1, 2, 3)))
    return path


@pytest.fixture
def restored(dena_model):
    """The model, whose thresholds are restored after the test."""
    yield dena_model
    dena_model.use_preset('evaluate')


def thresholds(model):
    configs = (model.config, model.box_head.config)
    (found,) = {(config.score_threshold, config.nms_threshold) for config in configs}
    return found


def iou(box, other):
    """Return the intersection over union without + 1."""
    height, width = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    intersection = max(height, 0) * max(width, 0)
    return intersection / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - intersection)


def test_presets_set_both_thresholds_and_restore_them(restored):
    assert thresholds(restored) == (0.01, 0.5)
    restored.use_preset('visualize')
    assert thresholds(restored) == (0.7, 0.3)
    restored.use_preset('evaluate')
    assert thresholds(restored) == (0.01, 0.5)


def test_an_unknown_preset_changes_nothing(restored):
    with pytest.raises(ValueError, match="preset must be 'visualize' or 'evaluate', not 'coco'"):
        restored.use_preset('coco')
    assert thresholds(restored) == (0.01, 0.5)


def test_single_thresholds(restored):
    restored.set_thresholds(nms=0.2)
    assert thresholds(restored) == (0.01, 0.2)
    restored.set_thresholds(score=0.0)
    assert thresholds(restored) == (0.0, 0.2)
    for changes in ({'nms': 1.5}, {'score': -0.1}):
        with pytest.raises(ValueError, match='_threshold must be a number from 0 to 1'):
            restored.set_thresholds(**changes)
    assert thresholds(restored) == (0.0, 0.2)


def test_the_threshold_of_nms_selects_the_detections(restored, image):
    counts = []
    for threshold in (0.5, 0.1):
        restored.set_thresholds(nms=threshold)
        (found,) = restored.detect([image])
        counts.append(len(found))
        for label in set(found.labels.tolist()):
            boxes = found.select_class(label).boxes.astype(float)
            pairs = [iou(boxes[i], boxes[j]) for i in range(len(boxes)) for j in range(i)]
            assert max(pairs, default=0) < threshold
    assert counts[0] > counts[1] > 0


def test_no_detections_are_empty_arrays(restored, image):
    """Where the program of DeNA returned lists, and its demo ended with an IndexError."""
    restored.set_thresholds(score=1.0)
    (found,) = restored.detect([image])
    assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 48, 60) and found.to_coco(1) == []
    masks, labels, scores = restored.predict([image])
    assert masks[0].shape == (0, 48, 60) and labels[0].shape == scores[0].shape == (0,)
    assert found.draw(image).shape == (48, 60, 3)


def test_load_selects_the_dialect(dena_file, dena_model):
    assert mask_rcnn.load(dena_file).config == dena_model.config
    settings = {'dialect': DETECTRON, 'sampling_ratio': 0, 'rpn_min_size': 0.0, 'max_detections': 100}
    for dialect in ('detectron', DETECTRON):
        model = mask_rcnn.load(dena_file, dialect=dialect)
        assert model.config == dena_model.config.replace(**settings)
    assert model.box_head.config == model.rpn.config == model.config
    changed = mask_rcnn.load(dena_file, dialect='detectron', max_detections=7, min_size=32)
    assert (changed.config.max_detections, changed.config.min_size) == (7, 32)


def test_load_refuses_other_dialects(dena_file):
    with pytest.raises(ValueError, match="unknown dialect 'caffe'; expected one of detectron, dena"):
        mask_rcnn.load(dena_file, dialect='caffe')
    with pytest.raises(ValueError, match=r"dena.npz: resnet50 of the dialect 'dena' cannot run in .* 'matterport'"):
        mask_rcnn.load(dena_file, dialect='matterport')


@pytest.mark.parametrize('dialect', ['detectron', pytest.param('dena', marks=pytest.mark.slow)])
def test_batch_normalisation_gets_the_constant_of_the_dialect(tmp_path, dialect):
    """The normalisation of the file and the loaded one have the same slope."""
    source = models.small_model(dialect=DENA, norm='bn', sampling_ratio=2, rpn_min_size=4.0, max_detections=0)
    rng = np.random.RandomState(0)
    arrays = {name.lstrip('/'): param.array for name, param in source.namedparams()}
    for name, link in source.namedlinks():
        if hasattr(link, 'avg_var'):
            link.avg_var[...] = rng.uniform(1e-5, 1, link.avg_var.shape)
            statistics = {'avg_mean': link.avg_mean, 'avg_var': link.avg_var, 'N': np.zeros((), np.float32)}
            arrays |= {f'{name.lstrip("/")}/{key}': array for key, array in statistics.items()}
    write_weights(tmp_path / 'bn.npz', arrays, ModelMeta('model', source.config, ('a', 'b', 'c'), (1, 2, 3)))
    model = mask_rcnn.load(tmp_path / 'bn.npz', dialect=dialect)
    eps = {'detectron': 1e-5, 'dena': 2e-5}[dialect]
    assert {link.eps for link in model.links() if hasattr(link, 'avg_var')} == {eps}
    old, new = source.extractor.conv1.norm, model.extractor.conv1.norm
    expected = old.gamma.array / np.sqrt(old.avg_var.astype(float) + 2e-5)
    np.testing.assert_allclose(new.gamma.array / np.sqrt(new.avg_var.astype(float) + eps), expected, rtol=1e-6)
