"""The modules of the build backend, which a frontend such as pip finds by ``backend-path``."""

import importlib

import pytest


@pytest.fixture
def archives(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'build_backend'))
    return importlib.import_module('archives')


@pytest.fixture
def chainer_wheels(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'build_backend'))
    return importlib.import_module('chainer_wheels')


@pytest.fixture
def backend(root, monkeypatch):
    pytest.importorskip('setuptools', minversion='77.0.3')  # environments of Python 3.10 and 3.11 contain 65
    monkeypatch.syspath_prepend(str(root / 'build_backend'))
    return importlib.import_module('backend')
