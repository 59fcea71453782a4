"""Tests of COCO datasets: cleaned objects, malformed files, ground truth and keypoints."""

import json
import logging
import pickle
import re

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image
from tests.support.annotation_files import HEIGHT, TRIANGLE, WIDTH, annotation, keypoint_names, keypoints, rle_of


def test_an_example_has_an_image_and_its_objects(make, tmp_path):
    dataset = make([annotation(), annotation(id=2, category_id=5, bbox=[0, 1, 10.5, 4])])
    assert dataset.class_names == ('cat', 'dog') and dataset.category_ids == (3, 5)
    assert dataset.image_ids == (7,) and len(dataset) == 1 and dataset.image_size(0) == (HEIGHT, WIDTH)
    example = dataset[0]
    assert example.name == str(tmp_path / 'a.png') and example.image_id == 7
    np.testing.assert_array_equal(example.image, read_image(tmp_path / 'a.png'))
    objects = example.annotations
    np.testing.assert_array_equal(objects.boxes, np.float32([[5, 5, 17, 20], [1, 0, 4, 9.5]]))
    assert objects.boxes.dtype == np.float32
    np.testing.assert_array_equal(objects.labels, np.int32([0, 1]))
    assert objects.labels.dtype == np.int32
    np.testing.assert_array_equal(objects.crowd, [False, False])
    (polygon,), _ = objects.segmentations
    np.testing.assert_array_equal(polygon, TRIANGLE)


@pytest.mark.parametrize(
    ('bbox', 'expected'),
    [
        ([30, 20, 100, 100], [20, 30, 29, 39]),  # clipped to the image
        ([-5, -6, 20, 20], [0, 0, 13, 14]),
        ([4, 4, 1, 9], None),  # one pixel wide: x2 = x1
        ([39, 4, 9, 9], None),  # only the last column is in the image
        ([60, 4, 9, 9], None),
        ([10**25, 4, 9, 9], None),
        ([4, 4, 10**25, 9], [4, 4, 12, 39]),
    ],
)
def test_boxes_are_cleaned_as_in_detectron(make, bbox, expected):
    dataset = make([annotation(bbox=bbox), annotation(id=2, bbox=[1, 1, 5, 5])])
    boxes = dataset[0].annotations.boxes.tolist()
    assert boxes == ([] if expected is None else [expected]) + [[1, 1, 5, 5]]


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'ignore': 1}, "marked 'ignore'"),
        ({'ignore': True, 'area': None}, "marked 'ignore'"),
        ({'segmentation': []}, 'without an outline'),
        ({'segmentation': None}, 'without an outline'),
        ({'segmentation': [[]]}, 'without an outline'),
        ({'segmentation': [[5, 5]]}, 'without an outline'),
        ({'segmentation': [[5, 5, 5, 9]]}, 'without an outline'),  # a rectangle without area
        ({'bbox': [4, 4, 1, 9]}, 'with a box of at most one pixel in a direction or outside the image'),
        ({'bbox': [90, 90, 9, 9]}, 'with a box of at most one pixel in a direction or outside the image'),
        ({'bbox': [0, 0, 0, 0], 'segmentation': [[5, 5, 9, 5, 5, 5]]}, 'with a box of at most one pixel'),
        ({'area': 0, 'segmentation': [[5.1, 5.1, 5.2, 5.1, 5.1, 5.2]]}, 'without area'),
    ],
)
def test_unusable_objects_are_left_out_and_reported(make, changes, reason):
    dataset = make([annotation(id=9, **changes), annotation(id=2, bbox=[1, 1, 16, 13])])
    assert dataset[0].annotations.boxes.tolist() == [[1, 1, 13, 16]]
    assert dataset.n_skipped == 0 and len(dataset.omissions) == 1
    (line,) = dataset.warnings
    assert line.startswith(f'left out 1 item: 1 {reason}') and line.endswith('(annotation 9)')


def test_images_without_an_object_are_counted(make):
    assert make([annotation()]).n_without_objects == 1
    assert make([annotation(), annotation(id=2, image_id=9)]).n_without_objects == 0
    assert make([annotation()], only_annotated=False).n_without_objects == 0


