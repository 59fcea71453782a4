"""Fixtures of the training tests."""

from tests.models.test_gpu_path import kernels, on_gpu  # noqa: F401
