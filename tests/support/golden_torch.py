"""The outputs of torchvision and detectron2, and the files of their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mask_rcnn import Detections
from tests.support.golden import XY, Case, GoldenCase, mask_iou
from tests.support.python_files import import_file

#: Largest difference of a blob, in its standard deviations (measured: 9e-5), and of the network input (2.4e-7).
BLOBS, INPUT = 2e-4, 1e-6

#: Largest difference of a mask's IoU from that of a run of the program with noise on its input (measured: 0.002).
MASK_IOU = 0.005


class TorchCase(GoldenCase):
    """A photo and the instances that torchvision or detectron2 finds."""

    size_name, offset = 'image_shape', 0
    first_label = 0

    @property
    def boxes(self) -> np.ndarray:
        return self.arrays['boxes'][:, XY]

    @property
    def labels(self) -> np.ndarray:
        return self.arrays['labels'] - self.first_label

    @property
    def photo(self) -> Path:
        """The file of the photo."""
        return self.golden / 'photos' / self.settings['image']

    @property
    def keypoints(self) -> np.ndarray:
        """``(n, K, 3)``: ``(y, x, score)``."""
        xy, scores = self.arrays['keypoints'], self.arrays['keypoints_scores']
        return np.concatenate([xy[..., ::-1], scores[..., None]], axis=2)

    def has_blob(self, name: str) -> bool:
        """Return whether the case has samples of a blob."""
        return f'blob/{name}/index' in self.arrays


class TorchvisionCase(TorchCase):
    """A case of torchvision, whose first foreground class is 1."""

    program, first_label = 'torchvision', 1


class Detectron2Case(TorchCase):
    """A case of detectron2, whose first foreground class is 0."""

    program = 'detectron2'


class ZooCase(Case):
    """A case of Detectron's ResNeXt, group normalisation and Faster R-CNN models."""

    program = 'detectron_zoo'


@dataclass(frozen=True)
class Program:
    """A program with reference outputs.

    Args:
        case: The class of its cases.
        script: The file that rebuilds its weights.
        suffix: The suffix of its weight files.
    """

    case: type[GoldenCase]
    script: str
    suffix: str

    def rebuild(self, golden: Path, recipe: str, folder: Path, *arguments: str) -> Path:
        """Write the weight file of a recipe.

        Args:
            golden: The folder of the reference outputs.
            recipe: The name of the recipe.
            folder: The folder of the weight file.
            *arguments: Further arguments of the script, such as ``--legacy``.
        """
        root = golden / self.case.program
        path = folder / f'{Path(recipe).stem}{self.suffix}'
        import_file(root / self.script).main([str(root / recipe), str(path), *arguments])
        return path


PROGRAMS = {
    'torchvision': Program(TorchvisionCase, 'torchvision_weights.py', '.pth'),
    'detectron2': Program(Detectron2Case, 'detectron2_weights.py', '.pkl'),
    'detectron_zoo': Program(ZooCase, 'detectron_zoo_weights.py', '.pkl'),
}

#: The cases of torchvision and detectron2: program and name.
CASES = [
    ('torchvision', 'maskrcnn_resnet50_fpn_seed0'),
    ('torchvision', 'maskrcnn_resnet50_fpn_v2_seed0'),
    ('torchvision', 'keypointrcnn_resnet50_fpn_seed0'),
    ('torchvision', 'fasterrcnn_resnet50_fpn_seed0'),
    ('detectron2', 'mask_rcnn_R_50_FPN_3x_seed0'),
    ('detectron2', 'mask_rcnn_R_50_C4_3x_seed0'),
    ('detectron2', 'keypoint_rcnn_R_50_FPN_3x_seed0'),
]


def compare_stable(case: GoldenCase, detections: Detections) -> dict[str, float]:
    """Return the largest differences of the stable detections, in the case's order, from the program's.

    Boxes are in pixels.  ``mask_iou`` is how far the IoU of a mask is below that of a run of the program with noise: of
    1e-4 for the detections that survive it, otherwise of 1e-5.  Masks of torchvision whose boxes truncate to other
    pixels than those of the program are left out, at most two of the case: they are shifted by a pixel.
    """
    stable = case.arrays['stable']
    differences = {
        'boxes': float(np.abs(detections.boxes - case.boxes[stable]).max()),
        'scores': float(np.abs(detections.scores - case.arrays['scores'][stable]).max()),
    }
    if 'mask_probs' in case.arrays:
        differences['mask_probs'] = float(np.abs(detections.mask_probs - case.arrays['mask_probs'][stable]).max())
        iou = mask_iou(detections.masks, case.masks()[stable])
        noisy = np.where(case.arrays['stable_1e-4'], case.arrays['mask_iou_1e-4'], case.arrays['mask_iou_1e-5'])
        fits = np.ones(len(iou), bool)
        if case.program == 'torchvision':
            fits = (pasted_pixels(detections.boxes) == pasted_pixels(case.boxes[stable])).all(axis=1)
        assert np.count_nonzero(~fits) <= 2
        differences['mask_iou'] = float((noisy[stable] - iou)[fits].max())
    return differences


def pasted_pixels(boxes, resolution=28):
    """Return the corners ``(R, 4)`` of the pixels that torchvision pastes masks to: expanded boxes, truncated."""
    centers, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    halves = halves * np.float32((resolution + 2) / resolution)
    return np.concatenate([centers - halves, centers + halves], axis=1).astype(int)
