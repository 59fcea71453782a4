"""Statistics of arrays, dead channels and differences between networks, held against hand-computed values."""

import dataclasses
import math
import pkgutil

import numpy as np
import pytest

import mask_rcnn
import mask_rcnn.inspect as room
from mask_rcnn.config import Config
from mask_rcnn.inspect import compare_weights, dead_channels, weight_table
from mask_rcnn.inspect.weights.findings import describe_doubts, inspect_weights, summarize_parts
from mask_rcnn.inspect.weights.network_order import network_order, part_of
from mask_rcnn.inspect.weights.source import NetworkWeights, read_network_weights
from mask_rcnn.weights import WeightFileError, formats
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from tests.support import contracts
from tests.support.models import VERY_NARROW, constant_model

CONV, NORM = 'extractor/res2/block0/conv1/conv/W', 'extractor/res2/block0/conv1/norm'


@pytest.fixture(scope='module')
def model():
    return constant_model('mobilenet_v1_fpn', width=0.25, n_fg_class=2, **VERY_NARROW)


# The table


def test_statistics_of_an_array():
    """The finite values are -3, 0, 0 and 5: mean 0.5, variance (12.25 + 0.25 + 0.25 + 20.25) / 4 = 8.25."""
    (row,) = weight_table({'rpn/conv/W': np.array([-3, 0, np.nan, np.inf, -0.0, 5, -np.inf, np.nan], np.float16)})
    assert (row.name, row.part, row.shape, row.dtype, row.size) == ('rpn/conv/W', 'RPN', (8,), 'float16', 8)
    assert (row.mean, row.min, row.max, row.n_nan, row.n_inf, row.n_zeros) == (0.5, -3, 5, 2, 2, 2)
    assert row.std == pytest.approx(math.sqrt(8.25)) and row.zero_fraction == 0.25
    # Position p * 3 / 100 between the four sorted values: 0.03 between -3 and 0, 2.25 and 2.97 between 0 and 5.
    assert row.percentiles == pytest.approx((-3 + 0.03 * 3, -0.75, 0, 1.25, 4.85))
    assert row.histogram.counts.sum() == 4


def test_sums_are_in_float64():
    """In float16 the sum of 100000 values of 1 would stay at 2048."""
    (row,) = weight_table({'a': np.ones(100_000, np.float16)})
    assert (row.mean, row.std) == (1, 0)


@pytest.mark.parametrize(
    ('array', 'n_nan', 'mean'),
    [
        (np.array([], np.float32), 0, math.nan),
        (np.full(3, np.nan), 3, math.nan),
        (np.array(7, np.int64), 0, 7),
        (np.array([200, 100], np.uint8), 0, 150),
        (np.array([True, False]), 0, 0.5),
        (np.array([1e308, 1e308]), 0, math.inf),
    ],
)
def test_unusual_arrays(array, n_nan, mean):
    (row,) = weight_table({'a': array})
    assert row.n_nan == n_nan and row.mean == pytest.approx(mean, nan_ok=True) and row.n_inf == 0
    assert row.zero_fraction in (0, 0.5)


def test_an_array_without_numbers_is_an_error():
    with pytest.raises(TypeError, match=r'^rpn/conv/W is <U1, not numbers$'):
        weight_table({'rpn/conv/W': np.array(['x'])})


def test_a_file_with_such_an_array_is_refused(tmp_path, monkeypatch):
    report = ConversionReport((), {})
    file = ConvertedWeights('model', 'x', Config(), {'rpn/conv/W': np.array(['x'])}, report, '')
    monkeypatch.setattr(formats, 'read', lambda path, bn2affine: file)
    with pytest.raises(WeightFileError, match=r'^a\.npz: rpn/conv/W is <U1, not numbers$'):
        weight_table('a.npz')


def test_arrays_are_in_the_order_of_the_layers():
    shuffled = [
        'rpn/delta/W',
        'extractor/output2/W',
        'extractor/body/block10/pointwise/conv/W',
        'extractor/body/block2/pointwise/conv/W',
        'extractor/body/block2/depthwise/norm/gamma',
        'mask_head/conv1/W',
        'extractor/lateral2/b',
        'extractor/body/block2/depthwise/conv/W',
        'box_head/score/W',
        'extractor/lateral2/W',
        'extractor/body/conv0/conv/W',
        'rpn/conv/W',
        'box_head/fc6/W',
        'unknown',
    ]
    assert network_order(shuffled) == [
        'extractor/body/conv0/conv/W',
        'extractor/body/block2/depthwise/conv/W',
        'extractor/body/block2/depthwise/norm/gamma',
        'extractor/body/block2/pointwise/conv/W',
        'extractor/body/block10/pointwise/conv/W',
        'extractor/lateral2/W',
        'extractor/lateral2/b',
        'extractor/output2/W',
        'rpn/conv/W',
        'rpn/delta/W',
        'box_head/fc6/W',
        'box_head/score/W',
        'mask_head/conv1/W',
        'unknown',
    ]


