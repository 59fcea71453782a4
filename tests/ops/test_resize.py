import zlib

import cv2
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.ops.resize import centre_and_resize


@pytest.mark.parametrize('scale', [0.37, 0.75, 1.0, 1.19, 2.6])
def test_resize_is_opencvs_but_for_its_rounding(rng, scale):
    image = rng.uniform(0, 255, (3, 37, 53)).astype(np.float32)
    mean = (100.5, 110.25, 120.0)
    expected = cv2.resize(image.transpose(1, 2, 0) - np.float32(mean), None, fx=scale, fy=scale)
    np.testing.assert_allclose(centre_and_resize(image, mean, scale), expected.transpose(2, 0, 1),
                               rtol=0, atol=0.02)


def test_resize_interpolates_linearly():
    """Along a ramp, a pixel is the value at its centre, except where the border cuts the ramp off."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (1, 5, 40))
    out = centre_and_resize(ramp, (0,), 1.5)
    centres = (np.arange(60) + 0.5) / 1.5 - 0.5
    np.testing.assert_allclose(out[0], np.broadcast_to(np.clip(centres, 0, 39), (8, 60)), atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (9, 1)])
def test_resize_of_tiny_images(shape):
    out = centre_and_resize(np.full((3, *shape), 7, np.float32), (1, 2, 3), 3.0)
    assert out.shape == (3, 3 * shape[0], 3 * shape[1])
    np.testing.assert_array_equal(out, np.broadcast_to(np.float32([6, 5, 4])[:, None, None], out.shape))


def test_resize_never_loses_a_side():
    assert centre_and_resize(np.zeros((3, 1, 900), np.float32), (0, 0, 0), 0.4).shape == (3, 1, 360)


@pytest.mark.parametrize('case', ['R-50-C4_seed0', 'R-50-C4_seed0_scale300'])
def test_input_is_detectrons_to_the_bit(shared, case):
    golden = np.load(shared / 'golden' / 'detectron' / f'case_{case}.npz')
    photo = shared / 'golden' / 'photos' / '17790319373_bd19b24cfc_k.jpg'
    image = cv2.imread(str(photo)).transpose(2, 0, 1)
    x = centre_and_resize(image, DETECTRON.pixel_mean, float(golden['im_scale']))
    assert zlib.crc32(x.tobytes()) == int(golden['data_crc32'])
