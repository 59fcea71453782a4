"""The importer of the VGG Image Annotator."""

import csv
import json

import numpy as np
import pytest

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import ImportOptions, import_annotations
from mask_rcnn.preprocessing.image_io import ImageFileError
from tests.support import labelling_files as files
from tests.support.imported import imported_masks


@pytest.fixture
def read(tmp_path):
    """A function that writes the regions of an image as an export, and imports it."""

    def read_regions(regions, **options):
        files.write_image(tmp_path / 'a.png')
        path = files.write_json(tmp_path / 'via.json', files.via_image(regions))
        return import_annotations(path, ImportOptions(**options))

    return read_regions


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        (
            {'name': 'polygon', 'all_points_x': files.TRIANGLE_X, 'all_points_y': files.TRIANGLE_Y},
            files.polygon_mask(files.TRIANGLE),
        ),
        (
            {'name': 'rect', 'x': 10, 'y': 20, 'width': 50, 'height': 30},
            files.polygon_mask([10, 20, 60, 20, 60, 50, 10, 50]),
        ),
        ({'name': 'circle', 'cx': 60, 'cy': 45, 'r': 40.5}, files.ellipse_mask((60, 45), (40.5, 40.5))),
        ({'name': 'ellipse', 'cx': 55, 'cy': 45, 'rx': 50, 'ry': 30}, files.ellipse_mask((55, 45), (50, 30))),
        (
            {'name': 'ellipse', 'cx': 55, 'cy': 45, 'rx': 42, 'ry': 20, 'theta': 0.6},
            files.ellipse_mask((55, 45), (42, 20), 0.6),
        ),
    ],
)
@pytest.mark.parametrize('version', [1, 2])
def test_masks_of_shapes(read, shape, expected, version):
    region = files.via_region(shape)
    dataset = read({'0': region} if version == 1 else [region])
    assert dataset.format_name == f'VIA {version}' and dataset.class_names == ('object',)
    assert not dataset.omissions and not dataset.doubts
    (mask,) = imported_masks(dataset.images[0])
    assert files.iou(mask, expected) >= 0.995
    assert abs(int(mask.sum()) - int(expected.sum())) <= 0.01 * expected.sum()


def test_the_rotation_of_an_ellipse_is_clockwise(read):
    """``theta`` is that of canvas.ellipse(), whose y axis points down."""
    shape = {'name': 'ellipse', 'cx': 60, 'cy': 45, 'rx': 40, 'ry': 5, 'theta': np.pi / 4}
    (mask,) = imported_masks(read([files.via_region(shape)]).images[0])
    assert mask[45 + 20, 60 + 20] and not mask[45 - 20, 60 + 20]


def test_points_and_shapes_without_area_are_counted(read):
    line = {'name': 'polyline', 'all_points_x': [1, 50], 'all_points_y': [2, 3]}
    shapes = [{'name': 'point', 'cx': 3, 'cy': 4}, line, {'name': 'rect', 'x': 1, 'y': 1, 'width': 0, 'height': 5}]
    outline = {'name': 'polyline', 'all_points_x': files.TRIANGLE_X, 'all_points_y': files.TRIANGLE_Y}
    outside = {'name': 'circle', 'cx': -50, 'cy': 10, 'r': 20}
    dataset = read([files.via_region(shape) for shape in (*shapes, outline, outside)])
    assert dataset.omissions.counts == {'points': 1, 'shapes without area': 2, 'without a pixel in the image': 1}
    assert dataset.doubts.counts == {'polylines, as closed outlines': 1}
    assert len(dataset.images[0].objects) == 1