def test_compressed_and_uncompressed_run_lengths(make, rng):
    mask = rng.rand(HEIGHT, WIDTH) < 0.5
    mask[:, :20] = False  # begins with a long run
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))))
    assert not mask[0, 0]
    dataset = make(
        [
            annotation(segmentation={'size': [HEIGHT, WIDTH], 'counts': runs.tolist()}),
            annotation(id=2, segmentation=rle_of(mask), iscrowd=1),
        ]
    )
    objects = dataset[0].annotations
    assert objects.crowd.tolist() == [False, True]
    for shape in objects.segmentations:
        np.testing.assert_array_equal(coco_mask.decode(shape), mask)


@pytest.mark.parametrize(
    'segmentation',
    [
        {'size': [HEIGHT, WIDTH], 'counts': [10, 5]},
        {'size': [HEIGHT, WIDTH], 'counts': [-5, HEIGHT * WIDTH + 5]},
        {'size': [HEIGHT, WIDTH], 'counts': ''},
        {'size': [HEIGHT, WIDTH], 'counts': '000000'},
        {'size': [HEIGHT, WIDTH], 'counts': 'zzz'},
        {'size': [HEIGHT, WIDTH], 'counts': 'PPPPPPPPPPPPPPPPPPPPPP0'},
        {'size': [HEIGHT, WIDTH], 'counts': '\u00e4'},
        {'size': [HEIGHT, WIDTH], 'counts': ['a']},
        {'size': [HEIGHT, WIDTH]},
        {'size': [WIDTH, HEIGHT], 'counts': [HEIGHT * WIDTH]},
        'polygon',
        [[1, 2, 3, 4, 5, 6, 7]],
        [1, 2, 3, 4, 5, 6, 7],
        [5],
        [[1, 2, 3, 4, 5, 6], 7],
        [[True] * 6],
        7,
        {'size': [HEIGHT, WIDTH], 'counts': [2**62, 2**62, 2**62, 2**62 + HEIGHT * WIDTH]},
        {'size': [HEIGHT, WIDTH], 'counts': [HEIGHT * WIDTH, 0.5]},
        [['a'] * 6],
        [[[1, 2, 3], [3, 4, 5]]],
        [[float('nan')] * 6],
        [[10**400] * 6],
        {'size': [HEIGHT, WIDTH], 'counts': [10**400]},
        {'size': [10**400, WIDTH], 'counts': ''},
    ],
)
def test_a_malformed_segmentation_is_reported(make, segmentation):
    message = r"annotations\.json: the 'segmentation' of annotation 4 "
    with pytest.raises(AnnotationFileError, match=message) as error:
        make([annotation(), annotation(id=4, segmentation=segmentation)])
    assert '\n' not in str(error.value)
    assert make([annotation(), annotation(id=4, segmentation=segmentation)], skip_broken=True).n_skipped == 1


def test_run_lengths_written_by_pycocotools_are_valid(make, rng):
    """The counts include negative differences and numbers of several characters."""
    masks = [rng.rand(HEIGHT, WIDTH) < p for p in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)]
    dataset = make([annotation(id=i, segmentation=rle_of(mask)) for i, mask in enumerate(masks, 1)])
    for shape, mask in zip(dataset[0].annotations.segmentations, masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(shape), mask)


def test_images_without_objects(make):
    objects = [annotation(), annotation(id=2, image_id=9, iscrowd=1)]
    assert make(objects).image_ids == (7,)  # image 9 has only a crowd
    assert make(objects, only_annotated=False).image_ids == (7, 9)
    dataset = make([annotation(image_id=9)], only_annotated=False)
    empty = dataset[0].annotations
    assert dataset.image_ids == (7, 9) and len(empty) == 0
    assert empty.boxes.shape == (0, 4) and empty.boxes.dtype == np.float32 and empty.labels.dtype == np.int32
    assert empty.crowd.dtype == bool and empty.segmentations == ()


def test_classes_can_be_selected(make):
    objects = [annotation(), annotation(id=2, category_id=5, image_id=9)]
    dataset = make(objects, class_names=['dog'])
    assert dataset.category_ids == (5,) and dataset.image_ids == (9,)
    assert dataset[0].annotations.labels.tolist() == [0]
    assert make(objects, class_names=['dog', 'cat'])[0].annotations.labels.tolist() == [1]
    with pytest.raises(AnnotationFileError, match="there is no class 'cow'"):
        make(objects, class_names=['cow'])


