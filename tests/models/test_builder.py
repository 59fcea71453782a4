"""Building networks from presets and loading them from weight files."""

from concurrent.futures import ThreadPoolExecutor

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.models.initializers import no_initial_weights, normal
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.weights import ModelMeta, WeightFileError, write_weights
from tests.support import models


@pytest.fixture(scope='module')
def small_model():
    """A model that :func:`mask_rcnn.load` can rebuild."""
    return models.small_model('resnet50', class_names=('square', 'circle', 'triangle'))


@pytest.fixture(scope='module')
def weight_file(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp('models') / 'small.npz'
    arrays = {name.lstrip('/'): param.array for name, param in small_model.namedparams()}
    write_weights(
        path,
        arrays,
        ModelMeta(kind='model', config=small_model.config, class_names=small_model.class_names, category_ids=(7, 8, 9)),
    )
    return path


@pytest.fixture(scope='module')
def image():
    return np.random.RandomState(1).uniform(0, 255, (3, 48, 60)).astype(np.float32)


def test_load_restores_the_model(small_model, weight_file, image):
    model = mask_rcnn.load(weight_file)
    assert model.config == small_model.config
    assert model.class_names == ('square', 'circle', 'triangle') and model.category_ids == (7, 8, 9)
    expected, found = small_model.detect([image])[0], model.detect([image])[0]
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_load_draws_no_random_weights(weight_file):
    before = np.random.get_state()
    mask_rcnn.load(weight_file)
    for a, b in zip(np.random.get_state(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_loaded_weights_have_no_gradients(weight_file):
    """Those of Chainer's normalisations, biases and output layers are small."""
    model = mask_rcnn.load(weight_file)
    params = [param for param in model.params() if param.array is not None]
    n_bytes, n_gradient_bytes = (
        sum(array.nbytes for array in arrays if array is not None)
        for arrays in ([param.array for param in params], [param.grad for param in params])
    )
    assert n_gradient_bytes < n_bytes / 50


def test_only_the_context_leaves_weights_out():
    def draws():
        before = np.random.get_state()[2]
        chainer.links.Linear(4, 3, initialW=normal(1))
        return np.random.get_state()[2] != before

    with no_initial_weights(), ThreadPoolExecutor(1) as pool:
        assert not draws() and pool.submit(draws).result()
    assert draws()


@pytest.mark.parametrize(
    ('options', 'norm'), [({'bn2affine': True}, 'affine'), pytest.param({'norm': 'bn'}, 'bn', marks=pytest.mark.slow)]
)
def test_load_converts_the_normalisation(small_model, weight_file, image, options, norm):
    model = mask_rcnn.load(weight_file, **options)
    has_bn = any(isinstance(link, chainer.links.BatchNormalization) for link in model.links())
    assert has_bn == (norm == 'bn') and model.config.norm == norm
    expected, found = small_model.detect([image])[0], model.detect([image])[0]
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)


def test_load_accepts_changes_that_the_arrays_allow(weight_file):
    model = mask_rcnn.load(weight_file, roi_size=7, roi_align=False, min_size=32)
    assert (model.config.roi_size, model.config.roi_align, model.config.min_size) == (7, False, 32)
    assert model.box_head.pool.config == model.rpn.config == model.config


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'extractor': 'resnet101'}, "small.npz: its extractor is 'resnet50', not 'resnet101'"),
        ({'n_fg_class': 80}, 'small.npz: its n_fg_class is 3, not 80'),
        ({'roi_size': 9}, 'roi_size must be 7 or 14'),
        ({'norm': 'group'}, "small.npz: norm must be 'affine', 'bn' or 'gn'"),
        ({'norm': 'gn'}, "small.npz: norm='affine' cannot be converted to 'gn'"),
        ({'min_size': 2000}, 'need 0 < min_size <= max_size'),
    ],
)
def test_load_rejects_contradictions(weight_file, changes, message):
    with pytest.raises(ValueError, match=message):
        mask_rcnn.load(weight_file, **changes)


def test_load_rejects_backbone_weights(tmp_path, small_model):
    path = tmp_path / 'backbone.npz'
    write_weights(
        path,
        {'extractor/conv1/conv/W': np.zeros(3, np.float32)},
        ModelMeta(kind='backbone', config=mask_rcnn.PRESETS['resnet50']),
    )
    with pytest.raises(WeightFileError, match='backbone.npz: contains backbone weights'):
        mask_rcnn.load(path)


def test_load_names_a_missing_array(tmp_path, small_model):
    arrays = {name.lstrip('/'): param.array for name, param in small_model.namedparams()}
    del arrays['rpn/conv/b']
    path = tmp_path / 'part.npz'
    write_weights(
        path,
        arrays,
        ModelMeta(kind='model', config=small_model.config, class_names=('a', 'b', 'c'), category_ids=(1, 2, 3)),
    )
    with pytest.raises(WeightFileError, match='part.npz: .*missing rpn/conv/b'):
        mask_rcnn.load(path)


def test_missing_gpu():
    assert get_device(-1) == chainer.get_device('@numpy')
    with pytest.raises(ValueError, match='GPU 99 does not exist'):
        get_device(99)


def test_unknown_presets_and_fields_are_rejected():
    with pytest.raises(ValueError, match="unknown preset 'resnet34'; expected one of resnet50, resnet101"):
        mask_rcnn.build('resnet34')
    with pytest.raises(TypeError, match='n_classes'):
        mask_rcnn.build('resnet50', n_classes=3)


def test_classes_that_cannot_be_saved_are_refused_when_the_network_is_built():
    small = {'n_fg_class': 2, 'width': 0.125, 'fpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}
    for classes, message in (
        ({'category_ids': (1, 1)}, 'same category id'),
        ({'category_ids': ('1', '2')}, 'category_ids must be a list of integers'),
        ({'class_names': (1, 2)}, 'class_names must be a list of names'),
    ):
        with pytest.raises(ValueError, match=message):
            mask_rcnn.build('mobilenet_v1_fpn', **classes, **small)


def test_unknown_fields_and_presets_are_named():
    with pytest.raises(TypeError, match="no field 'n_fg_classes'; did you mean n_fg_class"):
        mask_rcnn.build('resnet50', n_fg_classes=3)
    with pytest.raises(ValueError, match=r"unknown preset \['resnet50'\]; expected one of resnet50"):
        mask_rcnn.build(['resnet50'])


@pytest.mark.parametrize('masks', [True, False])
@pytest.mark.parametrize('preset', ['resnet50', 'resnet50_fpn', 'mobilenet_v1_fpn', 'keypoint_resnet50_fpn'])
def test_unused_fields_change_no_parameter(preset, masks):
    """And all others that determine shapes change one."""
    config = mask_rcnn.PRESETS[preset].replace(masks=masks)
    values = {
        'width': 0.5,
        'fpn_channels': 8,
        'head_channels': 8,
        'mask_channels': 8,
        'mask_convs': 1,
        'rpn_channels': 8,
        'roi_size': 7 if config.roi_size == 14 else 14,
        'anchor_ratios': (1,),
    }

    def shapes(config):
        with no_initial_weights():
            model = mask_rcnn.build(config)
        return {name: param.shape for name, param in model.namedparams()}

    expected = shapes(config)
    for name, value in values.items():
        is_unused = shapes(config.replace(**{name: value})) == expected
        # The box head of a C4 network processes 7 x 7 bins in any case, but pools others.
        assert is_unused == (name in config.unused_fields or (name == 'roi_size' and not config.has_fpn)), name
