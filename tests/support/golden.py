"""The outputs of the original programs, and the rules by which results are compared with them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import chainer
import numpy as np

from mask_rcnn import Detections
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.preprocessing.image_transform import ImageTransform
from tests.support.python_files import import_file

XY = [1, 0, 3, 2]  # (x1, y1, x2, y2) <-> (y1, x1, y2, x2)

#: The rule that the reference outputs' README suggests for a port whose resize differs a little.
MIN_BOX_IOU = 0.99
MAX_SCORE_DIFFERENCE = 5e-3

#: The same for Detectron's cases, whose network input has the same bits: twice the largest difference measured (2e-4).
#: OpenBLAS's kernels for different processors add float32 numbers in different orders.
MAX_SCORE_ROUNDING = 4e-4

#: Tolerances of boxes (in pixels) and mask probabilities: a detection may differ as much as noise of 1e-5 on the input
#: moves it in Detectron, but at least by the first number and at most by the second.  Half of it was measured.
BOX_LIMITS, MASK_LIMITS = (0.01, 0.1), (4e-3, 0.025)


def to_host(values: chainer.Variable | Array) -> np.ndarray:
    """Return a variable or an array of any device as a NumPy array; comparisons run on the host."""
    return chainer.backends.cuda.to_cpu(chainer.as_array(values))


def without_padding(boxes: Array) -> np.ndarray:
    """Return the boxes ``(R, 4)`` on the host, without the padding rows that a GPU appends (NaN)."""
    boxes = to_host(boxes)
    n_boxes = np.count_nonzero(~np.isnan(boxes).any(axis=1))
    assert np.isnan(boxes[n_boxes:]).all(), 'padding rows must come last'
    return boxes[:n_boxes]


def send_rois(model: chainer.Link, boxes: np.ndarray) -> tuple[Array, Array]:
    """Return the boxes of one image and their image indices ``(R,)`` int32 on the model's device."""
    return model.xp.asarray(boxes), model.xp.zeros(len(boxes), np.int32)


def rebuild_pickle(golden: Path, recipe: str, folder: Path, *, momentum: bool = True) -> Path:
    """Write the Detectron pickle of a recipe with the bytes that Detectron's Python 2 would write.

    Args:
        golden: The folder of the reference outputs.
        recipe: The name of the recipe.
        folder: The folder of the pickle.
        momentum: Whether the pickle contains the momentum of training, which is half of its size.
    """
    module = import_file(golden / 'detectron_weights.py')
    path = folder / Path(recipe).with_suffix('.pkl').name
    blobs, meta = module.load(str(golden / 'detectron' / recipe), momentum)
    module.write_pkl(blobs, meta['cfg'], str(path))
    return path