def test_sizes_and_flags_are_optional(make):
    def edit(content):
        for image in content['images']:
            del image['height'], image['width']

    bare = {key: value for key, value in annotation().items() if key not in ('id', 'area', 'iscrowd')}
    dataset = make([bare, bare], edit)
    assert dataset.image_size(0) == (HEIGHT, WIDTH) and len(dataset[0].annotations) == 2
    truth = dataset.ground_truth()
    assert truth['images'] == [{'id': 7, 'file_name': 'a.png', 'height': HEIGHT, 'width': WIDTH}]
    area = coco_mask.area(coco_mask.frPyObjects([TRIANGLE], HEIGHT, WIDTH))[0]
    assert [(a['id'], a['area'], a['iscrowd']) for a in truth['annotations']] == [(1, area, 0), (2, area, 0)]


def test_ground_truth_equals_the_file(shared):
    file = shared / 'coco-mini/annotations/instances_val2017.json'
    dataset = COCODataset(file, shared / 'coco-mini/val2017', only_annotated=False)
    content, truth = json.loads(file.read_text()), dataset.ground_truth()
    assert all(truth[key] == content[key] for key in ('images', 'categories'))
    for number, (found, expected) in enumerate(zip(truth['annotations'], content['annotations'], strict=True), 1):
        size = next(image for image in content['images'] if image['id'] == expected['image_id'])
        if expected['iscrowd']:  # run lengths are compressed
            rle = coco_mask.frPyObjects(expected['segmentation'], size['height'], size['width'])
            expected['segmentation'] = {**rle, 'counts': rle['counts'].decode()}
        assert found == {**expected, 'id': number}
    assert dataset.warnings == []
    assert len(dataset) == 100 and len(dataset.class_names) == 80


def test_ground_truth_keeps_boxes_without_an_outline(make):
    objects = [annotation(segmentation=[[1, 2], TRIANGLE]), annotation(id=2, segmentation=[], area=None)]
    objects.append({'id': 3, 'image_id': 7, 'category_id': 3})  # neither a box nor an outline
    dataset = make(objects, only_annotated=False)
    truth = dataset.ground_truth()['annotations']
    assert truth[0]['segmentation'] == [TRIANGLE] and 'segmentation' not in truth[1]
    assert truth[1]['bbox'] == [5, 5, 16, 13] and truth[1]['area'] == 208 and len(truth) == 2
    assert dataset.omissions.counts == {
        'without a box and without an outline that has one': 1,
        'without an outline, whose masks are not evaluated': 1,
    }


def test_a_pickled_dataset_has_the_same_annotations(make):
    dataset = make([annotation(), annotation(id=2, image_id=9, segmentation=rle_of(np.eye(HEIGHT, WIDTH)))])
    copy = pickle.loads(pickle.dumps(dataset))
    for a, b in zip(dataset, copy, strict=True):
        np.testing.assert_array_equal(a.annotations.boxes, b.annotations.boxes)
        assert repr(a.annotations.segmentations) == repr(b.annotations.segmentations)


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'image_id': 99}, 'belongs to the image 99, which is not in the file'),
        ({'image_id': None}, 'belongs to the image None, which is not in the file'),
        ({'category_id': 99}, 'has the category 99, which is not in the file'),
        ({'bbox': [1, 2, 3]}, 'not a list of four numbers'),
        ({'bbox': ['a', 2, 3, 4]}, 'four numbers'),
        ({'iscrowd': 2}, "the 'iscrowd' of annotation 2 is 2, neither 0 nor 1"),
        ({'iscrowd': [1]}, "the 'iscrowd' of annotation 2"),
        ({'image_id': [7]}, 'belongs to the image .7., which is not in the file'),
        ({'image_id': True}, 'belongs to the image True'),
        ({'image_id': float('nan')}, 'belongs to the image nan'),
        ({'category_id': 'fish'}, "has the category 'fish', which is not in the file"),
        ({'bbox': [1, 2, 3, True]}, 'four numbers'),
        ({'area': 'large'}, "the 'area' of annotation 2 is 'large', not a finite number"),
        ({'bbox': [1, 2, 3, 10**400]}, 'four numbers'),
        ({'bbox': [1, 2, 3, float('nan')]}, 'four numbers'),
        ({'area': 10**400}, "the 'area' of annotation 2"),
        ({'area': float('-inf')}, "the 'area' of annotation 2"),
    ],
)
def test_a_malformed_annotation_is_reported_or_skipped(make, changes, text, caplog):
    objects = [annotation(), annotation(id=2, **changes)]
    with pytest.raises(AnnotationFileError, match=text) as error:
        make(objects)
    assert 'annotations.json: ' in str(error.value) and 'annotation 2' in str(error.value)
    assert '\n' not in str(error.value)
    with caplog.at_level(logging.INFO):
        dataset = make(objects, skip_broken=True)
    assert dataset.n_skipped == 1 and len(dataset[0].annotations) == 1 and re.search(text, caplog.text)
    assert dataset.omissions.counts == {'malformed': 1} and re.search(text, str(dataset.omissions))
    assert len(dataset.ground_truth()['annotations']) == 1


