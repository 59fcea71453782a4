"""Inputs of the proposals and detections of ONNX graphs, for the CPU and for the graph."""

import numpy as np

from mask_rcnn.config import DIALECTS, Config
from mask_rcnn.preprocessing.image_transform import ImageTransform, input_transform

#: Sizes of images: their short sides are below and above those of the network input.
IMAGE_SIZES = ((90, 70), (200, 333), (7, 5))


def config_of(dialect: str, **changes) -> Config:
    """Return the configuration of a small network of a dialect."""
    settings = {'extractor': 'resnet50_fpn', 'n_fg_class': 4, 'min_size': 96, 'max_size': 192}
    return Config(**{**settings, 'anchor_sizes': (8, 16, 32, 64, 128), 'dialect': DIALECTS[dialect], **changes})


def padded_size(transform: ImageTransform, config: Config) -> tuple[int, int]:
    """Return height and width of the network input with its padding."""
    height, width = (side + -side % config.size_divisor for side in transform.input_size)
    return height, width


def transform_arrays(transform: ImageTransform, config: Config) -> tuple[np.ndarray, ...]:
    """Return the values of the fields of a :class:`~mask_rcnn.onnx_export.transform.GraphTransform`."""
    return (
        np.array(transform.size),
        np.array(transform.scale),
        np.array(transform.factors),
        np.array(transform.window[:2], np.int64),
        np.array(transform.resized),
        np.array(padded_size(transform, config)),
    )


def transform_of(config: Config, size: tuple[int, int]) -> tuple[ImageTransform, tuple[np.ndarray, ...]]:
    """Return the transform of an image of a size, and the arrays of that of the graph."""
    transform = input_transform(size, config)
    return transform, transform_arrays(transform, config)
