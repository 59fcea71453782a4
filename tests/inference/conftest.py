"""Fixtures of the tests of inference."""

import pytest

from tests.models.conftest import image
from tests.support import models
from tests.support.small_resnet import use_narrow_resnet

__all__ = ['image']


@pytest.fixture(scope='module', autouse=True)
def _narrow_resnet():
    """Build narrow ResNets: these tests are about the code around the network."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_narrow_resnet(monkeypatch)
        yield


@pytest.fixture(scope='module')
def small_model():
    """A small C4 network with named classes."""
    names = ('square', 'circle', 'triangle')
    return models.small_model('resnet50', class_names=names, **models.VERY_NARROW)


@pytest.fixture(scope='module')
def small_fpn_model():
    """A small FPN network."""
    return models.small_model('resnet50_fpn', **models.VERY_NARROW)
