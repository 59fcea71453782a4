"""Every operation on arrays without elements, with all of its backends; the emulator rejects a grid of 0 blocks."""

import chainer
import numpy as np
import pytest

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.boxes.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes
from mask_rcnn.ops.boxes.iou import match_boxes
from mask_rcnn.ops.boxes.nms import nms, nms_padded
from mask_rcnn.ops.boxes.proposals import generate_proposals, select_detections
from mask_rcnn.ops.boxes.top_k import top_k_indices
from mask_rcnn.ops.conv import average_pooling, convolution, max_pooling, upsample_add
from mask_rcnn.ops.conv.affine_channel import affine_channel_2d
from mask_rcnn.ops.conv.depthwise import depthwise_convolution_2d, depthwise_convolve
from mask_rcnn.ops.cudnn_frontend.blocks import convolve_few_channels
from mask_rcnn.ops.masks import class_masks
from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from mask_rcnn.ops.masks.paste_masks import mask_runs, paste_masks
from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize
from mask_rcnn.ops.roi.levels import assign_levels_gpu
from mask_rcnn.ops.roi.roi_align import roi_align, roi_align_pyramid
from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy, pack_arrays

NO_BOXES = np.empty((0, 4), np.float32)
NO_SCORES = np.empty(0, np.float32)
NO_INDICES = np.empty(0, np.int32)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


POOLING = {
    'roi_align': lambda x, *rois: roi_align(x, *rois, output_size=7, spatial_scale=0.25, sampling_ratio=2),
    'roi_align_pyramid': lambda x, rois, indices: roi_align_pyramid(
        (x, x[:, :, ::2, ::2]), rois, indices, indices, output_size=7, spatial_scales=(0.25, 0.125)
    ),
    'roi_max_pooling': lambda x, *rois: roi_max_pooling(x, *rois, output_size=7, spatial_scale=0.25),
    'crop_and_resize': lambda x, *rois: crop_and_resize(x, *rois, output_size=7, last=(10, 10)),
}


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('n_images', [0, 2])
@pytest.mark.parametrize('pool', POOLING.values(), ids=POOLING)
def test_pooling_of_no_rois(backend, pool, n_images, dtype):
    x = chainer.Variable(backend.array(np.ones((n_images, 8, 12, 16), dtype)))
    y = pool(x, backend.array(NO_BOXES), backend.array(NO_INDICES))
    assert y.shape == (0, 8, 7, 7) and y.dtype == dtype
    y.grad = backend.array(zeros(*y.shape, dtype=dtype))
    y.backward()
    np.testing.assert_array_equal(backend.numpy(x.grad), zeros(*x.shape))


def proposals_of(scores, **options):
    """Return the proposals of one map of 4 x 5 locations with 3 anchors, for the values of all scores."""
    deltas, anchors = zeros(12, 4, 5), np.tile(np.float32([0, 0, 9, 9]), (60, 1))
    limits = {'pre_nms': 20, 'post_nms': 4, 'nms_threshold': 0.7, **options}
    return lambda backend: generate_proposals(
        [backend.array(np.full((3, 4, 5), scores, np.float32))],
        [backend.array(deltas)],
        [backend.array(anchors)],
        (16, 20),
        1.0,
        **limits,
    )


NO_PROPOSALS = {
    'all scores NaN': proposals_of(np.nan),
    'all scores minus infinity': proposals_of(-np.inf),
    'all boxes too small': proposals_of(1, min_size=1000),
    'all boxes too small, dropped first': proposals_of(1, min_size=1000, drop_small_first=True),
    'levels joined': proposals_of(1, min_size=1000, per_level=False),
}


@pytest.mark.parametrize('propose', NO_PROPOSALS.values(), ids=NO_PROPOSALS)
def test_no_proposals(backend, propose):
    boxes, scores = propose(backend)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize('scores', [np.nan, -np.inf])
