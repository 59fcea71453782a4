"""Settings for training on a dataset, computed from its statistics and from the memory of the machine.

Each rule is a function with its reason; :func:`suggest_settings` combines them.  The results are starting points that
train without a failure, not the best settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.config import FPN_STRIDES, PRESETS, Config
from mask_rcnn.config.schedules import (
    MIN_EVALUATION_INTERVAL,
    N_EVALUATIONS,
    RATE_PER_IMAGE,
    decay_steps,
    warmup_length,
)
from mask_rcnn.datasets.inspection.statistics import Statistics
from mask_rcnn.io.wording import counted

#: Target size of small objects (10th percentile) in pixels of the network input.  RoIAlign pools from a stride of 4 in
#: a feature pyramid: 16 pixels are four samples of the features along each side.
SMALL_OBJECT_SIZE = 16
#: Detectron's sizes: images are not resized to a longer side, and not to a longer shorter side without a reason.
_MAX_LONG_SIDE, _MAX_USUAL_SHORT_SIDE = 1333, 800
#: On a CPU, images are reduced until small objects (10th percentile) have this size, or until the shorter side has this
#: length: the time of an iteration is proportional to the pixels.
_CPU_OBJECT_SIZE, _MIN_CPU_SHORT_SIDE = 32, 320
#: Shorter inputs leave less than two positions on the coarsest level of a pyramid.
_MIN_SHORT_SIDE = 128
#: Sides are multiples of the stride to which inputs of a pyramid are padded.
_SIDE_STEP = 32
#: Images are upscaled by at most this factor: an upscaled image has no more details.
_MAX_UPSCALE = 4

#: Percentiles of the object sizes that the anchors span.
_ANCHOR_PERCENTILES = (5, 95)
#: The largest anchor is at least this multiple of the smallest: augmented and new objects differ.
_MIN_ANCHOR_RANGE = 4
#: The smallest anchor of a single feature map is at least as large as its stride: others miss objects between them.
_C4_STRIDE = 16

#: Limit of the gradient's L2 norm, several times the usual one.
_CLIP_GRADIENT = 10.0

_GPU_BATCH, _CPU_BATCH = 8, 4
#: Maximum number of pixels of an iteration on a CPU: about 20 CPU seconds with R-50-FPN.
_CPU_PIXELS = 2e6
#: Minimum and maximum number of iterations; those on a CPU take hours.
_GPU_ITERATIONS, _CPU_ITERATIONS = (1000, 90000), (500, 5000)
#: Detectron's schedule 1x has 12 epochs of about 118,000 images.  Smaller datasets need more epochs, fewer images.
_EPOCHS, _FULL_DATASET, _MAX_EPOCHS = 12, 20000, 100
#: Limits of the detections per image: Detectron's, and more for crowds; the network has up to 1000 proposals.
_DETECTION_LIMITS = 100, 300, 1000

#: Fraction of the memory that training may use: the rest is for the system, data and validation.
_USABLE_MEMORY = 0.7
#: Gigabytes of a training process: for the program and the weights, for each million pixels of an image, and for 512
#: RoIs of an image.  Upper limits, measured on a CPU with all layers trained and batch normalisation; those of R-152
#: and the ResNeXts are R-101's and R-50's, multiplied by the ratio of the channels of all blocks.
_MEMORY = {
    'mobilenet_v1_fpn': (1.0, 1.6, 0.2),
    'resnet50_fpn': (1.2, 2.3, 0.2),
    'resnet101_fpn': (1.6, 3.6, 0.2),
    'resnet50': (1.2, 2.0, 3.2),
    'resnet101': (1.6, 3.3, 3.2),
    'resnet152_fpn': (2.0, 5.2, 0.2),
    'resnext50_32x4d_fpn': (1.2, 3.1, 0.2),
    'resnext101_32x8d_fpn': (2.2, 7.2, 0.2),
    'resnext101_64x4d_fpn': (2.2, 7.2, 0.2),
    'resnext152_32x8d_fpn': (2.8, 10.4, 0.2),
    'resnet152': (2.0, 4.8, 3.2),
    'resnext50_32x4d': (1.2, 2.7, 4.3),
    'resnext101_32x8d': (2.2, 6.6, 6.4),
    'resnext101_64x4d': (2.2, 6.6, 6.4),
    'resnext152_32x8d': (2.8, 9.6, 6.4),
}


@dataclass(frozen=True)
class Machine:
    """The machine that trains.

    Args:
        memory: Memory in bytes: that of the GPU, or the main memory.
        has_gpu: True if a GPU trains, False for the CPU.
    """

    memory: int
    has_gpu: bool


@dataclass(frozen=True)
class Settings:
    """Settings for training, in the terms of ``mask-rcnn train``.

    Args:
        min_size: Shorter side of the network input in pixels.
        max_size: Maximum longer side of the network input in pixels.
        anchor_sizes: Five sizes in pixels of the network input, ascending.
        batch_size: Images per iteration.
        subdivisions: Passes into which the batch is divided to save memory; a divisor of ``batch_size``.
        rois_per_image: RoIs sampled per image.
        lr: Learning rate after the warm-up.
        warmup: Iterations of the warm-up, with a tenth of the rate.
        steps: The two iterations at which the rate is multiplied by 0.1.
        iterations: Number of iterations.
        validation_interval: Iterations between evaluations; a divisor of ``iterations``.
        clip_gradient: Maximum L2 norm of the gradient.
        max_detections: Maximum number of detections per image.
        reasons: Field -> the reason for its value, one phrase.
    """

    min_size: int
    max_size: int
    anchor_sizes: tuple[int, ...]
    batch_size: int
    subdivisions: int
    rois_per_image: int
    lr: float
    warmup: int
    steps: tuple[int, int]
    iterations: int
    validation_interval: int
    clip_gradient: float
    max_detections: int
    reasons: Mapping[str, str]

    @property
    def network_fields(self) -> dict[str, Any]:
        """The fields of :class:`~mask_rcnn.config.Config`, for ``--set``, that differ from their defaults."""
        return {} if self.max_detections == Config.max_detections else {'max_detections': self.max_detections}

    @property
    def train_options(self) -> dict[str, Any]:
        """The values of the options of ``mask-rcnn train``, by the names of its parsed arguments.

        ``lr`` is a tenth of :attr:`lr`: the option is the rate of the warm-up, which is then multiplied by 10.
        """
        return {
            'min_size': self.min_size,
            'max_size': self.max_size,
            'anchor_sizes': self.anchor_sizes,
            'batchsize': self.batch_size,
            'subdivisions': self.subdivisions,
            'roi_batch': self.rois_per_image,
            'lr': self.lr / 10,
            'lr_initialchange': self.warmup,
            'step_size': self.steps[0],
            'lr_step': self.steps[1],
            'iteration': self.iterations,
            'validation': self.validation_interval,
            'clip_gradient': self.clip_gradient,
        }


def suggest_settings(statistics: Statistics, *, extractor: str, machine: Machine) -> Settings:
    """Return settings for training on a dataset; the result depends on the arguments only.

    - Size: the median shorter side of the images (at most 800), more if the small objects would be less than 16 pixels
      large, within four times the images' size, Detectron's 1333 pixels and the memory.  On a CPU, less if the small
      objects would be more than 32 pixels large, but at least 320.
    - Anchors: a geometric sequence of five sizes over the sizes of the objects in the network input.
    - Batch: 8 images on a GPU; on a CPU up to 4, at most two million pixels.  It is subdivided if memory is short.
    - RoIs: 16 for each object of a crowded image (90th percentile), because a quarter of the RoIs are foreground.
    - Detections per image: 100, 300 or 1000, at least the number of objects in the most crowded image.
    - Rate: 0.00125 for each image of the batch, as Detectron's, always after a warm-up and with clipped gradients.  (A
      rate of 0.01 for 4 images without a warm-up diverged after 112 iterations of MobileNetV1-FPN.)
    - Length: 12 epochs of large datasets, up to 100 of small ones, within limits; the rate decays after 2/3 and 8/9 of
      it, as in Detectron, and the model is evaluated 15 times.

    Args:
        statistics: The statistics of the training data.
        extractor: One of :data:`mask_rcnn.config.EXTRACTORS`.
        machine: The machine that trains.

    Raises:
        ValueError: The extractor is unknown.
    """
    if extractor not in _MEMORY:
        raise ValueError(f'extractor must be one of {", ".join(_MEMORY)}, not {extractor!r}')
    rois = _suggest_rois(statistics)
    config, size_reason = _suggest_size(statistics, extractor, rois, machine)
    anchors = _suggest_anchors(statistics.input_object_sizes(config), config)
    n_pixels = _max_pixels(statistics, config)
    n_images = len(statistics.image_sizes)
    batch, subdivisions = _suggest_batch(n_images, n_pixels, extractor, rois, machine)
    iterations, interval = _suggest_iterations(n_images, batch, has_gpu=machine.has_gpu)
    lr = round(RATE_PER_IMAGE * batch, 8)
    n_epochs = iterations * batch / n_images
    crowded = np.percentile(statistics.objects_per_image, 90)
    place = 'a GPU' if machine.has_gpu else 'a CPU'
    fits = _fits(batch // subdivisions, n_pixels, extractor, rois, machine)
    reasons = {
        'min_size': size_reason,
        'anchor_sizes': 'geometric over the sizes of the objects in the network input',
        'batch_size': f'images per iteration on {place} with {machine.memory / 2**30:.0f} GiB',
        'subdivisions': 'passes per iteration, so that the memory '
        + ('is enough' if fits else 'is used least; it may still not be enough'),
        'rois_per_image': f'16 for each of {counted(crowded, "object", spec=".0f")} (90th percentile of the images), '
        'from 128 to 512',
        'lr': f'{RATE_PER_IMAGE:g} for each image of the batch, a tenth of it in the warm-up',
        'warmup': 'iterations of the warm-up',
        'steps': 'decay after 2/3 and 8/9 of the iterations',
        'iterations': f'about {counted(n_epochs, "epoch", spec=".3g")} of {counted(n_images, "image")}',
        'validation_interval': counted(iterations // interval, 'evaluation'),
        'clip_gradient': 'limits the effect of single batches',
        'max_detections': f'detections per image: an image has {counted(statistics.objects_per_image.max(), "object")}',
    }
    return Settings(
        min_size=config.min_size,
        max_size=config.max_size,
        anchor_sizes=anchors,
        batch_size=batch,
        subdivisions=subdivisions,
        rois_per_image=rois,
        lr=lr,
        warmup=warmup_length(iterations),
        steps=decay_steps(iterations),
        iterations=iterations,
        validation_interval=interval,
        clip_gradient=_CLIP_GRADIENT,
        max_detections=_suggest_detections(statistics),
        reasons=reasons,
    )


def _suggest_size(statistics: Statistics, extractor: str, rois: int, machine: Machine) -> tuple[Config, str]:
    """Return the preset with the sides of the network input, and the reason for them."""
    shorter, longer = np.sort(statistics.image_sizes, axis=1).T
    usual = min(float(np.median(shorter)), _MAX_USUAL_SHORT_SIDE)
    needed = SMALL_OBJECT_SIZE / float(np.percentile(statistics.relative_sizes, 10))
    limit = min(_MAX_UPSCALE * float(np.median(shorter)), _MAX_LONG_SIDE)
    if not machine.has_gpu:
        usual = min(usual, max(_CPU_OBJECT_SIZE / SMALL_OBJECT_SIZE * needed, _MIN_CPU_SHORT_SIDE))
    side = _round_side(min(max(usual, needed), max(usual, limit)))
    aspect = float(np.percentile(longer / shorter, 99))
    config = _with_sides(extractor, side, aspect)
    fits_memory = True
    while not _fits(1, _max_pixels(statistics, config), extractor, rois, machine) and side > _MIN_SHORT_SIDE:
        side -= _SIDE_STEP
        config, fits_memory = _with_sides(extractor, side, aspect), False
    small = np.percentile(statistics.input_object_sizes(config), 10)
    reason = f'small objects (10th percentile) are then {small:.0f} pixels large'
    if small < 0.9 * SMALL_OBJECT_SIZE:
        limited_by = 'the memory' if not fits_memory else f'{config.max_size} pixels or {_MAX_UPSCALE} times the image'
        reason += f', less than {SMALL_OBJECT_SIZE}: {limited_by} is the limit; tiles of the images would show more'
    return config, reason


def _round_side(side: float) -> int:
    """Return a side rounded up to a multiple of the pyramid's stride, within the limits."""
    # Quotients of float64 sizes may exceed a multiple by their rounding error.
    rounded = math.ceil(side / _SIDE_STEP - 1e-6) * _SIDE_STEP
    return min(max(rounded, _MIN_SHORT_SIDE), _MAX_LONG_SIDE // _SIDE_STEP * _SIDE_STEP)


def _with_sides(extractor: str, side: int, aspect: float) -> Config:
    """Return a preset whose longer side has room for the images' aspect ratio."""
    longer = math.ceil(side * aspect / _SIDE_STEP - 1e-6) * _SIDE_STEP
    return PRESETS[extractor].replace(min_size=side, max_size=max(min(longer, _MAX_LONG_SIDE), side))


def _max_pixels(statistics: Statistics, config: Config) -> float:
    """Return the number of pixels of the largest network input."""
    return float((statistics.image_sizes.prod(axis=1) * statistics.input_scales(config) ** 2).max())


def _fits(n_images: int, n_pixels: float, extractor: str, rois: int, machine: Machine) -> bool:
    """Return whether a pass over some images fits into the memory."""
    program, per_million_pixels, per_512_rois = _MEMORY[extractor]
    gigabytes = program + n_images * (per_million_pixels * n_pixels / 1e6 + per_512_rois * rois / 512)
    return gigabytes * 1e9 <= _USABLE_MEMORY * machine.memory


def _suggest_anchors(sizes: np.ndarray, config: Config) -> tuple[int, ...]:
    """Return five anchor sizes in a geometric sequence.

    The anchors span the sizes of the objects.  The anchors of a pyramid are at least twice as large as the stride of
    their level: P2's at least 8 pixels, P6's at least 128.  Between smaller anchors, objects would fall through.
    """
    low, high = np.percentile(sizes, _ANCHOR_PERCENTILES).tolist()
    if high < low * _MIN_ANCHOR_RANGE:
        middle, half_range = math.sqrt(low * high), math.sqrt(_MIN_ANCHOR_RANGE)
        low, high = middle / half_range, middle * half_range
    n_anchors = len(FPN_STRIDES)
    low = max(low, 2 * FPN_STRIDES[0] if config.has_fpn else _C4_STRIDE)
    high = max(high, 2 * FPN_STRIDES[-1] if config.has_fpn else 0, low * _MIN_ANCHOR_RANGE)
    return tuple(round(low * (high / low) ** (i / (n_anchors - 1))) for i in range(n_anchors))


def _suggest_rois(statistics: Statistics) -> int:
    """Return the RoIs per image: a power of two from 128 to 512."""
    needed = 16 * float(np.percentile(statistics.objects_per_image, 90))
    return next((rois for rois in (128, 256) if rois >= needed), 512)


def _suggest_detections(statistics: Statistics) -> int:
    """Return the limit of the detections per image."""
    crowded = statistics.objects_per_image.max()
    return next((limit for limit in _DETECTION_LIMITS if limit >= crowded), _DETECTION_LIMITS[-1])


def _suggest_batch(n_images: int, n_pixels: float, extractor: str, rois: int, machine: Machine) -> tuple[int, int]:
    """Return the images per iteration, and the passes into which they are divided."""
    target = _GPU_BATCH if machine.has_gpu else max(1, min(_CPU_BATCH, int(_CPU_PIXELS / n_pixels)))
    batch = max(1, min(target, n_images))
    divisors = [k for k in range(1, batch + 1) if batch % k == 0]
    return batch, next((k for k in divisors if _fits(batch // k, n_pixels, extractor, rois, machine)), batch)


def _suggest_iterations(n_images: int, batch: int, *, has_gpu: bool) -> tuple[int, int]:
    """Return the number of iterations, and those between evaluations."""
    n_epochs = min(max(_EPOCHS * math.sqrt(_FULL_DATASET / n_images), _EPOCHS), _MAX_EPOCHS)
    low, high = _GPU_ITERATIONS if has_gpu else _CPU_ITERATIONS
    wanted = min(max(n_epochs * n_images / batch, low), high)
    step = MIN_EVALUATION_INTERVAL
    interval = max(step, round(wanted / N_EVALUATIONS / step) * step)
    return interval * N_EVALUATIONS, interval