@pytest.mark.parametrize(
    ('attributes', 'options', 'classes'),
    [
        ([{}, {}], {}, ['object', 'object']),
        ([{}, {}], {'default_class': 'cell'}, ['cell', 'cell']),
        ([{'anything': 'cat'}, {'anything': ' dog '}], {}, ['cat', 'dog']),
        ([{'Class': 'cat', 'pose': 'left'}, {'Class': 'dog', 'pose': 'left'}], {}, ['cat', 'dog']),
        ([{'Class': 'cat', 'pose': 'left'}, {'Class': 'dog', 'pose': 'up'}], {'attribute': 'pose'}, ['left', 'up']),
        ([{'kind': {'cat': True, 'dog': False}}, {'kind': {'dog': True}}], {}, ['cat', 'dog']),  # checkboxes
        ([{'id': 3}, {'id': '4'}], {}, ['3', '4']),
        ([{'k': 'cafe\u0301'}, {'k': 'caf\xe9'}], {}, ['caf\xe9', 'caf\xe9']),
    ],
)
def test_the_class_is_an_attribute(read, attributes, options, classes):
    circles = [{'name': 'circle', 'cx': 40 + 10 * i, 'cy': 40, 'r': 20} for i in range(2)]
    regions = [files.via_region(*pair) for pair in zip(circles, attributes, strict=True)]
    dataset = read(regions, **options)
    assert [obj.class_name for obj in dataset.images[0].objects] == classes
    assert dataset.class_names == tuple(sorted(set(classes))) and not dataset.doubts


def test_a_region_without_the_attribute_is_doubtful(read):
    shape = {'name': 'circle', 'cx': 40, 'cy': 40, 'r': 20}
    dataset = read([files.via_triangle({'k': 'cat'}), files.via_region(shape, {'k': ''})])
    assert dataset.class_names == ('cat', 'object')
    assert dataset.doubts.counts == {"without a 'k', as 'object' (--default-class)": 1}


@pytest.mark.parametrize(
    ('attributes', 'options', 'reason'),
    [
        ({'colour': 'red', 'pose': 'up'}, {}, 'the attributes colour, pose; --attribute selects'),
        ({'colour': 'red'}, {'attribute': 'pose'}, "no region has the attribute 'pose' .*the regions have colour"),
        ({'k': {'cat': True, 'dog': True}}, {}, "region 0 of a.png has several values of 'k'"),
        ({'k': ['cat']}, {}, r"region 0 of a.png has the 'k' \['cat'\], not a text"),
    ],
)
def test_a_class_that_is_not_clear(read, attributes, options, reason):
    with pytest.raises(AnnotationFileError, match=reason):
        read([files.via_triangle(attributes)], **options)


@pytest.mark.parametrize(
    ('shape', 'reason'),
    [
        ({'name': 'polygon', 'all_points_x': [1, 2, 3], 'all_points_y': [1, 2]}, 'as many x as y'),
        ({'name': 'polygon', 'all_points_x': [1, 2, 'x'], 'all_points_y': [1, 2, 3]}, "a coordinate is 'x'"),
        ({'name': 'circle', 'cx': 1, 'cy': 2}, "has a 'r' that is None"),
        ({'name': 'circle', 'cx': 1, 'cy': 2, 'r': -3}, 'a radius of -3'),
        ({'name': 'rect', 'x': 1e9, 'y': 0, 'width': 5, 'height': 5}, 'far outside the image'),
        ({'name': 'star'}, "the shape 'star'"),
    ],
)
def test_a_malformed_region(read, shape, reason):
    regions = [files.via_triangle(), files.via_region(shape)]
    with pytest.raises(AnnotationFileError, match=rf'via\.json: region 1 of a\.png .*{reason}'):
        read(regions)
    dataset = read(regions, skip_broken=True)
    assert dataset.omissions.counts == {'malformed': 1} and len(dataset.images[0].objects) == 1


def test_a_project(tmp_path):
    """A project names the folder of the images and declares attributes that may be unused."""
    files.write_image(tmp_path / 'photos' / 'a.png')
    project = {
        '_via_settings': {'core': {'default_filepath': './photos/'}},
        '_via_img_metadata': files.via_image([files.via_triangle()]),
        '_via_attributes': {'region': {'kind': {'type': 'radio'}}, 'file': {}},
        '_via_data_format_version': '2.0.10',
    }
    path = files.write_json(tmp_path / 'project.json', project)
    dataset = import_annotations(path)
    assert dataset.images[0].path == tmp_path / 'photos' / 'a.png' and dataset.format_name == 'VIA 2'
    declared = import_annotations(path, ImportOptions(attribute='kind'))
    assert declared.class_names == ('object',) and len(declared.doubts) == 1


