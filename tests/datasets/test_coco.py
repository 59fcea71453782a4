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

from mask_rcnn.datasets.annotation_values import id_order
from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image

HEIGHT, WIDTH = 30, 40
TRIANGLE = [5.0, 5.0, 20.5, 5.0, 5.0, 17.25]


def annotation(**changes):
    return {
        'id': 1,
        'image_id': 7,
        'category_id': 3,
        'iscrowd': 0,
        'area': 100.0,
        'bbox': [5, 5, 16, 13],
        'segmentation': [TRIANGLE],
        **changes,
    }


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


@pytest.fixture
def make(tmp_path):
    """A function that writes a dataset of the images 7 and 9 with the given annotations, and opens it."""

    def make_dataset(annotations, edit=None, images=('a.png', 'b.png'), **options):
        content = {
            'images': [
                {'id': i, 'file_name': name, 'height': HEIGHT, 'width': WIDTH}
                for i, name in zip((7, 9), ('a.png', 'b.png'), strict=True)
            ],
            'annotations': annotations,
            'categories': [{'id': 5, 'name': 'dog'}, {'id': 3, 'name': 'cat'}],
        }
        if edit:
            edit(content)
        for name in images:
            cv2.imwrite(str(tmp_path / name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        (tmp_path / 'annotations.json').write_text(json.dumps(content))
        return COCODataset(tmp_path / 'annotations.json', tmp_path, **options)

    return make_dataset


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
    dataset = make([annotation(id=9, **changes), annotation(id=2, bbox=[1, 1, 5, 5])])
    assert dataset[0].annotations.boxes.tolist() == [[1, 1, 5, 5]]
    assert dataset.n_skipped == 0 and len(dataset.omissions) == 1
    (line,) = dataset.remarks
    assert line.startswith(f'left out 1 item: 1 {reason}') and line.endswith('(annotation 9)')


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
    for number, (annotation, expected) in enumerate(zip(truth['annotations'], content['annotations'], strict=True), 1):
        size = next(image for image in content['images'] if image['id'] == expected['image_id'])
        if expected['iscrowd']:  # run lengths are compressed
            rle = coco_mask.frPyObjects(expected['segmentation'], size['height'], size['width'])
            expected['segmentation'] = {**rle, 'counts': rle['counts'].decode()}
        assert annotation == {**expected, 'id': number}
    assert dataset.remarks == []
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
    assert dataset.omissions.counts == {'unusable image': 1} and 'b.png' in str(dataset.omissions)
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


def keypoint_names(content, names=COCO_KEYPOINT_NAMES):
    content['categories'][1]['keypoints'] = list(names)


def keypoints(*visible):
    """COCO's 51 numbers; a labelled keypoint ``i`` has x = i and y = 2 * i."""
    return [number for i in range(17) for number in ((i, 2 * i, 2) if i in visible else (0, 0, 0))]


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


# Objects in the forms that labelling tools write.


@pytest.mark.parametrize(
    ('changes', 'box', 'area'),
    [
        ({}, [10, 8, 20, 16], 80),  # two opposite corners
        ({'segmentation': [[20, 16, 10, 8]]}, [10, 8, 20, 16], 80),
        ({'segmentation': [[10, 16, 20, 8]]}, [10, 8, 20, 16], 80),
        ({'segmentation': [[10, 8], [20, 16]]}, [10, 8, 20, 16], 80),
        ({'segmentation': [10, 8, 20, 16]}, [10, 8, 20, 16], 80),
        ({'segmentation': [[15, 12, 15, 18]], 'shape_type': 'circle'}, [9, 6, 21, 18], 36 * np.pi),
        ({'segmentation': [[15, 12, 15, 18]], 'bbox': [9, 6, 12, 12]}, [9, 6, 21, 18], 36 * np.pi),  # its box
        ({'segmentation': [[20, 9, 15, 12]], 'bbox': [20, 9, 15, 12]}, [20, 9, 35, 21], 180),  # pycocotools' box
    ],
)
def test_two_points_are_a_rectangle_or_a_circle(make, changes, box, area):
    """The converters of labelme to COCO's format copy the two points of its rectangles and circles."""
    two_points = {'segmentation': [[10, 8, 20, 16]], 'bbox': None, 'area': None, **changes}
    dataset = make([annotation(**two_points)])
    ((polygon,),) = dataset[0].annotations.segmentations
    points = polygon.reshape(-1, 2)
    np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], box, rtol=0, atol=0.6)
    x, y = points.T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pytest.approx(area, rel=0.05)
    assert dataset.remarks == [] and dataset.ground_truth()['annotations'][0]['area'] == pytest.approx(area, rel=0.1)


def test_single_points_beside_a_polygon_are_dropped(make):
    ((polygon,),) = make([annotation(segmentation=[[1, 2], [], TRIANGLE])])[0].annotations.segmentations
    assert polygon.tolist() == TRIANGLE


@pytest.mark.parametrize('segmentation', [TRIANGLE, [TRIANGLE], np.reshape(TRIANGLE, (-1, 2)).tolist()])
def test_a_box_and_an_area_from_run_lengths_or_polygons(make, segmentation):
    mask = coco_mask.decode(coco_mask.frPyObjects([TRIANGLE], HEIGHT, WIDTH))[..., 0]
    objects = [annotation(segmentation=shape, bbox=[0, 0, 0, 0], area=0) for shape in (segmentation, rle_of(mask))]
    polygon, rle = make(objects).ground_truth()['annotations']
    assert polygon['area'] == rle['area'] == mask.sum()
    assert polygon['bbox'] == [5, 5, 15.5, 12.25]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert rle['bbox'] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.mark.parametrize(
    'polygon',
    [
        [0, 0, 1e8, 0, 1e8, 1e8],
        [0, 0, 1e9, 0, 5, 5],
        [-20000, 0, 5, 0, 5, 5],
        [0, 0, 5, 20000, 5, 5],
        [1e29, 1e29, 1e29, 0, 0, 0],
        [5, -10000, 5, 10000] * 100,
    ],
)
def test_a_polygon_far_outside_the_image_is_reported(make, polygon):
    """There, pycocotools needs memory for each pixel of the outline, and crashes if there are too many."""
    with pytest.raises(AnnotationFileError, match=r"the 'segmentation' of annotation 4 has (a vertex|an outline)"):
        make([annotation(), annotation(id=4, segmentation=[polygon])])


