"""Importer of the text files of YOLO."""

import json
import os
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import instance_masks, label_images, voc_masks, yolo
from mask_rcnn.datasets.importers.records import ImportOptions
from mask_rcnn.preprocessing.image_errors import ImageFileError
from tests.support.damage import bit_flips, truncations
from tests.support.pixel_annotations import GARBAGE, HEIGHT, WIDTH, decode, read_or_error, save_photo, write

DEFAULT = ImportOptions()
#: A rectangle from (6, 4) to (15, 10) in an image of 20 x 30 pixels (height x width).
RECTANGLE = '0.2 0.2 0.5 0.2 0.5 0.5 0.2 0.5'
YAML = 'path: .\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: cup\n  1: no\n'


@pytest.fixture
def folders(tmp_path):
    """``images/a.png`` with one polygon of the class 1, and the names of two classes."""
    save_photo(tmp_path / 'images' / 'a.png')
    write(tmp_path / 'labels' / 'a.txt', f'1 {RECTANGLE}\n')
    write(tmp_path / 'classes.txt', 'cup\nfork\n')
    return tmp_path


@pytest.fixture
def parts(tmp_path):
    """The layout of Ultralytics: data.yaml, images/train, labels/train, images/val, labels/val."""
    for part in ('train', 'val'):
        save_photo(tmp_path / 'images' / part / f'{part}_1.png')
        write(tmp_path / 'labels' / part / f'{part}_1.txt', f'1 {RECTANGLE}\n')
    write(tmp_path / 'data.yaml', YAML)
    return tmp_path


def read_line(folders, line, options=DEFAULT):
    """Replace the label file and read it; returns the objects and the omissions."""
    write(folders / 'labels' / 'a.txt', line)
    dataset = yolo.read(folders, options)
    return dataset.images[0].objects, dataset.omissions.counts


def names_of(dataset):
    return [image.path.name for image in dataset.images]


def test_polygon(folders):
    assert yolo.recognises(folders)
    assert not any(other.recognises(folders) for other in (instance_masks, label_images, voc_masks))
    dataset = yolo.read(folders, DEFAULT)
    (image,) = dataset.images
    (item,) = image.objects
    assert (image.path, image.size) == (folders / 'images' / 'a.png', (HEIGHT, WIDTH))
    assert (item.class_name, item.place) == ('fork', 'line 1') and dataset.class_names == ('cup', 'fork')
    (polygon,) = item.segmentation
    np.testing.assert_allclose(polygon, [6, 4, 15, 4, 15, 10, 6, 10])
    assert polygon.dtype == np.float64
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:10, 6:15] = True
    np.testing.assert_array_equal(decode(item), expected)


def test_box(folders):
    write(folders / 'labels' / 'a.txt', '0 0.5 0.25 0.4 0.3')
    dataset = yolo.read(folders, DEFAULT)
    (item,) = dataset.images[0].objects
    assert item.segmentation == () and item.class_name == 'cup'
    np.testing.assert_allclose(item.box, (9, 2, 12, 6))
    assert dataset.doubts.counts == {'boxes without an outline': 1} and not dataset.omissions


def test_lines_of_several_forms(folders):
    objects, _ = read_line(folders, f'\ufeff0.0 {RECTANGLE}\r\n\r\n\t1  0 0 1 0 1e0 1.0\r\n')
    assert [(item.class_name, item.place) for item in objects] == [('cup', 'line 1'), ('fork', 'line 3')]


def test_coordinates_slightly_outside_are_clipped(folders):
    (item,), _ = read_line(folders, '0 -0.004 0 1.0001 0 1 1.009')
    np.testing.assert_allclose(item.segmentation[0], [0, 0, 30, 0, 30, 20])


