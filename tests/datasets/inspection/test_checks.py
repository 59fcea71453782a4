"""Checks of a dataset: each kind of doubt is made by hand and found, and nothing else is."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mask_rcnn.config import Config
from mask_rcnn.datasets import coco_annotations
from mask_rcnn.datasets.inspection.checks import KINDS, check_dataset, check_pair
from mask_rcnn.datasets.segmentations import outline_area
from tests.support.small_dataset import annotation, write_dataset

CONFIG = Config(min_size=100, max_size=150)


@pytest.fixture
def findings(tmp_path):
    """A function that writes two images of 100 x 150 with a cat and a dog and more, and returns the findings."""

    def find(*annotations, edit=None, edit_files=None, decode=True):
        usual = [annotation(1, 0, (10, 10, 40, 30)), annotation(2, 1, (10, 10, 40, 30), 2)]
        path = write_dataset(tmp_path, [(100, 150), (100, 150)], [*usual, *annotations], edit=edit)
        if edit_files:
            edit_files(tmp_path)
        return check_dataset(path, tmp_path, CONFIG, decode=decode).findings

    return find


def found(findings):
    """Return (kind, name of the file, place) of each finding."""
    return [(finding.kind, Path(finding.file).name, finding.place) for finding in findings]


@pytest.mark.parametrize('decode', [True, False])
def test_nothing_doubtful(findings, decode):
    assert findings(decode=decode) == ()


@pytest.mark.parametrize(
    ('changed', 'kind', 'words'),
    [
        ({'iscrowd': 1}, 'crowd', ''),
        ({'segmentation': []}, 'left-out', 'without an outline'),
        ({'bbox': [20, 20, 1, 30]}, 'left-out', 'at most one pixel'),
        ({'bbox': [100, 60, 40, 30]}, 'doubtful', 'does not fit its outline'),
        ({'bbox': [20, 20, 400, 300]}, 'doubtful', 'mostly outside its image'),
        ({'segmentation': [[20, 20, 80, 20, 80, 108.5, 20, 80]]}, 'outside', 'x = 80, y = 108.5'),
        ({'segmentation': [[20, 20, 80, 20, 80]]}, 'malformed', 'annotation 7'),
        ({'category_id': 9}, 'malformed', 'has the category 9'),
        ({'image_id': 5}, 'malformed', 'belongs to the image 5'),
    ],
)
def test_one_doubtful_object(findings, changed, kind, words):
    (finding,) = findings({**annotation(7, 0, (20, 20, 60, 60)), **changed})
    assert finding.kind == kind and words in str(finding)
    assert (kind == 'malformed' and 'annotation 7' in finding.reason) or finding.place == 'annotation 7'


def test_vertices_at_the_edge_are_not_outside(findings):
    """One pixel is a rounded coordinate."""
    outline = [[-1, -0.5, 151, 0, 151, 101, 0, 101]]
    assert findings(annotation(7, 0, (0, 0, 150, 100), segmentation=outline)) == ()


def test_tiny_objects_are_measured_in_the_network_input(tmp_path):
    """The image is halved: 7 x 9 pixels become 3.97, 8 x 8 become 4."""
    objects = [annotation(1, 0, (5, 5, 7, 9)), annotation(2, 0, (50, 50, 8, 8))]
    path = write_dataset(tmp_path, [(200, 300)], objects, names=('cat',))
    (finding,) = check_dataset(path, tmp_path, CONFIG).findings
    assert (finding.kind, finding.place) == ('tiny', 'annotation 1')
    assert finding.reason == '4.0 pixels in the network input'


def test_repeated_annotations(findings):
    """The same box of another class, or in another image, is not repeated."""
    again, other_class, other_image = (
        annotation(number, image_id, (10, 10, 40, 30), category_id)
        for number, image_id, category_id in ((7, 0, 1), (8, 0, 2), (9, 1, 1))
    )
    repeated = findings(again, other_class, other_image)
    assert found(repeated) == [('repeated', '0.png', 'annotation 7')]
    assert repeated[0].reason == 'has the class and the box of annotation 1'


def test_classes_and_images_without_objects(findings):
    def edit(content):
        content['categories'].append({'id': 3, 'name': 'bird'})
        content['annotations'][1]['iscrowd'] = 1

    assert found(findings(edit=edit)) == [
        ('crowd', '1.png', 'annotation 2'),
        ('empty-class', 'data.json', "class 'bird'"),
        ('no-objects', '1.png', ''),
    ]


def test_a_class_with_malformed_annotations_only_is_not_empty(findings):
    def edit(content):
        content['annotations'][1]['bbox'] = [1, 2]

    assert found(findings(edit=edit)) == [('malformed', 'data.json', ''), ('no-objects', '1.png', '')]


def test_sizes(findings):
    def edit(content):
        content['images'][1]['height'] = 99

    (finding,) = findings(edit=edit)
    assert finding.kind == 'size' and '100 x 150 pixels (height x width)' in finding.reason
    assert finding.reason.endswith('declares 99 x 150')


def test_orientation(findings, tmp_path):
    def turn(folder):
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.open(folder / '1.png').save(folder / '1.png', exif=exif)

    assert found(findings(edit_files=turn)) == [('orientation', '1.png', '')]


def test_unreadable_images(findings):
    def damage(folder):
        (folder / '0.png').unlink()
        data = (folder / '1.png').read_bytes()
        (folder / '1.png').write_bytes(data[: len(data) - 30])

    assert found(findings(edit_files=damage)) == [('unreadable', '0.png', ''), ('unreadable', '1.png', '')]


def test_damaged_pixels_are_found_by_decoding_only(findings):
    def damage(folder):
        data = cv2.imencode('.png', np.random.RandomState(0).randint(0, 256, (100, 150, 3), np.uint8))[1]
        data = bytearray(data.tobytes())
        data[len(data) // 2] ^= 0xFF
        (folder / '1.png').write_bytes(data)

    assert found(findings(edit_files=damage)) == [('unreadable', '1.png', '')]
    assert findings(edit_files=damage, decode=False) == ()


def test_equal_images(findings):
    def copy(folder):
        shutil.copy(folder / '0.png', folder / '1.png')

    for decode in (True, False):
        (finding,) = findings(edit_files=copy, decode=decode)
        assert (finding.kind, Path(finding.file).name) == ('same-image', '0.png')
        assert finding.reason.startswith('equals ') and finding.reason.endswith('1.png')


def test_equal_pixels_in_another_format(findings):
    def copy(folder):
        Image.open(folder / '0.png').save(folder / '1.png', format='BMP')

    assert [finding.kind for finding in findings(edit_files=copy)] == ['same-image']
    assert findings(edit_files=copy, decode=False) == ()


@pytest.mark.parametrize('decode', [True, False])
def test_training_and_validation_data(tmp_path, decode):
    objects = [annotation(1, 0, (10, 10, 40, 30))]
    train = write_dataset(tmp_path / 'a', [(100, 150), (90, 150)], objects, names=('cat', 'dog'))
    val = write_dataset(tmp_path / 'b', [(90, 150), (100, 150)], objects, names=('cat', 'cow'))
    shutil.copy(tmp_path / 'a' / '0.png', tmp_path / 'b' / '1.png')
    pair = [check_dataset(path, path.parent, CONFIG, decode=decode) for path in (train, val)]
    common, missing_in_train, missing_in_val = check_pair(*pair)
    assert (common.kind, common.file) == ('train-val', str(tmp_path / 'b' / '1.png'))
    assert common.reason == f'the same image as {tmp_path / "a" / "0.png"}'
    assert str(missing_in_train) == f"{train}: class 'cow': is missing"
    assert str(missing_in_val) == f"{val}: class 'dog': is missing"
    assert {finding.kind for finding in (common, missing_in_train, missing_in_val)} <= set(KINDS)


def test_thick_polygons_have_pixels(rng):
    """The shortcut agrees with the rasterised outline."""
    n_thick = 0
    for _ in range(3000):
        corners = rng.uniform(0, 30, 2) + rng.uniform(-1, 1, (rng.randint(3, 7), 2)) * rng.uniform(0.3, 12, 2)
        polygon = corners.ravel()
        has_pixels = outline_area((polygon,), (30, 30)) > 0
        assert coco_annotations._has_pixels((polygon,), (30, 30)) == has_pixels
        n_thick += coco_annotations._is_thick(polygon, (30, 30))
    assert n_thick > 20


def test_a_dataset_without_images_and_classes(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    assert found(check_dataset(path, tmp_path, CONFIG).findings) == [('empty', 'a.json', '')] * 2
