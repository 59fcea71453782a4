"""Convolution on the GPU with cuDNN 9 and NVIDIA's cuDNN Frontend (the Python package ``cudnn``).

CuPy 14 has no cuDNN bindings, and Chainer without them multiplies im2col matrices.  Here each convolution is a small
graph that cuDNN compiles once per shape (:mod:`~mask_rcnn.ops.cudnn_frontend.graphs`); convolution, residual, bias and
ReLU run as one kernel.  Arrays have Chainer's shape ``(N, C, H, W)`` with the channels innermost in memory (NHWC), the
layout of the tensor cores.  The result of a convolution is the input of the next one without a copy
(:mod:`~mask_rcnn.ops.cudnn_frontend.convolution`).  True float32 convolutions, for which cuDNN has slow engines, mostly
run by cuBLAS instead (:mod:`~mask_rcnn.ops.cudnn_frontend.matmul`, :mod:`~mask_rcnn.ops.cudnn_frontend.winograd`).
"""

from mask_rcnn.ops.cudnn_frontend.blocks import convolve_few_channels
from mask_rcnn.ops.cudnn_frontend.constant_epilogue import apply_constant_epilogue
from mask_rcnn.ops.cudnn_frontend.convolution import (
    apply_epilogue,
    convolve,
    convolve_backward_data,
    convolve_backward_filter,
    deconvolve,
    is_available,
    supports,
)
from mask_rcnn.ops.cudnn_frontend.functions import convolution_2d, convolution_affine, deconvolution_2d
from mask_rcnn.ops.cudnn_frontend.precision import PRECISIONS, current_precision, precision_error, using_precision

__all__ = [
    'PRECISIONS',
    'apply_constant_epilogue',
    'apply_epilogue',
    'convolution_2d',
    'convolution_affine',
    'convolve',
    'convolve_backward_data',
    'convolve_backward_filter',
    'convolve_few_channels',
    'current_precision',
    'deconvolution_2d',
    'deconvolve',
    'is_available',
    'precision_error',
    'supports',
    'using_precision',
]
