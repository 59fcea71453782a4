"""The importer of COCO's format in the forms of other tools."""

from dataclasses import replace

import numpy as np
import pytest

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import ImportOptions, import_annotations
from mask_rcnn.preprocessing.image_io import ImageFileError
from tests.support import labelling_files as files
from tests.support.annotation_files import keypoints
from tests.support.imported import imported_masks

CROWD = "crowds, as all of 'cat' (--crowds objects makes them objects)"


def uncompressed(mask):
    """Return run lengths as CVAT writes them: a list, down the columns, beginning with zeros."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    changes = np.flatnonzero(np.diff(flat))
    return {'size': list(mask.shape), 'counts': np.diff(changes, prepend=0, append=mask.size).tolist()}


@pytest.mark.parametrize(
    ('name', 'image'),
    [
        ('a.png', 'images/default/a.png'),  # CVAT
        ('images\\1\\abc.png', 'annotations/images/abc.png'),  # Label Studio on Windows
        ('/data/upload/1/0a1b2c3d-abc.png', 'annotations/images/0a1b2c3d-abc.png'),
        ('images/0a1b2c3d-abc.png', 'annotations/abc.png'),  # its prefix of uploads
        ('..\\..\\label-studio\\media\\upload\\4\\abc.png', 'annotations/images/abc.png'),
        ('http://localhost:8080/data/local-files/?d=x/a%20b.png', 'annotations/a b.png'),
        ('sub/a.png', 'images/sub/a.png'),
    ],
)
def test_places_of_the_images(tmp_path, name, image):
    path = files.write_json(tmp_path / 'annotations' / 'instances_default.json', files.coco_file([], name))
    files.write_image(tmp_path / image)
    assert import_annotations(path).images[0].path == tmp_path / image


def test_two_names_of_one_image_are_refused(tmp_path):
    files.write_image(tmp_path / 'a.png')
    content = files.coco_file([], 'x/a.png')
    content['images'].append({**content['images'][0], 'id': 1, 'file_name': 'y/a.png'})
    with pytest.raises(ImageFileError, match=r"two images of the annotations lead to it, 'x/a.png' and 'y/a.png'"):
        import_annotations(files.write_json(tmp_path / 'a.json', content))


def test_category_ids_from_0_and_masks(tmp_path, rng):
    files.write_image(tmp_path / 'a.png')
    bitmap = rng.rand(*files.SIZE) < 0.3
    objects = [
        files.coco_object(),
        files.coco_object(id=1, category_id=1, segmentation=uncompressed(bitmap), iscrowd=1),
        files.coco_object(id=2, category_id=1),
        files.coco_object(id=3, segmentation=[], bbox=[4, 5, 10, 20]),
        files.coco_object(id=4, segmentation=[]),
        files.coco_object(id=5, keypoints=keypoints(3), bbox=[1, 1, 30, 30], segmentation=[]),
    ]
    dataset = import_annotations(files.write_json(tmp_path / 'a.json', files.coco_file(objects)))
    assert dataset.format_name == 'COCO' and dataset.class_names == ('cat', 'dog')
    imported = dataset.images[0].objects
    assert [(obj.class_name, obj.is_crowd) for obj in imported] == [
        *(('cat', False), ('dog', True), ('dog', False), ('cat', False), ('cat', False))
    ]
    assert imported[3].box == (4, 5, 10, 20) and imported[3].segmentation == ()
    assert dataset.omissions.counts == {'without a box and without an outline': 1, 'sets of keypoints': 1}
    assert not dataset.doubts
    (mask,) = imported_masks(replace(dataset.images[0], objects=imported[1:2]))
    np.testing.assert_array_equal(mask, bitmap)


def test_crowds_of_a_brush(tmp_path, rng):
    """CVAT marks each object that was painted with a brush as a crowd."""
    files.write_image(tmp_path / 'a.png')
    objects = [
        files.coco_object(id=i, segmentation=uncompressed(rng.rand(*files.SIZE) < 0.5), iscrowd=1) for i in range(2)
    ]
    path = files.write_json(tmp_path / 'a.json', files.coco_file(objects))
    kept = import_annotations(path)
    assert [obj.is_crowd for obj in kept.images[0].objects] == [True, True] and kept.doubts.counts == {CROWD: 2}
    changed = import_annotations(path, ImportOptions(crowds='objects'))
    assert [obj.is_crowd for obj in changed.images[0].objects] == [False, False] and not changed.doubts


def test_deleted_entries_of_coco_annotator(tmp_path):
    files.write_image(tmp_path / 'a.png')
    objects = [files.coco_object(id=i, deleted=i > 0, metadata={}, isbbox=False, color='#7b01ce') for i in range(2)]
    content = files.coco_file(objects)
    fields = {'path': '/datasets/x/a.png', 'dataset_id': 1, 'metadata': {}, 'regenerate_thumbnail': False}
    content['images'] = [{**content['images'][0], **fields}, {'id': 1, 'file_name': 'gone.png', 'deleted': True}]
    content['annotations'].append(files.coco_object(id=9, image_id=1))
    dataset = import_annotations(files.write_json(tmp_path / 'a.json', content))
    assert [len(image.objects) for image in dataset.images] == [1]
    assert dataset.omissions.counts == {'marked as deleted': 2}


def test_roboflow(tmp_path):
    """An empty root class, and one folder for each part."""
    categories = [
        {'id': 0, 'name': 'pets', 'supercategory': 'none'},
        {'id': 1, 'name': 'cat', 'supercategory': 'pets'},
    ]
    content = files.coco_file([files.coco_object(category_id=1)], 'a_jpg.rf.0123.png', categories)
    for part in ('train', 'valid'):
        files.write_image(tmp_path / part / 'a_jpg.rf.0123.png')
        files.write_json(tmp_path / part / '_annotations.coco.json', content)
    dataset = import_annotations(tmp_path / 'train')
    assert dataset.class_names == ('cat',) and len(dataset.images[0].objects) == 1
    assert dataset.omissions.counts == {'empty root class of Roboflow': 1}
    with pytest.raises(AnnotationFileError, match=r'has the parts train, valid; choose one of them \(--part\)'):
        import_annotations(tmp_path)
    valid = import_annotations(tmp_path, ImportOptions(part='valid'))
    assert valid.images[0].path.parent.name == 'valid'
    with pytest.raises(AnnotationFileError, match="has no part 'test', only train, valid"):
        import_annotations(tmp_path, ImportOptions(part='test'))


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        ({'category_id': 7}, 'annotation 0 has the category 7'),
        ({'image_id': 7}, 'annotation 0 belongs to the image 7'),
        ({'segmentation': {'size': [1, 2], 'counts': [2]}}, "the 'segmentation' of annotation 0 is for an image"),
    ],
)
def test_a_malformed_annotation(tmp_path, fields, reason):
    files.write_image(tmp_path / 'a.png')
    path = files.write_json(tmp_path / 'a.json', files.coco_file([files.coco_object(**fields)]))
    with pytest.raises(AnnotationFileError, match=rf'a\.json: {reason}'):
        import_annotations(path)
    assert import_annotations(path, ImportOptions(skip_broken=True)).omissions.counts == {'malformed': 1}