def test_outlines_without_area_are_left_out(folders):
    objects, omitted = read_line(folders, f'0 0.5 0.5 0.5 0.6 0.5 0.7\n0 0.5 0.5 0 0.2\n0 {RECTANGLE}')
    assert len(objects) == 1 and omitted == {'outlines without area': 2}


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('2 ' + RECTANGLE, r'the class is 2, but classes\.txt declares 2 names \(0 to 1\)'),
        ('-1 ' + RECTANGLE, 'the class is -1, not an index'),
        ('0.5 ' + RECTANGLE, 'the class is 0.5, not an index'),
        ('cup ' + RECTANGLE, "value 1 is 'cup', not a finite number"),
        ('0 0.1 nan 0.2 0.3 0.4 0.5', "value 3 is 'nan', not a finite number"),
        ('0 0.1 0.2 inf 0.3 0.4 0.5', "value 4 is 'inf'"),
        ('0 0.1 0.2 1e999 0.3 0.4 0.5', "value 4 is '1e999'"),
        ('0 0.1 0.2 0.3', 'has 3 numbers after the class; a polygon has x y of at least 3 points'),
        ('0', 'has 0 numbers'),
        ('0 0.1 0.2 0.3 0.4 0.5', 'has 5 numbers'),
        ('0 0.1 0.2 0.3 0.4 0.5 0.6 0.7', 'has 7 numbers'),
        ('0 0.1 0.2 1.2 0.3 0.4 0.5', 'the coordinate 1.2 is not between 0 and 1$'),
        ('0 0.1 -0.2 0.2 0.3 0.4 0.5', 'the coordinate -0.2 is not'),
        ('0 15 12 120 80 40 50', 'the coordinate 120 is not between 0 and 1; coordinates are fractions'),
        ('0 0.9 0.5 0.5 0.5', 'the coordinate 1.15 is not'),
    ],
)
def test_broken_lines(folders, line, reason):
    path = write(folders / 'labels' / 'a.txt', f'\n0 {RECTANGLE}\n{line}\n')
    with pytest.raises(AnnotationFileError, match=rf'labels/a\.txt: line 3: {reason}') as caught:
        yolo.read(folders, DEFAULT)
    assert caught.value.path == path
    save_photo(folders / 'images' / 'b.png')
    dataset = yolo.read(folders, ImportOptions(skip_broken=True))
    assert names_of(dataset) == ['b.png'] and dataset.omissions.counts == {'malformed': 1}


def test_images_without_objects(folders):
    save_photo(folders / 'images' / 'b.png')
    save_photo(folders / 'images' / 'c.png')
    write(folders / 'labels' / 'c.txt', '')
    assert [len(image.objects) for image in yolo.read(folders, DEFAULT).images] == [1, 0, 0]


def test_yaml(parts):
    for source in (parts, parts / 'data.yaml'):
        assert yolo.recognises(source)
        with pytest.raises(AnnotationFileError, match='has the parts train, val; choose one'):
            yolo.read(source, DEFAULT)
        dataset = yolo.read(source, ImportOptions(part='val'))
        assert names_of(dataset) == ['val_1.png'] and dataset.images[0].objects[0].class_name == 'no'
        assert dataset.class_names == ('cup', 'no')


@pytest.mark.parametrize('source', ['images/train', 'labels/train'])
def test_folder_of_a_part(parts, source):
    assert yolo.recognises(parts / source)
    dataset = yolo.read(parts / source, DEFAULT)
    assert names_of(dataset) == ['train_1.png'] and dataset.class_names == ('cup', 'no')


def test_parts_without_yaml(parts):
    os.replace(parts / 'data.yaml', parts / 'labels' / 'data.yaml')
    with pytest.raises(AnnotationFileError, match='has the parts train, val'):
        yolo.read(parts, DEFAULT)
    assert names_of(yolo.read(parts, ImportOptions(part='val'))) == ['val_1.png']


def test_names_in_a_list(parts):
    write(parts / 'data.yaml', 'train: images/train\nnc: 2\nnames: [a, "b c"]\n')
    assert yolo.read(parts, DEFAULT).class_names == ('a', 'b c')


def test_layout_of_roboflow(tmp_path):
    for part in ('train', 'valid'):
        save_photo(tmp_path / part / 'images' / f'{part}_1.png')
        write(tmp_path / part / 'labels' / f'{part}_1.txt', f'0 {RECTANGLE}\n')
    write(tmp_path / 'data.yaml', 'train: ../train/images\nval: ../valid/images\nnc: 1\nnames: [a]\n')
    write(tmp_path / 'README.dataset.txt', 'https://example.com/\n')
    save_photo(tmp_path / 'preview.png')
    assert yolo.recognises(tmp_path) and yolo.recognises(tmp_path / 'train')
    assert names_of(yolo.read(tmp_path, ImportOptions(part='val'))) == ['valid_1.png']
    dataset = yolo.read(tmp_path / 'train', DEFAULT)
    assert names_of(dataset) == ['train_1.png'] and dataset.class_names == ('a',)


