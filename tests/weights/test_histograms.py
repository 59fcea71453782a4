"""Histograms of finite values, held against hand-counted bins."""

import numpy as np
import pytest

from mask_rcnn.weights.histograms import finite_values, histogram_of


def test_counts_and_borders():
    histogram = histogram_of(np.array([0.0, 0.1, 1.9, 2.0, 4.0]), n_bins=4)
    assert histogram.counts.tolist() == [2, 1, 1, 1]
    assert histogram.edges.tolist() == [0, 1, 2, 3, 4]


def test_values_that_are_not_finite_are_left_out():
    array = np.array([[1, np.nan], [np.inf, -2]], np.float16)
    assert finite_values(array).tolist() == [1, -2] and finite_values(array).dtype == np.float64
    assert finite_values(np.array([], np.float32)).size == 0
    assert finite_values(np.array(3, np.int64)).tolist() == [3]


@pytest.mark.parametrize(
    ('values', 'low', 'high'),
    [
        ([2.0, 2.0], 1.5, 2.5),
        ([1.0, 1.0 + 2**-52], 0.5, 1.5),  # the bins would be narrower than the distance of two floats
        ([1e20, 1e20], 1e20 - 256 * 16384, 1e20 + 256 * 16384),
    ],
)
def test_almost_equal_values(values, low, high):
    histogram = histogram_of(np.array(values))
    assert histogram.counts.sum() == 2 and (np.diff(histogram.edges) > 0).all()
    assert histogram.edges[[0, -1]] == pytest.approx([low, high])


def test_no_values_and_values_whose_difference_overflows():
    assert histogram_of(np.array([])).counts.sum() == 0
    histogram = histogram_of(np.array([1.7e308, -1.7e308, 0.0, 2.0]), n_bins=2)
    assert histogram.counts.tolist() == [1, 1] and histogram.edges.tolist() == [0, 1, 2]
