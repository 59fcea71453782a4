"""Masks as PNG files: label images, and a file for each instance."""

import os

import cv2
import numpy as np
import pytest

from mask_rcnn.media.mask_files import InstanceMasks, LabelImages, make_label_image, safe_name
from mask_rcnn.media.results import Origin
from mask_rcnn.preprocessing.label_image import read_label_image

IMAGE = Origin('in/a.jpg', 'a')


def read_png(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_pixels_of_a_label_image_are_the_numbers_of_the_instances(tmp_path, two):
    LabelImages(tmp_path).add(IMAGE, two)
    labels = read_png(tmp_path / 'a.png')
    expected = np.zeros((30, 40), int)
    expected[5:26, 12:31] = 2
    expected[2:11, 4:15] = 1  # the person has the higher score
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(read_label_image(tmp_path / 'a.png').values, expected)


def test_the_highest_score_is_on_top_in_any_order(two):
    np.testing.assert_array_equal(make_label_image(two[[1, 0]]) == 2, make_label_image(two) == 1)


def test_of_equal_scores_the_first_instance_is_on_top(make_detections):
    found = make_detections((0, 0.5, 0, 0, 9, 9), (0, 0.5, 0, 0, 9, 9), (0, 0.5, 5, 5, 12, 12))
    labels = make_label_image(found)
    assert (labels[:10, :10] == 1).all() and labels[12, 12] == 3 and not (labels == 2).any()


def test_ids_are_the_pixels_of_tracked_objects(tmp_path, two):
    LabelImages(tmp_path).add(IMAGE, two, np.array([300, 4]))
    labels = read_png(tmp_path / 'a.png')
    assert labels.dtype == np.uint16 and set(np.unique(labels)) == {0, 4, 300} and labels[6, 13] == 300
    assert make_label_image(two, [1, 2]).dtype == np.uint16  # in all frames the same type
    with pytest.raises(ValueError, match='the last number of a label image is 65535, below .*: 65536'):
        make_label_image(two, [65536, 1])
    assert make_label_image(two, [65535, 1]).max() == 65535


@pytest.mark.parametrize(('count', 'dtype'), [(0, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_the_number_of_bits_depends_on_the_number_of_instances(tmp_path, make_detections, count, dtype):
    found = make_detections(*[(0, 0.5, *np.divmod(i, 40), *np.divmod(i, 40)) for i in range(count)])
    LabelImages(tmp_path).add(IMAGE, found)
    labels = read_png(tmp_path / 'a.png')
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels.ravel()[:count], np.arange(count) + 1)
    assert not labels.ravel()[count:].any()


def test_a_file_for_each_instance(tmp_path, two):
    masks = InstanceMasks(tmp_path)
    masks.add(IMAGE, two)
    masks.add(Origin('clip.mp4', 'clip_000012', 12), two, [8, 1234])
    masks.close()
    names = ['a_001_person.png', 'a_002_traffic_light.png']
    tracked = ['clip_000012_008_person.png', 'clip_000012_1234_traffic_light.png']
    assert sorted(os.listdir(tmp_path)) == names + tracked
    for pair in (names, tracked):
        for name, mask in zip(pair, two.masks, strict=True):
            pixels = read_png(tmp_path / name)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, mask * 255)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('../../etc/passwd', '______etc_passwd'),
        ('a\\b:c*?"<>|', 'a_b_c______'),
        ('nul\0\n', 'nul__'),
        ('人物', '人物'),
        ('\udcff', '_'),
        ('x' * 300, 'x' * 40),
        ('人' * 300, '人' * 40),
        ('', ''),
    ],
)
def test_class_names_in_the_names_of_files(tmp_path, make_detections, name, expected):
    assert safe_name(name) == expected
    InstanceMasks(tmp_path).add(IMAGE, make_detections((0, 0.5, 1, 1, 2, 2), class_names=(name, 'b', 'c')))
    assert os.listdir(tmp_path) == [f'a_001_{expected}.png']


@pytest.mark.parametrize('sink', [LabelImages, InstanceMasks])
def test_detections_without_masks_are_rejected(tmp_path, make_detections, sink):
    with pytest.raises(ValueError, match='these detections have no masks'):
        sink(tmp_path).add(IMAGE, make_detections((0, 0.5, 1, 1, 2, 2), has_masks=False))
    assert os.listdir(tmp_path) == []