def test_no_padded_proposals(backend, scores):
    """All rows are padding."""
    boxes, scores = map(backend.numpy, proposals_of(scores, padded=True)(backend))
    assert boxes.shape == (4, 4) and np.isnan(boxes).all() and (scores == -np.inf).all()


def detections_of(n_rois, padded, score=0.5, coordinate=3.0):
    def detect(backend):
        probs, boxes = np.full((n_rois, 3), score, np.float32), np.full((n_rois, 12), coordinate, np.float32)
        return select_detections(
            backend.array(probs),
            backend.array(boxes),
            score_threshold=0.1,
            nms_threshold=0.5,
            max_detections=5,
            padded=padded,
        )

    return detect


NO_DETECTIONS = {'no RoIs': {'n_rois': 0}, 'NaN scores': {'n_rois': 3, 'score': np.nan}}
NO_DETECTIONS['NaN boxes'] = {'n_rois': 3, 'coordinate': np.nan}
NO_DETECTIONS['low scores'] = {'n_rois': 3, 'score': 0}


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('arguments', NO_DETECTIONS.values(), ids=NO_DETECTIONS)
def test_no_detections(backend, arguments, padded):
    boxes, labels, scores = map(backend.numpy, detections_of(padded=padded, **arguments)(backend))
    is_detection = scores > -np.inf
    assert not is_detection.any() and np.isnan(boxes).all()
    assert len(boxes) == len(labels) == (min(9, 2 * arguments['n_rois']) if padded else 0)


def test_a_box_that_is_nan_leaves_the_others(backend):
    boxes = np.tile(np.float32([1, 1, 8, 8]), (2, 2, 1))
    boxes[0, 1, 2] = np.nan
    for padded in (False, True):
        found, labels, scores = select_detections(
            backend.array(np.float32([[0.1, 0.9], [0.3, 0.7]])),
            backend.array(boxes.reshape(2, 8)),
            score_threshold=0.2,
            nms_threshold=0.5,
            max_detections=1,
            keep_ties=False,
            padded=padded,
        )
        np.testing.assert_array_equal(backend.numpy(found), [[1, 1, 8, 8]])
        assert backend.numpy(labels) == 0 and backend.numpy(scores) == np.float32(0.7)


OPERATIONS = {
    'nms': (lambda b: nms(b(NO_BOXES), b(NO_SCORES), 0.5), (0,)),
    'nms of groups': (lambda b: nms(b(NO_BOXES), b(NO_SCORES), 0.5, groups=b(NO_INDICES)), (0,)),
    'padded nms': (lambda b: nms_padded(b(NO_BOXES), b(NO_SCORES), 0.5, limit=3), (0,)),
    'nms, limit 0': (lambda b: nms_padded(b(zeros(3, 4)), b(zeros(3)), 0.5, limit=0), (0,)),
    'top_k': (lambda b: top_k_indices(b(NO_SCORES), 5), (0,)),
    'top_k, limit 0': (lambda b: top_k_indices(b(zeros(5)), 0), (0,)),
    'top_k, reversed': (lambda b: top_k_indices(b(NO_SCORES), 5, last_of_ties_first=True), (0,)),
    'box_iou': (lambda b: box_iou(b(NO_BOXES), b(zeros(3, 4))), (0, 3)),
    'box_iou, no objects': (lambda b: box_iou(b(zeros(3, 4)), b(NO_BOXES)), (3, 0)),
    'encode_boxes': (lambda b: encode_boxes(b(NO_BOXES), b(NO_BOXES)), (0, 4)),
    'decode_boxes': (lambda b: decode_boxes(b(NO_BOXES), b(zeros(0, 12))), (0, 12)),
    'clip_boxes': (lambda b: clip_boxes(b(NO_BOXES), (5, 5)), (0, 4)),
    'class_masks': (lambda b: class_masks.class_mask_probs(b(zeros(0, 3, 28, 28)), b(NO_INDICES)), (0, 28, 28)),
    'decode_heatmaps': (lambda b: decode_heatmaps(b(zeros(0, 17, 56, 56)), b(NO_BOXES)), (0, 17, 4)),
    'paste_masks': (lambda b: paste_masks(b(zeros(0, 28, 28)), b(NO_BOXES), (20, 30)), (0, 20, 30)),
    'paste_masks, margin': (lambda b: paste_masks(b(zeros(0, 28, 28)), b(NO_BOXES), (20, 30), margin=2), (0, 20, 30)),
}


