"""Saving models to weight files and loading them."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.inference.save import collect_arrays, save
from mask_rcnn.weights import WeightFileError, read_weights


def make_model(**changes):
    model = mask_rcnn.build(
        'resnet50',
        n_fg_class=2,
        min_size=100,
        max_size=170,
        rpn_channels=8,
        mask_channels=8,
        nms_threshold=0.4,
        **changes,
    )
    rng = np.random.RandomState(3)
    for array in collect_arrays(model).values():
        if array.ndim == 1:  # scales, biases and statistics differ from their initial values
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return model


@pytest.fixture(scope='module')
def bn_model():
    model = make_model(norm='bn', class_names=['cat', 'gro\xdfer Hund'], category_ids=[17, 18])
    model.extractor.conv1.norm.N = 5
    return model


def test_a_loaded_model_equals_the_saved_one(bn_model, tmp_path):
    before = {name: array.copy() for name, array in collect_arrays(bn_model).items()}
    save(tmp_path / 'm.npz', bn_model, notes=['after 3 iterations'])
    loaded = mask_rcnn.load(tmp_path / 'm.npz')
    assert loaded.config == bn_model.config and loaded.config.norm == 'bn'
    assert loaded.class_names == ('cat', 'gro\xdfer Hund') and loaded.category_ids == (17, 18)
    assert loaded.extractor.conv1.norm.N == 5
    assert read_weights(tmp_path / 'm.npz').meta.notes == ('after 3 iterations',)
    loaded_arrays = collect_arrays(loaded)
    assert loaded_arrays.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(loaded_arrays[name], array, err_msg=name, strict=True)
        np.testing.assert_array_equal(collect_arrays(bn_model)[name], array, err_msg=name)  # unchanged
    save(tmp_path / 'again.npz', loaded, notes=['after 3 iterations'])
    assert (tmp_path / 'm.npz').read_bytes() == (tmp_path / 'again.npz').read_bytes()
    save(tmp_path / 'm.npz', loaded, notes=['after 3 iterations'])  # onto its own file
    assert (tmp_path / 'm.npz').read_bytes() == (tmp_path / 'again.npz').read_bytes()


def test_classes_without_names_get_numbers(tmp_path):
    save(tmp_path / 'm.npz', make_model())
    meta = read_weights(tmp_path / 'm.npz').meta
    assert meta.class_names == ('class_1', 'class_2') and meta.category_ids == (1, 2)
    assert meta.kind == 'model' and meta.config.norm == 'affine' and meta.source is None


def test_unwritable_file(bn_model, tmp_path):
    with pytest.raises(WeightFileError, match='No such file or directory'):
        save(tmp_path / 'no' / 'm.npz', bn_model)


def test_arrays_of_a_link_include_persistent_values():
    link = chainer.links.BatchNormalization(3)
    assert set(collect_arrays(link)) == {'gamma', 'beta', 'avg_mean', 'avg_var', 'N'}
    assert collect_arrays(link)['gamma'] is link.gamma.array
