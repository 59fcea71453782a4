"""Batches of images: their order, their memory and the settings around them."""

import itertools
from dataclasses import replace

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.inference import predictor
from mask_rcnn.inference.predictor import Predictor, RawDetections
from mask_rcnn.ops.cudnn_frontend import using_precision


def test_detections_do_not_depend_on_other_images(small_model, image, rng):
    tall = rng.uniform(0, 255, (3, 70, 50)).astype(np.float32)
    together = small_model.detect([image, tall])
    for detections, alone in zip(
        together, (small_model.detect([image])[0], small_model.detect([tall])[0]), strict=True
    ):
        np.testing.assert_array_equal(detections.boxes, alone.boxes)
        np.testing.assert_array_equal(detections.mask_probs, alone.mask_probs)


@pytest.mark.parametrize('name', ['small_model', 'small_fpn_model'])
def test_consecutive_images_of_one_size_form_a_batch(name, rng, request, monkeypatch):
    """A batch has at most ``batch_size`` images; its detections are those of each image alone."""
    model = request.getfixturevalue(name)
    sizes = [(48, 60), (48, 60), (48, 60), (70, 50), (24, 30), (48, 60), (48, 61)]
    images = [rng.uniform(0, 255, (3, *size)).astype(np.float32) for size in sizes]
    alone = [model.detect([image])[0] for image in images]
    input_sizes = [Predictor(model).prepare(image)[0].shape for image in images]
    assert input_sizes[4] == input_sizes[5]  # 24 x 30 is resized to the input size of 48 x 60
    runs = [len(list(group)) for _, group in itertools.groupby(input_sizes)]
    batches, forward = [], model.forward
    monkeypatch.setattr(model, 'forward', lambda x, transforms: batches.append(len(x)) or forward(x, transforms))
    together = model.detect(images, batch_size=2)
    assert batches == [min(2, n - start) for n in runs for start in range(0, n, 2)]
    assert [detections.size for detections in together] == sizes and len(alone[0]) > 0
    for detections, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(detections.labels, expected.labels)
        np.testing.assert_allclose(detections.boxes, expected.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(detections.scores, expected.scores, rtol=0, atol=5e-5)
        np.testing.assert_allclose(detections.mask_probs, expected.mask_probs, rtol=0, atol=5e-5)
    masks, labels, scores = model.predict(images[:3], batch_size=3)
    assert list(map(len, masks)) == list(map(len, labels)) == list(map(len, scores)) == list(map(len, alone[:3]))


def test_detections_do_not_depend_on_the_callers_error_settings(small_model, image, monkeypatch):
    """The exponentials of sharp scores underflow; before, ``np.seterr(all='raise')`` made that an error."""
    score = small_model.box_head.score.W
    monkeypatch.setattr(score, 'array', score.array * 1000)
    (expected,) = small_model.detect([image])
    with np.errstate(all='raise'):
        settings = np.geterr()
        (detections,) = small_model.detect([image])
        detections.draw(np.zeros((*detections.size, 3), np.uint8))
        assert np.geterr() == settings
    np.testing.assert_array_equal(detections.scores, expected.scores)
    np.testing.assert_array_equal(detections.masks, expected.masks)


class BrightnessNetwork(chainer.Chain):
    """A network with one detection per image, whose score is the brightness of the image; it needs no time.

    Args:
        max_batch: Larger batches do not fit in memory.
    """

    config = mask_rcnn.Config(n_fg_class=1, min_size=64, max_size=96, masks=False)
    class_names = category_ids = None

    def __init__(self, max_batch=9):
        super().__init__()
        self.max_batch, self.batches = max_batch, []

    def forward(self, x, transforms):
        assert len(x) == len(transforms)
        self.batches.append(len(x))
        if len(x) > self.max_batch:
            raise MemoryError('no memory')
        boxes, labels = np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int32)
        scores = list(x.mean(axis=(1, 2, 3))[:, None] / 1000)
        return RawDetections([boxes] * len(x), [labels] * len(x), scores, None, None)


def images_of_increasing_brightness(n):
    return [np.full((3, 48, 60), 40 * (i + 1), np.float32) for i in range(n)]


