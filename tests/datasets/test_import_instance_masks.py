"""Importer of one mask file for each instance."""

import json
import os
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import instance_masks
from mask_rcnn.datasets.importers.records import ImportOptions
from mask_rcnn.preprocessing.image_errors import ImageFileError
from tests.support.damage import bit_flips, truncations
from tests.support.pixel_annotations import GARBAGE, decode, labels, read_or_error, save, save_photo, write

NUCLEUS = ImportOptions(default_class='nucleus')
FIRST, SECOND = labels(v255=np.s_[2:6, 3:9]), labels(v255=np.s_[4:12, 7:20])


@pytest.fixture
def bowl(tmp_path):
    """Two images in the layout of the Data Science Bowl."""
    for name, masks in (('ab', {'m1': FIRST, 'm2': SECOND}), ('cd', {'m1': FIRST})):
        save_photo(tmp_path / name / 'images' / f'{name}.png')
        for mask_name, mask in masks.items():
            save(tmp_path / name / 'masks' / f'{mask_name}.png', mask)
    return tmp_path


@pytest.fixture
def general(tmp_path):
    """An image in the layout ``images/NAME``, ``masks/NAME``."""
    save_photo(tmp_path / 'images' / 'a.jpg')
    save(tmp_path / 'masks' / 'a' / '1.png', FIRST)
    save(tmp_path / 'masks' / 'a' / '2.png', SECOND)
    return tmp_path


def test_layout_of_the_data_science_bowl(bowl):
    assert instance_masks.recognises(bowl)
    dataset = instance_masks.read(bowl, NUCLEUS)
    assert [image.path for image in dataset.images] == [bowl / name / 'images' / f'{name}.png' for name in ('ab', 'cd')]
    assert [len(image.objects) for image in dataset.images] == [2, 1]
    assert dataset.images[0].size == (20, 30) and dataset.class_names == ('nucleus',) and not dataset.omissions
    for item, mask in zip(dataset.images[0].objects, (FIRST, SECOND), strict=True):  # they overlap
        np.testing.assert_array_equal(decode(item), mask > 0)
        assert item.class_name == 'nucleus'


def test_folder_of_a_single_image(bowl):
    assert instance_masks.recognises(bowl / 'ab')
    (image,) = instance_masks.read(bowl / 'ab', NUCLEUS).images
    assert [item.place for item in image.objects] == ['mask m1.png', 'mask m2.png']


def test_folders_of_images_and_masks(general):
    assert instance_masks.recognises(general)
    (image,) = instance_masks.read(general, NUCLEUS).images
    np.testing.assert_array_equal(decode(image.objects[1]), SECOND > 0)


def test_folders_name_classes(general):
    save(general / 'masks' / 'a' / 'cell' / '1.png', SECOND)
    dataset = instance_masks.read(general, NUCLEUS)
    assert [item.class_name for item in dataset.images[0].objects] == ['nucleus', 'nucleus', 'cell']
    assert dataset.class_names == ('cell', 'nucleus')


def test_images_of_another_folder(general, tmp_path_factory):
    other = tmp_path_factory.mktemp('photos')
    os.replace(general / 'images' / 'a.jpg', other / 'a.jpg')
    os.rmdir(general / 'images')
    assert instance_masks.recognises(general)
    dataset = instance_masks.read(general, ImportOptions(image_folder=other))
    assert dataset.images[0].path == other / 'a.jpg'


def test_empty_masks_are_left_out(bowl):
    save(bowl / 'cd' / 'masks' / 'm1.png', np.zeros_like(FIRST))
    dataset = instance_masks.read(bowl, NUCLEUS)
    assert dataset.images[1].objects == () and dataset.omissions.counts == {'empty masks': 1}


def test_images_without_masks_are_left_out(bowl):
    save_photo(bowl / 'ef' / 'images' / 'ef.png')
    assert instance_masks.read(bowl, NUCLEUS).omissions.counts == {'images without a folder of masks': 1}


def test_other_files_are_ignored(bowl):
    write(bowl / 'ab' / 'masks' / 'Thumbs.db', b'x')
    write(bowl / 'stage1_train_labels.csv', 'ImageId,EncodedPixels\n')
    assert len(instance_masks.read(bowl, NUCLEUS).images[0].objects) == 2


