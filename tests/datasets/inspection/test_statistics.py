"""Statistics of a dataset, against numbers counted by hand."""

import json

import numpy as np
import pytest

from mask_rcnn.config import Config
from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.inspection.statistics import (
    Statistics,
    collect_statistics,
    common_image_sizes,
    size_histogram,
    summarize_classes,
)
from mask_rcnn.datasets.inspection.statistics_report import describe_statistics, format_statistics, plot_statistics
from mask_rcnn.datasets.inspection.suggestions import Machine, suggest_settings
from tests.support.small_dataset import annotation, write_dataset


@pytest.fixture
def statistics(tmp_path):
    """Three images: two cats of 10 x 40 and 20 x 20 and a dog; a cat and a crowd; nothing."""
    path = write_dataset(
        tmp_path,
        [(100, 200), (50, 60), (30, 40)],
        [
            annotation(1, 0, (0, 0, 10, 40)),
            annotation(2, 0, (50, 50, 20, 20)),
            annotation(3, 0, (100, 0, 90, 90), 2),
            annotation(4, 1, (1, 2, 9, 4)),
            annotation(5, 1, (10, 10, 20, 20), iscrowd=1),
        ],
        names=('cat', 'dog', 'bird'),
    )
    return collect_statistics(COCODataset(path, tmp_path, log_warnings=False))


def test_numbers(statistics):
    assert statistics.image_sizes.tolist() == [[100, 200], [50, 60]]
    assert statistics.labels.tolist() == [0, 0, 1, 0]
    assert statistics.image_of.tolist() == [0, 0, 0, 1]
    assert statistics.box_sizes.tolist() == [[40, 10], [20, 20], [90, 90], [4, 9]]
    assert statistics.object_sizes.tolist() == [20, 20, 90, 6]
    assert statistics.relative_sizes.tolist() == [0.2, 0.2, 0.9, 0.12]
    assert statistics.objects_per_image.tolist() == [3, 1]
    assert (statistics.n_crowds, statistics.n_without_objects) == (1, 1)
    assert common_image_sizes(statistics, 1) == [((50, 60), 1)]


def test_classes(statistics):
    cat, dog, bird = summarize_classes(statistics)
    assert (cat.name, cat.n_objects, cat.n_images, cat.per_image) == ('cat', 3, 2, (1, 1.5, 1.5, 2))
    assert cat.sizes == pytest.approx((8.8, 20, 20))
    assert (dog.n_objects, dog.per_image, dog.sizes) == (1, (1, 1, 1, 1), (90, 90, 90))
    assert (bird.n_objects, bird.n_images, bird.per_image, bird.sizes) == (0, 0, None, None)


def test_sizes_in_the_network_input(statistics):
    """The first image is limited by its longer side (300 / 200), the second one becomes 200 high."""
    config = Config(min_size=200, max_size=300)
    assert statistics.input_scales(config).tolist() == [1.5, 4]
    assert statistics.input_object_sizes(config).tolist() == [30, 30, 135, 24]


def test_bins_of_sizes():
    assert size_histogram(np.array([1, 3.9, 4, 500, 512, 9999])) == [2, 1, 0, 0, 0, 0, 0, 1, 2]


def test_nothing_to_count():
    empty = np.zeros((0, 2), np.int64)
    with pytest.raises(ValueError, match='at least one image'):
        Statistics(('a',), empty, empty[:, 0], empty[:, 0], empty.astype(float))


@pytest.fixture
def report(statistics):
    settings = suggest_settings(statistics, extractor='resnet50_fpn', machine=Machine(16 << 30, has_gpu=False))
    return settings, Config(min_size=settings.min_size, max_size=settings.max_size)


def test_json(statistics, report):
    described = json.loads(json.dumps(describe_statistics(statistics, *report)))
    assert described['n_objects'] == 4 and described['n_crowds'] == 1 and described['n_without_objects'] == 1
    assert described['objects_per_image'] == {'min': 1, 'median': 2, 'mean': 2, 'max': 3}
    assert described['image_sizes'][0] == {'height': 50, 'width': 60, 'n_images': 1}
    assert described['object_sizes']['original']['n_objects'] == [0, 1, 0, 2, 0, 1, 0, 0, 0]
    assert [row['n_objects'] for row in described['classes']] == [3, 1, 0]
    assert described['settings']['min_size'] == report[0].min_size


def test_text(statistics, report):
    lines = format_statistics(statistics, report[1]).splitlines()
    rows = [line.split() for line in lines]
    assert ['cat', '3', '2', '1', '1.5', '1.5', '2', '9', '20', '20'] in rows
    assert ['bird', '0', '0', *'-------'] in rows
    assert ['100', 'x', '200', '1'] in rows
    assert max(map(len, lines)) < 120


def test_picture(statistics, report, tmp_path):
    plot_statistics(tmp_path / 'stats.png', statistics, report[1], title='a$b_$c')
    assert (tmp_path / 'stats.png').read_bytes().startswith(b'\x89PNG')
