"""Fixtures that run the GPU's path on the CPU: padded arrays, cuDNN's stand-in and emulated kernels."""

import chainer
import numpy as np
import pytest

from mask_rcnn.inference import predictor
from mask_rcnn.models import box_head, keypoint_head, layers, roi_pooling, rpn
from mask_rcnn.models.backbones import mobilenet_v1, resnet
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.boxes import nms, padded_selection, top_k
from mask_rcnn.ops.conv import group_norm
from mask_rcnn.ops.losses import elementwise, softmax
from mask_rcnn.ops.masks import class_masks, keypoints
from mask_rcnn.ops.roi import crop_and_resize, roi_align, roi_max_pooling
from mask_rcnn.training import train_chain
from tests.support import cudnn_stand_in


class ArrayModule:
    """NumPy under another name, which code does not take for the CPU's array module.

    It has no functions whose results have a shape that depends on values: CUDA graphs cannot capture them.
    """

    def __getattr__(self, name):
        if name in ('argwhere', 'compress', 'flatnonzero', 'nonzero', 'unique'):
            raise AssertionError(f'the host waits for the GPU in {name}')
        return getattr(np, name)


def convolve(*args, overwrite_residual=False, groups=1, **options):
    return cudnn_frontend.convolve(*args, **options)


def select_path(x):
    return 'cudnn_graph' if chainer.config.enable_backprop else 'cudnn'


@pytest.fixture
def on_gpu(monkeypatch, emulator):
    """Process NumPy arrays as if they were CuPy arrays."""
    module = ArrayModule()
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel) as stand_in:
        monkeypatch.setattr(cudnn_frontend, 'supports', lambda *arrays: True)
        monkeypatch.setattr(layers, 'deconvolve', cudnn_frontend.deconvolve)
        for module_name in (layers, resnet):
            monkeypatch.setattr(module_name, 'convolve', convolve)
            monkeypatch.setattr(module_name, 'select_path', select_path)
        monkeypatch.setattr(keypoint_head, 'select_path', select_path)
        for user in (box_head, keypoint_head, predictor, rpn, train_chain):
            monkeypatch.setattr(user, 'uses_padding', lambda device: True)
        monkeypatch.setattr(
            mobilenet_v1,
            'depthwise_convolve',
            lambda x, W, b, *, stride, pad, clip_max: cudnn_frontend.convolve(
                x, W, b, stride=stride, pad=pad, relu=True, clip_max=clip_max
            ),
        )
        monkeypatch.setattr(roi_pooling, 'get_array_module', lambda *_: module)
        for pooling in (crop_and_resize, roi_align, roi_max_pooling):
            monkeypatch.setattr(
                pooling,
                'check_arguments',
                lambda x, rois, indices, step: (np.ascontiguousarray(rois, 'f'), np.ascontiguousarray(indices, 'i')),
            )
        for function in (
            crop_and_resize._CropAndResize,
            crop_and_resize._CropAndResizeGrad,
            group_norm.GroupNormFunction,
            group_norm.GroupNormGradient,
            roi_align._RoIAlign,
            roi_align._RoIAlignGrad,
            roi_max_pooling._RoIMaxPooling,
            roi_max_pooling._RoIMaxPoolingGrad,
        ):
            monkeypatch.setattr(function, 'forward_cpu', function.forward_gpu)
        for loss in (elementwise._SelectedLoss, softmax._SoftmaxCrossEntropy):
            monkeypatch.setattr(loss, 'forward_cpu', loss.forward_gpu)
        monkeypatch.setattr(elementwise._SelectedLoss, 'gradient_cpu', elementwise._SelectedLoss.gradient_gpu)
        monkeypatch.setattr(class_masks, 'probs_cpu', class_masks.probs_gpu)
        monkeypatch.setattr(keypoints, 'decode_cpu', keypoints.decode_gpu)
        monkeypatch.setattr(nms, 'nms_cpu', nms.nms_gpu)
        monkeypatch.setattr(padded_selection, 'is_supported', lambda array: True)
        monkeypatch.setattr(top_k, 'top_k_indices_cpu', top_k.top_k_indices_gpu)
        yield stand_in
