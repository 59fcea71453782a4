"""The outputs of DeNA's Chainer_Mask_R-CNN, and its weight files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from tests.support.golden import Case
from tests.support.python_files import import_file

#: The weight files of the public cases: kind, recipe and seed -> the name that the original program gives the file.
FILE_NAMES = {'detectron': 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz', 'snapshot': 'snapshot_model.npz', 'affine': 'affine.npz'}


def build_arrays(golden: Path, kind: str, recipe: str, seed: int) -> dict[str, np.ndarray]:
    """Return the arrays of a weight file under the names of the original program."""
    module = import_file(golden / 'dena' / 'dena_weights.py')
    arrays, _ = module.build(kind, str(golden / 'detectron' / recipe), seed)
    return arrays


@dataclass(frozen=True)
class DenaCase(Case):
    """A photo and the instances that the original program detects with one of its presets.

    Attributes:
        preset: ``'visualize'``, the thresholds of the demo, or ``'evaluate'``, those of the evaluation.
    """

    program: ClassVar[str] = 'dena'
    size_name: ClassVar[str] = 'im_shape'
    offset: ClassVar[int] = 0
    preset: str = 'evaluate'

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the case; those of the preset have names without it."""
        with np.load(self.golden / self.program / f'case_{self.name}.npz') as file:
            arrays = {name.removeprefix(f'{self.preset}/'): file[name] for name in file.files}
        # Detections among ties depend on the sort of the original's NumPy.
        return {**arrays, 'stable_1e-5': arrays['stable']}

    @property
    def boxes(self) -> np.ndarray:
        return self.arrays['boxes']

    @property
    def options(self) -> dict:
        """The arguments of :func:`mask_rcnn.load` for the case's settings."""
        settings = self.settings
        nms_threshold, score_threshold = settings['presets'][self.preset]
        return {
            'bn2affine': settings['bn2affine'],
            'roi_size': settings['roi_size'],
            'roi_align': settings['roialign'],
            'min_size': settings['min_size'],
            'max_size': settings['max_size'],
            'rpn_post_nms': settings['rpn_post_nms'],
            'score_threshold': score_threshold,
            'nms_threshold': nms_threshold,
        }

    def stored_masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the masks of stable detections that the case contains.

        Returns:
            tuple: Their indices in ``masks_packed`` and ``mask_probs``, and in the stable detections.
        """
        arrays = self.arrays
        stable = arrays['stable']
        detections = arrays.get('masks_index', np.arange(len(stable)))
        is_stable = stable[detections]
        return np.flatnonzero(is_stable), np.cumsum(stable)[detections[is_stable]] - 1
