"""The RoIs that are sampled from several images, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_rcnn.targets import KeypointRoIs, SampledRoIs


@dataclass(frozen=True)
class RoIBatch:
    """The sampled RoIs of several images, foreground RoIs first.

    The heads cannot run on an empty batch.  If no RoI is foreground, the first RoI replaces the foreground: the
    mask head runs on it with ignored targets, and its box regression loss has the weight 0, as in Detectron.

    Args:
        boxes: ``(R, 4)`` float32 in the network input.
        images: ``(R,)`` int32 index of the image of each RoI.
        labels: ``(R,)`` int32: 1 + label, 0 for background, -1 for ignored RoIs.
        deltas: ``(n_mask_rois, 4)`` float32: the regression targets of the foreground, or zeros.
        n_foreground: Number of foreground RoIs, F.
        n_images: Number of images.
    """

    boxes: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray
    n_foreground: int
    n_images: int

    @property
    def n_mask_rois(self) -> int:
        """The number of RoIs with mask and delta targets: the foreground, or one if there is none."""
        return max(self.n_foreground, 1)

    @property
    def class_indices(self) -> np.ndarray:
        """The index and the class of each of these RoIs, ``(2, n_mask_rois)`` int32; 1 is the first object class."""
        n = self.n_mask_rois
        return np.stack([np.arange(n, dtype=np.int32), np.maximum(self.labels[:n], 1)])

    @staticmethod
    def join(rois: Sequence[SampledRoIs]) -> RoIBatch:
        """Join the RoIs of several images."""
        labels = np.concatenate([image_rois.labels for image_rois in rois]).astype(np.int32, copy=False)
        order = np.argsort(labels <= 0, kind='stable')
        n_foreground = int(np.count_nonzero(labels > 0))
        deltas = np.zeros((max(n_foreground, 1), 4), np.float32)
        deltas[:n_foreground] = np.concatenate([image_rois.deltas for image_rois in rois])
        return RoIBatch(
            boxes=np.concatenate([image_rois.rois for image_rois in rois])[order],
            images=image_indices(rois)[order],
            labels=labels[order],
            deltas=deltas,
            n_foreground=n_foreground,
            n_images=len(rois),
        )


def image_indices(rois: Sequence[SampledRoIs] | Sequence[KeypointRoIs]) -> np.ndarray:
    """Return the index of the image of each RoI, int32."""
    return np.repeat(np.arange(len(rois), dtype=np.int32), [len(image_rois.rois) for image_rois in rois])