def test_a_missing_image_is_reported_or_skipped(make, tmp_path, caplog):
    objects = [annotation(), annotation(id=2, image_id=9)]
    with pytest.raises(ImageFileError, match=r'b\.png: no such file or directory$'):
        make(objects, images=['a.png'])
    with caplog.at_level(logging.INFO):
        dataset = make(objects, images=['a.png'], skip_broken=True)
    assert dataset.image_ids == (7,) and dataset.n_skipped == 1 and 'b.png' in caplog.text
    assert dataset.omissions.counts == {'unusable images': 1} and 'b.png' in str(dataset.omissions)
    (tmp_path / 'a.png').unlink()
    with pytest.raises(ImageFileError, match=r'a\.png: .*\(2 unusable images in total\)'):
        make(objects, images=[])


def test_a_broken_image_is_reported(make, tmp_path):
    objects = [annotation(), annotation(id=2, image_id=9)]
    (tmp_path / 'b.png').write_bytes(b'not an image')
    with pytest.raises(ImageFileError, match=r'b\.png: not an image'):
        make(objects, images=['a.png'])
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(ImageFileError, match=r'30 x 41 pixels .* annotation file declares 30 x 40'):
        make(objects, images=['a.png'])


@pytest.mark.parametrize(
    ('apply_orientation', 'declared', 'text'),
    [
        (
            True,
            (HEIGHT, WIDTH),
            r'40 x 30 pixels .* declares 30 x 40, its size without its orientation \(EXIF or XMP\): remove',
        ),
        (
            False,
            (WIDTH, HEIGHT),
            r'30 x 40 pixels .* declares 40 x 30, its size with its orientation \(EXIF or XMP\), which',
        ),
        (True, (HEIGHT, WIDTH + 1), r'40 x 30 pixels .* declares 30 x 41$'),
    ],
)
def test_the_size_without_the_exif_orientation_is_named(make, tmp_path, apply_orientation, declared, text):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'a.png', exif=exif)

    def edit(content):
        content['images'][0] |= {'height': declared[0], 'width': declared[1]}

    with pytest.raises(ImageFileError, match=text):
        make([annotation()], edit, images=['b.png'], apply_orientation=apply_orientation)