def test_size_of_a_mask(bowl):
    path = save(bowl / 'ab' / 'masks' / 'm2.png', FIRST[:, :10])
    with pytest.raises(AnnotationFileError, match=r'm2.png: has 20 x 10 pixels .* image ab.png has 20 x 30') as caught:
        instance_masks.read(bowl, NUCLEUS)
    assert caught.value.path == path


def test_mask_without_an_image(general):
    save(general / 'masks' / 'b' / '1.png', FIRST)
    with pytest.raises(AnnotationFileError, match='b: has 0 images in .*images; one is expected'):
        instance_masks.read(general, NUCLEUS)


def test_broken_mask(bowl):
    write(bowl / 'ab' / 'masks' / 'm2.png', b'nonsense')
    with pytest.raises(ImageFileError, match=r'm2\.png: not an image'):
        instance_masks.read(bowl, NUCLEUS)
    dataset = instance_masks.read(bowl, ImportOptions(skip_broken=True))
    assert [image.path.name for image in dataset.images] == ['cd.png']
    assert dataset.omissions.counts == {'unusable images': 1}


def test_other_folders_are_not_recognised(tmp_path):
    assert not instance_masks.recognises(tmp_path)
    save_photo(tmp_path / 'images' / 'a.png')
    save(tmp_path / 'masks' / 'a.png', FIRST)  # a label image
    assert not instance_masks.recognises(tmp_path)
    assert not instance_masks.recognises(tmp_path / 'images' / 'a.png')
    assert not instance_masks.recognises(tmp_path / 'missing')
    with pytest.raises(AnnotationFileError, match='has neither folders'):
        instance_masks.read(tmp_path, NUCLEUS)


def test_masks_that_are_texts_are_not_recognised(tmp_path):
    save_photo(tmp_path / 'images' / 'a.png')
    write(tmp_path / 'masks' / 'a' / '1.png', 'x')
    assert not instance_masks.recognises(tmp_path)


def test_damaged_masks(bowl):
    path = bowl / 'cd' / 'masks' / 'm1.png'
    data = path.read_bytes()
    results = []
    for damaged in (*GARBAGE.values(), *truncations(data, 20), *bit_flips(data, 30, random.Random(0))):
        path.write_bytes(damaged)
        assert instance_masks.recognises(bowl)  # by the masks of the other image
        results.append(read_or_error(instance_masks, bowl, NUCLEUS))
    errors = [str(error) for error in results if isinstance(error, Exception)]
    assert len(errors) > 40 and all('m1.png: ' in error and '\n' not in error for error in errors)


def test_loops_of_links(bowl):
    os.symlink(bowl, bowl / 'ab' / 'masks' / 'loop')
    os.symlink('self', bowl / 'self')
    os.symlink('self.png', bowl / 'ab' / 'masks' / 'self.png')
    assert len(instance_masks.read(bowl, NUCLEUS).images[0].objects) == 2


def test_nuclei_equal_their_coco_file(shared):
    raw, coco = shared / 'data' / 'nuclei-raw', shared / 'data' / 'nuclei'
    if not (raw.is_dir() and coco.is_dir()):
        pytest.skip('no nuclei')
    masks = {}
    for part in ('train', 'val'):
        content = json.loads((coco / f'instances_{part}.json').read_text())
        names = {image['id']: image['file_name'] for image in content['images']}
        for annotation in content['annotations']:
            masks.setdefault(names[annotation['image_id']], []).append(annotation['segmentation']['counts'].encode())
    assert instance_masks.recognises(raw)
    dataset = instance_masks.read(raw, NUCLEUS)
    assert len(dataset.images) == 11 and sum(len(image.objects) for image in dataset.images) == 290
    for image in dataset.images:
        counts = sorted(item.segmentation['counts'] for item in image.objects)
        assert counts == sorted(masks[f'{image.path.stem[:12]}.png'])
        assert coco_mask.area(image.objects[0].segmentation) == decode(image.objects[0], image.size).sum()
