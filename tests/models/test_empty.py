"""Networks on batches of which some or all images have no proposals or no detections, on the CPU and the GPU's path."""

import numpy as np
import pytest

from mask_rcnn.config import DENA, MATTERPORT
from mask_rcnn.models.keypoint_head import KeypointHead
from tests.support.models import VERY_NARROW, shallow_model

#: An upscaled image of 8 x 8 pixels has no proposal of this size in pixels of the image.
MIN_SIZE = 12
NETWORKS = {
    'C4': ('resnet50', {'dialect': DENA}),
    'MobileNet': ('mobilenet_v1_fpn', {'width': 0.25}),
    'keypoints': ('resnet50_fpn', {'n_keypoint': 3}),
    'Matterport': ('resnet50_fpn', {'dialect': MATTERPORT}),
}
LAYERS = ('rpn.objectness', 'rpn.delta', 'box_head.score', 'box_head.delta', 'extractor')
SLOW = pytest.mark.slow
LIMITS = {'min_size': 32, 'max_size': 64, 'rpn_pre_nms': 50, 'rpn_post_nms': 5, 'max_detections': 3}


def build(name, **changes):
    preset, fields = NETWORKS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeypointHead, 'channels', 16)
        return shallow_model(preset, **{**LIMITS, **VERY_NARROW, **fields, **changes})


@pytest.fixture(scope='module', params=NETWORKS)
def model(request):
    return build(request.param)


def set_fields(monkeypatch, model, **fields):
    """Change fields of the configuration of a network for one test."""
    for link in (model, model.rpn, model.box_head):
        monkeypatch.setattr(link, 'config', link.config.replace(**fields))


@pytest.fixture
def images(rng):
    """Two images without and two with proposals of :data:`MIN_SIZE`; all network inputs have one size."""
    small, large = (rng.randint(0, 256, (2, side, side, 3), np.uint8) for side in (8, 32))
    return [small[0], large[0], small[1], large[1]]


def assert_empty(detections):
    size = detections.size
    assert len(detections) == 0 and list(detections) == [] and detections.names == []
    assert detections.boxes.shape == (0, 4) and detections.labels.shape == detections.scores.shape == (0,)
    assert detections.masks.shape == (0, *size)
    assert detections.keypoints is None or detections.keypoints.shape == (0, 3, 4)
    assert detections.to_coco(1) == list(detections.iter_masks()) == detections.encode_masks() == []
    for part in (detections[:0], detections[[]], detections[np.zeros(0, bool)], detections.above(0.5)):
        assert len(part) == 0 and part.has_masks
    assert detections.sorted_by_score().select_class(0).boxes.shape == (0, 4)
    assert repr(detections) == f'Detections(0 in {size[0]} x {size[1]} pixels)'
    picture = np.full((*size, 3), 7, np.uint8)
    np.testing.assert_array_equal(detections.draw(picture), picture)


@pytest.mark.parametrize('fields', [{'rpn_min_size': 1000}, {'score_threshold': 1.0}], ids=['proposals', 'scores'])
def test_nothing_is_left(model, images, monkeypatch, fields):
    set_fields(monkeypatch, model, **fields)
    for batch_size in (1, 2):
        for detections in model.detect(images[:2], batch_size=batch_size):
            assert_empty(detections)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['C4', 'MobileNet'])
def test_nothing_is_left_on_a_gpu(images, name, request):
    """All rows are padding."""
    model = build(name, rpn_min_size=1000)
    request.getfixturevalue('on_gpu')
    for detections in model.detect(images[:2], batch_size=2):
        assert_empty(detections)


def test_some_images_of_a_batch_have_no_proposals(model, images, monkeypatch):
    """The first, one in the middle, or the last."""
    set_fields(monkeypatch, model, rpn_min_size=MIN_SIZE)
    expected = model.detect(images, batch_size=1)
    assert [len(detections) > 0 for detections in expected] == [False, True, False, True]
    for part in (slice(0, 3), slice(1, 4)):
        for found, alone in zip(model.detect(images[part], batch_size=3), expected[part], strict=True):
            np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
            np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
            assert found.labels.tolist() == alone.labels.tolist() and found.size == alone.size


@pytest.mark.parametrize(
    ('layer', 'value'),
    [
        *((layer, np.nan) for layer in LAYERS),
        *((layer, np.inf) if layer == 'rpn.delta' else pytest.param(layer, np.inf, marks=SLOW) for layer in LAYERS),
    ],
)
@pytest.mark.filterwarnings('error::RuntimeWarning')
def test_weights_that_are_not_finite(model, images, monkeypatch, layer, value):
    """No output is NaN, and NumPy prints no warning."""
    link = model
    for name in layer.split('.'):
        link = getattr(link, name)
    parameter = next(link.params())
    monkeypatch.setattr(parameter, 'array', np.full_like(parameter.array, value))
    (detections,) = model.detect(images[1:2])
    assert np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()
    assert len(detections.to_coco(1)) == len(detections)


def test_no_images(model):
    assert model.detect([]) == list(model.iter_detections(iter([]))) == []
    assert model.predict([]) == ([], [], [])