@pytest.mark.parametrize('head', ['filename', '#filename'])
def test_a_table(tmp_path, head):
    files.write_image(tmp_path / 'a.png')
    files.write_image(tmp_path / 'b, c.png')
    shape = files.via_triangle()['shape_attributes']
    with open(tmp_path / 'via.csv', 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        rest = ['file_size', 'file_attributes', 'region_count', 'region_id']
        writer.writerow([head, *rest, 'region_shape_attributes', 'region_attributes'])
        writer.writerow(['a.png', 100, '{}', 2, 0, json.dumps(shape), '{"k":"cat"}'])
        writer.writerow(['a.png', 100, '{}', 2, 1, '{"name":"circle","cx":50,"cy":50,"r":20}', '{"k":"dog"}'])
        writer.writerow(['b, c.png', 100, '{}', 0, 0, '{}', '{}'])
    dataset = import_annotations(tmp_path / 'via.csv')
    assert dataset.format_name == 'VIA CSV' and dataset.class_names == ('cat', 'dog')
    assert [len(image.objects) for image in dataset.images] == [2, 0]
    (tmp_path / 'via.csv').write_text((tmp_path / 'via.csv').read_text().replace('""cx"":50', 'x'))
    with pytest.raises(AnnotationFileError, match=r"via\.csv: line 3: 'region_shape_attributes' is"):
        import_annotations(tmp_path / 'via.csv')


def test_missing_images(tmp_path):
    images = {**files.via_image([]), **files.via_image([], name='b.png')}
    path = files.write_json(tmp_path / 'via.json', images)
    files.write_image(tmp_path / 'a.png')
    with pytest.raises(ImageFileError, match=r'b\.png: no such image file; --images names the folder'):
        import_annotations(path)
    dataset = import_annotations(path, ImportOptions(skip_broken=True))
    assert [image.path.name for image in dataset.images] == ['a.png'] and len(dataset.omissions) == 1


def test_a_folder_with_two_files(tmp_path):
    files.write_image(tmp_path / 'a.png')
    files.write_json(tmp_path / 'x.json', files.via_image([files.via_triangle()]))
    assert len(import_annotations(tmp_path).images) == 1
    files.write_json(tmp_path / 'y.json', files.via_image([]))
    with pytest.raises(AnnotationFileError, match=r'2 files of VIA in the folder \(x.json, y.json\); name the file'):
        import_annotations(tmp_path)


@pytest.mark.parametrize(('part', 'n_images', 'n_objects'), [('train', 61, 255), ('val', 13, 50)])
def test_the_balloons(shared, part, n_images, n_objects):
    folder = shared / 'data' / 'balloon' / part
    if not folder.is_dir():
        pytest.skip(f'{folder} does not exist')
    dataset = import_annotations(folder / 'via_region_data.json')
    assert dataset.format_name == 'VIA 1' and not dataset.omissions and not dataset.doubts
    assert len(dataset.images) == n_images and sum(len(image.objects) for image in dataset.images) == n_objects
    for image in dataset.images[:3]:
        for obj, mask in zip(image.objects, imported_masks(image), strict=True):
            assert files.iou(mask, files.polygon_mask(obj.segmentation[0], image.size)) >= 0.99


def test_files_of_version_2(shared, tmp_path):
    paths = sorted((shared / 'data' / 'via2').glob('*.json'))
    if not paths:
        pytest.skip(f'no files of VIA 2 in {shared}')
    n_polygons = 0
    for path in paths:
        for image in json.loads(path.read_text()).values():
            target = tmp_path / path.stem / image['filename']
            files.write_image(target, (1200, 1200))
        dataset = import_annotations(path, ImportOptions(image_folder=tmp_path / path.stem))
        assert dataset.format_name == 'VIA 2'
        n_polygons += sum(len(image.objects) for image in dataset.images) + len(dataset.omissions)
    assert n_polygons == 228
