"""Annotations in the forms that labelling tools write."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.annotation_values import id_order
from mask_rcnn.datasets.coco import AnnotationFileError
from tests.support.annotation_files import HEIGHT, TRIANGLE, WIDTH, annotation, keypoint_names, rle_of


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
    assert dataset.warnings == [] and dataset.ground_truth()['annotations'][0]['area'] == pytest.approx(area, rel=0.1)


def test_single_points_beside_a_polygon_are_dropped(make):
    ((polygon,),) = make([annotation(segmentation=[[1, 2], [], TRIANGLE])])[0].annotations.segmentations
    assert polygon.tolist() == TRIANGLE


@pytest.mark.parametrize('segmentation', [TRIANGLE, [TRIANGLE], np.reshape(TRIANGLE, (-1, 2)).tolist()])
def test_a_box_and_an_area_from_run_lengths_or_polygons(make, segmentation):
    mask = coco_mask.decode(coco_mask.frPyObjects([TRIANGLE], HEIGHT, WIDTH))[..., 0]
    objects = [annotation(segmentation=shape, bbox=[0, 0, 0, 0], area=0) for shape in (segmentation, rle_of(mask))]
    polygon, rle = make(objects).ground_truth()['annotations']
    assert polygon['area'] == rle['area'] == mask.sum()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert polygon['bbox'] == rle['bbox'] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_run_lengths_of_several_parts_are_one_object(make, rng):
    parts = [rng.rand(HEIGHT, WIDTH) < 0.1 for _ in range(3)]
    (segmentation,) = make([annotation(segmentation=[rle_of(part) for part in parts])])[0].annotations.segmentations
    np.testing.assert_array_equal(coco_mask.decode(segmentation), np.any(parts, axis=0))


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
    dataset = make([annotation(segmentation=[polygon], bbox=[0, 0, WIDTH, HEIGHT])])
    assert dataset[0].annotations.segmentations[0][0].tolist() == polygon and dataset.warnings == []


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
    assert dataset.warnings == ["left out 1 item: 1 empty root class of Roboflow ('pets')"]
    dataset = make([annotation()], root_class, kept_classes=('pets', 'cat', 'dog'))
    assert dataset.class_names == ('pets', 'cat', 'dog') and dataset.warnings == []
    assert make([annotation(), annotation(category_id=0)], root_class).class_names == ('pets', 'cat', 'dog')


def test_a_class_without_objects_is_kept(make):
    assert make([annotation()]).class_names == ('cat', 'dog')


def test_brush_masks_marked_as_crowds_are_reported(make):
    mask = np.zeros((HEIGHT, WIDTH))
    mask[3:9, 4:20] = 1
    brush = [annotation(id=i, category_id=5, iscrowd=1, segmentation=rle_of(mask)) for i in (2, 3)]
    dataset = make([annotation(), *brush])
    assert dataset.warnings == [
        'left out 2 items: 2 marked as crowds and not trained ("iscrowd": 0 marks single objects) '
        '(annotation 2, annotation 3)'
    ]
    assert len(dataset[0].annotations) == 3  # they stay crowds
    with pytest.raises(AnnotationFileError, match=r'no image has an object .*left out 2 items: 2 marked as crowds'):
        make(brush)
    singles = [annotation(id=i) for i in range(20)]
    assert make([*singles, annotation(id=30, iscrowd=1)]).warnings == []  # as in COCO


def test_objects_without_outlines_are_trained_without_a_mask_head(make):
    boxes = [annotation(segmentation=[]), annotation(id=2, segmentation=None, bbox=[1, 2, 9, 9], area=0)]
    dataset = make(boxes, masks=False)
    objects = dataset[0].annotations
    assert objects.boxes.tolist() == [[5, 5, 17, 20], [2, 1, 10, 9]] and objects.segmentations == ((), ())
    assert dataset.warnings == []
    with pytest.raises(AnnotationFileError, match='no object has an outline, which a mask head needs .*masks=false'):
        make(boxes)
    assert make(boxes, only_annotated=False).warnings == [
        'no object has an outline: boxes are evaluated, masks are not'
    ]


OUTSIDE = [[WIDTH + 1, 5, WIDTH + 9, 5, WIDTH + 9, 12]]


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'segmentation': OUTSIDE, 'bbox': None}, 'with a box outside its image'),
        ({'segmentation': [], 'bbox': [-10, 5, 10, 8]}, 'with a box outside its image'),
        ({'segmentation': [], 'bbox': [5, HEIGHT, 10, 8]}, 'with a box outside its image'),
        ({'segmentation': [], 'bbox': [5, 5, 0, 8]}, 'with a box smaller than a pixel'),
        ({'segmentation': OUTSIDE}, 'whose outline has no pixel in its image'),
        ({'segmentation': [[3, 3, 9, 9, 6, 6]]}, 'whose outline has no pixel in its image'),
        ({'segmentation': rle_of(np.zeros((HEIGHT, WIDTH)))}, 'whose outline has no pixel in its image'),
    ],
)
def test_objects_that_no_detection_can_match_are_reported(make, changes, reason):
    dataset = make([annotation(), annotation(id=2, **changes)], only_annotated=False)
    assert dataset.doubts.counts == {reason: 1} and dataset.n_skipped == 0
    assert f'kept 1 doubtful object: 1 {reason} (annotation 2)' in dataset.warnings
    truths = dataset.ground_truth()['annotations']
    assert len(truths) == 2  # each of them counts as a miss, as with pycocotools
    outline = truths[1].get('segmentation')
    masks = coco_mask.frPyObjects(outline, HEIGHT, WIDTH) if isinstance(outline, list) else outline
    box, area = truths[1]['bbox'], 0 if outline is None else np.sum(coco_mask.area(masks))
    overlaps = coco_mask.iou(np.array([box]), np.array([[0.0, 0, WIDTH, HEIGHT]]), [0])
    assert overlaps == 0 or area == 0
    assert make([annotation(), annotation(id=2, iscrowd=1, **changes)], only_annotated=False).doubts.counts == {}


NO_FIT = 'with a box that does not fit its outline ("bbox" is x, y, width, height)'


@pytest.mark.parametrize(
    ('changes', 'trained', 'evaluated'),
    [
        ({'segmentation': [], 'bbox': [-6, 5, 10, 8]}, '', 'with a box mostly outside its image'),
        ({'segmentation': [], 'bbox': [5.2, 5.3, 0.4, 8]}, '', 'with a box smaller than a pixel'),
        ({'bbox': [30, 5, 8, 9]}, NO_FIT, NO_FIT),
        ({'segmentation': OUTSIDE}, NO_FIT, 'whose outline has no pixel in its image'),
        ({'segmentation': [[10, 10, 16, 10, 16, 15]], 'bbox': [10, 10, 16, 15]}, NO_FIT, NO_FIT),  # both corners
        ({'segmentation': [[20, 10, 32, 10, 32, 20, 20, 20]], 'bbox': [26, 15, 12, 10]}, NO_FIT, NO_FIT),  # the centre
        (
            {'segmentation': [[7, 5, 7, 15, 7, 10]], 'bbox': [7, 5, 1, 11]},
            '',
            'whose outline has no pixel in its image',
        ),
    ],
)
def test_doubtful_objects_are_reported(make, changes, trained, evaluated):
    objects = [annotation(), annotation(id=2, **changes)]
    dataset = make(objects, masks=False)
    assert dataset.doubts.counts == ({trained: 1} if trained else {})
    assert dataset.omissions.counts.keys() <= {'with a box of at most one pixel in a direction or outside the image'}
    assert make(objects, only_annotated=False).doubts.counts == {evaluated: 1}


def test_python_programs_get_the_warnings_in_the_log(make, caplog):
    objects = [annotation(), annotation(id=2, segmentation=[])]
    dataset = make(objects)
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and record.getMessage() == f'{dataset.annotation_file}: {dataset.warnings[0]}'
    caplog.clear()
    make(objects, log_warnings=False)
    assert not caplog.records


def test_objects_that_reach_into_the_image_are_not_reported(make):
    edge = annotation(bbox=[WIDTH - 4, 0, 6, 31], segmentation=[[WIDTH - 4, 0, WIDTH + 2, 0, WIDTH + 2, 31]])
    assert make([edge], only_annotated=False).warnings == []


def test_a_missing_list_of_annotations(make):
    def edit(content):
        del content['annotations']

    dataset = make([], edit, only_annotated=False)
    assert len(dataset) == 2 and dataset.ground_truth()['annotations'] == []
    assert dataset.warnings == ['no objects: every metric is "-"']
    with pytest.raises(AnnotationFileError, match="there is no list 'annotations'"):
        make([], edit)


def test_no_objects_with_keypoints(make):
    dataset = make([], keypoint_names, keypoints=True, only_annotated=False)
    assert dataset[0].annotations.keypoints.shape == (0, 17, 3)


@pytest.mark.parametrize('numbers', [17 * [[1, 2, 2]], 17 * ['1', 2.0, 2]])
def test_keypoints_in_other_forms(make, numbers):
    dataset = make([annotation(keypoints=numbers)], keypoint_names, keypoints=True)
    assert dataset[0].annotations.keypoints.tolist() == [17 * [[2, 1, 2]]]


@pytest.mark.parametrize('numbers', [[1, 2, 2] * 21, [1, 2], 'none'], ids=['hand', 'two', 'text'])
def test_other_keypoints_do_not_matter_where_none_are_used(make, numbers):
    dataset = make([annotation(keypoints=numbers, num_keypoints=21)])
    assert len(dataset[0].annotations) == 1 and 'keypoints' not in dataset.ground_truth()['annotations'][0]
    with pytest.raises(AnnotationFileError, match="the 'keypoints' of annotation 1 are not a list of 51 numbers"):
        make([annotation(keypoints=numbers)], keypoint_names, keypoints=True)


def test_names_of_classes_that_are_numbers(make):
    def edit(content):
        content['categories'][0]['name'] = 8

    assert make([annotation()], edit).class_names == ('cat', '8')


@pytest.mark.parametrize(
    ('segmentation', 'reason'),
    [
        ({'all_points_x': [1, 2, 3], 'all_points_y': [1, 2]}, "as many numbers in 'all_points_x'"),
        ({'all_points_x': [1, 2, 3]}, "as many numbers in 'all_points_x'"),
        ({'size': [HEIGHT, WIDTH], 'counts': []}, r'has malformed run lengths \(there are none\)'),
        ({'size': [HEIGHT, WIDTH]}, r"has malformed run lengths \('counts' is None, neither a text nor a list\)"),
        ({'size': [HEIGHT, WIDTH], 'counts': [10**30]}, r'has malformed run lengths \(a number is too large\)'),
        ({'size': [HEIGHT, WIDTH], 'counts': '漢'}, r'has malformed run lengths \(they have invalid characters\)'),
    ],
)
def test_malformed_outlines_in_objects_are_reported(make, segmentation, reason):
    with pytest.raises(AnnotationFileError, match=f"the 'segmentation' of annotation 4 .*{reason}"):
        make([annotation(), annotation(id=4, segmentation=segmentation)])
