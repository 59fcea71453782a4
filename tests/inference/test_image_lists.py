"""A single image, or an object that is not an image, instead of a list of images."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from mask_rcnn.inference.image_lists import check_images, load_listed_image


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ('x.jpg', r"for one image write detect\(\['x.jpg'\]\)"),
        (pathlib.Path('a/x.jpg'), r"for one image write detect\(\['a/x.jpg'\]\)"),
        (np.zeros((4, 5, 3), np.uint8), r'detect\(\[array\]\); this is a single array of shape \(4, 5, 3\)'),
        (np.zeros((4, 5), np.uint8), 'a single array'),
        (np.zeros(5), 'a single array'),
        (PIL.Image.new('RGB', (3, 4)), r'detect\(\[numpy.asarray\(image.convert\("RGB"\)\)\]\)'),
        (None, r'not detect\(NoneType\)'),
        (b'x.jpg', r'not detect\(bytes\)'),
        (5, r'not detect\(int\)'),
        (object(), r'not detect\(object\)'),
    ],
)
def test_a_single_image_is_named(images, message):
    with pytest.raises(TypeError, match=f'^detect takes a list of images; .*{message}'):
        check_images(images)


@pytest.mark.parametrize(
    'images', [[], ['x'], ('x',), iter(['x']), np.zeros((2, 4, 5, 3), np.uint8), np.array(['a', 'b']), {'x'}]
)
def test_lists_are_accepted(images):
    assert check_images(images) is None


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (None, 'not NoneType; cv2.imread returns None'),
        (PIL.Image.new('L', (3, 4)), r'convert a PIL image with numpy.asarray\(image.convert\("RGB"\)\)'),
        (np.zeros((4, 5), np.uint8), r'grayscale image with numpy.stack\(\[image\] \* 3, axis=2\)'),
        (np.zeros((4, 5, 1), np.uint8), r'numpy.repeat\(image, 3, axis=2\)'),
        (np.zeros((4, 5, 4), np.uint8), r'drop the alpha channel with image\[:, :, :3\]'),
        (np.zeros((1, 4, 5, 3), np.uint8), r'this is a batch: detect\(list\(batch\)\)'),
        (np.zeros((4, 5, 3)), r'image.astype\(numpy.uint8\)'),
        (np.zeros((3, 4, 5)), r'image.astype\(numpy.float32\)'),
        (5, 'an image must be a file name or a NumPy array, not int$'),
    ],
)
def test_the_error_of_an_image_states_the_conversion(image, message):
    with pytest.raises((TypeError, ValueError), match=message):
        load_listed_image(image)


@pytest.mark.parametrize(('shape', 'dtype'), [((0, 5, 3), np.uint8), ((5, 0, 3), np.uint8), ((3, 0, 5), np.float32)])
def test_an_image_without_pixels_is_not_a_question_of_its_type(shape, dtype):
    with pytest.raises(ValueError, match='has no pixels$'):
        load_listed_image(np.zeros(shape, dtype))
