"""Tests of the properties that both synthetic datasets share."""

import numpy as np
import pytest
from pycocotools.coco import COCO

from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from tests.datasets.masks import decode_masks

DATASETS = (ShapesDataset, RichShapesDataset)


@pytest.fixture(scope='module', params=DATASETS)
def examples(request):
    return list(request.param(40, size=96, seed=3))


def test_images_have_integer_values_from_0_to_255(examples):
    for example in examples:
        image = example.image
        assert image.shape == (3, 96, 96) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 255 and (image == np.rint(image)).all()
        assert image.std() > 5


def test_boxes_enclose_the_masks(examples):
    for example in examples:
        for mask, box in zip(decode_masks(example), example.annotations.boxes, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert [rows[0], columns[0], rows[-1], columns[-1]] == box.tolist()
            assert mask.sum() >= 10


@pytest.mark.parametrize('dataset', DATASETS)
def test_an_image_depends_on_seed_and_index_only(dataset):
    short, long, other_seed = dataset(3, size=64), dataset(9, size=64), dataset(3, size=64, seed=1)
    np.random.seed(1)
    first = short[2]
    np.random.seed(2)
    second = long[2]
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.annotations.boxes, second.annotations.boxes)
    assert not np.array_equal(first.image, other_seed[2].image)
    assert not np.array_equal(first.image, short[1].image)


@pytest.mark.parametrize('size', [(33, 150), (150, 32), (512, 512)])
@pytest.mark.parametrize('dataset', DATASETS)
def test_images_and_masks_have_the_requested_size(dataset, size):
    images = dataset(2, size=size)
    assert images.image_size(1) == size and images[1].image.shape == (3, *size)
    assert all(mask.shape == size for mask in decode_masks(images[1]))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(n=0), 'number of images must be at least 1, not 0'),
        (dict(n=1, size=31), 'at least 32 x 32 pixels, not 31 x 31'),
        (dict(n=1, size=(64, 8)), 'at least 32 x 32 pixels, not 64 x 8'),
        (dict(n=1, seed=-1), 'seed must be at least 0 and below 2'),
    ],
)
@pytest.mark.parametrize('dataset', DATASETS)
def test_bad_arguments_are_rejected(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        dataset(**arguments)


@pytest.mark.parametrize('dataset', DATASETS)
def test_pycocotools_reads_the_ground_truth(dataset):
    images = dataset(5, size=64)
    coco = COCO()
    coco.dataset = images.ground_truth()
    coco.createIndex()
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(images.class_names)
    assert [coco.imgs[i]['file_name'] for i in images.image_ids] == [images.image_name(i) for i in range(5)]
    for i, image_id in enumerate(images.image_ids):
        annotations, example = coco.loadAnns(coco.getAnnIds(image_id)), images[i]
        assert [a['category_id'] - 1 for a in annotations] == example.annotations.labels.tolist()
        for a, mask, box in zip(annotations, decode_masks(example), example.annotations.boxes, strict=True):
            np.testing.assert_array_equal(coco.annToMask(a), mask)
            assert a['area'] == mask.sum() and a['iscrowd'] == 0
            x, y, w, h = a['bbox']
            assert [y, x, y + h - 1, x + w - 1] == box.tolist()


def test_image_names_contain_dataset_index_and_seed():
    assert RichShapesDataset(1).image_name(0) == 'rich shapes image 0 of seed 0'
    assert ShapesDataset(2, seed=7).image_name(1) == 'shapes image 1 of seed 7'
