"""The network inputs of torchvision and detectron2: sizes, factors of boxes, pixels, and the original outputs."""

import zlib

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.config import DETECTRON2, PRESETS, TORCHVISION
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.preprocessing.image_io import load_image
from mask_rcnn.preprocessing.image_transform import input_scale, input_transform, prepare_image
from mask_rcnn.preprocessing.resize import resize_torch
from mask_rcnn.preprocessing.resize_pillow import resize_pillow

DIALECTS = {dialect.name: dialect for dialect in (TORCHVISION, DETECTRON2)}
CONFIGS = {name: PRESETS['resnet50_fpn'].replace(dialect=dialect) for name, dialect in DIALECTS.items()}
SMALL_CONFIGS = {name: config.replace(min_size=40, max_size=61) for name, config in CONFIGS.items()}
#: Sizes of which a product with one factor rounds a half differently from detectron2's products.
HALVES = [(3, 62), (6, 124), (7, 2666), (11, 22), (2976, 1104), (2994, 1497)]


@pytest.fixture(params=DIALECTS)
def name(request):
    return request.param


@pytest.fixture
def load_golden(golden):
    """A function from a program and the name of a file to its arrays."""

    def load(program, file):
        if not (golden / program).is_dir():
            pytest.skip(f'no outputs of {program} in {golden}')
        return np.load(golden / program / file)

    return load


def shortest_edge(height, width, size, max_size):
    """Return detectron2's height and width, by its steps."""
    scale = size / min(height, width)
    new_height, new_width = (size, scale * width) if height < width else (scale * height, size)
    if max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


# Sizes and boxes


@pytest.mark.parametrize(
    ('size', 'torchvision', 'detectron2'),
    [
        ((480, 640), (800, 1066), (800, 1067)),
        ((640, 480), (1066, 800), (1067, 800)),
        ((600, 1116), (716, 1333), (717, 1333)),
        ((800, 800), (800, 800), (800, 800)),
        ((539, 539), (799, 799), (800, 800)),  # 539 * (800 / 539) is just below 800
        ((1, 5000), (1, 1333), (1, 1333)),
        ((1, 1), (800, 800), (800, 800)),
    ],
)
def test_sizes(size, torchvision, detectron2):
    for name, expected in (('torchvision', torchvision), ('detectron2', detectron2)):
        transform = input_transform(size, CONFIGS[name])
        assert transform.resized == transform.input_size == expected
        assert transform.window == (0, 0, expected[0] - 1, expected[1] - 1)
        assert transform.scale == input_scale(size, CONFIGS[name])


def test_sizes_of_detectron2_follow_its_steps(rng):
    sizes = [*HALVES, *rng.randint(1, 3000, (2000, 2)).tolist()]
    for size in sizes:
        assert input_transform(tuple(size), CONFIGS['detectron2']).resized == shortest_edge(*size, 800, 1333), size
    products = [int(side * input_scale(size, CONFIGS['detectron2']) + 0.5) for size in HALVES for side in size]
    assert products != [side for size in HALVES for side in shortest_edge(*size, 800, 1333)]


def test_sizes_of_the_program(load_golden, name):
    arrays = load_golden(name, f'ops_{name}.npz')
    resized = [input_transform(tuple(size), CONFIGS[name]).resized for size in arrays['size_in'].tolist()]
    np.testing.assert_array_equal(resized, arrays['size_out'])


def test_boxes_have_a_factor_for_each_axis(name):
    """The box of the image becomes the box of the resized image."""
    for size in ((600, 1116), (37, 41), (1, 900)):
        transform = input_transform(size, CONFIGS[name])
        assert transform.factors == (transform.resized[0] / size[0], transform.resized[1] / size[1])
        boxes = np.array([[0, 0, *size], [3, 4, 5, 6]], np.float32)
        mapped = transform.apply_boxes(boxes)
        np.testing.assert_allclose(mapped[0], [0, 0, *transform.resized], rtol=1e-6)
        for reciprocal in (False, True):
            np.testing.assert_allclose(transform.invert_boxes(mapped, reciprocal=reciprocal), boxes, rtol=1e-5)


def test_a_given_scale_is_rounded_by_the_dialect(rng):
    image = rng.randint(0, 256, (11, 15, 3)).astype(np.uint8)
    for name, expected in (('torchvision', (16, 22)), ('detectron2', (17, 23))):
        x, transform = prepare_image(image, CONFIGS[name], scale=1.5)  # 16.5 x 22.5
        assert (transform.resized, transform.scale, x.shape) == (expected, 1.5, (3, 32, 32))


# Pixels


