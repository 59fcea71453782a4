"""The importers of labelme and of LabelMe's XML files."""

import base64

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import ImportOptions, import_annotations
from mask_rcnn.preprocessing.image_io import ImageFileError
from tests.support import labelling_files as files
from tests.support.imported import imported_masks

TRIANGLE = np.reshape(files.TRIANGLE, (-1, 2)).tolist()


@pytest.fixture
def read(tmp_path):
    """A function that writes the shapes of an image as labelme's file, and imports it."""

    def read_shapes(shapes, fields=None, **options):
        files.write_image(tmp_path / 'a.png')
        path = files.write_json(tmp_path / 'a.json', files.labelme_file(shapes, **(fields or {})))
        return import_annotations(path, ImportOptions(**options))

    return read_shapes


@pytest.mark.parametrize(
    ('kind', 'points', 'expected'),
    [
        ('polygon', TRIANGLE, files.polygon_mask(files.TRIANGLE)),
        (None, TRIANGLE, files.polygon_mask(files.TRIANGLE)),  # version 2
        ('rectangle', [[60, 50], [10, 20]], files.polygon_mask([10, 20, 60, 20, 60, 50, 10, 50])),
        ('rectangle', [[10, 20], [60, 20], [60, 50], [10, 50]], files.polygon_mask([10, 20, 60, 20, 60, 50, 10, 50])),
        ('rotation', [[40, 5], [75, 30], [50, 65], [15, 40]], files.polygon_mask([40, 5, 75, 30, 50, 65, 15, 40])),
        ('circle', [[60, 45], [84, 77]], files.ellipse_mask((60, 45), (40, 40))),
    ],
)
def test_masks_of_shapes(read, kind, points, expected):
    dataset = read([files.labelme_shape(points, kind)])
    (mask,) = imported_masks(dataset.images[0])
    assert files.iou(mask, expected) >= 0.995 and not dataset.omissions and not dataset.doubts
    assert dataset.class_names == ('cat',) and dataset.format_name == 'labelme'


@pytest.mark.parametrize(('left', 'top'), [(7, 9), (-3, -2), (files.WIDTH - 6, files.HEIGHT - 4)])
def test_a_mask_is_exact(read, rng, left, top):
    bitmap = rng.rand(10, 13) < 0.5
    points = [[left, top], [left + 12, top + 9]]
    (mask,) = imported_masks(read([files.labelme_shape(points, 'mask', mask=files.png_text(bitmap))]).images[0])
    expected = np.zeros((files.HEIGHT + 40, files.WIDTH + 40), bool)
    expected[20 + top : 30 + top, 20 + left : 33 + left] = bitmap
    np.testing.assert_array_equal(mask, expected[20 : 20 + files.HEIGHT, 20 : 20 + files.WIDTH])


def test_a_group_is_one_object(read, rng):
    """Shapes of a group with the same label; polygons stay polygons without a mask."""
    square = [[90, 60], [110, 60], [110, 80], [90, 80]]
    shapes = [
        files.labelme_shape(TRIANGLE, group_id=1),
        files.labelme_shape([[1, 1], [9, 9]], 'rectangle', label='dog', group_id=1),
        files.labelme_shape(square, group_id=1),
        files.labelme_shape(square),
    ]
    objects = read(shapes).images[0].objects
    assert [(obj.class_name, obj.place) for obj in objects] == [
        ('cat', 'shapes 0, 2'),
        ('dog', 'shape 1'),
        ('cat', 'shape 3'),
    ]
    assert [polygon.tolist() for polygon in objects[0].segmentation] == [files.TRIANGLE, np.ravel(square).tolist()]
    bitmap = rng.rand(10, 13) < 0.5
    shapes = [shapes[2], files.labelme_shape([[2, 3], [14, 12]], 'mask', group_id=1, mask=files.png_text(bitmap))]
    (mask,) = imported_masks(read(shapes).images[0])
    assert mask[60:80, 90:110].all() and mask.sum() == 400 + bitmap.sum()
    np.testing.assert_array_equal(mask[3:13, 2:15], bitmap)


def test_lines_and_points_are_counted(read):
    kinds = ['point', 'points', 'line', 'linestrip']
    dataset = read([files.labelme_shape([[1, 2], [3, 4]], kind) for kind in kinds] + [files.labelme_shape(TRIANGLE)])
    assert dataset.omissions.counts == {'lines and points': 4} and len(dataset.images[0].objects) == 1


@pytest.mark.parametrize(
    ('shape', 'reason'),
    [
        (files.labelme_shape(TRIANGLE, 'star'), "has the 'shape_type' 'star'"),
        (files.labelme_shape(TRIANGLE, 'circle'), 'is a circle of 3 points'),
        (files.labelme_shape([[1, 2], [3]]), 'not a list of'),
        (files.labelme_shape([[1, 2], [3, 4]], 'mask'), 'without the PNG file'),
        (files.labelme_shape([[1, 2], [3, 4]], 'mask', mask='eA=='), 'not a PNG file in base64'),
        (files.labelme_shape([[1, 2], [3, 5]], 'mask', mask=files.png_text(np.ones((3, 3), bool))), 'declare 4 x 3'),
        (files.labelme_shape([[1, 2], [1e9, 5]], 'mask', mask=''), 'far outside the image'),
        (files.labelme_shape(TRIANGLE, label=['cat']), 'has the label'),
        (files.labelme_shape(TRIANGLE, group_id=[1]), "has the 'group_id'"),
    ],
)
def test_a_malformed_shape(read, shape, reason):
    with pytest.raises(AnnotationFileError, match=rf'a\.json: shape 0 {reason}|a\.json: shape 0 .*{reason}'):
        read([shape])
    assert read([shape], skip_broken=True).omissions.counts == {'malformed': 1}


