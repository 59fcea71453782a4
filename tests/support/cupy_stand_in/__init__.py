"""A stand-in for CuPy on the CPU, so that tests marked ``gpu`` run without a GPU.

``python -m pytest -p tests.support.cupy_stand_in -m gpu tests/ops`` installs it as ``cupy`` before Chainer is imported.
NumPy computes its functions, g++ compiles its kernels.  It is as strict as CuPy: a NumPy array is not accepted where
CuPy expects its own, names that CuPy does not have raise an AttributeError, and the arguments of a kernel must have the
types of its parameters.  All work is done at once, so that it finds no missing synchronisation.
"""

from __future__ import annotations

import pytest

from tests.support.cupy_stand_in.modules import install
from tests.support.cupy_stand_in.skipped import SKIPPED

install()


def pytest_collection_modifyitems(items):
    """Skip the tests that need what the stand-in does not have."""
    for item in items:
        for start, reason in SKIPPED.items():
            if item.nodeid.startswith(start):
                item.add_marker(pytest.mark.skip(reason=f'not on the stand-in for CuPy: {reason}'))
