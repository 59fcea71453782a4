"""The reference outputs of the original programs, and the rules by which ours are held against them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import chainer
import numpy as np

XY = [1, 0, 3, 2]  # Detectron's x1 y1 x2 y2 <-> our y1 x1 y2 x2

#: Suggested in the reference outputs' own notes for a port whose resize differs a little.
MIN_BOX_IOU = 0.99
MAX_SCORE_DIFFERENCE = 5e-3

#: The same for Detectron's cases where the input is the golden one, to the bit: twice what was measured with OpenBLAS's
#: kernels for five kinds of processors (2e-4).  They differ as float32 sums in another order do.
MAX_SCORE_ROUNDING = 4e-4

#: By how much, of pixels and of probability, a detection may always be off, and at most; in between as much as noise
#: of 1e-5 moves Detectron's own.  Half of it was measured, with the same kernels.
BOX_LIMITS, MASK_LIMITS = (0.01, 0.1), (4e-3, 0.025)


def rebuild_pickle(golden: Path, recipe: str, folder: Path) -> Path:
    """Write the Detectron pickle of a recipe as Detectron's own Python 2 would have."""
    spec = importlib.util.spec_from_file_location('detectron_weights', golden / 'detectron_weights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = folder / Path(recipe).with_suffix('.pkl').name
    blobs, meta = module.load(str(golden / 'detectron' / recipe))
    module.write_pkl(blobs, meta['cfg'], str(path))
    return path


@dataclass(frozen=True)
class GoldenCase:
    """One picture and what a program found on it, with samples of every blob on the way.

    Attributes:
        program: Name of the folder with the program's outputs.
        size: Name of the array that begins with the picture's height and width.
    """

    program: ClassVar[str]
    size: ClassVar[str]
    golden: Path
    name: str

    @property
    def arrays(self) -> np.lib.npyio.NpzFile:
        return np.load(self.golden / self.program / f'case_{self.name}.npz')

    @property
    def settings(self) -> dict:
        return json.loads(str(self.arrays['config']))

    def rows_of(self, name: str) -> np.ndarray:
        """Return which rows of a blob have samples."""
        shape = tuple(self.arrays[f'blob/{name}/shape'])
        return np.unique(np.unravel_index(self.arrays[f'blob/{name}/index'], shape)[0])

    def differences(self, name: str, values: np.ndarray, *, rows=None) -> np.ndarray:
        """Return the differences from a blob's samples in units of the blob's deviation.

        Args:
            name: The program's.
            values: The blob, its axes in the program's order, or those ``rows`` of it.
            rows: Sorted indices into its first axis.
        """
        arrays = self.arrays
        shape = tuple(arrays[f'blob/{name}/shape'])
        index = np.array(np.unravel_index(arrays[f'blob/{name}/index'], shape))
        if rows is not None:
            index[0] = np.searchsorted(rows, index[0])
            shape = (len(rows), *shape[1:])
        assert values.shape == shape, name
        difference = np.abs(values[tuple(index)] - arrays[f'blob/{name}/value'])
        return difference / arrays[f'blob/{name}/stat'][1]

    def masks(self) -> np.ndarray:
        """The pasted masks, (n, H, W) bool."""
        width = int(self.arrays[self.size][1])
        return np.unpackbits(self.arrays['masks_packed'], axis=-1)[..., :width].astype(bool)


class Case(GoldenCase):
    """A photo and Detectron's instances."""

    program, size = 'detectron', 'im_shape'

    @property
    def photo(self) -> Path:
        return self.golden / 'photos' / self.settings['image']

    @property
    def config_changes(self) -> dict:
        """The fields of :class:`mask_rcnn.Config` that the case was run with."""
        names = {
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
        return {ours: self.settings[theirs] for theirs, ours in names.items()}

    def compare_blob(self, name: str, values: np.ndarray, *, rows=None) -> float:
        """Return the largest of the :meth:`differences`."""
        return float(self.differences(name, values, rows=rows).max())


def as_detectron(deltas: np.ndarray) -> np.ndarray:
    """(N, 4 * K, ...): our (dy, dx, dh, dw) to (dx, dy, dw, dh)."""
    return deltas.reshape(len(deltas), -1, 4, *deltas.shape[2:])[:, :, XY].reshape(deltas.shape)


def golden_rois(case: Case, rows=slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """A case's proposals as our RoIs and their images."""
    rois = case.arrays['rois'][rows]
    return rois[:, 1:][:, XY], rois[:, 0].astype(np.int32)


class Recorder(chainer.LinkHook):
    """Copies what some links take and give, by their paths, in the order of the calls."""

    name = 'Recorder'

    def __init__(self, model: chainer.Link, *paths: str):
        self._paths = {id(link): path[1:] for path, link in model.namedlinks() if path[1:] in paths}
        self.inputs: dict[str, list[np.ndarray]] = {path: [] for path in paths}
        self.outputs: dict[str, list[np.ndarray]] = {path: [] for path in paths}

    def forward_preprocess(self, args):
        if id(args.link) in self._paths:
            self.inputs[self._paths[id(args.link)]].append(chainer.as_array(args.args[0]).copy())

    def forward_postprocess(self, args):
        if id(args.link) in self._paths:
            self.outputs[self._paths[id(args.link)]].append(chainer.as_array(args.out).copy())


def match(case: Case, detections, *, min_iou: float, max_score_difference: float) -> np.ndarray:
    """Match detections one to one with a case's stable ones and return their indices, in its order.

    Asserts that every stable detection is found, with its class, score and box, and that there are no
    more others than the disturbed runs of Detectron itself had.
    """
    from mask_rcnn.ops.boxes.boxes import box_iou

    arrays = case.arrays
    iou = box_iou(arrays['boxes'][:, XY], detections.boxes)
    same_class = arrays['classes'][:, None] == detections.labels[None] + 1
    close = np.abs(arrays['scores'][:, None] - detections.scores[None]) <= max_score_difference
    fits = np.where(same_class & close, iou, 0)
    partners, free = [], np.ones(len(detections), bool)
    for i in np.flatnonzero(arrays['stable']):
        j = int(np.argmax(fits[i] * free))
        assert fits[i, j] > min_iou and free[j], (
            f'class {arrays["classes"][i]}, score {arrays["scores"][i]:.4f}, box {arrays["boxes"][i]}: '
            f'best IoU {fits[i, j]:.5f}'
        )
        free[j] = False
        partners.append(j)
    others = int(arrays['unmatched_1e-5']) + int((~arrays['stable']).sum())
    assert free.sum() <= others, f'{free.sum()} detections that Detectron has not'
    return np.array(partners)


def compare_boxes(case: Case, found) -> None:
    """Hold the boxes of the stable detections, in the case's order, against Detectron's."""
    _compare(case, found.boxes[:, XY], 'boxes', 'box_diff_1e-5', BOX_LIMITS)


def compare_masks(case: Case, found) -> None:
    """Hold the masks of the stable detections, in the case's order, against Detectron's."""
    _compare(case, found.mask_probs, 'mask_probs', 'mask_prob_diff_1e-5', MASK_LIMITS)
    compare_pasted(case, found.masks)


def compare_pasted(case: Case, masks) -> None:
    """The same of the pasted masks alone: those that noise leaves as they are differ by pixels at the threshold."""
    stable = case.arrays['stable']
    iou, disturbed = mask_iou(masks, case.masks()[stable]), case.arrays['mask_iou_1e-5'][stable]
    assert (iou >= disturbed - 0.02).all()
    assert iou[disturbed > 0.99].min() > 0.995 and np.median(iou) > 0.999  # measured: 0.998 and 1


def _compare(case, values, name, noise, limits):
    expected, noise = (case.arrays[key][case.arrays['stable']] for key in (name, noise))
    off = np.abs(values - expected).reshape(len(expected), -1).max(axis=1)
    share = off / np.clip(noise, *limits)
    assert share.max() <= 1, f'{name} of detection {share.argmax()}: {off[share.argmax()]}'


def mask_iou(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each mask with the other of its index."""
    both = (masks & others).sum(axis=(1, 2))
    either = (masks | others).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1)