@dataclass(frozen=True)
class GoldenCase(ABC):
    """One image, a program's detections, and samples of its intermediate blobs.

    Attributes:
        program: The folder of the program's outputs.
        size_name: The array that begins with the image's height and width.
        offset: What the program adds to ``x2 - x1`` for the width of a box.
    """

    program: ClassVar[str]
    size_name: ClassVar[str]
    offset: ClassVar[int]
    golden: Path
    name: str

    @property
    def arrays(self) -> np.lib.npyio.NpzFile:
        """All arrays of the case, by name."""
        return np.load(self.golden / self.program / f'case_{self.name}.npz')

    @property
    def settings(self) -> dict:
        """The settings that the program ran with."""
        return json.loads(str(self.arrays['config']))

    @property
    @abstractmethod
    def boxes(self) -> np.ndarray:
        """``(n, 4)`` float32 ``(y1, x1, y2, x2)`` boxes of the detections."""

    @property
    @abstractmethod
    def labels(self) -> np.ndarray:
        """``(n,)`` classes of the detections; 0 is the first foreground class."""

    def rows_of(self, name: str) -> np.ndarray:
        """Return the indices of a blob's rows that have samples."""
        shape = tuple(self.arrays[f'blob/{name}/shape'])
        return np.unique(np.unravel_index(self.arrays[f'blob/{name}/index'], shape)[0])

    def differences(self, name: str, values: Array, *, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the absolute differences from a blob's samples, divided by the blob's standard deviation.

        Args:
            name: The program's name of the blob.
            values: The blob on any device, with its axes in the program's order, or its ``rows``.
            rows: Sorted indices into its first axis.
        """
        arrays, values = self.arrays, to_host(values)
        shape = tuple(arrays[f'blob/{name}/shape'])
        index = np.array(np.unravel_index(arrays[f'blob/{name}/index'], shape))
        if rows is not None:
            index[0] = np.searchsorted(rows, index[0])
            shape = (len(rows), *shape[1:])
        assert values.shape == shape, name
        difference = np.abs(values[tuple(index)] - arrays[f'blob/{name}/value'])
        return difference / arrays[f'blob/{name}/stat'][1]

    def masks(self) -> np.ndarray:
        """Return the pasted masks, ``(n, H, W)`` bool."""
        width = int(self.arrays[self.size_name][1])
        return np.unpackbits(self.arrays['masks_packed'], axis=-1)[..., :width].astype(bool)


class Case(GoldenCase):
    """A photo and Detectron's instances."""

    program, size_name, offset = 'detectron', 'im_shape', 1

    @property
    def boxes(self) -> np.ndarray:
        return self.arrays['boxes'][:, XY]

    @property
    def labels(self) -> np.ndarray:
        return self.arrays['classes'] - 1

    @property
    def photo(self) -> Path:
        """The file of the photo."""
        return self.golden / 'photos' / self.settings['image']

    @property
    def transform(self) -> ImageTransform:
        """The mapping from the photo to the network input."""
        height, width = self.arrays['im_shape'][:2].tolist()
        return ImageTransform.top_left((height, width), float(self.arrays['im_scale']))

    @property
    def config_changes(self) -> dict:
        """The fields of :class:`mask_rcnn.Config` that the case's settings name."""
        fields = {
            'scale': 'min_size',
            'max_size': 'max_size',
            'rpn_pre_nms': 'rpn_pre_nms',
            'rpn_post_nms': 'rpn_post_nms',
            'rpn_nms': 'rpn_nms_threshold',
            'rpn_min_size': 'rpn_min_size',
            'score_thresh': 'score_threshold',
            'nms': 'nms_threshold',
            'detections_per_im': 'max_detections',
        }
        return {field: self.settings[name] for name, field in fields.items()}

    def compare_blob(self, name: str, values: Array, *, rows: np.ndarray | None = None) -> float:
        """Return the largest of the :meth:`differences`."""
        return float(self.differences(name, values, rows=rows).max())


def as_detectron(deltas: Array) -> np.ndarray:
    """Turn ``(dy, dx, dh, dw)`` into ``(dx, dy, dw, dh)``; the deltas are the second axis, of ``4 * K`` channels."""
    deltas = to_host(deltas)
    return deltas.reshape(len(deltas), -1, 4, *deltas.shape[2:])[:, :, XY].reshape(deltas.shape)


def golden_rois(model: chainer.Link, case: Case, rows=slice(None), *, name: str = 'rois') -> tuple[Array, Array]:
    """Return RoIs ``(y1, x1, y2, x2)`` of a case and the indices of their images, on the model's device.

    Args:
        model: The model.
        case: The case.
        rows: Index of the RoIs to return.
        name: ``'rois'`` for the proposals, ``'mask_rois'`` or ``'keypoint_rois'`` for the boxes of the detections.
    """
    return send_rois(model, case.arrays[name][rows][:, 1:][:, XY])


class Recorder(chainer.LinkHook):
    """Copies the inputs and outputs of some links to the host, by path, in the order of the calls."""

    name = 'Recorder'

    def __init__(self, model: chainer.Link, *paths: str):
        self._paths = {id(link): path[1:] for path, link in model.namedlinks() if path[1:] in paths}
        self.inputs: dict[str, list[np.ndarray]] = {path: [] for path in paths}
        self.outputs: dict[str, list[np.ndarray]] = {path: [] for path in paths}

    def forward_preprocess(self, args):
        if id(args.link) in self._paths:
            self.inputs[self._paths[id(args.link)]].append(to_host(args.args[0]).copy())

    def forward_postprocess(self, args):
        if id(args.link) in self._paths:
            self.outputs[self._paths[id(args.link)]].append(to_host(args.out).copy())


def match(
    case: GoldenCase, detections: Detections, *, min_iou: float, max_score_difference: float, noise: str = '1e-5'
) -> np.ndarray:
    """Match detections one to one with a case's stable ones and return their indices, in the case's order.

    Asserts that every stable detection has a partner with its class, score and box, and that at most as many detections
    have no partner as there are unstable ones and ones that only a disturbed run of the original program found.

    Args:
        case: The case.
        detections: The detections of its image.
        min_iou: The IoU that a detection and its partner exceed.
        max_score_difference: The largest difference of their scores.
        noise: The relative noise on the network input that a stable detection survives in the original program.
    """
    stable = case.arrays[f'stable_{noise}']
    iou = box_iou(case.boxes, detections.boxes, offset=case.offset)
    same_class = case.labels[:, None] == detections.labels[None]
    close = np.abs(case.arrays['scores'][:, None] - detections.scores[None]) <= max_score_difference
    fits = np.where(same_class & close, iou, 0)
    partners, free = [], np.ones(len(detections), bool)
    for i in np.flatnonzero(stable):
        j = int(np.argmax(fits[i] * free))
        assert fits[i, j] > min_iou and free[j], (
            f'label {case.labels[i]}, score {case.arrays["scores"][i]:.4f}, box {case.boxes[i]}: '
            f'best IoU {fits[i, j]:.5f}'
        )
        free[j] = False
        partners.append(j)
    others = int(case.arrays[f'unmatched_{noise}']) + int((~stable).sum())
    assert free.sum() <= others, f'{free.sum()} detections without a partner, at most {others} expected'
    return np.array(partners)


def compare_boxes(case: Case, detections: Detections) -> None:
    """Compare the boxes of the stable detections, in the case's order, with Detectron's."""
    _compare(case, detections.boxes[:, XY], 'boxes', 'box_diff_1e-5', BOX_LIMITS)


def compare_masks(case: Case, detections: Detections) -> None:
    """Compare the masks of the stable detections, in the case's order, with Detectron's."""
    _compare(case, detections.mask_probs, 'mask_probs', 'mask_prob_diff_1e-5', MASK_LIMITS)
    compare_pasted(case, detections.masks)


def compare_pasted(case: Case, masks: np.ndarray) -> None:
    """Compare pasted masks; those that noise does not change may differ in a few pixels at the threshold."""
    stable = case.arrays['stable']
    iou, disturbed = mask_iou(masks, case.masks()[stable]), case.arrays['mask_iou_1e-5'][stable]
    assert (iou >= disturbed - 0.02).all()
    assert iou[disturbed > 0.99].min() > 0.995 and np.median(iou) > 0.999  # measured: 0.998 and 1


def _compare(case, values, name, noise, limits):
    expected, noise = (case.arrays[key][case.arrays['stable']] for key in (name, noise))
    differences = np.abs(values - expected).reshape(len(expected), -1).max(axis=1)
    share = differences / np.clip(noise, *limits)
    assert share.max() <= 1, f'{name} of detection {share.argmax()}: {differences[share.argmax()]}'


def mask_iou(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each mask with the other mask of its index."""
    intersection = (masks & others).sum(axis=(1, 2))
    union = (masks | others).sum(axis=(1, 2))
    return np.where(union > 0, intersection / np.maximum(union, 1), 1)