@pytest.mark.parametrize('sizes', [((48, 96), (40, 96)), ((96, 48), (96, 40))], ids=['heights', 'widths'])
def test_a_batch_has_one_height_and_one_width(sizes):
    """The longer side limits the scale, so that the network inputs differ in one side only."""
    network = BrightnessNetwork()
    images = [np.full((3, *size), 100, np.float32) for size in sizes]
    shapes = [Predictor(network).prepare(image)[0].shape for image in images]
    assert sum(map(int.__eq__, *(shape[2:] for shape in shapes))) == 1
    assert [found.size for found in Predictor(network).detect(images, batch_size=2)] == list(sizes)
    assert network.batches == [1, 1]


def test_batches_are_halved_until_they_fit_in_memory():
    """Every image runs once, after its batch was tried, and the detections are in the order of the images."""
    images = images_of_increasing_brightness(4)
    expected = [found.scores for found in Predictor(BrightnessNetwork()).detect(images)]
    assert (np.diff(expected, axis=0) > 0).all()
    network = BrightnessNetwork(max_batch=1)
    found = Predictor(network).detect(images, batch_size=3)
    np.testing.assert_array_equal([detections.scores for detections in found], expected)
    assert network.batches.count(1) == 4 and max(network.batches) == 3
    with pytest.raises(MemoryError, match='no memory'):
        Predictor(BrightnessNetwork(max_batch=0)).detect(images[:1])


def test_a_batch_is_halved_if_a_library_of_cuda_lacks_memory(monkeypatch):
    """CuPy's allocator raises ``MemoryError``, the libraries of CUDA raise others."""

    def forward(network, x, transforms):
        network.batches.append(len(x))
        if len(x) > 1:
            raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')
        return whole(network, x, transforms)

    whole = BrightnessNetwork.forward
    monkeypatch.setattr(BrightnessNetwork, 'forward', forward)
    network, images = BrightnessNetwork(), images_of_increasing_brightness(3)
    assert len(Predictor(network).detect(images, batch_size=3)) == 3
    assert network.batches[0] == 3 and network.batches.count(1) == 6  # each one is recorded twice


def test_images_are_read_when_they_are_needed():
    """The default on the CPU is one image at a time: its detections do not wait for the next image."""
    predictor, (image,) = Predictor(BrightnessNetwork()), images_of_increasing_brightness(1)
    for batch_size, expected in ((None, [1, 2, 3, 4, 5]), (2, [2, 2, 4, 4, 5]), (9, [5] * 5)):
        given = []
        detections = predictor.iter_detections((given.append(i) or image for i in range(5)), batch_size=batch_size)
        assert given == [] and [len(given) for _ in detections] == expected
    assert predictor.detect([]) == []


def test_the_callers_settings_hold_between_detections(small_model, image):
    for _ in small_model.iter_detections([image, image]):
        assert chainer.config.train and chainer.config.enable_backprop


def test_batch_size_must_be_positive(small_model, image):
    for method in (small_model.detect, small_model.iter_detections, small_model.predict):
        with pytest.raises(ValueError, match='batch_size must be at least 1, not 0'):
            method([image], batch_size=0)


def test_graphs_are_selected_by_transforms_and_settings(small_model, image, rng, monkeypatch):
    keys = []
    monkeypatch.setattr(
        predictor, 'run_as_graph', lambda function, x, key, owner: keys.append((owner, key)) or function(x)
    )
    zeros = (np.zeros((2, 4), 'f'), np.zeros(2, 'i'), np.zeros(2, 'f'))
    monkeypatch.setattr(
        small_model,
        'forward',
        lambda x, transforms: RawDetections(*([array] * len(transforms) for array in zeros), None, None),
    )

    def compute(image, n=1):
        x, transform = Predictor(small_model).prepare(image)
        packed = Predictor(small_model)._compute_packed(np.concatenate([x] * n), [transform] * n)
        assert packed.rows.shape == (n, 2 * (4 + 1 + 1))

    compute(image)
    compute(rng.uniform(0, 255, image.shape).astype('f'))
    assert len(set(keys)) == 1
    compute(image, 8)
    compute(image[:, ::2, ::2])  # the same size of the input, another transform
    with using_precision('fp16'):
        compute(image)
    monkeypatch.setattr(small_model.box_head, 'config', replace(small_model.config, nms_threshold=0.3))
    compute(image)
    assert len(keys) == 6 and len(set(keys)) == 5
    compute(image, 9)
    assert len(keys) == 6
