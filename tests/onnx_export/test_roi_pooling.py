"""RoI pooling of ONNX graphs in ONNX Runtime, compared with the CPU implementation."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DENA, DETECTRON, DETECTRON2, DIALECTS, MATTERPORT, PRESETS, TORCHVISION
from mask_rcnn.models.roi_pooling import RoIPooling
from mask_rcnn.onnx_export.roi_pooling import assign_levels, pool_rois, run_in_chunks
from tests.support.onnx_graphs import run_graph

FPN, C4 = PRESETS['resnet50_fpn'], PRESETS['resnet50']

#: Height and width of the network input.
SIZE = 128, 192


def random_features(strides, channels=3):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, channels, SIZE[0] // s, SIZE[1] // s)).astype(np.float32) for s in strides]


def random_rois(count=60):
    """Boxes of all sizes; some are partly or completely outside of the input, some are empty."""
    rng = np.random.default_rng(1)
    centres, sides = rng.uniform(0, 1, (count, 2)) * SIZE, np.exp(rng.uniform(-1, 5.5, (count, 2)))
    rois = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    rois[:4] = [0, 0, SIZE[0] - 1, SIZE[1] - 1], [20, 30, 20, 30], [-40, -40, -20, -20], [140, 200, 160, 230]
    return rois.astype(np.float32)


def compare(config, strides, size, rois, **options):
    features = random_features(strides)
    pooling = RoIPooling(strides, size, config=config, **options)
    expected = pooling(features, rois, np.zeros(len(rois), np.int32)).array
    (found,) = run_graph(lambda graph, rois, *maps: pool_rois(maps, rois, pooling), rois, *features)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)
    return expected


CONFIGS = {
    'RoIAlign': FPN,
    'adaptive RoIAlign': FPN.replace(sampling_ratio=0),
    'RoI max pooling': FPN.replace(roi_align=False),
    'torchvision': FPN.replace(dialect=TORCHVISION),
    'detectron2': FPN.replace(dialect=DETECTRON2, sampling_ratio=0),
    'Matterport': FPN.replace(dialect=MATTERPORT, max_size=1024),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_pooling_from_a_pyramid(name):
    pooled = compare(CONFIGS[name], (4, 8, 16, 32, 64), 7, random_rois())
    assert np.count_nonzero(np.abs(pooled).max(axis=(1, 2, 3))) > 40


@pytest.mark.parametrize('config', [C4, C4.replace(roi_align=False), C4.replace(dialect=DENA, sampling_ratio=2)])
@pytest.mark.parametrize('options', [{}, {'bin_step': 2}])
def test_pooling_from_one_map(config, options):
    compare(config, (16,), 14, random_rois(), **options)


@pytest.mark.parametrize('name', ['RoIAlign', 'Matterport'])
def test_pooling_of_rois_of_one_level_and_of_none(name):
    for rois in (random_rois()[:1], random_rois()[:0]):
        compare(CONFIGS[name], (4, 8, 16, 32), 7, rois)


def test_pooling_to_a_single_bin():
    compare(CONFIGS['Matterport'], (4, 8, 16, 32), 1, random_rois())


@pytest.mark.parametrize('dialect', [DETECTRON, MATTERPORT, TORCHVISION, DETECTRON2], ids=lambda dialect: dialect.name)
def test_levels(dialect):
    """Also of RoIs whose size is that of the change of a level, or the next float."""
    pooling = RoIPooling((4, 8, 16, 32), 7, config=FPN.replace(dialect=dialect, max_size=1344))
    features = [np.zeros((1, 1, 200, 272), np.float32)]
    sides = np.float32([28, 56, 112, 224, 448, 79.195959, 158.39192, 316.78384, 0, -5, 1e-3, 900])
    sides = np.concatenate([sides, np.nextafter(sides, np.float32(0)), np.nextafter(sides, np.float32(1000))])
    rois = np.zeros((len(sides) ** 2, 4), np.float32)
    rois[:, 2:] = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2) - np.float32(dialect.boxes.offset)
    with np.errstate(invalid='ignore'):
        expected = pooling.levels(features, rois)
    (found,) = run_graph(lambda graph, rois, finest: assign_levels(finest, rois, pooling), rois, *features)
    assert set(expected) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('count', [0, 1, 7, 8, 9, 30])
def test_chunks(count):
    """Each row passes through the head once, and no chunk has more than eight rows."""
    rows, labels = np.arange(4 * count, dtype=np.float32).reshape(count, 4), np.arange(count)

    def head(rois, labels):
        n_rows = rois.like(1) * rois.size(0).cast(np.float32)
        return [rois * 2 + n_rows * 0, labels + 1, labels * 0 + rois.size(0)]

    outputs = run_graph(lambda graph, rows, labels: run_in_chunks(head, 8, rows, labels), rows, labels)
    np.testing.assert_array_equal(outputs[0], rows * 2)
    np.testing.assert_array_equal(outputs[1], labels + 1)
    assert outputs[2].shape == (count,) and (outputs[2] <= 8).all()


def test_all_dialects_are_covered():
    ops = {(dialect.rois.op, dialect.rois.aligned, dialect.rois.level_rounding) for dialect in DIALECTS.values()}
    covered = {config.dialect.rois for config in CONFIGS.values()}
    assert ops == {(rois.op, rois.aligned, rois.level_rounding) for rois in covered}
