"""The network input of ONNX graphs against that of the library, to the bit."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DETECTRON, DETECTRON2, DIALECTS, MATTERPORT, TORCHVISION, Config
from mask_rcnn.onnx_export import resize
from mask_rcnn.onnx_export.network_input import input_transform, prepare_image
from mask_rcnn.preprocessing import image_transform
from tests.support.onnx_graphs import build, run_graph, session
from tests.support.pillow_passes import resize_axes

VARIANTS = {
    **DIALECTS,
    'torchvision, mean after the resize': TORCHVISION.replace(input={'subtract_mean_first': False}),
    'detectron, letterbox': DETECTRON.replace(input={'letterbox': True, 'upscale_only': True}),
    'matterport, no letterbox': MATTERPORT.replace(input={'letterbox': False, 'channel_order': 'BGR'}),
    'detectron2, side ratios of BGR and deviations': DETECTRON2.replace(input={'pixel_std': (57.375, 57.12, 58.395)}),
}
each_dialect = pytest.mark.parametrize('dialect', VARIANTS.values(), ids=VARIANTS)


def run(model_session, array):
    return model_session.run(None, {'input0': array})


@each_dialect
def test_inputs_have_the_bits_of_the_library(rng, dialect):
    """Images that are upscaled and downscaled, limited by either side, and single pixels; also dark or bright ones."""
    config = Config(extractor='resnet50_fpn', dialect=dialect, min_size=64, max_size=128)
    pixels = np.zeros((1, 1, 3), np.uint8)
    model_session = session(build(lambda graph, image: prepare_image(graph, image, config)[0], pixels))
    sizes = [(1, 1), (1, 50), (50, 1), (64, 64), (64, 128), (33, 47), (47, 33), (201, 333), (333, 90), (130, 129)]
    for height, width in sizes:
        low, high = [(0, 256), (90, 200)][rng.randint(2)]
        pixels = rng.randint(low, high, (height, width, 3)).astype(np.uint8)
        expected, _ = image_transform.prepare_image(pixels, config)
        (found,) = run(model_session, pixels)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[None], f'{height} x {width}')


@pytest.mark.parametrize('limits', [(800, 1344), (600, 1024)])
@pytest.mark.parametrize('extractor', ['resnet50', 'resnet50_fpn'])
@each_dialect
def test_transforms_are_those_of_the_library(rng, dialect, extractor, limits):
    """Sizes whose scaled sides are near halves of pixels and the limit."""
    config = Config(extractor=extractor, dialect=dialect, min_size=limits[0], max_size=limits[1])

    def outputs(graph, size):
        transform = input_transform(graph, size, config)
        return [transform.scale, transform.factors, transform.origin, transform.resized, transform.padded]

    model_session = session(build(outputs, np.zeros(2, np.int64)))
    special = [(1, 1), (1, 30000), (30000, 1), limits, (600, 1000), (600, 1008), (2 * limits[0], 2 * limits[1] + 1)]
    near = np.array(limits) + rng.randint(-20, 20, (60, 2))
    for size in [*special, *near, *near[:, ::-1] * 2 + 1, *rng.randint(1, 3000, (60, 2))]:
        expected = image_transform.input_transform(tuple(map(int, size)), config)
        scale, factors, origin, resized, padded = run(model_session, np.array(size))
        assert scale == expected.scale
        assert tuple(factors) == expected.factors and tuple(origin) == expected.window[:2]
        assert tuple(resized) == expected.resized
        sides = np.array(expected.input_size)
        assert tuple(padded) == tuple(sides + -sides % config.size_divisor)


def test_bytes_are_those_of_pillow(rng):
    """Equal sides and extreme ratios."""
    pixels = np.zeros((1, 1, 3), np.uint8)
    model_session = session(build(resize_pillow, pixels, np.zeros(2, np.int64)))
    sizes = [((1, 1), (40, 7)), ((2, 300), (1, 3)), ((64, 48), (64, 31)), ((64, 48), (97, 48)), ((64, 48), (64, 48))]
    for size_in, size_out in [*sizes, *(tuple(map(tuple, rng.randint(2, 200, (2, 2)))) for _ in range(40))]:
        pixels = rng.randint(0, 256, (*size_in, 3)).astype(np.uint8)
        pixels[rng.uniform(size=size_in) < 0.2] = 255
        (found,) = model_session.run(None, {'input0': pixels, 'input1': np.array(size_out)})
        expected = resize_axes(pixels, tuple(map(int, size_out)))
        np.testing.assert_array_equal(found, expected, f'{size_in} {size_out}')


def resize_pillow(graph, image, size):
    return resize.resize_pillow(image, size)


def test_nodes_have_the_scope_of_the_input():
    pixels = np.zeros((4, 4, 3), np.uint8)
    graph = build(lambda graph, image: prepare_image(graph, image, Config())[0], pixels).graph
    assert all(node.name.startswith(('network_input/', 'output/')) for node in graph.node)


def test_a_black_image_is_minus_the_mean_before_the_padding():
    config = Config(extractor='resnet50_fpn', min_size=40, max_size=60)

    def network_input(graph, image):
        return prepare_image(graph, image, config)[0]

    (x,) = run_graph(network_input, np.zeros((20, 25, 3), np.uint8))
    assert x.shape == (1, 3, 64, 64)
    means = np.array(DETECTRON.input.pixel_mean, np.float32)[:, None, None]
    np.testing.assert_allclose(x[0, :, :40, :50], np.broadcast_to(-means, (3, 40, 50)), rtol=1e-6)
    assert not x[0, :, 40:].any() and not x[0, :, :, 50:].any()
