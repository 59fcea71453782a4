"""Fixtures of the training tests."""

from tests.support.gpu_path import kernels, on_gpu  # noqa: F401
