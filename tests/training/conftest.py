"""Fixtures of the training tests."""

from tests.support.gpu_path import on_gpu  # noqa: F401