def test_a_vertex_outside_the_image_is_kept(make):
    """Tiles of large images have outlines that continue in other tiles."""
    polygon = [-500.0, -30.0, 300.5, 10.0, 20.0, 900.0]
    dataset = make([annotation(segmentation=[polygon])])
    assert dataset[0].annotations.segmentations[0][0].tolist() == polygon and dataset.remarks == []


def test_ids_are_understood_in_every_form(make):
    def edit(content):
        content['images'][0]['id'], content['images'][1]['id'] = '7', 9.0
        content['categories'][0]['id'], content['categories'][1]['id'] = '5', 'z9'

    objects = [annotation(image_id=7.0, category_id='z9'), annotation(image_id='9', category_id=5.0)]
    dataset = make(objects, edit)
    assert dataset.image_ids == (7, 9) and dataset.category_ids == (5, 'z9')
    assert [dataset.get_annotations(i).labels.tolist() for i in range(2)] == [[1], [0]]


def test_text_ids_are_in_natural_order():
    ids = ['b', 'a10', 'a9', 'a9b', 10, 'a09', 9]
    assert sorted(ids, key=id_order) == [9, 10, 'a9', 'a09', 'a9b', 'a10', 'b']


def root_class(content):
    content['categories'] = [
        {'id': 0, 'name': 'pets', 'supercategory': 'none'},
        {'id': 3, 'name': 'cat', 'supercategory': 'pets'},
        {'id': 5, 'name': 'dog', 'supercategory': 'pets'},
    ]


def test_an_empty_root_class_is_left_out_and_reported(make):
    dataset = make([annotation()], root_class)
    assert dataset.class_names == ('cat', 'dog') and dataset[0].annotations.labels.tolist() == [0]
    assert dataset.remarks == ["left out 1 item: 1 empty root class of Roboflow ('pets')"]
    dataset = make([annotation()], root_class, kept_classes=('pets', 'cat', 'dog'))
    assert dataset.class_names == ('pets', 'cat', 'dog') and dataset.remarks == []
    assert make([annotation(), annotation(category_id=0)], root_class).class_names == ('pets', 'cat', 'dog')


def test_a_class_without_objects_is_kept(make):
    assert make([annotation()]).class_names == ('cat', 'dog')


def test_brush_masks_marked_as_crowds_are_reported(make):
    mask = np.zeros((HEIGHT, WIDTH))
    mask[3:9, 4:20] = 1
    brush = [annotation(id=i, category_id=5, iscrowd=1, segmentation=rle_of(mask)) for i in (2, 3)]
    dataset = make([annotation(), *brush])
    assert dataset.remarks == [
        'left out 2 items: 2 marked as crowds and not trained ("iscrowd": 0 marks single objects) '
        '(annotation 2, annotation 3)'
    ]
    assert len(dataset[0].annotations) == 3  # they stay crowds
    with pytest.raises(AnnotationFileError, match=r'no image has an object .*left out 2 items: 2 marked as crowds'):
        make(brush)
    singles = [annotation(id=i) for i in range(20)]
    assert make([*singles, annotation(id=30, iscrowd=1)]).remarks == []  # as in COCO


def test_objects_without_outlines_are_trained_without_a_mask_head(make):
    boxes = [annotation(segmentation=[]), annotation(id=2, segmentation=None, bbox=[1, 2, 9, 9], area=0)]
    dataset = make(boxes, masks=False)
    objects = dataset[0].annotations
    assert objects.boxes.tolist() == [[5, 5, 17, 20], [2, 1, 10, 9]] and objects.segmentations == ((), ())
    assert dataset.remarks == []
    with pytest.raises(AnnotationFileError, match='no object has an outline, which a mask head needs .*masks=false'):
        make(boxes)
    assert make(boxes, only_annotated=False).remarks == ['no object has an outline: boxes are evaluated, masks are not']


def test_a_missing_list_of_annotations(make):
    def edit(content):
        del content['annotations']

    dataset = make([], edit, only_annotated=False)
    assert len(dataset) == 2 and dataset.ground_truth()['annotations'] == []
    assert dataset.remarks == ['no objects: every metric is "-"']
    with pytest.raises(AnnotationFileError, match="there is no list 'annotations'"):
        make([], edit)


def test_no_objects_with_keypoints(make):
    dataset = make([], keypoint_names, keypoints=True, only_annotated=False)
    assert dataset[0].annotations.keypoints.shape == (0, 17, 3)


@pytest.mark.parametrize('numbers', [17 * [[1, 2, 2]], 17 * ['1', 2.0, 2]])
def test_keypoints_in_other_forms(make, numbers):
    dataset = make([annotation(keypoints=numbers)], keypoint_names, keypoints=True)
    assert dataset[0].annotations.keypoints.tolist() == [17 * [[2, 1, 2]]]


def test_names_of_classes_that_are_numbers(make):
    def edit(content):
        content['categories'][0]['name'] = 8

    assert make([annotation()], edit).class_names == ('cat', '8')
