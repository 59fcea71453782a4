"""Fixtures of the tests of inference."""

from tests.models.conftest import image, small_fpn_model, small_model

__all__ = ['image', 'small_fpn_model', 'small_model']
