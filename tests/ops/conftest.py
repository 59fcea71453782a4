"""The backends of an operation, so that one test covers all of them."""

from __future__ import annotations

from collections.abc import Callable

import chainer
import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.boxes import nms, padded_selection, top_k
from mask_rcnn.ops.conv import depthwise, group_norm
from mask_rcnn.ops.losses import elementwise, softmax
from mask_rcnn.ops.masks import keypoints, paste_masks
from mask_rcnn.ops.roi import crop_and_resize, roi_align, roi_max_pooling
from mask_rcnn.ops.runtime import cuda_kernels
from tests.support import cudnn_stand_in
from tests.support.arrays import copy_with_strides


class Backend:
    """A backend of the operations.

    Args:
        name: ``'cpu'``; ``'emulated'``, the GPU implementation with its kernels on the CPU; or ``'cuda'``.
    """

    def __init__(self, name: str):
        self.name = name
        self.xp = cuda.cupy if name == 'cuda' else np

    def array(self, values):
        """Return a NumPy array (or ``None``) as an array of this backend, in the same memory layout."""
        if values is None:
            return None
        is_copied = self.xp is not np and isinstance(values, np.ndarray)
        return copy_with_strides(values, self.xp) if is_copied else self.xp.asarray(values)

    def numpy(self, values) -> np.ndarray:
        """Return an array or variable of this backend as a NumPy array."""
        return cuda.to_cpu(values.array if isinstance(values, chainer.Variable) else values)


@pytest.fixture
def emulated_kernels(emulator, monkeypatch) -> list[tuple[str, tuple]]:
    """Emulate all CUDA kernels; returns the list of launches, each the kernel's name and arguments."""
    launches = []

    def kernel(source: str, name: str, *options) -> Callable:
        launch = emulator.kernel(source, name, *options)

        def launcher(grid, block, arguments):
            launches.append((name, arguments))
            launch(grid, block, arguments)

        return launcher

    monkeypatch.setattr(cuda_kernels, 'kernel', kernel)
    return launches


@pytest.fixture(params=['cpu', 'emulated', pytest.param('cuda', marks=pytest.mark.gpu)])
def backend(request, monkeypatch) -> Backend:
    """The CPU implementation, the GPU implementation with emulated kernels, or the GPU implementation on a GPU."""
    if request.param == 'emulated':
        request.getfixturevalue('emulated_kernels')
        for function in (
            crop_and_resize._CropAndResize,
            crop_and_resize._CropAndResizeGrad,
            depthwise.DepthwiseFunction,
            depthwise.DepthwiseGradX,
            depthwise.DepthwiseGradW,
            elementwise._SelectedLoss,
            group_norm.GroupNormFunction,
            group_norm.GroupNormGradient,
            roi_align._RoIAlign,
            roi_align._RoIAlignGrad,
            roi_max_pooling._RoIMaxPooling,
            roi_max_pooling._RoIMaxPoolingGrad,
            softmax._SoftmaxCrossEntropy,
        ):
            monkeypatch.setattr(function, 'forward_cpu', function.forward_gpu)
        monkeypatch.setattr(elementwise._SelectedLoss, 'gradient_cpu', elementwise._SelectedLoss.gradient_gpu)
        monkeypatch.setattr(keypoints, 'decode_cpu', keypoints.decode_gpu)
        monkeypatch.setattr(nms, 'nms_cpu', nms.nms_gpu)
        monkeypatch.setattr(padded_selection, 'is_supported', lambda array: True)
        monkeypatch.setattr(top_k, 'top_k_indices_cpu', top_k.top_k_indices_gpu)
        monkeypatch.setattr(paste_masks, 'paste_cpu', lambda spec, out, is_zero: paste_masks.paste_gpu(spec, out))
        monkeypatch.setattr(paste_masks, 'runs_cpu', paste_masks.runs_gpu)
    return Backend(request.param)


@pytest.fixture
def stand_in(monkeypatch, emulator):
    """Process NumPy arrays like CuPy arrays, with cuDNN's stand-in."""
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel) as stand_in:
        yield stand_in


@pytest.fixture(params=['stand-in', pytest.param('cuda', marks=pytest.mark.gpu)])
def xp(request):
    """NumPy with cuDNN's stand-in, or CuPy with cuDNN."""
    if request.param == 'stand-in':
        request.getfixturevalue('stand_in')
        return np
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    return cuda.cupy
