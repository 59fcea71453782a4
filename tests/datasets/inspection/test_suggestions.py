"""Suggested settings, against the rules in numbers."""

import dataclasses
import shlex

import numpy as np
import pytest

from mask_rcnn.config import EXTRACTORS, PRESETS
from mask_rcnn.datasets.inspection.statistics import Statistics
from mask_rcnn.datasets.inspection.statistics_report import format_settings
from mask_rcnn.datasets.inspection.suggestions import Machine, suggest_settings
from tests.support.contracts import parser_of

GPU, CPU = Machine(80 << 30, has_gpu=True), Machine(32 << 30, has_gpu=False)


def make(sizes, *, image=(480, 640), n_images=100):
    """Statistics of equal images; each has square objects of the given sizes."""
    sides = np.tile(np.asarray(sizes, float), n_images)
    return Statistics(
        ('a',),
        np.tile(image, (n_images, 1)),
        np.zeros(len(sides), np.int32),
        np.repeat(np.arange(n_images), len(sizes)),
        np.stack([sides, sides], axis=1),
    )


def suggest(statistics, extractor='resnet50_fpn', machine=GPU):
    return suggest_settings(statistics, extractor=extractor, machine=machine)


def small_size(statistics, settings):
    """10th percentile of the sizes in the network input, by Detectron's rule of the two sides."""
    height, width = statistics.image_sizes[0]
    scale = min(settings.min_size / min(height, width), settings.max_size / max(height, width))
    return np.percentile(np.sqrt(statistics.box_sizes.prod(axis=1)) * scale, 10)


def test_images_with_large_objects_keep_their_size():
    settings = suggest(make([100, 200]))
    assert (settings.min_size, settings.max_size) == (480, 640)


def test_large_photos_are_reduced_as_in_detectron():
    settings = suggest(make([500, 900], image=(3000, 4000)))
    assert (settings.min_size, settings.max_size) == (800, 1088)  # the aspect ratio needs 1067


@pytest.mark.parametrize(('size', 'side'), [(20, 768), (32, 768), (40, 640), (48, 512), (64, 384), (100, 320)])
def test_images_with_large_objects_are_reduced_on_a_cpu(size, side):
    """768 * 32 / size rounded up to a multiple of 32, at least 320; images are not upscaled for it."""
    assert suggest(make([size], image=(768, 1024)), machine=CPU).min_size == side
    assert suggest(make([size], image=(256, 256)), machine=CPU).min_size == 256


@pytest.mark.parametrize('size', [6, 8, 12, 15])
def test_small_objects_are_enlarged(size):
    """From 480: 16 / size times as large, rounded up to a multiple of 32."""
    statistics = make([size] * 9 + [100], image=(240, 320))
    settings = suggest(statistics)
    assert 16 <= small_size(statistics, settings) < 16 + 32 * size / 240
    assert settings.min_size % 32 == 0
    assert f'{small_size(statistics, settings):.0f} pixels' in settings.reasons['min_size']


def test_enlargement_has_limits():
    """Four times the image, and 1333 pixels; the reason states that objects stay small."""
    settings = suggest(make([2], image=(256, 256)))
    assert settings.min_size == 1024 and 'less than 16' in settings.reasons['min_size']
    settings = suggest(make([2], image=(1000, 2000)))
    assert settings.max_size == 1333 and 'less than 16' in settings.reasons['min_size']


def test_memory_limits_the_size():
    statistics = make([10, 100], image=(1000, 1333))
    small, large = (suggest(statistics, machine=Machine(n << 30, has_gpu=True)) for n in (4, 80))
    assert small.min_size < large.min_size
    assert small.subdivisions == small.batch_size
    assert 'the memory' in small.reasons['min_size']


@pytest.mark.parametrize('extractor', EXTRACTORS)
def test_five_geometric_anchors(extractor):
    rng = np.random.RandomState(0)
    statistics = make(np.exp(rng.uniform(np.log(20), np.log(400), 200)))
    settings = suggest(statistics, extractor)
    anchors = np.array(settings.anchor_sizes)
    PRESETS[extractor].replace(anchor_sizes=settings.anchor_sizes)  # the network accepts them
    ratios = anchors[1:] / anchors[:-1]
    assert len(anchors) == 5 and ratios.max() / ratios.min() < 1.05  # whole pixels
    sizes = statistics.object_sizes * settings.min_size / 480
    assert anchors[0] == pytest.approx(np.percentile(sizes, 5), abs=0.5)
    assert anchors[-1] == pytest.approx(np.percentile(sizes, 95), abs=0.5)


