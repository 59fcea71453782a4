"""Importer of one label image for each image."""

import random

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import instance_masks, label_images
from mask_rcnn.datasets.importers.records import ImportOptions
from mask_rcnn.preprocessing.image_errors import ImageFileError
from tests.support.damage import bit_flips, truncations
from tests.support.pixel_annotations import GARBAGE, decode, labels, read_or_error, save, save_photo, write

CELL = ImportOptions(default_class='cell')
#: Two instances that touch, whose values need more than 8 bits and have the same low 8 bits.
TOUCHING = labels(np.uint16, v300=np.s_[2:6, 3:9], v556=np.s_[2:6, 9:12])


@pytest.fixture
def pair(tmp_path):
    """A function that writes the image ``a.png`` and a label image, and returns the folder."""

    def write_pair(pixels, label='labels/a.png', image='images/a.png'):
        save_photo(tmp_path / image)
        save(tmp_path / label, pixels)
        return tmp_path

    return write_pair


@pytest.mark.parametrize(
    ('image', 'label'),
    [
        ('images/a.png', 'labels/a.png'),
        ('images/a.jpg', 'masks/a.tif'),
        ('images/a.jpg', 'masks/a_mask.png'),
        ('images/a_img.png', 'masks/a_masks.png'),
        ('image/a.png', 'label/a_label.tiff'),
        ('a.png', 'a_masks.tif'),
        ('a.tif', 'a_cp_masks.png'),
        ('a_img.tif', 'a_masks.tif'),
    ],
)
def test_layouts(pair, image, label):
    source = pair(TOUCHING, label, image)
    assert label_images.recognises(source) and not instance_masks.recognises(source)
    dataset = label_images.read(source, CELL)
    (record,) = dataset.images
    assert record.path == source / image and record.size == (20, 30)
    assert [(item.class_name, item.place) for item in record.objects] == [('cell', 'value 300'), ('cell', 'value 556')]
    for item, value in zip(record.objects, (300, 556), strict=True):
        np.testing.assert_array_equal(decode(item), value == TOUCHING)
    assert dataset.class_names == ('cell',) and not dataset.omissions


def test_folder_of_texts_beside_the_masks(pair):
    source = pair(TOUCHING, 'masks/a.png')
    write(source / 'labels' / 'a.txt', '0 0.1 0.1 0.5 0.1 0.5 0.5')
    assert len(label_images.read(source, CELL).images[0].objects) == 2


def test_32_bit_values(pair):
    pixels = TOUCHING.astype(np.int32) * 70_000
    (record,) = label_images.read(pair(pixels, 'labels/a.tif'), CELL).images
    assert [item.place for item in record.objects] == ['value 21000000', 'value 38920000']


def test_colors(pair):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[1:5, 1:5], pixels[1:5, 5:9] = (200, 0, 0), (0, 0, 200)
    first, second = label_images.read(pair(pixels), CELL).images[0].objects
    assert (first.place, second.place) == ('colour 0,0,200', 'colour 200,0,0')
    np.testing.assert_array_equal(decode(first), pixels[:, :, 2] > 0)


def test_palette(pair, tmp_path):
    image = Image.fromarray(labels(v1=np.s_[2:4, 2:4], v2=np.s_[5:7, 5:7])).convert('P')
    image.putpalette([9] * 768)  # all indices have one colour
    source = pair(TOUCHING)
    image.save(source / 'labels' / 'a.png')
    assert [item.place for item in label_images.read(source, CELL).images[0].objects] == ['value 1', 'value 2']


def test_images_of_another_folder(pair, tmp_path_factory):
    source, other = pair(TOUCHING), tmp_path_factory.mktemp('photos')
    save_photo(other / 'a.png')
    for folder in (source, source / 'labels'):
        (record,) = label_images.read(folder, ImportOptions(image_folder=other)).images
        assert record.path == other / 'a.png' and len(record.objects) == 2