def test_lists_of_images(parts):
    save_photo(parts / 'images' / 'train' / 'other.png')
    write(parts / 'train.txt', './images/train/train_1.png\nimages/val/val_1.png\n')
    write(parts / 'data.yaml', 'path: ./\ntrain: train.txt\nnames: {0: a, 1: b}\n')
    dataset = yolo.read(parts, DEFAULT)
    assert names_of(dataset) == ['train_1.png', 'val_1.png'] and all(image.objects for image in dataset.images)
    write(parts / 'train.txt', 'images/train/train_1.png\nimages/missing.png\n')
    with pytest.raises(
        AnnotationFileError, match=r"train\.txt: line 2: the image 'images/missing\.png' does not exist"
    ):
        yolo.read(parts, DEFAULT)


def test_several_folders_of_a_part(parts):
    write(parts / 'data.yaml', 'path: /home/someone/data\ntrain:\n- images/train\n- images/val\nnames: [a, b]\n')
    assert names_of(yolo.read(parts, DEFAULT)) == ['train_1.png', 'val_1.png']


def test_labels_beside_the_images(tmp_path):
    save_photo(tmp_path / 'a.jpg')
    write(tmp_path / 'a.txt', f'0 {RECTANGLE}\n')
    write(tmp_path / 'classes.txt', 'cup\n')
    assert yolo.recognises(tmp_path)
    assert yolo.read(tmp_path, DEFAULT).images[0].objects[0].class_name == 'cup'


def test_picture_beside_the_folders(folders):
    save_photo(folders / 'preview.png')
    write(folders / 'README.txt', 'Export\n')
    assert yolo.recognises(folders) and names_of(yolo.read(folders, DEFAULT)) == ['a.png']


def test_last_folder_of_images_is_replaced(tmp_path):
    source = tmp_path / 'images' / 'set'
    save_photo(source / 'images' / 'a.png')
    write(source / 'labels' / 'a.txt', f'0 {RECTANGLE}\n')
    assert len(yolo.read(source, DEFAULT).images[0].objects) == 1


def test_images_of_another_folder(folders, tmp_path_factory):
    other = tmp_path_factory.mktemp('photos')
    os.replace(folders / 'images' / 'a.png', other / 'a.png')
    for source in (folders, folders / 'labels'):
        dataset = yolo.read(source, ImportOptions(image_folder=other))
        assert dataset.images[0].path == other / 'a.png' and len(dataset.images[0].objects) == 1


def test_names_of_darknet(folders):
    os.replace(folders / 'classes.txt', folders / 'obj.names')
    assert yolo.read(folders, DEFAULT).class_names == ('cup', 'fork')


def test_no_names(folders):
    os.remove(folders / 'classes.txt')
    with pytest.raises(AnnotationFileError, match=r'line 1: the class is 1, but no file declares names; write one'):
        yolo.read(folders, DEFAULT)
    (item,), _ = read_line(folders, f'0 {RECTANGLE}', ImportOptions(default_class='cup'))
    assert item.class_name == 'cup'


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('names: [a\ntrain: x', r'not a YAML file \(line 2'),
        ('- a', "it is not a mapping with 'names'"),
        ('train: images/train', "has no 'names'"),
        ('train: images/train\nnames: a', "'names' is 'a', not a list of texts"),
        ('train: images/train\nnames: [a, [b]]', "'names' is"),
        ('train: images/train\nnames: []', 'has no names'),
        ('train: images/train\nnames: [a, a]', "has the name 'a' 2 times"),
        ('train: images/train\nnames: {0: a, 2: b}', "the keys of 'names' are .*, not 0 to 1"),
        ('train: {a: b}\nnames: [a, b]', "'train' is .*, not a folder"),
        ('train: images/none\nnames: [a, b]', "'train' is 'images/none', which does not exist"),
        ('train: "images\\0"\nnames: [a, b]', "'train' is"),
        ('kpt_shape: [17, 3]\ntrain: images/train\nnames: [a, b]', 'declares keypoints'),
        (
            'train: images\nnames: !!python/object/apply:os.system ["touch pwned"]',
            "keys|'names'|has the name|class is 1",
        ),
        ('train: &a [*a]\nnames: [a, b]', r'not a YAML file \(line 1: found'),
        ('[' * 300, 'not a YAML file'),
        ('[' * 9000, 'too many brackets'),
        (b'\xff\xfe\x00', 'not a text file in UTF-8'),
        ('#' * (1 << 21), 'too many for the description'),
    ],
)
def test_broken_yaml(parts, content, reason, monkeypatch):
    monkeypatch.chdir(parts)
    path = write(parts / 'data.yaml', content)
    with pytest.raises(AnnotationFileError, match=reason) as caught:
        yolo.read(path, DEFAULT)
    assert '\n' not in str(caught.value) and not (parts / 'pwned').exists()
    assert yolo.recognises(path) in (True, False)


