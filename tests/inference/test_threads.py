"""One network in several threads."""

import copy
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import chainer
import numpy as np
import pytest

from mask_rcnn.config import DENA, MATTERPORT, MINDSPORE, PRESETS
from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models import MaskRCNN
from mask_rcnn.models.rpn import RPN
from mask_rcnn.ops.runtime.cache import LastValue
from tests.support.models import VERY_NARROW, small_model
from tests.support.small_resnet import use_narrow_resnet

N_THREADS = 8


@pytest.fixture
def frequent_switches():
    """Switch between threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_in_threads(function, n=N_THREADS):
    """Return ``function(i)`` of each of ``n`` threads, which start together."""
    start = threading.Barrier(n, timeout=300)

    def run(i):
        start.wait()
        return function(i)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


def test_anchors_of_changing_sizes(frequent_switches):
    """Before, a thread could evict the anchors of another one between their computation and their use."""
    rpn = RPN(2, strides=(4, 8, 16, 32, 64), config=PRESETS['resnet50_fpn'].replace(rpn_channels=2))
    sizes = [[(2 + i, 3), (1, 2), (1, 1), (1, 1), (1, 1)] for i in range(3)]
    expected = [[level.copy() for level in rpn.anchors(size, (64, 64))] for size in sizes]

    def call(thread):
        for i in range(800):
            k = (i + thread) % len(sizes)
            found = rpn.anchors(sizes[k], (64, 64))
            assert len(rpn.host_anchors(sizes[k], (64, 64))) == sum(map(len, found))
            if i % 50 == 0:
                assert all(map(np.array_equal, found, expected[k]))

    run_in_threads(call)


def test_threads_do_not_evict_the_values_of_each_other():
    """The capture of a CUDA graph fails if another thread makes it compute, and so upload, a value again."""
    value, computed = LastValue(), []

    def get(key):
        return value.get(key, lambda: computed.append(key) or key)

    with ThreadPoolExecutor(1) as other:
        for _ in range(3):
            assert (get('a'), other.submit(get, 'b').result()) == ('a', 'b')
    assert computed == ['a', 'b']
    assert get('c') == 'c' and computed[2:] == ['c']
    for empty in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert empty.get('c', lambda: 'new') == 'new'


NETWORKS = {
    'C4': ('resnet50', {}),
    'keypoints': ('resnet50_fpn', {'n_keypoint': 3}),
    'MobileNet': ('mobilenet_v1_fpn', {'width': 0.25}),
    'DeNA': ('resnet50', {'dialect': DENA}),
    'Matterport': ('resnet50_fpn', {'dialect': MATTERPORT, 'max_size': 64}),
    'MindSpore': ('resnet50_fpn', {'dialect': MINDSPORE}),
}
#: Networks that are slow, or differ from the others only in their settings.
FURTHER = ('keypoints', 'DeNA', 'Matterport', 'MindSpore')


@pytest.mark.parametrize('name', ['C4', 'MobileNet', *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)])
def test_detections_equal_those_of_one_thread(name, rng, monkeypatch, frequent_switches, one_blas_thread):
    """To the bit, for images of different sizes."""
    use_narrow_resnet(monkeypatch)
    preset, fields = NETWORKS[name]
    model = small_model(preset, **VERY_NARROW, **{'min_size': 32, 'rpn_pre_nms': 50, 'rpn_post_nms': 4, **fields})
    images = [rng.randint(0, 256, (32 + 8 * i, 48, 3), np.uint8) for i in range(3)]
    expected = [to_arrays(detections) for detections in model.detect(images)]
    assert all(len(arrays[0]) for arrays in expected)

    def detect(thread):
        return to_arrays(model.detect([images[thread % 3]])[0])

    for thread, found in enumerate(run_in_threads(detect)):
        for array, array_alone in zip(found, expected[thread % 3], strict=True):
            np.testing.assert_array_equal(array, array_alone)


def to_arrays(detections):
    keypoints = () if detections.keypoints is None else (detections.keypoints,)
    return (detections.boxes, detections.labels, detections.scores, detections.masks, *keypoints)


def test_masks_may_be_pasted_while_another_thread_selects(monkeypatch):
    """A selection had no masks at all if they were pasted while it was made."""
    detections = Detections(
        boxes=np.float32([[0, 0, 3, 3]]),
        labels=[0],
        scores=np.float32([1]),
        size=(4, 4),
        mask_probs=np.ones((1, 2, 2), np.float32),
    )

    class Selected(Detections):
        def __init__(self, *, masks, mask_probs, **options):
            self.has_result = masks is not None or mask_probs is not None

    reads = []

    def read_masks(self):
        reads.append(None)
        return None if len(reads) == 1 else np.ones((1, 4, 4), bool)

    monkeypatch.setattr(Detections, '_masks', property(read_masks, lambda self, value: None), raising=False)
    monkeypatch.setattr('mask_rcnn.inference.detections.Detections', Selected)
    assert Detections.__getitem__(detections, slice(None)).has_result


class StandInDevice(chainer.backend.CpuDevice):
    """A device that records whether it is the current one."""

    def __init__(self):
        self.depth = 0

    def create_context(self):
        return self

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *error):
        self.depth -= 1


def test_the_device_of_the_network_is_the_current_one(rng, monkeypatch):
    """A new thread has the first GPU as its current one, wherever the network is."""
    use_narrow_resnet(monkeypatch)
    model, device, depths = small_model('resnet50', **VERY_NARROW), StandInDevice(), []
    forward = model.forward
    monkeypatch.setattr(MaskRCNN, 'device', property(lambda self: device))
    monkeypatch.setattr(
        MaskRCNN, 'forward', lambda self, *arguments: depths.append(device.depth) or forward(*arguments)
    )
    image = rng.randint(0, 256, (64, 64, 3), np.uint8)
    for _ in Predictor(model).iter_detections([image, image]):
        assert device.depth == 0  # the caller's code does not run inside of the context
    assert depths == [1, 1]
