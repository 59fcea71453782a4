"""``mask-rcnn demo --annotations``: COCO datasets and files of labelme that can be corrected and used for training."""

import json
import os

import numpy as np
import pytest

from mask_rcnn.datasets import COCODataset
from mask_rcnn.ops.masks.rle import decode_rle, encode_polygons
from tests.cli.test_demo import FakeModel, call, calls, refused, write_image  # noqa: F401  # calls is a fixture


@pytest.fixture
def photos(calls, tmp_path):  # noqa: F811
    """Two images in different folders."""
    write_image(tmp_path / 'in' / 'a.png')
    (tmp_path / 'in' / 'more').mkdir()
    write_image(tmp_path / 'in' / 'more' / '7.jpg', size=(70, 90))
    return ['in/a.png', 'in/more/7.jpg']


def test_the_dataset_can_be_used_for_training(photos, tmp_path, capsys):
    assert call('--image', *photos, '--annotations', 'found.json', '--score-thresh', '0.05') == 0
    dataset = COCODataset('found.json', 'in')
    assert dataset.class_names == ('person', 'car', 'dog') and dataset.category_ids == (1, 3, 18)
    assert len(dataset) == 2 and not dataset.omissions and not dataset.doubts
    for i, size in enumerate([(60, 80), (70, 90)]):
        example = dataset[i]
        (expected,) = FakeModel(0.05).detect([np.zeros((3, *size), np.float32) + 1])
        assert example.image.shape == (3, *size)
        assert [dataset.class_names[label] for label in example.annotations.labels] == expected.names
        for segmentation, mask in zip(example.annotations.segmentations, expected.masks, strict=True):
            found = decode_rle(encode_polygons(segmentation, size)).astype(bool)
            assert (found & mask).sum() >= 0.99 * (found | mask).sum()
    content = json.loads((tmp_path / 'found.json').read_text())
    assert [(image['file_name'], image['height'], image['width']) for image in content['images']] == [
        ('a.png', 60, 80),
        ('more/7.jpg', 70, 90),
    ]
    assert [annotation['id'] for annotation in content['annotations']] == [1, 2, 3, 4]
    assert [annotation['image_id'] for annotation in content['annotations']] == [1, 1, 2, 2]
    assert [annotation['score'] for annotation in content['annotations']] == [0.9, 0.1] * 2


def test_images_on_several_drives_of_windows_have_absolute_names(photos, tmp_path, monkeypatch):
    monkeypatch.setattr('mask_rcnn.cli.demo_annotations.deepest_folder', lambda folders: None)
    assert call('--image', *photos, '--annotations', 'found.json') == 0
    images = json.loads((tmp_path / 'found.json').read_text())['images']
    assert [image['file_name'] for image in images] == [(tmp_path / photo).as_posix() for photo in photos]


def test_annotations_are_the_detections_of_the_pictures(photos, tmp_path):
    assert call('--image', photos[0], '--annotations', 'found.json', '--json', 'results.json') == 0
    annotations = json.loads((tmp_path / 'found.json').read_text())['annotations']
    assert [annotation['score'] for annotation in annotations] == [0.9]
    assert len(json.loads((tmp_path / 'results.json').read_text())) == 2


def test_files_of_labelme(photos, tmp_path):
    assert call('--image', *photos, '--annotations', 'labels/') == 0
    assert sorted(os.listdir(tmp_path / 'labels')) == ['7.json', 'a.json']
    content = json.loads((tmp_path / 'labels' / '7.json').read_text())
    assert {'version', 'flags', 'shapes', 'imagePath', 'imageData', 'imageHeight', 'imageWidth'} == set(content)
    assert content['imagePath'] == '../in/more/7.jpg' and content['imageData'] is None
    assert (content['imageHeight'], content['imageWidth']) == (70, 90)
    (shape,) = content['shapes']
    assert shape['label'] == 'person' and shape['shape_type'] == 'polygon' and shape['group_id'] is None
    assert len(shape['points']) >= 4 and all(len(point) == 2 for point in shape['points'])
    x, y = np.array(shape['points']).T  # the box of FakeModel's first object with Detectron's offset
    assert abs(x.min() - 20) <= 4 and abs(x.max() - 71) <= 4 and abs(y.min() - 10) <= 4 and abs(y.max() - 51) <= 4