def test_wrong_folder_of_labels(folders):
    os.rename(folders / 'labels', folders / 'annotations')
    with pytest.raises(AnnotationFileError, match=r'no label file for any of its images, such as .*labels/a\.txt'):
        yolo.read(folders, DEFAULT)


def test_broken_image(folders):
    write(folders / 'images' / 'a.png', b'x')
    with pytest.raises(ImageFileError, match=r'images/a\.png: not an image'):
        yolo.read(folders, DEFAULT)


def test_other_sources_are_not_recognised(tmp_path):
    save_photo(tmp_path / 'a.png')
    captions = write(tmp_path / 'a.txt', 'a cup on a table\n')
    for source in (tmp_path, captions, tmp_path / 'a.png', tmp_path / 'missing', tmp_path / 'nul\0'):
        assert not yolo.recognises(source)
    for source in (captions, tmp_path / 'missing', tmp_path / 'nul\0'):
        with pytest.raises(AnnotationFileError):
            yolo.read(source, DEFAULT)


def test_loops_of_links(parts):
    os.symlink(parts / 'images', parts / 'images' / 'train' / 'loop')
    os.symlink('self.png', parts / 'images' / 'train' / 'self.png')
    os.symlink('self.txt', parts / 'labels' / 'train' / 'self.txt')
    assert yolo.recognises(parts)
    assert names_of(yolo.read(parts, ImportOptions(part='train'))) == ['train_1.png']


@pytest.mark.parametrize('name', ['labels/train/train_1.txt', 'data.yaml', 'train.txt', 'classes.txt'])
def test_damaged_files(parts, name):
    path = parts / name
    if name == 'train.txt':
        write(parts / 'data.yaml', 'train: train.txt\nnames: [a, b]\n')
    if name == 'classes.txt':
        os.remove(parts / 'data.yaml')
    data = {'train.txt': b'images/train/train_1.png\n', 'classes.txt': b'cup\nfork\n'}.get(name) or path.read_bytes()
    source = parts / 'images' / 'train' if name == 'classes.txt' else parts
    results = []
    for damaged in (*GARBAGE.values(), *truncations(data, 15), *bit_flips(data, 40, random.Random(0))):
        path.write_bytes(damaged)
        assert yolo.recognises(source) in (True, False)
        results.append(read_or_error(yolo, source, ImportOptions(part=None if name == 'train.txt' else 'train')))
    errors = [str(error) for error in results if isinstance(error, Exception)]
    assert len(errors) >= 5 and not any('\n' in error for error in errors)


def test_a_part_that_does_not_exist(folders):
    with pytest.raises(AnnotationFileError, match='has no parts, so --part val does not apply'):
        yolo.read(folders, ImportOptions(part='val'))


def test_polygons_equal_those_of_coco(shared, tmp_path):
    """Polygons with six decimals, as Ultralytics' converter writes them, cover the same pixels."""
    folder = shared / 'coco-mini'
    path = folder / 'annotations' / 'instances_val2017.json'
    if not path.is_file():
        pytest.skip(f'no file {path}')
    content = json.loads(path.read_text())
    image = content['images'][0]
    size, scale = (image['height'], image['width']), np.array([image['width'], image['height']])
    polygons = [
        np.reshape(annotation['segmentation'][0], (-1, 2))
        for annotation in content['annotations']
        if annotation['image_id'] == image['id'] and not annotation['iscrowd'] and len(annotation['segmentation']) == 1
    ]
    assert polygons
    os.makedirs(tmp_path / 'images')
    os.symlink(folder / 'val2017' / image['file_name'], tmp_path / 'images' / 'a.jpg')
    lines = [' '.join(['0', *(f'{number:.6f}' for number in (polygon / scale).ravel())]) for polygon in polygons]
    write(tmp_path / 'labels' / 'a.txt', '\n'.join(lines))
    (record,) = yolo.read(tmp_path, DEFAULT).images
    assert record.size == size and len(record.objects) == len(polygons)
    for item, polygon in zip(record.objects, polygons, strict=True):
        mask = decode(item, size)
        expected = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], *size))[:, :, 0].astype(bool)
        assert (mask & expected).sum() >= 0.99 * (mask | expected).sum()
