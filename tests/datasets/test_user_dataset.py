"""Datasets that users define: each malformed result is one error that names the image."""

import re

import cv2
import numpy as np
import pytest

from mask_rcnn.datasets import UserDataset
from mask_rcnn.preprocessing.image_io import ImageFileError

MASKS = np.zeros((1, 8, 10), bool)
MASKS[0, 2:6, 3:9] = True
POLYGON = [3, 2, 9, 2, 9, 6, 3, 6]


class Data:
    """Two images of 8 x 10 pixels (height x width), the second one with the given content."""

    def __init__(self, *, image=None, objects=None, class_names=('a', 'b')):
        self.class_names = class_names
        self._image = np.zeros((8, 10, 3), np.uint8) if image is None else image
        self._objects = (MASKS, [1]) if objects is None else objects

    def __len__(self):
        return 2

    def image(self, i):
        return self._image if i else np.zeros((8, 10, 3), np.uint8)

    def objects(self, i):
        return self._objects if i else (MASKS, [0])


def test_masks_polygons_and_run_lengths():
    rle = {'size': [8, 10], 'counts': UserDataset(Data())[1].annotations.segmentations[0]['counts']}
    array = np.array(POLYGON, np.float32)
    arrays = [[array], [[array]], [array.reshape(-1, 2)], [[array.reshape(-1, 2)]], [list(array)], [MASKS[0]]]
    for outlines in (MASKS, [[POLYGON]], [POLYGON], [rle], *arrays):
        example = UserDataset(Data(objects=(outlines, [1])))[1]
        # Corners y_min, x_min, y_max, x_max, of which the last are pixels of the box.
        np.testing.assert_array_equal(example.annotations.boxes, [[2, 3, 5, 8]])
        assert example.annotations.labels.tolist() == [1] and example.name == 'image 1' and example.image_id == 2


def test_images_of_files(tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.full((8, 10, 3), (1, 2, 3), np.uint8))
    example = UserDataset(Data(image=path))[1]
    assert example.name == str(path) and example.image[:, 0, 0].tolist() == [3, 2, 1]
    with pytest.raises(ImageFileError, match='b.png'):
        UserDataset(Data(image=tmp_path / 'b.png'))
    data = Data(image=path)
    dataset = UserDataset(data)
    data._image = np.zeros((8, 12, 3), np.uint8)
    with pytest.raises(ValueError, match=re.escape('image 1: the size was (8, 10), and is now (8, 12)')):
        dataset[1]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'objects': (MASKS, [2])}, "image 1: label 2 is not from 0 to 1 (0 is the class 'a', not the background)"),
        ({'objects': (MASKS, [-1])}, 'image 1: label -1'),
        ({'objects': (MASKS, [0.0])}, 'image 1: labels must be a list of integers, not float64'),
        ({'objects': (MASKS, [[0]])}, 'image 1: labels must be a list of integers, not int64 of shape (1, 1)'),
        ({'objects': (MASKS, [0, 1])}, 'image 1: objects() returned 1 outline, but 2 labels'),
        ({'objects': (MASKS.astype(np.uint8), [0])}, 'image 1: masks must be bool, not uint8; convert them'),
        ({'objects': (MASKS[0], [0])}, 'image 1: masks must have the shape (G, 8, 10), not (8, 10)'),
        ({'objects': (MASKS[:, :, 1:], [0])}, 'image 1: masks must have the shape (G, 8, 10), not (1, 8, 9)'),
        ({'objects': (np.moveaxis(MASKS, 0, -1), [0])}, 'numpy.moveaxis(masks, -1, 0) puts the objects first'),
        ({'objects': ([MASKS[0, 1:]], [0])}, 'image 1: masks must have the shape (G, 8, 10), not (1, 7, 10)'),
        ({'objects': ([MASKS[0].astype(np.uint8)], [0])}, 'image 1: masks must be bool, not uint8'),
        ({'objects': (MASKS, [[0], [1, 0]])}, 'image 1: labels must be a list of integers, not [[0], [1, 0]]'),
        ({'objects': MASKS}, 'image 1: objects() must return outlines and labels, not '),
        ({'objects': (7, [0])}, 'image 1: outlines must be an array of masks or a list, not 7'),
        ({'objects': (['x'], [0])}, "image 1: the 'segmentation' of object 0 is neither a list of polygons"),
        ({'objects': ([[POLYGON], [[1, 2, 3]]], [0, 0])}, "image 1: the 'segmentation' of object 1 has a polygon of 3"),
        ({'image': np.zeros((8, 10, 3))}, 'image 1: an image array must be float32 of shape (3, H, W) or uint8'),
        ({'image': np.zeros((8, 10), np.uint8)}, 'image 1: an image array must be'),
        ({'image': 7}, 'image 1: an image must be a file name or a NumPy array, not int'),
        ({'class_names': ()}, 'class_names must be one or more names'),
        ({'class_names': 'ab'}, "class_names must be one or more names, not 'ab'"),
        ({'class_names': ('a', 'a')}, "class_names contains 'a' several times"),
    ],
)
def test_malformed_content_is_named(content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        UserDataset(Data(**content))
    assert '\n' not in str(caught.value)


def test_objects_without_pixels_are_left_out(caplog):
    empty = np.concatenate([MASKS, np.zeros_like(MASKS)])
    dataset = UserDataset(Data(objects=(empty, [1, 0])))
    assert len(dataset[1].annotations) == 1 and len(dataset.omissions) == 1
    assert 'object 1 of image 1' in caplog.text
    with pytest.raises(ValueError, match='the dataset has no image with an object'):
        UserDataset(type('Empty', (Data,), {'objects': lambda self, i: ([], [])})())


def test_an_empty_array_has_no_objects():
    assert len(UserDataset(Data(objects=(np.array([]), np.array([]))), only_annotated=False)[1].annotations) == 0


def test_the_reason_why_no_object_remains():
    data = type('Empty', (Data,), {'objects': lambda self, i: (np.zeros_like(MASKS), [0])})()
    with pytest.raises(ValueError, match='no image with an object; left out 2 objects: .*object 0 of image 0'):
        UserDataset(data)


def test_images_from_0_to_1_are_refused():
    image = np.full((3, 8, 10), 0.5, np.float32)
    data = type('Dim', (Data,), {'image': lambda self, i: image})()
    with pytest.raises(ValueError, match='the values of all images are at most 1'):
        UserDataset(data)
    image[:] = 2
    UserDataset(data)
    UserDataset(Data(image=np.full((3, 8, 10), 0.5, np.float32)))  # one nearly black image