def test_an_image_that_changes_after_the_scan_is_reported(make, tmp_path):
    dataset = make([annotation()])
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageFileError, match=r'a\.png: the image has 8 x 8 pixels'):
        dataset[0]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"images": [', 'not a JSON file'),
        ('\xff', 'not a JSON file'),
        ('[1]', "there is no list 'images'"),
        ('[' * 100_000, 'not a JSON file'),
        ('{"images": []}', "there is no list 'categories'"),
        ('{"images": [], "categories": []}', "there is no list 'annotations'"),
        ('{"images": [1], "annotations": [], "categories": []}', "entry 0 of 'images' is 1, not an object"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "entry 0 of 'images' has no 'file_name'"),
        ('{"images": [{"file_name": "a"}], "annotations": [], "categories": []}', "entry 0 of 'images' has no 'id'"),
        ('{"images": [{"id": 1, "file_name": "a\\u0000"}], "annotations": [], "categories": []}', 'not a file name'),
        ('{"images": [{"id": 1, "file_name": "\\ud834"}], "annotations": [], "categories": []}', 'not a file name'),
        ('{"images": [{"id": [1], "file_name": "a"}], "annotations": [], "categories": []}', "the 'id' of entry 0"),
        ('{"images": [{"id": null, "file_name": "a"}], "annotations": [], "categories": []}', "the 'id' of entry 0"),
        ('{"images": [{"id": NaN, "file_name": "a"}], "annotations": [], "categories": []}', "the 'id' of entry 0"),
        ('{"images": [{"id": true, "file_name": "a"}], "annotations": [], "categories": []}', "the 'id' of entry 0"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "the 'name' of category 1 is None"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": " "}]}',
            "the 'name' of category 1 is ' '",
        ),
        ('{"images": [], "annotations": [], "categories": []}', 'there is no category'),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', 'no image'),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "two entries of 'categories' have the same 'id'",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": "1.0", "name": "b"}]}',
            "two entries of 'categories' have the same 'id', 1",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a", "width": "4.5"}], "annotations": [], "categories": []}',
            'the size of image 1 is not a number',
        ),
        (
            f'{{"images": [{{"id": 1, "file_name": "a", "width": {10**400}}}], "annotations": [], "categories": []}}',
            'the size of image 1 is not a number',
        ),
    ],
)
def test_a_broken_annotation_file_is_reported(tmp_path, text, message):
    path = tmp_path / 'broken.json'
    path.write_text(text, encoding='latin1')
    with pytest.raises(AnnotationFileError, match=message) as error:
        COCODataset(path, tmp_path)
    assert str(error.value).startswith(str(path)) and '\n' not in str(error.value)


def test_a_missing_annotation_file_is_reported(tmp_path):
    with pytest.raises(AnnotationFileError, match=r'none\.json: no such file or directory'):
        COCODataset(tmp_path / 'none.json', tmp_path)


def test_a_dataset_prints_nothing(make, capsys):
    make([annotation()]).ground_truth()
    assert capsys.readouterr() == ('', '')


def test_objects_agree_with_pycocotools(shared):
    """Compare every object of coco-mini with the file as pycocotools reads it."""
    from pycocotools.coco import COCO

    file = shared / 'coco-mini/annotations/instances_train2017.json'
    dataset, reference = COCODataset(file, shared / 'coco-mini/train2017'), COCO(file)
    assert len(dataset) == 98 and dataset.category_ids == tuple(reference.getCatIds())
    for i in range(len(dataset)):
        objects = dataset.get_annotations(i)
        expected = [
            a
            for a in reference.loadAnns(reference.getAnnIds(dataset.image_ids[i]))
            if a['bbox'][2] > 1 and a['bbox'][3] > 1
        ]
        categories = [dataset.category_ids[label] for label in objects.labels]
        assert categories == [a['category_id'] for a in expected]
        assert objects.crowd.tolist() == [bool(a['iscrowd']) for a in expected]
        for box, shape, a in zip(objects.boxes, objects.segmentations, expected, strict=True):
            x, y, w, h = a['bbox']
            np.testing.assert_allclose(box, [y, x, y + h - 1, x + w - 1], rtol=1e-6, atol=1e-3)
            rle = (
                shape
                if isinstance(shape, dict)
                else coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in shape], *dataset.image_size(i)))
            )
            assert rle['counts'] == reference.annToRLE(a)['counts']


def test_keypoints_of_objects(make):
    dataset = make([annotation(keypoints=keypoints(1, 16)), annotation(id=2)], keypoint_names, keypoints=True)
    found = dataset[0].annotations.keypoints
    assert found.shape == (2, 17, 3) and found.dtype == np.float32
    assert np.flatnonzero(found[0].any(axis=1)).tolist() == [1, 16] and not found[1].any()
    np.testing.assert_array_equal(found[0, [1, 16]], [[2, 1, 2], [32, 16, 2]])
    assert make([annotation()], keypoint_names)[0].annotations.keypoints is None


def test_unlabelled_keypoints_are_zero(make):
    numbers = keypoints(1)
    numbers[:3] = 5, 6, 0
    dataset = make([annotation(keypoints=numbers)], keypoint_names, keypoints=True)
    assert not dataset[0].annotations.keypoints[0, 0].any()


