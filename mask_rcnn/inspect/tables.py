"""The tables of one detection: anchors, candidates for proposals, RoIs and candidates for detections.

The rows refer to each other by index: a detection to its candidate, a candidate to its RoI, an RoI to its proposal, and
a proposal to its anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.inference.detections import Detections
from mask_rcnn.inspect.names import level_names, names_of_classes
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_transform import ImageTransform


class Fate:
    """The outcomes of a candidate in a selection of boxes: the values of the arrays ``fates``."""

    # Plain integers: arrays are compared with them, and help() of an enumeration of integers lists all methods of int.
    __slots__ = ()

    KEPT = 0
    #: The box is too small, its centre is outside the image, or it is empty after clipping or rounding.
    INVALID = 1
    #: NMS suppresses it because of a box with a higher score.
    SUPPRESSED = 2
    #: Too many boxes have a higher score.
    BEYOND_LIMIT = 3


@dataclass(frozen=True, eq=False)
class Anchors:
    """All anchors of the network input, level after level, with the outputs of the RPN.

    Args:
        boxes: ``(K, 4)`` float32 in the network input, as all boxes of the RPN.
        deltas: ``(K, 4)`` float32 ``(dy, dx, dh, dw)``.
        scores: ``(K,)`` float32, the objectness: a logit if ``dialect.rpn.rank_by_logits`` is set, otherwise a
            probability.
        levels: ``(K,)`` int32 index of the feature map.
        decoded: ``(K, 4)`` float32 boxes after regression and clipping.
    """

    boxes: np.ndarray
    deltas: np.ndarray
    scores: np.ndarray
    levels: np.ndarray
    decoded: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class ProposalCandidates:
    """The anchors with the highest objectness, which enter NMS, in descending order of score within each level.

    Args:
        anchors: ``(C,)`` index of the anchor of each candidate.
        boxes: ``(C, 4)`` float32, decoded and clipped, in the network input.
        scores: ``(C,)`` float32; see :class:`Anchors`.
        levels: ``(C,)`` int32 index of the feature map.
        fates: ``(C,)`` int8, constants of :class:`Fate`.
        suppressed_by: ``(C,)`` index of the candidate that suppresses each one, or -1.
        rois: ``(C,)`` index of the RoI that the candidate becomes, or -1.
    """

    anchors: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    levels: np.ndarray
    fates: np.ndarray
    suppressed_by: np.ndarray
    rois: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class RoIs:
    """The proposals after NMS, in descending order of objectness, with the outputs of the box head.

    Args:
        boxes: ``(R, 4)`` float32 in the network input.
        candidates: ``(R,)`` index of the proposal's candidate in :class:`ProposalCandidates`.
        levels: ``(R,)`` int32 index of the feature map from which the RoI is pooled.
        probs: ``(R, 1 + C)`` float32 class probabilities; class 0 is the background.
        class_boxes: ``(R, 1 + C, 4)`` float32 boxes after regression for each class, clipped, in pixels of the image.
    """

    boxes: np.ndarray
    candidates: np.ndarray
    levels: np.ndarray
    probs: np.ndarray
    class_boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class DetectionCandidates:
    """The pairs of an RoI and a class with a score above the threshold, which enter NMS per class.

    Args:
        rois: ``(D,)`` index of the RoI.
        labels: ``(D,)`` int32; 0 is the first foreground class.
        boxes: ``(D, 4)`` float32 in pixels of the image, before they are rounded to integers
            (``dialect.detections.integer_boxes``).
        scores: ``(D,)`` float32.
        fates: ``(D,)`` int8, constants of :class:`Fate`.
        suppressed_by: ``(D,)`` index of the candidate that suppresses each one, or -1.
        detections: ``(D,)`` index of the detection that the candidate becomes, or -1.
    """

    rois: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    fates: np.ndarray
    suppressed_by: np.ndarray
    detections: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Every step of the detection in one image; the result of :func:`mask_rcnn.inspect.trace`.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        transform: The image's transform, which maps boxes between the image and the network input.
        input: ``(3, h, w)`` float32, the network input.
        config: The configuration of the network.
        strides: Input pixels per location of each feature map.
        features: For each level, the feature map ``(C, h, w)`` float32.
        anchors: All anchors.
        proposals: The candidates for proposals.
        rois: The RoIs.
        candidates: The candidates for detections.
        detections: The detections, those of :meth:`mask_rcnn.MaskRCNN.detect`.
        heatmaps: ``(N, K, S, S)`` float32, logits of the keypoints of each detection on a grid over its box, or
            ``None``.
        layer_shapes: Name of each layer in order -> the shapes of the arrays that it returned.
        activations: Name -> arrays of the requested layers; see :func:`mask_rcnn.inspect.activations`.
    """

    image: np.ndarray
    transform: ImageTransform
    input: np.ndarray
    config: Config
    strides: tuple[int, ...]
    features: tuple[np.ndarray, ...]
    anchors: Anchors
    proposals: ProposalCandidates
    rois: RoIs
    candidates: DetectionCandidates
    detections: Detections
    heatmaps: np.ndarray | None
    layer_shapes: Mapping[str, list[tuple[int, ...]]]
    activations: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return (
            f'Trace({width} x {height} pixels: {counted(len(self.anchors), "anchor")}, '
            f'{counted(len(self.proposals), "proposal")} before NMS, {counted(len(self.rois), "RoI")}, '
            f'{counted(len(self.detections), "detection")})'
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each foreground class."""
        return names_of_classes(self.detections.class_names, self.config.n_fg_class)

    @cached_property
    def candidate_of_detection(self) -> np.ndarray:
        """The index of each detection's candidate, ``(N,)``."""
        rows = np.flatnonzero(self.candidates.detections >= 0)
        return rows[np.argsort(self.candidates.detections[rows])]

    @property
    def level_names(self) -> tuple[str, ...]:
        """The name of each feature map: ``'P2'`` to ``'P6'``, or ``'C4'`` for the single map of a C4 network."""
        return level_names(self.strides)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probabilities of objectness scores, which are logits in some dialects; see :class:`Anchors`."""
        if not self.config.dialect.rpn.rank_by_logits:
            return scores
        return 1 / (1 + np.exp(-scores.astype(np.float64)))

    def in_image(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes ``(..., 4)`` from the network input to pixels of the image."""
        return self.transform.invert_boxes(boxes.reshape(-1, 4)).reshape(boxes.shape)
