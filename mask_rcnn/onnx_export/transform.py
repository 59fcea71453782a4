"""The image transform of an ONNX graph: the tensors that depend on the size of the image."""

from __future__ import annotations

from dataclasses import dataclass

from mask_rcnn.onnx_export.graph import Tensor


@dataclass(frozen=True)
class GraphTransform:
    """The counterpart of :class:`mask_rcnn.preprocessing.image_transform.ImageTransform` in a graph.

    Args:
        size: ``(2,)`` int64, height and width of the image.
        scale: Scalar float64, the factor by which the image is resized.
        factors: ``(2,)`` float64, factors of ``y`` and ``x`` from the image to the network input.
        origin: ``(2,)`` int64, ``(top, left)`` of the resized image in the network input.
        resized: ``(2,)`` int64, height and width of the resized image.
        padded: ``(2,)`` int64, height and width of the network input.
    """

    size: Tensor
    scale: Tensor
    factors: Tensor
    origin: Tensor
    resized: Tensor
    padded: Tensor