def float64_resize(image, size):
    """Resize ``(C, H, W)`` bilinearly with repeated borders, as two matrix products in float64."""

    def matrix(n_out, n_in):
        positions = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        return np.maximum(1 - np.abs(positions[:, None] - np.arange(n_in)), 0)

    return matrix(size[0], image.shape[1]) @ image.astype(np.float64) @ matrix(size[1], image.shape[2]).T


@pytest.mark.parametrize('normalize_first', [True, False])
@pytest.mark.parametrize('size', [(20, 61), (90, 31), (37, 53), (1, 1), (111, 159), (5, 300)])
def test_resize_torch_agrees_with_matrix_products(rng, size, normalize_first):
    pixels = rng.randint(0, 256, (37, 53, 3)).astype(np.uint8)
    mean, std = (100.5, 110.25, 120.1), (50.3, 1.0, 57.1)
    expected = float64_resize(pixels.transpose(2, 0, 1), size) - np.reshape(mean, (3, 1, 1))
    for image in (pixels.transpose(2, 0, 1), pixels.transpose(2, 0, 1).astype(np.float32)):
        out = resize_torch(image, size, mean, std, normalize_first=normalize_first)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out * np.reshape(std, (3, 1, 1)), expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (9, 1)])
def test_resize_torch_accepts_tiny_images(shape):
    out = resize_torch(np.full((3, *shape), 7, np.float32), (27, 21), (1, 2, 3), (1, 1, 2))
    assert out.shape == (3, 27, 21)
    np.testing.assert_allclose(out, np.broadcast_to(np.reshape([6, 5, 2], (3, 1, 1)), out.shape), rtol=2e-7)


