import chainer
import numpy as np
import pytest

from mask_rcnn.ops.derived import constant_parameters, derived, one_image


@pytest.fixture
def make():
    """A function that counts its calls."""
    def make(array, factor):
        make.calls += 1
        return array * factor
    make.calls = 0
    return make


def test_nothing_is_kept_unless_asked_for(make):
    x = np.arange(3)
    derived(make, x, 2), derived(make, x, 2, of_image=True)
    with constant_parameters():
        derived(make, x, 2, of_image=True)
    with one_image():
        derived(make, x, 2)
    assert make.calls == 4


@pytest.mark.parametrize('context, of_image', [(constant_parameters, False), (one_image, True)])
def test_once_for_the_same_sources(make, context, of_image):
    x, twin = np.arange(3), np.arange(3)
    with context():
        first = derived(make, x, 2, of_image=of_image)
        assert derived(make, x, 2, of_image=of_image) is first
        np.testing.assert_array_equal(derived(make, x, 3, of_image=of_image), [0, 3, 6])
        assert derived(make, twin, 2, of_image=of_image) is not first
    assert make.calls == 3
    with context():
        assert derived(make, x, 2, of_image=of_image) is not first


def test_an_inner_context_adds_to_the_outer_one(make):
    x = np.arange(3)
    with constant_parameters():
        with constant_parameters():
            first = derived(make, x, 2)
        assert derived(make, x, 2) is first
    assert chainer.config.derived_arrays is None


def test_every_image_starts_anew(make):
    x = np.arange(3)
    with one_image():
        first = derived(make, x, 2, of_image=True)
        with one_image():
            assert derived(make, x, 2, of_image=True) is not first
        assert derived(make, x, 2, of_image=True) is first