def test_images_without_visible_keypoints_are_not_used_for_training(make):
    annotations = [annotation(keypoints=keypoints()), annotation(id=2, image_id=9, keypoints=keypoints(3))]
    assert make(annotations, keypoint_names, keypoints=True).image_ids == (9,)
    assert make(annotations, keypoint_names, keypoints=True, only_annotated=False).image_ids == (7, 9)
    with pytest.raises(AnnotationFileError, match='no image has an object for training .*labelled keypoint'):
        make(annotations[:1], keypoint_names, keypoints=True)


def test_objects_with_keypoints_need_no_segmentation(make):
    bare = annotation(segmentation=[], keypoints=keypoints(3))
    dataset = make([bare], keypoint_names, keypoints=True)
    assert dataset[0].annotations.segmentations == ((),)
    (truth,) = dataset.ground_truth()['annotations']
    assert truth['num_keypoints'] == 1 and truth['keypoints'] == bare['keypoints']
    assert 'segmentation' not in truth
    dataset = make([annotation()], keypoint_names, keypoints=True, only_annotated=False)
    (truth,) = dataset.ground_truth()['annotations']
    assert truth['num_keypoints'] == 0 and truth['keypoints'] == 51 * [0]
    assert truth['segmentation'] == [TRIANGLE]


def test_ground_truth_has_cleaned_keypoints(make):
    numbers = [1.1, 2, 2, 5, 6, 0, *keypoints()[6:]]
    objects = [
        annotation(keypoints=None, num_keypoints=None),
        annotation(id=2, keypoints=numbers, num_keypoints='many'),
    ]
    truth = make(objects, keypoint_names, keypoints=True).ground_truth()['annotations']
    assert [a['num_keypoints'] for a in truth] == [0, 1]
    assert [a['keypoints'] for a in truth] == [51 * [0], [1.1, 2, 2, *48 * [0]]]


@pytest.mark.parametrize('numbers', [[1, 2, 2], 17 * [1, 2, 'x'], 17 * [1, 2, 10**400], 'none'])
def test_malformed_keypoints_are_reported_or_skipped(make, numbers):
    with pytest.raises(AnnotationFileError, match="'keypoints' of annotation 1 are not a list of 51 numbers"):
        make([annotation(keypoints=numbers)], keypoint_names, keypoints=True)
    dataset = make(
        [annotation(keypoints=numbers), annotation(id=2, keypoints=keypoints(0))],
        keypoint_names,
        keypoints=True,
        skip_broken=True,
    )
    assert dataset.n_skipped == 1 and len(dataset[0].annotations) == 1


def test_a_file_without_cocos_keypoints_is_rejected(make):
    with pytest.raises(AnnotationFileError, match=r"no category has 'keypoints' .*person_keypoints_\*.json"):
        make([annotation()], keypoints=True)
    with pytest.raises(AnnotationFileError, match="the keypoints of a category are not COCO's 17"):
        make([annotation()], lambda content: keypoint_names(content, ['tail']), keypoints=True)


@pytest.mark.parametrize('apply_orientation', [True, False])
def test_the_orientation_of_image_files(tmp_path, apply_orientation):
    """The annotation file declares the size of the pixels that are read."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new('RGB', (30, 20)).save(tmp_path / 'photo.jpg', exif=exif)
    size = (30, 20) if apply_orientation else (20, 30)
    annotation = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [2, 3, 10, 12], 'iscrowd': 0, 'area': 120}
    annotation['segmentation'] = [[2, 3, 12, 3, 12, 15, 2, 15]]
    content = {
        'images': [{'id': 1, 'file_name': 'photo.jpg', 'height': size[0], 'width': size[1]}],
        'annotations': [annotation],
        'categories': [{'id': 1, 'name': 'cat'}],
    }
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(content))
    dataset = COCODataset(path, tmp_path, apply_orientation=apply_orientation)
    assert dataset.image_size(0) == dataset[0].image.shape[1:] == size
    with pytest.raises(ImageFileError, match='the annotation file declares'):
        COCODataset(path, tmp_path, apply_orientation=not apply_orientation)
