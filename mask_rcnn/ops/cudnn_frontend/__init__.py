"""Convolution on the GPU through cuDNN 9 and NVIDIA's cuDNN Frontend (the Python package ``cudnn``).

CuPy 14 has no cuDNN bindings any more, and Chainer without them multiplies im2col matrices.  Here every
convolution is a small graph that cuDNN compiles once per shape (:mod:`~mask_rcnn.ops.cudnn_frontend.graphs`): the
product, the residual sum, the bias and ReLU run as one kernel.  Arrays keep Chainer's shapes ``(N, C, H,
W)``, but their channels lie innermost in memory (NHWC), which is what the tensor cores want; an array that
comes out of one convolution goes into the next one as it is (:mod:`~mask_rcnn.ops.cudnn_frontend.convolution`).
"""

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
    'apply_epilogue',
    'convolution_2d',
    'convolution_affine',
    'convolve',
    'convolve_backward_data',
    'convolve_backward_filter',
    'current_precision',
    'deconvolution_2d',
    'deconvolve',
    'is_available',
    'precision_error',
    'supports',
    'using_precision',
]