def test_an_image_that_is_not_resized_is_only_normalised(rng):
    """No value is interpolated: the position of each pixel is exact."""
    image = rng.uniform(0, 255, (3, 64, 64)).astype(np.float32)
    x, _ = prepare_image(image, CONFIGS['torchvision'].replace(min_size=64, max_size=64))
    mean, std = (np.float32(v)[:, None, None] for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    np.testing.assert_array_equal(x, (image - mean) / std)


def test_the_network_input_of_torchvision(rng):
    """RGB, normalised before the resize; padded with zeros of the normalised image."""
    pixels = rng.randint(0, 256, (30, 47, 3)).astype(np.uint8)
    x, transform = prepare_image(pixels, SMALL_CONFIGS['torchvision'])
    assert transform.resized == (38, 61) and x.shape == (3, 64, 64)
    resized = float64_resize(pixels.transpose(2, 0, 1), (38, 61)) / 255
    mean, std = (np.reshape(values, (3, 1, 1)) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(x[:, :38, :61], (resized - mean) / std, rtol=0, atol=5e-5)
    assert not x[:, 38:].any() and not x[:, :, 61:].any()


@pytest.mark.parametrize('size', [(30, 47), (150, 90)])
def test_the_network_input_of_detectron2(rng, size):
    """The bytes of Pillow in the order BGR, minus the mean; padded with zeros."""
    pixels = rng.randint(0, 256, (*size, 3)).astype(np.uint8)
    x, transform = prepare_image(pixels, SMALL_CONFIGS['detectron2'])
    height, width = transform.resized
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    expected = resized[:, :, ::-1].astype(np.float32) - np.float32([103.53, 116.28, 123.675])
    np.testing.assert_array_equal(x[:, :height, :width], expected.transpose(2, 0, 1))
    assert not x[:, height:].any() and not x[:, :, width:].any()


def test_detectron2_interpolates_floats_without_antialiasing(rng):
    """Pillow resizes only bytes; detectron2 interpolates other arrays with PyTorch."""
    image = rng.uniform(0, 255, (3, 150, 90)).astype(np.float32)
    x, transform = prepare_image(image, SMALL_CONFIGS['detectron2'].replace(max_size=100))
    expected = float64_resize(image[::-1], transform.resized) - np.reshape((103.53, 116.28, 123.675), (3, 1, 1))
    height, width = transform.resized
    np.testing.assert_allclose(x[:, :height, :width], expected, rtol=0, atol=3e-3)


def test_arrays_of_integers_are_bytes(rng, name):
    pixels = rng.randint(0, 256, (70, 51, 3)).astype(np.uint8)
    expected, transform = prepare_image(pixels, SMALL_CONFIGS[name])
    x, found = prepare_image(pixels.transpose(2, 0, 1).astype(np.float32), SMALL_CONFIGS[name])
    np.testing.assert_array_equal(x, expected)
    assert found == transform


# The programs' own inputs


@pytest.mark.parametrize('index', range(3))
def test_batches_of_torchvision(load_golden, index):
    arrays = load_golden('torchvision', 'ops_torchvision.npz')
    min_size, max_size = arrays[f'resize{index}_limits'].tolist()
    config = CONFIGS['torchvision'].replace(min_size=min_size, max_size=max_size)
    x, transform = prepare_image(arrays[f'resize{index}_image'], config)
    assert transform.resized == tuple(arrays[f'resize{index}_size'])
    np.testing.assert_allclose(x[None], arrays[f'resize{index}_batch'], rtol=0, atol=2e-6)


@pytest.mark.parametrize('index', range(4))
def test_bytes_of_detectron2(load_golden, index):
    arrays = load_golden('detectron2', 'ops_detectron2.npz')
    expected, pixels = arrays[f'resize{index}_out'], arrays[f'resize{index}_image']
    min_size, max_size = arrays[f'resize{index}_limits'].tolist()
    config = CONFIGS['detectron2'].replace(min_size=min_size, max_size=max_size)
    resized = input_transform(pixels.shape[:2], config).resized
    np.testing.assert_array_equal(resize_pillow(pixels, resized), expected)


@pytest.fixture(scope='module')
def photo(golden):
    """The photo of the original outputs, decoded."""
    return load_image(golden / 'photos' / '17790319373_bd19b24cfc_k.jpg')


@pytest.mark.parametrize('case', ['maskrcnn_resnet50_fpn_seed0', 'keypointrcnn_resnet50_fpn_seed0'])
def test_network_input_agrees_with_torchvision(load_golden, photo, case):
    arrays = load_golden('torchvision', f'case_{case}.npz')
    x, transform = prepare_image(photo, CONFIGS['torchvision'])
    assert x[None].shape == tuple(arrays['input_shape']) and transform.resized == tuple(arrays['input_size'])
    found = x.reshape(-1)[arrays['blob/input/index']]
    np.testing.assert_allclose(found, arrays['blob/input/value'], rtol=0, atol=2e-6)


@pytest.mark.parametrize('case', ['mask_rcnn_R_50_FPN_3x_seed0', 'mask_rcnn_R_50_C4_3x_seed0'])
def test_network_input_has_the_bits_of_detectron2(load_golden, photo, case):
    arrays = load_golden('detectron2', f'case_{case}.npz')
    preset = PRESETS['resnet50' if 'C4' in case else 'resnet50_fpn']
    x, transform = prepare_image(photo, preset.replace(dialect=DETECTRON2))
    bgr = np.ascontiguousarray(resize_pillow(photo, transform.resized)[:, :, ::-1])
    assert zlib.crc32(bgr.tobytes()) == int(arrays['resized_crc32'])
    assert zlib.crc32(x.tobytes()) == int(arrays['input_crc32'])


# Training


def make_example(rng, size):
    boxes = np.float32([[2, 3, 9, 12]])
    annotations = Annotations(
        boxes=boxes,
        labels=np.zeros(1, np.int32),
        segmentations=((np.array([3, 2, 12, 2, 12, 9, 3, 9], np.float64),),),
        crowd=np.zeros(1, bool),
    )
    image = rng.randint(0, 256, (3, *size)).astype(np.float32)
    return Example(image=image, annotations=annotations, name='a.jpg', image_id=1)


def test_training_has_the_sizes_of_inference(rng):
    """Also where a product with one factor would round a half differently."""
    config = CONFIGS['detectron2'].replace(min_size=800, max_size=1333)
    example = make_example(rng, (11, 22))
    for augmentation in (Augmentation(flip=False), Augmentation(flip=False, quarter_turns=True)):
        sizes = {TrainingTransform(config, augmentation)(example, seed).image_transform.resized for seed in range(4)}
        assert sizes <= {(666, 1333), (1333, 666)}


def test_training_examples_have_the_network_input_of_the_image(rng, name):
    example = make_example(rng, (30, 47))
    trained = TrainingTransform(SMALL_CONFIGS[name], Augmentation(flip=False))(example, 0)
    x, transform = prepare_image(example.image, SMALL_CONFIGS[name])
    np.testing.assert_array_equal(trained.x, x)
    assert trained.image_transform == transform


def test_changed_colours_are_bytes_again(rng):
    """The images of detectron2 are antialiased in training as in inference."""
    example = make_example(rng, (150, 90))
    augmentation = Augmentation(flip=False, color_jitter=0.4)
    config = SMALL_CONFIGS['detectron2']
    trained = TrainingTransform(config, augmentation)(example, 0)
    height, width = trained.image_transform.resized
    values = trained.x[:, :height, :width] + np.float32(config.dialect.input.pixel_mean)[:, None, None]
    np.testing.assert_allclose(values, np.rint(values), rtol=0, atol=2e-5)
