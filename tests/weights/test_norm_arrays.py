"""Conversion of the arrays of normalisations, against the formulas of the layers in float64."""

import numpy as np
import pytest

from mask_rcnn.config import Config
from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.norm_arrays import config_with_norm, convert_norm_arrays

#: A Detectron and a DeNA network's constants.
EPS, NEW_EPS = 1e-5, 2e-5


@pytest.fixture
def arrays(rng):
    """A normalisation with small variances, at which the constant matters, and a convolution."""
    return {
        'conv/W': rng.normal(size=(5, 2, 1, 1)).astype(np.float32),
        'norm/gamma': rng.normal(size=5).astype(np.float32),
        'norm/beta': rng.normal(size=5).astype(np.float32),
        'norm/avg_mean': rng.normal(scale=1e-2, size=5).astype(np.float32),
        'norm/avg_var': rng.uniform(1e-6, 1e-4, size=5).astype(np.float32),
        'norm/N': np.float32(3),
    } | {f'a/norm/{name}': np.ones(2, np.float32) for name in ('gamma', 'beta', 'avg_mean', 'avg_var')}


@pytest.fixture
def nested(arrays):
    """The arrays below the path of a layer."""
    return {f'layer/{name}': array for name, array in arrays.items()}


def apply_norm(arrays, x, eps, prefix='layer/norm'):
    """Apply an affine channel or a batch normalisation in test mode."""
    part = {name: arrays[f'{prefix}/{name}'].astype(float) for name in NAMES if f'{prefix}/{name}' in arrays}
    if 'scale' in part:
        return part['scale'] * x + part['bias']
    return part['gamma'] * (x - part['avg_mean']) / np.sqrt(part['avg_var'] + eps) + part['beta']


NAMES = ('gamma', 'beta', 'avg_mean', 'avg_var', 'scale', 'bias')


@pytest.mark.parametrize('norm', ['affine', 'bn'])
@pytest.mark.parametrize('prefix', ['layer/norm', 'layer/a/norm'])
def test_the_function_is_unchanged(nested, norm, prefix):
    x = np.float64(0.01)
    expected = apply_norm(nested, x, EPS, prefix)
    converted = convert_norm_arrays('file', nested, norm, EPS, NEW_EPS)
    np.testing.assert_allclose(apply_norm(converted, x, NEW_EPS, prefix), expected, rtol=1e-5, atol=1e-6)
    if norm == 'bn':  # without the conversion it would be another function
        assert np.abs(apply_norm(nested, x, NEW_EPS, 'layer/norm') - apply_norm(nested, x, EPS)).max() > 1e-3
        assert converted.keys() == nested.keys() and converted['layer/norm/N'] == 3
    np.testing.assert_array_equal(converted['layer/conv/W'], nested['layer/conv/W'])
    assert all(array.dtype == np.float32 for array in converted.values())


def test_affine_channels_become_batch_normalisations(rng):
    arrays = {'a/norm/scale': rng.normal(size=5).astype(np.float32), 'a/norm/bias': np.ones(5, np.float32)}
    converted = convert_norm_arrays('file', arrays, 'bn', EPS, NEW_EPS)
    assert set(converted) == {f'a/norm/{name}' for name in ('gamma', 'beta', 'avg_mean', 'avg_var')}
    x = np.float64(0.3)
    np.testing.assert_allclose(apply_norm(converted, x, NEW_EPS, 'a/norm'), apply_norm(arrays, x, EPS, 'a/norm'), 1e-6)


def test_the_same_constant_changes_nothing(nested):
    converted = convert_norm_arrays('file', nested, 'bn', EPS, EPS)
    assert all(converted[name] is array for name, array in nested.items())
    affine = {'a/norm/scale': np.ones(2, np.float32), 'a/norm/bias': np.ones(2, np.float32)}
    assert convert_norm_arrays('file', affine, 'affine', EPS, NEW_EPS) == affine


@pytest.mark.parametrize('norm', ['affine', 'bn'])
@pytest.mark.parametrize('change', [{'layer/norm/avg_var': None}, {'layer/norm/avg_var': np.ones(4, np.float32)}])
def test_damaged_normalisations_are_named(nested, norm, change):
    damaged = {name: array for name, array in (nested | change).items() if array is not None}
    with pytest.raises(WeightFileError, match=r'^file: its layer/norm/\.\.\. are damaged$'):
        convert_norm_arrays('file', damaged, norm, EPS, NEW_EPS)


@pytest.mark.parametrize('path', ['extractor/lateral2', 'extractor/output5', 'box_head/conv1', 'mask_head/conv4'])
def test_heads_have_a_normalisation_of_their_own(arrays, path):
    nested = {
        f'{prefix}/{name}': a for prefix in (path, 'box_head/res5', 'extractor/body') for name, a in arrays.items()
    }
    found = convert_norm_arrays('file', nested, 'bn', EPS, EPS, head_norm='affine')
    converted = {name for name in found if name.endswith(('/scale', '/bias'))}
    assert converted == {f'{path}/norm/scale', f'{path}/norm/bias'}
    assert {name for name in nested if not name.startswith(f'{path}/norm/')} <= found.keys()


def test_group_normalisations_are_unchanged():
    """They have no statistics, which would be damage elsewhere."""
    arrays = {f'{path}/norm/{name}': np.ones(4, 'f') for path in ('a', 'box_head/conv1') for name in ('gamma', 'beta')}
    assert convert_norm_arrays('file', arrays, 'gn', EPS, NEW_EPS, head_norm='gn') == arrays
    with pytest.raises(WeightFileError, match=r'^file: its a/norm/\.\.\. are damaged$'):
        convert_norm_arrays('file', arrays, 'affine', EPS, NEW_EPS, head_norm='gn')
    with pytest.raises(WeightFileError, match=r'^file: its box_head/conv1/norm/\.\.\. are damaged$'):
        convert_norm_arrays('file', arrays, 'gn', EPS, NEW_EPS, head_norm='bn')


@pytest.mark.parametrize(
    ('before', 'norm', 'after'),
    [
        (('bn', 'bn'), 'affine', ('affine', 'affine')),
        (('affine', 'bn'), 'affine', ('affine', 'affine')),
        (('affine', 'none'), 'bn', ('bn', 'none')),
        (('affine', 'gn'), 'bn', ('bn', 'gn')),
        (('gn', 'bn'), 'gn', ('gn', 'bn')),
    ],
)
def test_the_configuration_after_a_conversion(before, norm, after):
    config = config_with_norm(Config(norm=before[0], head_norm=before[1], min_size=300), norm)
    assert config == Config(norm=after[0], head_norm=after[1], min_size=300)


@pytest.mark.parametrize(('before', 'norm'), [('gn', 'bn'), ('gn', 'affine'), ('bn', 'gn'), ('affine', 'gn')])
def test_group_normalisation_has_no_equivalent(before, norm):
    with pytest.raises(ValueError, match=f"^norm='{before}' cannot be converted to '{norm}'"):
        config_with_norm(Config(norm=before), norm)