def test_another_size(read):
    with pytest.raises(ImageFileError, match=r'a\.png: the image has 90 x 120 pixels .*declares 91 x 120'):
        read([], {'imageHeight': 91})
    assert read([], {'imageHeight': 91}, skip_broken=True).omissions.counts == {'unusable images': 1}


def test_a_source_has_no_parts(read):
    with pytest.raises(AnnotationFileError, match=r'a\.json: has no parts, so --part train does not apply to it'):
        read([], part='train')


@pytest.mark.parametrize('name', ['..\\photos\\a.png', '../photos/a.png', 'C:\\x\\a.png', 'other.png'])
def test_places_of_the_image(tmp_path, name):
    """The image is at ``imagePath``, or has its name or the name of the JSON file beside it."""
    folder = tmp_path / ('photos' if 'photos' in name else 'labels')
    image = files.write_image(folder / 'a.png')
    path = files.write_json(tmp_path / 'labels' / 'a.json', files.labelme_file([], name))
    assert import_annotations(path).images[0].path.samefile(image)


def test_an_image_inside_the_file(tmp_path):
    image = files.write_image(tmp_path / 'elsewhere' / 'a.png')
    data = base64.b64encode(image.read_bytes()).decode()
    path = files.write_json(tmp_path / 'a.json', files.labelme_file([], imageData=data))
    with pytest.raises(ImageFileError, match=r'a\.png: no such image file, but .*a\.json contains it; --copy-images'):
        import_annotations(path)
    (imported,) = import_annotations(path, ImportOptions(embedded_images=True)).images
    assert imported.size == files.SIZE and imported.read_data() == image.read_bytes()


def test_a_folder(tmp_path):
    for name in ('b', 'a'):
        files.write_image(tmp_path / f'{name}.png')
        shapes = [files.labelme_shape(TRIANGLE, label=name)]
        files.write_json(tmp_path / f'{name}.json', files.labelme_file(shapes, f'{name}.png'))
    files.write_json(tmp_path / 'settings.json', {'a': 1})
    dataset = import_annotations(tmp_path)
    assert [image.path.name for image in dataset.images] == ['a.png', 'b.png']
    assert dataset.class_names == ('a', 'b')
    assert dataset.omissions.counts == {'JSON files of another kind': 1}


def test_labelme_xml(tmp_path):
    """MIT's folders: annotations, images and masks in trees side by side."""
    files.write_image(tmp_path / 'Images' / 'f' / 'a.jpg')
    bitmap = np.zeros(files.SIZE, bool)
    bitmap[10:30, 5:25] = True
    (tmp_path / 'Masks' / 'f').mkdir(parents=True)
    Image.fromarray(bitmap).save(tmp_path / 'Masks' / 'f' / 'm_1.png')
    points = np.reshape(files.TRIANGLE, (-1, 2)).tolist()
    segment = (
        '<object><name>dog</name><deleted>0</deleted><segm><username>me</username><mask>m_1.png</mask></segm></object>'
    )
    objects = xml = files.xml_object(points, ' \ncat\n', id='4') + files.xml_object(points, deleted='1') + segment
    path = tmp_path / 'Annotations' / 'f' / 'a.xml'
    path.parent.mkdir(parents=True)
    path.write_text(files.xml_file(objects, '\na.jpg\n'))
    for source in (path, tmp_path / 'Annotations'):
        dataset = import_annotations(source)
        assert dataset.format_name == 'LabelMe XML' and dataset.class_names == ('cat', 'dog')
        assert dataset.omissions.counts == {'marked as deleted': 1}
        polygon, mask = imported_masks(dataset.images[0])
        assert files.iou(polygon, files.polygon_mask(files.TRIANGLE)) >= 0.995
        np.testing.assert_array_equal(mask, bitmap)
    path.write_text(files.xml_file(xml.replace('m_1', 'm_2'), 'a.jpg'))
    with pytest.raises(AnnotationFileError, match=r"a\.xml: object 2 has the mask 'm_2\.png', which is not in"):
        import_annotations(path)


@pytest.mark.parametrize(
    ('pixels', 'reason'),
    [
        (np.ones((3, 4), bool), 'has 3 x 4 pixels, but its image has 90 x 120'),
        (np.full(files.SIZE, -1, np.int32), 'contains the value -1'),
        (None, 'not an image'),
    ],
)
def test_a_malformed_bitmap_of_labelme_xml(tmp_path, pixels, reason):
    files.write_image(tmp_path / 'a.png')
    bitmap = tmp_path / 'Masks' / 'm.tif'
    bitmap.parent.mkdir()
    bitmap.write_bytes(b'text')
    if pixels is not None:
        Image.fromarray(pixels).save(bitmap)
    segment = '<object><name>dog</name><segm><mask>m.tif</mask></segm></object>'
    (tmp_path / 'a.xml').write_text(files.xml_file(segment))
    with pytest.raises(ImageFileError, match=rf'm\.tif: {reason}'):
        import_annotations(tmp_path / 'a.xml')
    skipped = import_annotations(tmp_path / 'a.xml', ImportOptions(skip_broken=True))
    assert skipped.omissions.counts == {'unusable images': 1} and skipped.images[0].objects == ()


def test_xml_of_pascal_voc_is_not_that_of_labelme(tmp_path):
    box = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
    content = f'<size><width>9</width></size><object><name>cat</name>{box}</object>'
    (tmp_path / 'a.xml').write_text(f'<annotation><filename>a.png</filename>{content}</annotation>')
    with pytest.raises(AnnotationFileError, match=r'a\.xml: not annotations of a known format: it is an XML file'):
        import_annotations(tmp_path / 'a.xml')
