"""Fixtures of the tests of networks."""

import numpy as np
import pytest

from tests.support import models
from tests.support.gpu_path import on_gpu  # noqa: F401


@pytest.fixture(scope='module')
def small_model():
    """A small C4 network with named classes."""
    return models.shallow_model('resnet50', class_names=('square', 'circle', 'triangle'))


@pytest.fixture(scope='module')
def small_fpn_model():
    """A small FPN network."""
    return models.shallow_model('resnet50_fpn')


@pytest.fixture
def image(rng):
    """A small image of noise."""
    return rng.uniform(0, 255, (3, 48, 60)).astype(np.float32)