def test_parts_of_an_object_have_a_common_group():
    from mask_rcnn.cli.demo_annotations import labelme_shapes
    from mask_rcnn.inference.detections import Detections

    masks = np.zeros((3, 30, 40), bool)
    masks[0, 2:8, 2:8] = masks[0, 20:28, 20:28] = masks[1, 10:15, 30:35] = True
    keypoints = np.zeros((3, 2, 4), np.float32)
    keypoints[2, 1] = 12, 34, 9, 1
    found = Detections(
        boxes=[[2.0, 2, 27, 27], [10, 30, 14, 34], [5, 6, 9, 10]],
        labels=[0, 0, 0],
        scores=[0.9, 0.8, 0.7],
        size=(30, 40),
        masks=masks,
        keypoints=keypoints,
    )
    shapes = labelme_shapes(found)
    assert [(shape['shape_type'], shape['group_id']) for shape in shapes] == [
        ('polygon', 1),
        ('polygon', 1),
        ('polygon', None),
        ('rectangle', 3),
        ('point', 3),
    ]
    assert shapes[3]['points'] == [[6, 5], [11, 10]] and shapes[4]['points'] == [[34, 12]]
    assert shapes[4]['label'] == 'keypoint 2'


def test_the_keypoints_of_people_have_the_names_of_coco():
    from mask_rcnn.cli.demo_annotations import labelme_shapes
    from mask_rcnn.inference.detections import Detections

    keypoints = np.zeros((1, 17, 4), np.float32)
    keypoints[0, [0, 16], 2] = 9
    boxes = [[5, 6, 9, 10]]
    found = Detections(boxes=boxes, labels=[0], scores=[0.7], size=(30, 40), keypoints=keypoints)
    assert [shape['label'] for shape in labelme_shapes(found)[1:]] == ['nose', 'right_ankle']


def test_files_of_labelme_are_not_replaced(photos, calls, tmp_path, capsys):  # noqa: F811
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'labels' / '7.json').write_text('corrected')
    error = refused('--image', *photos, '--annotations', 'labels', capsys=capsys)
    assert 'labels/7.json exists and may have been corrected' in error
    assert not calls and os.listdir(tmp_path / 'labels') == ['7.json']
    assert (tmp_path / 'labels' / '7.json').read_text() == 'corrected'


def test_a_dataset_is_not_replaced(photos, calls, tmp_path, capsys):  # noqa: F811
    (tmp_path / 'found.json').write_text('corrected')
    error = refused('--image', *photos, '--annotations', 'found.json', capsys=capsys)
    assert '--annotations found.json: the file exists and may have been corrected' in error
    assert not calls and (tmp_path / 'found.json').read_text() == 'corrected'


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['--annotations', 'model.npz'], 'is the file of --modelfile'),
        (['--annotations', 'in/a.png'], 'that is an image'),
        (['--annotations', 'found.json', '--image', 'in/a.png'], 'in/a.png is given 2 times'),
        (['--annotations', 'no/found.json'], 'not a file in an existing folder'),
        (['--annotations', 'found.json', '--json', 'found.json'], 'is the file of --json'),
        (['--annotations', '-', '--json', '-'], 'are both written to the standard output'),
    ],
)
def test_impossible_annotations_are_refused(photos, calls, capsys, words, reason):  # noqa: F811
    error = refused('--image', photos[0], *words, capsys=capsys)
    assert reason in error
    assert not calls


def test_annotations_on_the_standard_output_are_alone_there(photos, capfd):
    assert call('--image', photos[0], '--annotations', '-') == 0
    out, err = capfd.readouterr()
    assert [image['file_name'] for image in json.loads(out)['images']] == ['a.png']
    assert '1 person -> output.png' in err


def test_a_broken_image_is_not_in_the_dataset(photos, tmp_path):
    (tmp_path / 'in' / 'b.png').write_bytes(b'no image')
    assert call('--image', 'in', '--annotations', 'found.json') == 1
    content = json.loads((tmp_path / 'found.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['a.png']
    assert [category['name'] for category in content['categories']] == ['person', 'car', 'dog']  # by id


def test_an_interrupt_leaves_the_annotations_of_the_finished_images(photos, tmp_path, monkeypatch, capsys):
    def interrupted(self, images, *, batch_size=None):
        yield self._detect_one(next(iter(images)))
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeModel, 'iter_detections', interrupted)
    assert call('--image', *photos, '--annotations', 'found.json') == 130
    content = json.loads((tmp_path / 'found.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['a.png']
    assert 'found.json contains the results of 1 of 2 images' in capsys.readouterr().err