@pytest.mark.parametrize(
    ('name', 'part'),
    [
        ('extractor/conv1/conv/W', 'backbone conv1'),
        ('extractor/body/res5/block0/conv1/conv/W', 'backbone res5'),
        ('extractor/body/block3/pointwise/conv/W', 'backbone blocks 1-3'),
        ('extractor/body/block11/pointwise/conv/W', 'backbone blocks 6-11'),
        ('extractor/body/block99/pointwise/conv/W', 'other'),
        ('box_head/res5/block0/conv1/conv/W', 'box head res5'),
        ('box_head/fc6/W', 'box head'),
        ('keypoint_head/conv1/W', 'keypoint head'),
        ('', 'other'),
    ],
)
def test_parts_of_the_network(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize('network', contracts.frozen('parameters'))
def test_every_array_of_a_network_has_a_part(network):
    names = [name for name, _ in contracts.unfold(contracts.frozen('parameters')[network])]
    ordered = network_order(names)
    parts = [part_of(name) for name in ordered]
    assert 'other' not in parts and sorted(names) == sorted(ordered)
    assert ordered[0].endswith(('conv1/conv/W', 'conv0/conv/W')) and parts[-1] in ('mask head', 'keypoint head')


def test_parts_are_summarized():
    """The standard deviation is that of the values of all weights together."""
    arrays = {
        'rpn/conv/W': np.array([[3.0], [-1.0]]),
        'rpn/delta/W': np.array([[1.0], [1.0], [1.0], [1.0]]),
        'rpn/conv/b': np.array([100.0, 0.0]),
        'mask_head/score/b': np.zeros(3),
    }
    rpn, mask_head = summarize_parts(inspect_weights('x', read_network_weights(arrays)))
    assert (rpn.part, rpn.n_arrays, rpn.n_values, rpn.low, rpn.high) == ('RPN', 3, 8, -1, 3)
    assert rpn.std == pytest.approx(np.std([3, -1, 1, 1, 1, 1])) and rpn.zero_fraction == 0
    assert mask_head.n_arrays == 1 and math.isnan(mask_head.std)


# Dead channels


def found(arrays):
    """Return (layer, reason) -> channels."""
    return {(item.layer, item.reason): item.channels for item in dead_channels(arrays)}


def conv_arrays(**norm):
    """Return a convolution of four channels without dead ones, and its normalisation."""
    return {CONV: np.ones((4, 2, 1, 1), np.float32), **{f'{NORM}/{key}': np.float32(v) for key, v in norm.items()}}


LAYER = CONV.removesuffix('/W')


def test_zero_weights_are_relative_to_the_largest_of_the_layer():
    arrays = conv_arrays()
    arrays[CONV][1] = 0
    arrays[CONV][2, 0] = arrays[CONV][2, 1] = -1e-7  # below 1e-6
    arrays[CONV][3] = [[[2e-6]], [[-1e-7]]]  # above
    assert found(arrays) == {(LAYER, 'zero weights'): (1, 2)}
    assert found({CONV: 1e-20 * arrays[CONV].astype(np.float64)}) == {(LAYER, 'zero weights'): (1, 2)}
    assert found({CONV: np.zeros((3, 2, 1, 1))}) == {(LAYER, 'zero weights'): (0, 1, 2)}


def test_the_output_axis_of_linear_layers_and_deconvolutions():
    linear = np.ones((3, 5))
    linear[2] = 0
    deconv = np.ones((5, 3, 2, 2))
    deconv[:, 1] = 0
    assert found({'box_head/fc6/W': linear, 'mask_head/deconv/W': deconv}) == {
        ('box_head/fc6', 'zero weights'): (2,),
        ('mask_head/deconv', 'zero weights'): (1,),
    }
    assert dead_channels({'mask_head/deconv/W': deconv})[0].n_channels == 3


def test_the_deltas_of_the_background_are_not_dead():
    deltas = np.ones((8, 5))
    deltas[:6] = 0
    assert found({'box_head/delta/W': deltas, 'rpn/delta/W': deltas[:, :, None, None]}) == {
        ('rpn/delta', 'zero weights'): (0, 1, 2, 3, 4, 5),
        ('box_head/delta', 'zero weights'): (4, 5),
    }


@pytest.mark.parametrize('key', ['gamma', 'scale'])
def test_zero_scale(key):
    assert found(conv_arrays(**{key: [1, 0, -1e-8, -1]})) == {(LAYER, 'zero scale'): (1, 2)}


def test_zero_variance_is_relative_to_epsilon():
    """Epsilon is 1e-5 in Detectron's dialect, so that 1e-11 is the limit; a negative variance is an error."""
    variance = [1, 2e-11, 0.9e-11, -1]
    assert found(conv_arrays(avg_var=variance)) == {(LAYER, 'zero variance'): (2, 3)}


def test_the_epsilon_is_that_of_the_dialect(model):
    """1e-3 for a MobileNet: the limit is 1e-9."""
    norm = model.extractor.body.block1.pointwise.norm
    before = norm.avg_var.copy()
    norm.avg_var[:2] = 0.9e-9, 1.1e-9
    try:
        assert found(model)['extractor/body/block1/pointwise/conv', 'zero variance'] == (0,)
    finally:
        norm.avg_var[...] = before


def test_closed_relu():
    norm = {'gamma': [1, -1, 1, 0.5], 'beta': [-4.9, -5.1, 5.1, -2.5]}
    assert found(conv_arrays(**norm)) == {(LAYER, 'closed ReLU'): (1, 3)}
    residual = {name.replace('conv1/', 'conv3/'): array for name, array in conv_arrays(**norm).items()}
    assert found(residual) == {}  # the shortcut is added before the ReLU


def test_values_that_are_not_finite_are_not_dead():
    arrays = conv_arrays(gamma=[np.nan, 1, 1, 1], beta=[-9, np.nan, 0, 0], avg_var=[np.nan, 1, 1, 1])
    arrays[CONV][0, 0] = np.nan
    arrays[CONV][1, 0] = np.inf
    assert found(arrays) == {}
    assert found({CONV: np.full((2, 1, 1, 1), np.nan)}) == {}
    assert found({CONV: np.zeros((0, 2, 1, 1)), 'rpn/conv/W': np.zeros((2, 0))}) == {}


def test_a_model_without_dead_channels(model):
    assert dead_channels(model) == ()


def test_dead_channels_of_the_imagenet_weights(shared):
    """TensorFlow's MobileNet has 8 filters without weights; the depthwise layer after them has no variance there."""
    dead = found(shared / 'weights' / 'mobilenet_v1_imagenet.npz')
    assert dead['extractor/body/conv0/conv', 'zero weights'] == (0, 3, 4, 8, 11, 16, 20, 21)
    after = dead['extractor/body/block1/depthwise/conv', 'zero variance']
    assert set(after) < {0, 3, 4, 8, 11, 16, 20, 21} and len(after) == 7


# What is doubtful


def test_doubts_name_the_arrays():
    arrays = conv_arrays(gamma=[np.nan, np.nan, 1, np.inf])
    arrays[CONV][2] = 0
    doubts = dict(describe_doubts(inspect_weights('x', read_network_weights(arrays))))
    assert doubts == {
        'NaN: 2 in 1 array': [f'{NORM}/gamma: 2 of 4'],
        'infinite values: 1 in 1 array': [f'{NORM}/gamma: 1 of 4'],
        'dead channels: 1 in 1 layer': [f'{LAYER}: zero weights in 1 of 4: 2'],
    }


# Differences


def test_the_difference_of_two_arrays():
    """A = (3, 4), b = (3, 1): difference 3 of norm 5, cosine (9 + 4) / (5 * sqrt(10))."""
    (change,) = compare_weights({'a': np.array([3.0, 4.0])}, {'a': np.array([3.0, 1.0])}).changes
    assert (change.max_difference, change.relative_change) == (3, pytest.approx(0.6))
    assert change.cosine == pytest.approx(13 / (5 * math.sqrt(10)))
    assert not change.is_identical and change.n_not_finite == 0


@pytest.mark.parametrize(
    ('a', 'b', 'relative', 'cosine', 'identical'),
    [
        ([0.0], [0.0], 0, math.nan, True),
        ([0.0], [-0.0], 0, math.nan, False),
        ([0.0], [1.0], math.inf, math.nan, False),
        ([1.0], [0.0], 1, math.nan, False),
        ([1.0, 2.0], [-1.0, -2.0], 2, -1, False),
        ([1e200, 0], [0, 1e200], math.sqrt(2), 0, False),
        ([1e-200], [3e-200], 2, 1, False),
        ([1e308], [-1e308], math.inf, -1, False),
        ([], [], 0, math.nan, True),
    ],
)
def test_unusual_differences(a, b, relative, cosine, identical):
    (change,) = compare_weights({'a': np.array(a)}, {'a': np.array(b)}).changes
    assert change.relative_change == pytest.approx(relative)
    assert change.cosine == pytest.approx(cosine, nan_ok=True) and change.is_identical == identical


def test_values_that_are_not_finite_are_compared_and_left_out():
    a = np.array([1, np.nan, np.inf, np.inf, 2, np.nan], np.float32)
    b = np.array([1, np.nan, np.inf, -np.inf, np.nan, 5], np.float32)
    (change,) = compare_weights({'a': a}, {'a': b}).changes
    assert (change.n_not_finite, change.n_not_finite_changes) == (5, 3)
    assert (change.max_difference, change.relative_change) == (0, 0) and not change.is_identical
    (same,) = compare_weights({'a': a}, {'a': a.copy()}).changes
    assert same.is_identical and same.n_not_finite_changes == 0


def test_types_that_differ_are_not_identical():
    (change,) = compare_weights({'a': np.ones(2, np.float16)}, {'a': np.ones(2, np.float32)}).changes
    assert change.dtypes == ('float16', 'float32') and change.relative_change == 0 and not change.is_identical


def test_changes_are_sorted_and_mismatches_are_listed():
    ones = np.ones(4)
    first = {'rpn/conv/W': ones, 'rpn/conv/b': ones, 'rpn/delta/W': ones, 'extractor/x': ones, 'box_head/fc6/W': ones}
    second = {
        'rpn/conv/W': 1.5 * ones,
        'rpn/conv/b': 3 * ones,
        'rpn/delta/W': np.array([1, 1, 1, np.nan]),
        'mask_head/y': ones,
        'box_head/fc6/W': np.ones(5),
    }
    comparison = compare_weights(first, second)
    assert [change.name for change in comparison.changes] == ['rpn/delta/W', 'rpn/conv/b', 'rpn/conv/W']
    assert (comparison.only_first, comparison.only_second) == (('extractor/x',), ('mask_head/y',))
    assert comparison.other_shapes == {'box_head/fc6/W': ((4,), (5,))}
    assert comparison.settings == {} and comparison.n_identical == 0


def test_a_saved_model_is_identical(model, tmp_path):
    mask_rcnn.save(tmp_path / 'm.npz', model)
    comparison = compare_weights(model, tmp_path / 'm.npz')
    assert comparison.n_identical == len(comparison.changes) == len(weight_table(model))
    assert comparison.only_first == comparison.only_second == ()
    # A model without names has no format, and a file gives it names.
    assert set(comparison.settings) == {'format', 'class_names', 'category_ids'}


def test_settings_that_differ(model, tmp_path):
    mask_rcnn.save(tmp_path / 'a.npz', model)
    other = constant_model('mobilenet_v1_fpn', width=0.25, n_fg_class=2, min_size=64, max_size=64, **VERY_NARROW)
    mask_rcnn.save(tmp_path / 'b.npz', other)
    before = model.config
    expected = {'min_size': (before.min_size, 64), 'max_size': (before.max_size, 64)}
    assert compare_weights(tmp_path / 'a.npz', tmp_path / 'b.npz').settings == expected


def test_a_dialect_that_no_file_can_name_is_compared(model):
    dialect = dataclasses.replace(model.config.dialect, name='mine')
    other = NetworkWeights('x', {}, model.config.replace(dialect=dialect))
    assert compare_weights(NetworkWeights('y', {}, model.config), other).settings == {'dialect': ('mobilenet', 'mine')}


def test_the_names_are_functions_in_every_order_of_imports():
    """A module of the name of a function would replace it."""
    modules = {module.name for module in pkgutil.iter_modules(room.__path__)}
    assert set(room.__all__) >= {'compare_weights', 'dead_channels', 'weight_table'}
    assert not modules & set(room.__all__) and all(callable(getattr(room, name)) for name in room.__all__)
    with pytest.raises(AttributeError, match='no_such_name'):
        room.no_such_name  # noqa: B018
