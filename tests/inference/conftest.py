"""Fixtures of the tests of inference."""

import pytest

from tests.models.conftest import image
from tests.support import models
from tests.support.small_resnet import use_narrow_resnet

__all__ = ['image']


@pytest.fixture(scope='module', autouse=True)
def _short_resnet():
    """Build ResNet-50 with one block per stage: these tests are about the code around the network."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_narrow_resnet(monkeypatch)
        yield


@pytest.fixture(scope='module')
def small_model():
    """A small C4 network with named classes."""
    names = ('square', 'circle', 'triangle')
    return models.small_model('resnet50', class_names=names, rpn_channels=32, mask_channels=16)


@pytest.fixture(scope='module')
def small_fpn_model():
    """A small FPN network."""
    channels = {'fpn_channels': 16, 'rpn_channels': 16, 'head_channels': 32, 'mask_channels': 16}
    return models.small_model('resnet50_fpn', **channels)