def test_label_image_without_objects(pair):
    dataset = label_images.read(pair(labels()), CELL)
    assert dataset.images[0].objects == () and dataset.class_names == ('cell',)


def test_images_without_label_images_are_left_out(pair):
    source = pair(TOUCHING)
    save_photo(source / 'images' / 'b.png')
    dataset = label_images.read(source, CELL)
    assert len(dataset.images) == 1 and dataset.omissions.counts == {'images without a label image': 1}


def test_label_image_without_an_image(pair):
    source = pair(TOUCHING)
    save(source / 'labels' / 'b.png', TOUCHING)
    with pytest.raises(AnnotationFileError, match=r'labels/b\.png: its image b does not exist in .*images'):
        label_images.read(source, CELL)
    dataset = label_images.read(source, ImportOptions(skip_broken=True))
    assert len(dataset.images) == 1 and 'malformed' in dataset.omissions.counts


def test_size(pair):
    with pytest.raises(AnnotationFileError, match=r'labels/a\.png: has 20 x 12 pixels .* image a\.png has 20 x 30'):
        label_images.read(pair(TOUCHING[:, :12]), CELL)


@pytest.mark.parametrize('value', [1, 255])
def test_mask_of_foreground_and_background_is_refused(pair, value):
    pixels = labels(**{f'v{value}': np.s_[2:6, 3:9]})
    source = pair(pixels)
    assert len(label_images.read(source, CELL).images[0].objects) == 1
    pixels[10:12, 10:12] = value
    with pytest.raises(AnnotationFileError, match=f'the single value {value} in 2 separate areas.*its own value'):
        label_images.read(pair(pixels), CELL)


def test_photo_is_refused(tmp_path):
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = np.mgrid[:300, :300] % 256
    pixels[:, :, 2] = np.add(*np.mgrid[:300, :300]) // 256
    save(tmp_path / 'images' / 'a.png', pixels)
    save(tmp_path / 'labels' / 'a.png', pixels)
    with pytest.raises(AnnotationFileError, match='contains .* values; it is not a label image'):
        label_images.read(tmp_path, CELL)


def test_jpeg_is_refused(pair):
    source = pair(labels(v200=np.s_[2:6, 3:9]), 'labels/a.jpg')
    assert not label_images.recognises(source)
    with pytest.raises(ImageFileError, match=r'a\.jpg: is a JPEG file; save label images as PNG or TIFF'):
        label_images.read(source, CELL)


def test_two_label_images_of_an_image(pair):
    source = pair(TOUCHING)
    save(source / 'labels' / 'a_mask.tif', TOUCHING)
    with pytest.raises(AnnotationFileError, match=r'a_mask\.tif: has the same name as a\.png; rename one'):
        label_images.read(source, CELL)


def test_other_folders_are_not_recognised(tmp_path):
    assert not label_images.recognises(tmp_path)
    save_photo(tmp_path / 'images' / 'a.png')
    write(tmp_path / 'labels' / 'a.txt', '0 0.1 0.1 0.5 0.1 0.5 0.5')
    assert not label_images.recognises(tmp_path)
    assert not label_images.recognises(tmp_path / 'missing')
    with pytest.raises(AnnotationFileError, match=r'/images: has neither folders'):
        label_images.read(tmp_path / 'images', CELL)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_damaged_label_images(pair, suffix):
    source = pair(TOUCHING, f'labels/a{suffix}')
    path = source / 'labels' / f'a{suffix}'
    data = path.read_bytes()
    results = []
    for damaged in (*GARBAGE.values(), *truncations(data, 20), *bit_flips(data, 30, random.Random(0))):
        path.write_bytes(damaged)
        assert label_images.recognises(source) in (False, True)
        results.append(read_or_error(label_images, source, CELL))
    errors = [str(error) for error in results if isinstance(error, Exception)]
    assert len(errors) >= 25 and all(f'a{suffix}: ' in error and '\n' not in error for error in errors)
