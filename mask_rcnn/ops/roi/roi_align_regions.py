"""The parameters of RoIAlign that its implementations share: RoIs with their division into bins, and the epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mask_rcnn.ops.runtime.array import Array


@dataclass(frozen=True)
class Regions:
    """RoIs and their division into bins.

    The fields are the arguments of :func:`~mask_rcnn.ops.roi.roi_align.roi_align_pyramid`.
    """

    rois: Array
    roi_indices: Array
    levels: Array
    spatial_scales: tuple[float, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    bin_step: int

    @property
    def bins(self) -> tuple[int, int]:
        """Number of computed bins along each axis."""
        height, width = self.output_size
        return -(-height // self.bin_step), -(-width // self.bin_step)

    @property
    def kernel_arguments(self) -> tuple:
        """Arguments of the CUDA kernels that are the same for all RoIs and levels."""
        return tuple(map(np.int32, (*self.output_size, self.sampling_ratio, self.aligned, self.bin_step)))

    def members(self, level: int) -> np.ndarray:
        """Return the indices of the RoIs of one level (CPU)."""
        return np.flatnonzero(self.levels == level)


class Epilogue(NamedTuple):
    """The epilogue of pooling: a bias (C,) or ``None``, and whether to apply ReLU."""

    bias: Array | None = None
    relu: bool = False


#: Neither bias nor ReLU.
NO_EPILOGUE = Epilogue()
