"""RoIAlign: the mean of bilinear samples in every bin of a region of interest, forward and backward.

Source: He et al., Mask R-CNN, section 3 (RoIAlign); Caffe2 ``caffe2/operators/roi_align_op.cc``.

The samples of a bin form a grid, and a bilinear weight is the product of a vertical and a horizontal one, so the mean
over the samples is separable.  With ``wy[p]`` the sum of the weights of map row ``p`` over the bin's sample rows, and
``wx[q]`` the same for columns,

    y[bin] = sum_p wy[p] * sum_q wx[q] * x[p, q] / (sample rows * sample columns).

Both implementations tabulate ``wy`` and ``wx``: :mod:`~mask_rcnn.ops.roi.roi_align_cpu` and
:mod:`~mask_rcnn.ops.roi.roi_align_gpu`.
"""

from __future__ import annotations

from collections.abc import Sequence

import chainer
import numpy as np

from mask_rcnn.ops.conv.convolution import apply_epilogue
from mask_rcnn.ops.cudnn_frontend.gradient_sum import add_gradient
from mask_rcnn.ops.roi.common import as_pair, check_arguments
from mask_rcnn.ops.roi.roi_align_cpu import backward_cpu, forward_cpu
from mask_rcnn.ops.roi.roi_align_gpu import MAX_BINS, MAX_LEVELS, backward_gpu, forward_gpu
from mask_rcnn.ops.roi.roi_align_regions import NO_EPILOGUE, Epilogue, Regions
from mask_rcnn.ops.runtime.array import Array, get_array_module


def roi_align(
    x: chainer.Variable | Array,
    rois: Array,
    roi_indices: Array,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = False,
    bin_step: int = 1,
    bias: Array | None = None,
    relu: bool = False,
) -> chainer.Variable:
    """Pool every RoI to a grid of bins, each the mean of bilinear samples.

    Differentiable with respect to ``x`` (twice).  Forward and backward compute each element in one thread and in a
    fixed order, without floating-point atomics: on one machine, CPU or GPU, the same arguments give the same bits in
    every run.  float16 is a storage type; the arithmetic is float32.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU, maps whose channels
            are last in memory are not copied; on the CPU, maps whose channels are first in memory are not copied.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the network input.
        roi_indices: (R,) int32, the image of each RoI.  An index outside the batch raises an error on the CPU.  On the
            GPU, where validation would cost a synchronisation, such a RoI is zero.
        output_size: Height and width of the grid of bins, or one int for both.
        spatial_scale: Size of the feature map divided by the size of the input.
        sampling_ratio: Samples per bin and axis; 0 for ceil(bin size), one per pixel of the bin.
        aligned: False for Caffe2's definition: coordinates are scaled only, and a RoI has at least the size of one
            pixel of the map.  True for detectron2's: RoIs are shifted by half a pixel and may be smaller.
        bin_step: Compute only every ``bin_step``-th bin of each axis, starting with the first.  The result is that of
            ``[:, :, ::bin_step, ::bin_step]``, and the other bins cost nothing.  The limit is 256 bins per axis.
        bias: (C,) to add to the pooled RoIs, or ``None``.
        relu: Whether to apply ReLU after it.  With a bias or ReLU the result has no graph; on a GPU, they cost no
            further pass over the pooled RoIs.

    Returns:
        Variable (R, C, ceil(height / bin_step), ceil(width / bin_step)) of the dtype of ``x``.  Samples more than one
        pixel outside the map are zero; a RoI that is not finite is zero.

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    xp = get_array_module(roi_indices)
    return roi_align_pyramid(
        (x,),
        rois,
        roi_indices,
        xp.zeros(roi_indices.shape, np.int32),
        output_size=output_size,
        spatial_scales=(spatial_scale,),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        bin_step=bin_step,
        bias=bias,
        relu=relu,
    )


def roi_align_pyramid(
    features: Sequence[chainer.Variable | Array],
    rois: Array,
    roi_indices: Array,
    levels: Array,
    *,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = False,
    bin_step: int = 1,
    bias: Array | None = None,
    relu: bool = False,
) -> chainer.Variable:
    """Pool every RoI from one of several feature maps, as :func:`roi_align` pools from one map.

    On a GPU this is a single launch, which writes every element once and does not synchronise.

    Args:
        features: One to four feature maps (N, C, H, W) of one dtype, which differ only in height and width.
        rois: (R, 4) float32.
        roi_indices: (R,) int32, the image of each RoI.
        levels: (R,) int32, the index in ``features`` of the map of each RoI.  An index out of range raises an error on
            the CPU; on the GPU such a RoI is zero.
        output_size: Height and width of the grid of bins, or one int for both.
        spatial_scales: For each map, its size divided by the size of the input.
        sampling_ratio: Samples per bin and axis; see :func:`roi_align`.
        aligned: Definition of coordinates; see :func:`roi_align`.
        bin_step: Step between the computed bins; see :func:`roi_align`.
        bias: (C,) to add to the pooled RoIs, or ``None``; see :func:`roi_align`.
        relu: Whether to apply ReLU; see :func:`roi_align`.

    Returns:
        Variable (R, C, ...) in the order of ``rois``; differentiable with respect to all maps (twice).

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    if not 0 < len(features) == len(spatial_scales) <= MAX_LEVELS:
        raise ValueError(
            f'features must be 1 to {MAX_LEVELS} maps with one scale each (maps: {len(features)}, '
            f'scales: {len(spatial_scales)})'
        )
    for x in features[1:]:
        if x.ndim != 4 or x.shape[:2] != features[0].shape[:2] or x.dtype != features[0].dtype or 0 in x.shape[1:]:
            raise ValueError(
                f'features must differ only in height and width, not {features[0].dtype} {features[0].shape} and '
                f'{x.dtype} {x.shape}'
            )
    rois, roi_indices = check_arguments(features[0], rois, roi_indices, bin_step)
    if levels.shape != roi_indices.shape:
        raise ValueError(f'levels must have the shape {roi_indices.shape}, not {levels.shape}')
    if sampling_ratio < 0:
        raise ValueError(f'sampling_ratio must be 0 or more, not {sampling_ratio!r}')
    levels = get_array_module(levels).ascontiguousarray(levels, np.int32)
    regions = Regions(
        rois,
        roi_indices,
        levels,
        tuple(map(float, spatial_scales)),
        as_pair(output_size),
        int(sampling_ratio),
        bool(aligned),
        int(bin_step),
    )
    if max(regions.bins) > MAX_BINS:
        raise ValueError(f'output_size must give at most {MAX_BINS} bins of an axis, not {regions.bins}')
    pooling = _RoIAlign(regions, [x.shape for x in features], Epilogue(bias, relu))
    if bias is None and not relu:
        return pooling.apply(tuple(features))[0]
    return chainer.as_variable(pooling.forward(tuple(map(chainer.as_array, features)))[0])