@pytest.mark.parametrize(('operate', 'shape'), OPERATIONS.values(), ids=OPERATIONS)
def test_operations(backend, operate, shape):
    assert operate(backend.array).shape == shape


def test_runs_of_no_masks(backend):
    assert mask_runs(backend.array(zeros(0, 28, 28)), backend.array(NO_BOXES), (20, 30)) == []


def test_runs_of_masks_without_pixels(backend):
    """No mask has a run: the second launch of the GPU implementation would have 0 blocks of output."""
    probs, boxes = zeros(2, 28, 28), np.tile(np.float32([1, 1, 8, 8]), (2, 1))
    runs = mask_runs(backend.array(probs), backend.array(boxes), (20, 30))
    assert [len(mask) for mask in runs] == [0, 0]


def test_levels_and_selection_kernels_of_no_rois(emulated_kernels):
    levels = assign_levels_gpu(
        NO_BOXES,
        4,
        canonical_size=224,
        canonical_level=4,
        first_level=2,
        offset=1,
        epsilon=1e-6,
        bias=0.0,
        round_to_nearest=False,
    )
    assert levels.shape == (0,)
    assert class_masks.probs_gpu(zeros(0, 3, 28, 28), NO_INDICES).shape == (0, 28, 28)
    assert not emulated_kernels  # nothing is launched


@pytest.mark.parametrize(('n_boxes', 'n_objects'), [(0, 2), (3, 0), (0, 0)])
def test_matching(n_boxes, n_objects):
    best_iou, best_object, is_best = match_boxes(zeros(n_boxes, 4), zeros(n_objects, 4), offset=1)
    assert len(best_iou) == len(best_object) == len(is_best) == n_boxes
    assert not is_best.any() and (best_iou == 0).all()


def test_heat_maps_of_nan_have_a_keypoint(backend):
    """It does not depend on memory that was never written."""
    found = backend.numpy(
        decode_heatmaps(
            backend.array(np.full((1, 1, 4, 4), np.nan, np.float32)), backend.array(np.float32([[2, 3, 4, 7]]))
        )
    )
    assert ((found[0, 0, :2] >= [2, 3]) & (found[0, 0, :2] <= [4, 7])).all()


def test_packed_arrays_without_rows():
    arrays = [NO_BOXES, NO_INDICES, None, zeros(0, 28, 28)]
    found = AsyncHostCopy(pack_arrays(arrays)).wait()
    assert [None if a is None else (a.shape, a.dtype) for a in found] == [
        None if a is None else (a.shape, a.dtype) for a in arrays
    ]


# Layers


def check_gradients(function, *arrays):
    """Compute a function of no images and its gradients, which must be zero; return the shape of the result."""
    variables = [chainer.Variable(array) for array in arrays]
    y = function(*variables)
    y.grad = np.zeros_like(y.array)
    y.backward()
    for variable in variables:
        np.testing.assert_array_equal(chainer.backends.cuda.to_cpu(variable.grad), zeros(*variable.shape))
    return y.shape