def test_anchors_of_a_pyramid_are_twice_their_stride():
    """Otherwise objects would be between the anchors of the coarse levels."""
    settings = suggest(make([20, 24, 30], image=(480, 480)))
    assert all(size >= 2 * stride for size, stride in zip(settings.anchor_sizes, (4, 8, 16, 32, 64), strict=True))
    equal = suggest(make([100], image=(480, 480)), 'resnet50').anchor_sizes
    assert equal == (50, 71, 100, 141, 200)  # a range of four around objects of one size


def test_rois_follow_the_crowdedness():
    assert [suggest(make([50] * n)).rois_per_image for n in (1, 8, 9, 16, 17, 300)] == [128, 128, 256, 256, 512, 512]


@pytest.mark.parametrize(
    ('n_objects', 'limit'), [(1, 100), (100, 100), (101, 300), (300, 300), (301, 1000), (2000, 1000)]
)
def test_crowds_need_more_detections(n_objects, limit):
    settings = suggest(make([20] * n_objects, n_images=2))
    assert settings.max_detections == limit
    assert settings.network_fields == ({} if limit == 100 else {'max_detections': limit})
    assert ('--set max_detections' in format_settings(settings)) == (limit > 100)


@pytest.mark.parametrize('machine', [GPU, CPU, Machine(6 << 30, has_gpu=True), Machine(4 << 30, has_gpu=False)])
@pytest.mark.parametrize('extractor', EXTRACTORS)
@pytest.mark.parametrize('n_images', [1, 60, 3000])
def test_no_choice_diverges(machine, extractor, n_images):
    """0.01 for four images without a warm-up diverged; Detectron's rate is 0.00125 for each image."""
    statistics = make([50], n_images=n_images)
    settings = suggest(statistics, extractor, machine)
    assert settings.lr == pytest.approx(0.02 * settings.batch_size / 16)
    assert settings.warmup >= min(500, settings.iterations // 4) > 100
    assert settings.clip_gradient == 10
    assert settings.batch_size <= n_images and settings.batch_size % settings.subdivisions == 0
    assert settings.warmup < settings.steps[0] < settings.steps[1] < settings.iterations
    assert settings.steps[0] / settings.iterations == pytest.approx(2 / 3, abs=0.01)
    assert settings.steps[1] / settings.iterations == pytest.approx(8 / 9, abs=0.01)
    assert 10 <= settings.iterations / settings.validation_interval <= 20
    assert settings.iterations % settings.validation_interval == 0


def test_length_follows_the_number_of_images():
    """12 epochs of 20,000 images; at most 100 epochs; within the limits of the device."""

    def n_iterations(n_images, machine):
        return suggest(make([100], n_images=n_images), machine=machine).iterations

    assert n_iterations(20000, GPU) == pytest.approx(12 * 20000 / 8, rel=0.01)
    assert n_iterations(200, GPU) == pytest.approx(100 * 200 / 8, rel=0.05)
    assert n_iterations(10, GPU) == pytest.approx(1000, rel=0.06)
    assert n_iterations(500000, GPU) == pytest.approx(90000, rel=0.01)
    assert n_iterations(10, CPU) == pytest.approx(500, rel=0.11)
    assert n_iterations(10**5, CPU) == pytest.approx(5000, rel=0.02)


def test_batch():
    assert suggest(make([100])).batch_size == 8
    assert suggest(make([100], image=(300, 400)), machine=CPU).batch_size == 4
    assert suggest(make([60], image=(2000, 2000)), machine=CPU).batch_size == 3  # 800 x 800 pixels
    assert suggest(make([100], n_images=3)).batch_size == 3


def test_train_accepts_the_options():
    """Every option exists; the rate of the warm-up is a tenth of the rate."""
    settings = suggest(make([20, 100]))
    words = [word for line in format_settings(settings).splitlines() for word in shlex.split(line.split('  ')[1])]
    args = parser_of('train').parse_args(words)
    for name, value in settings.train_options.items():
        found = getattr(args, name)
        assert (tuple(found) if isinstance(found, list) else found) == pytest.approx(value), name
    assert args.lr * 10 == pytest.approx(settings.lr)


def test_every_reason_is_given():
    settings = suggest(make([20, 100]))
    assert {field.name for field in dataclasses.fields(settings)} - set(settings.reasons) == {'max_size', 'reasons'}


def test_an_unknown_extractor():
    with pytest.raises(ValueError, match='extractor must be one of'):
        suggest(make([20]), 'vgg')
