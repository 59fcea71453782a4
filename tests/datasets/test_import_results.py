"""The classes of imported datasets, their merging, and the written files as training reads them."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import (
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    ImportOptions,
    import_annotations,
    merge_datasets,
)
from mask_rcnn.datasets.importers.class_map import apply_class_map, read_class_map
from mask_rcnn.datasets.importers.coco_writer import coco_content
from mask_rcnn.datasets.importers.image_copies import common_folder, copy_images
from mask_rcnn.datasets.importers.outlines import paste_bitmap
from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.preprocessing.image_io import ImageFileError
from tests.support import labelling_files as files
from tests.support.imported import imported_masks, read_back

TRIANGLE = (np.array(files.TRIANGLE, np.float64),)


def make_dataset(folder, classes=('cat', 'dog', 'rat'), name='a.png', shift=0.0):
    objects = tuple(
        ImportedObject(class_name, (TRIANGLE[0] + shift + i,), f'region {i}') for i, class_name in enumerate(classes)
    )
    image = ImportedImage(files.write_image(folder / name), files.SIZE, objects)
    return ImportedDataset('test', (image,), tuple(sorted(set(classes))))


@pytest.fixture
def class_map(tmp_path):
    """A function that reads a file of classes."""

    def read(text, encoding='utf-8'):
        path = tmp_path / 'classes.txt'
        path.write_bytes(text.encode(encoding))
        return read_class_map(path)

    return read


@pytest.mark.parametrize(
    ('text', 'names', 'found', 'dropped'),
    [
        ('rat\ncat\ndog\n', ('rat', 'cat', 'dog'), ['cat', 'dog', 'rat'], {}),
        ('cat: pet\n# comment\n\ndog = pet\r\nrat\n', ('pet', 'rat'), ['pet', 'pet', 'rat'], {}),
        ('cat\ndog:\nrat =\n', ('cat',), ['cat'], {'dog': 1, 'rat': 1}),
        ('bird\ncat\ndog\nrat', ('bird', 'cat', 'dog', 'rat'), ['cat', 'dog', 'rat'], {}),
        ('cat: dog\nrat: cafe\u0301\ndog:', ('dog', 'caf\xe9'), ['dog', 'caf\xe9'], {'dog': 1}),
        ('cat: dog\nrat', ('dog', 'rat'), ['dog', 'dog', 'rat'], {}),  # dog is one of the new names
    ],
)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_classes(tmp_path, class_map, text, names, found, dropped, encoding):
    dataset, counts = apply_class_map(make_dataset(tmp_path), class_map(text, encoding), skip_broken=False)
    assert dataset.class_names == names and counts == dropped and not dataset.omissions
    assert [obj.class_name for obj in dataset.images[0].objects] == found


def test_a_class_that_is_not_in_the_file(tmp_path, class_map):
    dataset, classes = make_dataset(tmp_path), class_map('cat\n')
    with pytest.raises(AnnotationFileError, match=r"classes\.txt: .*not in the file: 'dog', 'rat'; \"dog:\" drops one"):
        apply_class_map(dataset, classes, skip_broken=False)
    changed, dropped = apply_class_map(dataset, classes, skip_broken=True)
    assert changed.omissions.counts == {"of the class 'dog'": 1, "of the class 'rat'": 1} and not dropped
    assert not dataset.omissions


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'cat\ndog\ncat: pet', "line 3: the class 'cat' occurs twice"),
        (b'# cat\n', 'keeps no class; write one name'),
        (b'cat:\n', 'keeps no class; write one name'),
        (b'\xff\xfe\0', 'not a text file in UTF-8'),
    ],
)
def test_a_bad_file_of_classes(tmp_path, data, reason):
    path = tmp_path / 'classes.txt'
    path.write_bytes(data)
    with pytest.raises(AnnotationFileError, match=reason):
        read_class_map(path)
    with pytest.raises(AnnotationFileError, match='no such file'):
        read_class_map(tmp_path / 'missing.txt')


def test_an_image_of_two_sources_is_one_image(tmp_path):
    first, second = make_dataset(tmp_path), make_dataset(tmp_path, ('ant', 'cat'), shift=10)
    repeated = replace(first, class_names=('cat',))
    merged = merge_datasets([first, second, make_dataset(tmp_path, name='b.png'), repeated])
    assert [len(image.objects) for image in merged.images] == [5, 3]
    assert merged.class_names == ('cat', 'dog', 'rat', 'ant') and merged.format_name == 'test'
    assert merged.omissions.counts == {'repeated objects': 3}


def test_the_written_file(tmp_path, rng):
    """Masks are exact, polygons have the pixels inside of them; ids are from 1, and the JSON is ASCII."""
    size = 400, 500
    bitmap = rng.rand(50, 60) < 0.5
    polygon = np.array([50, 40, 460.5, 90, 300, 350.25, 90, 300])
    crowd = np.zeros(size, bool)
    crowd[300:, 400:] = True
    objects = (
        ImportedObject('caf\xe9', (polygon,), ''),
        ImportedObject('cat', paste_bitmap(bitmap, 20, 30, size), ''),
        ImportedObject('cat', paste_bitmap(crowd, 0, 0, size), '', is_crowd=True),
    )
    path = files.write_image(tmp_path / 'photos' / 'sub' / '\u9b5a.png', size)
    dataset = ImportedDataset('test', (ImportedImage(path, size, objects),), ('cat', 'caf\xe9'))
    coco, ((first, second, third),) = read_back(dataset, tmp_path / 'a.json', tmp_path / 'photos')
    assert coco.class_names == ('cat', 'caf\xe9') and not coco.doubts
    assert files.iou(first, files.polygon_mask(polygon, size)) >= 0.999
    expected = np.zeros(size, bool)
    expected[20:70, 30:90] = bitmap
    np.testing.assert_array_equal(second, expected)
    np.testing.assert_array_equal(third, crowd)
    text = (tmp_path / 'a.json').read_bytes()
    assert text.isascii()
    content = json.loads(text)
    assert content['images'] == [{'id': 1, 'file_name': 'sub/\u9b5a.png', 'height': 400, 'width': 500}]
    assert content['categories'] == [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'caf\xe9'}]
    annotations = content['annotations']
    assert [(a['id'], a['image_id'], a['category_id'], a['iscrowd']) for a in annotations] == [
        *((1, 1, 2, 0), (2, 1, 1, 0), (3, 1, 1, 1))
    ]
    assert [annotation['area'] for annotation in annotations] == [first.sum(), bitmap.sum(), 100 * 100]
    assert annotations[0]['bbox'] == [50, 40, 410.5, 310.25] and annotations[2]['bbox'] == [400, 300, 100, 100]


def test_a_box_without_an_outline_is_clipped(tmp_path):
    image = ImportedImage(
        tmp_path / 'a.png', files.SIZE, (ImportedObject('cat', (), '', box=(-10.0, 80.0, 30.0, 40.0)),)
    )
    (annotation,) = coco_content(ImportedDataset('test', (image,), ('cat',)), tmp_path)['annotations']
    assert annotation['segmentation'] == [] and annotation['bbox'] == [0, 80, 20, 10] and annotation['area'] == 200


@pytest.mark.parametrize('kind', ['via', 'labelme', 'coco'])
def test_every_format_becomes_the_same_file(tmp_path, kind):
    files.write_image(tmp_path / 'a.png')
    contents = {
        'via': files.via_image([files.via_triangle({'class': 'cat'})]),
        'labelme': files.labelme_file([files.labelme_shape(np.reshape(files.TRIANGLE, (-1, 2)).tolist())]),
        'coco': files.coco_file([files.coco_object()], categories=[{'id': 0, 'name': 'cat'}]),
    }
    dataset = import_annotations(files.write_json(tmp_path / 'source.json', contents[kind]))
    coco, ((mask,),) = read_back(dataset, tmp_path / 'out.json', tmp_path)
    assert coco.warnings == [] and coco.class_names == ('cat',)
    np.testing.assert_array_equal(mask, imported_masks(dataset.images[0])[0])
    written = json.loads((tmp_path / 'out.json').read_text())['annotations']
    assert written[0]['segmentation'] == [files.TRIANGLE] and written[0]['bbox'] == [10, 5, 70, 70]


def test_the_common_folder(tmp_path):
    paths = [tmp_path / name for name in ('x/a.png', 'x/y/b.png')]
    images = [ImportedImage(path, files.SIZE, ()) for path in paths]
    assert common_folder(images) == tmp_path / 'x' and common_folder(images[1:]) == tmp_path / 'x' / 'y'
    assert common_folder(images, tmp_path) == tmp_path and common_folder(images, tmp_path / 'z') == tmp_path / 'x'


def test_images_on_several_drives_of_windows(tmp_path, monkeypatch):
    """No folder contains them; a dataset whose images are elsewhere has absolute names."""

    def fail(*paths):
        raise ValueError("Paths don't have the same drive")

    images = [ImportedImage(tmp_path / name, files.SIZE, ()) for name in ('a.png', 'b.png')]
    monkeypatch.setattr(os.path, 'commonpath', fail)
    monkeypatch.setattr(os.path, 'relpath', fail)
    with pytest.raises(ImageFileError, match=r'a\.png: other images are on another drive; import the sources of each'):
        common_folder(images)
    content = coco_content(ImportedDataset('labelme', tuple(images), ()), 'elsewhere')
    assert [image['file_name'] for image in content['images']] == [path.path.as_posix() for path in images]


def test_copies_of_images(tmp_path):
    """Subfolders and existing copies are kept; images inside the annotations are written."""
    paths = [files.write_image(tmp_path / 'x' / name) for name in ('a.png', 's/b.png')]
    embedded = ImportedImage(tmp_path / 'x' / 'c.png', files.SIZE, (), lambda: paths[0].read_bytes())
    images = (*(ImportedImage(path, files.SIZE, ()) for path in paths), embedded)
    dataset = ImportedDataset('test', images, ())
    for _ in range(2):
        copied = copy_images(dataset, tmp_path / 'x', tmp_path / 'copies')
    names = ['a.png', 's/b.png', 'c.png']
    assert [image.path for image in copied.images] == [tmp_path / 'copies' / name for name in names]
    assert all(image.read_data is None for image in copied.images)
    for image, original in zip(copied.images, (*paths, paths[0]), strict=True):
        assert image.path.read_bytes() == original.read_bytes()


def test_copies_are_removed_after_an_error(tmp_path):
    paths = [files.write_image(tmp_path / 'x' / name) for name in ('a.png', 'b.png')]
    Image.new('L', (3, 3)).save(files.write_image(tmp_path / 'copies' / 'b.png'))
    dataset = ImportedDataset('test', tuple(ImportedImage(path, files.SIZE, ()) for path in paths), ())
    with pytest.raises(FileError, match=r'copies/b\.png: exists and is another file'):
        copy_images(dataset, tmp_path / 'x', tmp_path / 'copies')
    assert [path.name for path in (tmp_path / 'copies').iterdir()] == ['b.png']


def test_sources_that_no_importer_reads(tmp_path):
    (tmp_path / 'a.txt').write_text('hello')
    files.write_json(tmp_path / 'a.json', {'hello': 1})
    (tmp_path / 'empty').mkdir()
    files.write_json(tmp_path / 'parent' / 'train' / 'a.json', files.via_image([]))
    for name, reason in [
        ('a.txt', 'not annotations of a known format; known are: .*VGG Image Annotator'),
        ('a.json', r"not annotations of a known format: it is JSON with \['hello'\]; known are"),
        ('empty', 'the folder has no annotations of a known format; known are'),
        ('parent', 'of a known format, but subfolders have: .*train; known are: '),
        ('missing', 'no such file or directory'),
    ]:
        with pytest.raises(AnnotationFileError, match=reason):
            import_annotations(tmp_path / name)


def test_a_source_of_two_formats(tmp_path):
    files.write_image(tmp_path / 'a.png')
    files.write_json(tmp_path / 'a.json', files.labelme_file([]))
    files.write_json(tmp_path / 'b.json', files.via_image([]))
    with pytest.raises(AnnotationFileError, match='may have the formats via and labelme; --format selects one'):
        import_annotations(tmp_path)
    assert import_annotations(tmp_path, format_name='via').format_name == 'VIA 2'
    with pytest.raises(ValueError, match="unknown format 'x'"):
        import_annotations(tmp_path, ImportOptions(), format_name='x')