@pytest.mark.parametrize('graph', [True, False])
@pytest.mark.parametrize(('window', 'stride', 'pad'), [(3, 1, 1), (1, 1, 0), (3, 2, 1), (7, 2, 3)])
def test_convolution_of_no_images(graph, window, stride, pad):
    x, W, b = zeros(0, 16, 14, 14), np.ones((16, 16, window, window), np.float32), np.ones(16, np.float32)
    size = (14 + 2 * pad - window) // stride + 1
    if graph:
        shape = check_gradients(lambda *a: convolution.convolution_2d(*a, stride=stride, pad=pad), x, W, b)
    else:
        options = {'stride': stride, 'pad': pad, 'relu': True, 'residual': zeros(0, 16, size, size)}
        shape = convolution.convolve(x, W, b, **options).shape
    assert shape == (0, 16, size, size)


def test_deconvolution_of_no_images():
    x, W, b = zeros(0, 16, 7, 7), np.ones((16, 8, 2, 2), np.float32), np.ones(8, np.float32)
    assert check_gradients(lambda *a: convolution.deconvolution_2d(*a, stride=2), x, W, b) == (0, 8, 14, 14)
    assert convolution.deconvolve(x, W, b, stride=2, relu=True).shape == (0, 8, 14, 14)


@pytest.mark.parametrize('precision', ['fp32', 'tf32', 'fp16', 'bf16'])
def test_cudnn_of_no_images(stand_in, precision):
    x, b = zeros(0, 64, 14, 14), np.ones(64, np.float32)
    with chainer.using_config('precision', precision):
        for window, stride, pad in ((3, 1, 1), (1, 1, 0), (3, 2, 1)):
            W, options = np.ones((64, 64, window, window), np.float32), {'stride': stride, 'pad': pad}
            size = (14 + 2 * pad - window) // stride + 1
            y = cudnn_frontend.convolve(x, W, b, relu=True, residual=zeros(0, 64, size, size), **options)
            assert y.shape == (0, 64, size, size)
            gy = zeros(*y.shape)
            assert cudnn_frontend.convolve_backward_data(gy, W, x.shape, **options).shape == x.shape
            gradient = cudnn_frontend.convolve_backward_filter(x, gy, W.shape, **options)
            np.testing.assert_array_equal(gradient, np.zeros_like(W))
            assert check_gradients(
                lambda *a, options=options: cudnn_frontend.convolution_2d(*a, relu=True, **options), x, W, b
            ) == (0, 64, size, size)
        W = np.ones((64, 8, 2, 2), np.float32)
        assert cudnn_frontend.deconvolve(x, W, b[:8], stride=2, relu=True).shape == (0, 8, 28, 28)
        few = convolve_few_channels(zeros(0, 3, 32, 32), np.ones((64, 3, 7, 7), np.float32), b, pad=3, relu=True)
        assert few.shape == (0, 64, 16, 16)


def test_depthwise_convolution_of_no_images(backend):
    x, W = zeros(0, 8, 12, 12), np.ones((8, 1, 3, 3), np.float32)
    pad = (1, 1), (1, 1)
    shape = check_gradients(lambda x, W: depthwise_convolution_2d(x, W, pad=pad), backend.array(x), backend.array(W))
    assert shape == x.shape
    assert depthwise_convolve(x, W, np.ones(8, np.float32), stride=1, pad=pad, clip_max=6).shape == x.shape


def test_pooling_and_upsampling_of_no_images(emulated_kernels):
    x, coarse = zeros(0, 8, 12, 12), zeros(0, 8, 6, 6)
    pooled = [max_pooling.pool_gpu(x, 3, 2, 1, (6, 6)), max_pooling.pool_cpu(x, 3, 2, 1, (6, 6))]
    assert {y.shape for y in pooled} == {(0, 8, 6, 6)}
    assert average_pooling.average_gpu(x).shape == (0, 8)
    assert average_pooling.global_average_pooling_2d(x).shape == (0, 8)
    upsample_add.add_gpu(x, coarse, x)
    assert check_gradients(upsample_add.upsample_add, x, coarse) == x.shape
    scale = np.ones(8, np.float32)
    assert check_gradients(affine_channel_2d, x, scale, scale) == x.shape
    assert not emulated_kernels
