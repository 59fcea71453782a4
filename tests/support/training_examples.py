"""Small training examples, and one backward pass of a train chain."""

import chainer
import numpy as np

from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import Sampling

SAMPLING = Sampling(rpn_batch=32, roi_batch=8, train_pre_nms=100, train_post_nms=20)


def square(y, x, side):
    """Return the segmentation of a square."""
    return (np.array([x, y, x + side, y, x + side, y + side, x, y + side], np.float32),)


def example(
    height=64,
    width=80,
    *,
    boxes=((4, 6, 35, 37), (20, 40, 51, 71)),
    crowd=(False, False),
    seed=1,
    segmentations=None,
    scale=2.0,
):
    """Return an image with bright boxes.

    Args:
        height: Height of the network input.
        width: Width of the network input.
        boxes: Boxes of the objects in the network input.
        crowd: True for crowd regions.
        seed: Seed of the background and of the example.
        segmentations: Segmentations in the original image; squares by default.
        scale: Scale from the original image to the network input.
    """
    boxes = np.array(boxes, np.float32).reshape(-1, 4) / scale
    segmentations = segmentations or tuple(square(y1, x1, y2 - y1) for y1, x1, y2, x2 in boxes)
    annotations = Annotations(boxes, np.arange(len(boxes), dtype=np.int32) % 3, np.array(crowd, bool), segmentations)
    x = np.random.RandomState(seed).randn(3, height, width).astype(np.float32)
    for y1, x1, y2, x2 in (boxes * scale).astype(int):
        x[:, y1:y2, x1:x2] += 3
    size = round(height / scale), round(width / scale)
    return TrainingExample(x, ImageTransform.top_left(size, scale), annotations, f'{seed}.jpg', seed, seed)


def run_backward(chain, batch, *, weight=1.0, clear=True):
    """Return the loss, the reported values and the gradients of a batch."""
    if clear:
        chain.cleargrads()
    reporter, reported = chainer.Reporter(), {}
    reporter.add_observer('main', chain)
    with reporter.scope(reported):
        loss = chain(batch)
    (loss * weight).backward()
    grads = {path: param.grad.copy() for path, param in chain.namedparams() if param.grad is not None}
    reported = {name.removeprefix('main/'): float(value) for name, value in reported.items()}
    return float(loss.array), reported, grads
