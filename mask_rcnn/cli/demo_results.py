"""The results that ``mask-rcnn demo`` collects: COCO results (``--json``) and annotations (``--annotations``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask_rcnn.cli.demo_annotations import AnnotationWriter, write_json
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import is_standard_output
from mask_rcnn.io.console import print_note
from mask_rcnn.io.wording import counted


def image_id(image: Path) -> int | str:
    """Return an image's id in COCO results; the command's help states the rule."""
    return int(image.stem) if image.stem.isascii() and image.stem.isdigit() else image.stem


@dataclass
class Results:
    """The results for ``--json`` and ``--annotations``, and the number of their images.

    Args:
        json_path: The file of ``--json``.
        annotations: The writer of ``--annotations``.
    """

    json_path: Path | None
    annotations: AnnotationWriter | None
    detections: list[dict[str, Any]] = field(default_factory=list)
    n_images: int = 0
    n_annotated: int = 0
    n_failed: int = 0

    @property
    def use_standard_output(self) -> bool:
        """True if the results are written to the standard output, which then contains nothing else."""
        paths = [self.json_path] if self.json_path is not None else []
        return any(map(is_standard_output, paths + (self.annotations.paths if self.annotations else [])))

    def add(self, results: list[dict[str, Any]]) -> None:
        """Add the results of an image for ``--json``, as :meth:`Detections.to_coco` returns them."""
        self.detections += results
        self.n_images += 1

    def annotate(self, image: Path, detections: Detections) -> None:
        """Add the annotations of an image."""
        if self.annotations is not None:
            self.annotations.add(image, detections)
            self.n_annotated += 1

    def write(self, n_images: int | None) -> None:
        """Write the results, and a line if images are missing because the command was interrupted.

        Args:
            n_images: The number of all images, ``None`` if it is unknown.
        """
        if self.json_path is not None:
            write_json(self.json_path, self.detections)
            self._report_missing(self.json_path, self.n_images, n_images)
        if self.annotations is not None:
            self.annotations.write()
            for path in self.annotations.paths[:1]:
                self._report_missing(path, self.n_annotated, n_images)

    def _report_missing(self, path: Path, n_written: int, n_images: int | None) -> None:
        if n_images is not None and n_written + self.n_failed < n_images:
            print_note(f'{path} contains the results of {n_written} of {counted(n_images, "image")}')
