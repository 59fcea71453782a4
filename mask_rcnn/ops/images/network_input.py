"""Preparation of the network input on a GPU.

The kernels subtract the mean, resize, reorder the channels and pad in one pass, which a resize of the width precedes in
Pillow's method.  The results have the bits of :func:`mask_rcnn.preprocessing.image_transform.prepare_image`, the CPU
implementation; the modules of its resizing functions contain the sources of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.ops.images.triangle_filter import triangle_filter
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.transfer import upload_together

#: Threads of a block, and CUDA's limit on the height of a grid.
_THREADS, _MAX_BLOCKS_Y = 256, 65535


@dataclass(frozen=True)
class InputLayout:
    """The place of a resized image in a network input, and the conventions of the channels.

    Args:
        size: Height and width of the network input.
        corner: Row and column of the resized image's first pixel.
        resized: Height and width of the resized image.
        reverse_channels: Whether the network input has the channels in the reverse order of the image.
        mean: Mean of each channel of the network input.
        std: Standard deviation of each channel of the network input.
        subtract_mean_first: Whether :func:`resize_opencv_gpu` subtracts the mean, and :func:`resize_torch_gpu`
            normalises the image, before the resize or after it.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    resized: tuple[int, int]
    reverse_channels: bool
    mean: Sequence[float]
    std: Sequence[float]
    subtract_mean_first: bool = True


def resize_opencv_gpu(image: Array, scale: float, layout: InputLayout) -> Array:
    """Subtract the mean from an image, resize it bilinearly and pad it with zeros (Detectron, DeNA).

    Args:
        image: ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32, contiguous.
        scale: Factor of height and width; ``layout.resized`` is the rounded product.
        layout: The place of the result in the network input.

    Returns:
        ``(1, 3, *layout.size)`` float32.
    """
    return _launch('opencv', image, [np.float64(1 / scale), np.int32(layout.subtract_mean_first)], layout)


def resize_uint8_skimage_gpu(image: Array, layout: InputLayout) -> Array:
    """Resize an integer image bilinearly, truncate it to integers, zero-pad it and subtract the mean (Matterport).

    Args:
        image: ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32, contiguous.
        layout: The place of the result in the network input.

    Returns:
        ``(1, 3, *layout.size)`` float32.
    """
    limits = get_array_module(image).empty(2, np.float64)
    limits[0], limits[1] = image.min(), image.max()  # stay on the GPU
    factors = [np.float64(n_in / n_out) for n_in, n_out in zip(_image_size(image), layout.resized, strict=True)]
    return _launch('skimage', image, [limits, *factors], layout)


def resize_torch_gpu(image: Array, layout: InputLayout) -> Array:
    """Normalise an image, resize it bilinearly and pad it with zeros (torchvision).

    Args:
        image: ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32, contiguous.
        layout: The place of the result in the network input.

    Returns:
        ``(1, 3, *layout.size)`` float32.
    """
    sizes = zip(_image_size(image), layout.resized, strict=True)
    factors = [np.float32(n_in) / np.float32(n_out) for n_in, n_out in sizes]
    return _launch('torch', image, [*factors, np.int32(layout.subtract_mean_first)], layout)


def resize_pillow_gpu(image: Array, layout: InputLayout) -> Array:
    """Resize bytes bilinearly with antialiasing, subtract the mean and zero-pad the result (detectron2).

    Args:
        image: ``(H, W, 3)`` uint8, contiguous.
        layout: The place of the result in the network input.

    Returns:
        ``(1, 3, *layout.size)`` float32.
    """
    xp, (height, width), (rows, columns) = get_array_module(image), _image_size(image), layout.resized
    arrays = upload_together([*triangle_filter(width, columns), *triangle_filter(height, rows)], xp)
    across, down = ([*arrays[start : start + 3], np.int32(arrays[start + 2].shape[1])] for start in (0, 3))
    if width != columns:
        resized = xp.empty((height, columns, 3), np.uint8)
        cuda_kernels.kernel('images/network_input.cu', 'pillow_width')(
            (-(-columns // _THREADS), min(height, _MAX_BLOCKS_Y)),
            (_THREADS,),
            (image, *across, *map(np.int32, (height, width, columns)), resized),
        )
        image = resized
    return _launch('pillow', image, down, layout)


def _launch(resize: str, image: Array, parameters: list[Any], layout: InputLayout) -> Array:
    """Launch the kernel of a resizing method for the dtype of an image."""
    height, width = layout.size
    out = get_array_module(image).empty((1, 3, height, width), np.float32)
    is_channels_last = image.dtype == np.uint8
    integers = (*_image_size(image), is_channels_last, layout.reverse_channels, *layout.corner, *layout.resized)
    cuda_kernels.kernel('images/network_input.cu', f'{resize}_{image.dtype}')(
        (-(-width // _THREADS), min(height, _MAX_BLOCKS_Y)),
        (_THREADS,),
        (
            image,
            *parameters,
            *map(np.int32, integers),
            *map(np.float64, layout.mean),
            *map(np.float32, layout.std),
            np.int32(height),
            np.int32(width),
            out,
        ),
    )
    return out


def _image_size(image: Array) -> tuple[int, int]:
    """Return the height and width of ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32."""
    height, width = image.shape[:2] if image.dtype == np.uint8 else image.shape[1:]
    return height, width
