"""Fixtures that tests of several folders share."""

from pathlib import Path

import numpy as np
import pytest

import mask_rcnn  # noqa: F401  (makes Chainer importable before any test module asks for it)
from mask_rcnn.ops.runtime.device import cuda_device_count

ROOT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item):
    """Skip tests of the GPU where there is none; that CuPy can be imported does not say that there is."""
    if item.get_closest_marker('gpu') and not cuda_device_count():
        pytest.skip('no CUDA device')


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope='session')
def data() -> Path:
    """The folder of the tests' own small golden arrays."""
    return ROOT / 'tests' / 'data'


@pytest.fixture(scope='session')
def shared() -> Path:
    """The reference outputs and data that are not part of the project."""
    folder = ROOT.parent / 'shared'
    if not (folder / 'golden').is_dir():
        pytest.skip('the reference outputs are not on this machine')
    return folder


@pytest.fixture
def rng() -> np.random.RandomState:
    """Random numbers that are the same in every run."""
    return np.random.RandomState(0)
