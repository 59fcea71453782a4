"""The memory layouts of activations on the CPU."""

import numpy as np
import pytest

from mask_rcnn.ops.runtime import memory_layout
from mask_rcnn.ops.runtime.memory_layout import as_images, flatten_rows


@pytest.mark.parametrize('n', [0, 1, 301])
def test_rows_of_features_with_the_channels_outermost(rng, monkeypatch, n):
    monkeypatch.setattr(memory_layout, '_MIN_BYTES', 1)
    features = as_images(rng.standard_normal((5, n, 3, 2)))
    rows = flatten_rows(features)
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, features.reshape(n, 30))


def test_contiguous_rows_are_not_copied(rng):
    features = rng.standard_normal((4, 5, 3, 2))
    assert np.shares_memory(flatten_rows(features), features)
    assert flatten_rows(features[:, 0, 0, :1]).shape == (4, 1)