class _RoIAlign(chainer.FunctionNode):
    """Feature maps to pooled RoIs; not differentiable with an epilogue."""

    def __init__(self, regions: Regions, shapes: Sequence[tuple[int, ...]], epilogue: Epilogue = NO_EPILOGUE):
        self._regions, self._shapes, self._epilogue = regions, shapes, epilogue

    def forward_cpu(self, inputs):
        y = forward_cpu(inputs, self._regions)
        return (apply_epilogue(y, self._epilogue.bias, relu=self._epilogue.relu),)

    def forward_gpu(self, inputs):
        return (forward_gpu(inputs, self._regions, self._epilogue),)

    def backward(self, indexes, grad_outputs):
        gradients = _RoIAlignGrad(self._regions, self._shapes).apply(grad_outputs)
        return tuple(gradients[i] for i in indexes)

    def backward_accumulate(self, target_input_indexes, grad_outputs, grad_inputs):
        gradients = self.backward(target_input_indexes, grad_outputs)
        return tuple(map(add_gradient, gradients, grad_inputs))


class _RoIAlignGrad(chainer.FunctionNode):
    """The transposed linear map: gradients of pooled RoIs to gradients of feature maps."""

    def __init__(self, regions: Regions, shapes: Sequence[tuple[int, ...]]):
        self._regions, self._shapes = regions, shapes

    def forward_cpu(self, inputs):
        return backward_cpu(inputs[0], self._regions, self._shapes)

    def forward_gpu(self, inputs):
        return backward_gpu(inputs[0], self._regions, self._shapes)

    def backward(self, indexes, grad_outputs):
        given = next(gradient for gradient in grad_outputs if gradient is not None)
        features = [
            given.xp.zeros(shape, given.dtype) if gradient is None else gradient
            for gradient, shape in zip(grad_outputs, self._shapes, strict=True)
        ]
        return _RoIAlign(self._regions, self._shapes).apply(features)
