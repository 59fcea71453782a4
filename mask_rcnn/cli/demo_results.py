"""The results that ``mask-rcnn demo`` writes: ``--json``, ``--jsonl``, ``--csv``, masks and ``--annotations``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn.cli.demo_annotations import AnnotationWriter
from mask_rcnn.cli.outputs import paths_of_images
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import FileError, is_standard_output
from mask_rcnn.io.console import print_note
from mask_rcnn.io.wording import counted
from mask_rcnn.media.coco_results import COCOResults
from mask_rcnn.media.csv_table import CSVTable
from mask_rcnn.media.json_lines import JSONLines
from mask_rcnn.media.mask_files import InstanceMasks, LabelImages
from mask_rcnn.media.results import Origin, ResultSink
from mask_rcnn.media.sources import Frame, Source


@dataclass
class ResultFile:
    """A file or a folder of results.

    Args:
        path: The file, or the folder of masks.
        sink: The sink.
        has_all: Whether it receives all detections of the model, as opposed to those of the pictures.
        is_table: Whether it is one file with the results of all images.
    """

    path: Path
    sink: ResultSink
    has_all: bool = False
    is_table: bool = True
    n_images: int = 0


def image_id(stem: str) -> int | str:
    """Return an image's id in COCO results; the command's help states the rule.

    Args:
        stem: The name of the image without its suffix.
    """
    return int(stem) if stem.isascii() and stem.isdigit() else stem


def open_results(args: Any) -> list[ResultFile]:
    """Return the files and folders of results that the arguments of a command name; none is created yet.

    Args:
        args: ``json``, ``jsonl``, ``csv``, ``masks`` and ``instance_masks``.
    """
    files = []
    if args.json is not None:
        files.append(ResultFile(args.json, COCOResults(args.json, lambda origin: image_id(origin.stem)), has_all=True))
    if args.jsonl is not None:
        files.append(ResultFile(args.jsonl, JSONLines(args.jsonl)))
    if args.csv is not None:
        files.append(ResultFile(args.csv, CSVTable(args.csv)))
    if args.masks is not None:
        files.append(ResultFile(args.masks, LabelImages(args.masks), is_table=False))
    if args.instance_masks is not None:
        files.append(ResultFile(args.instance_masks, InstanceMasks(args.instance_masks), is_table=False))
    return files


class Results:
    """The results of a command, which are written in the order of the images.

    Args:
        sources: The sources.
        files: The files and folders.
        annotations: The writer of ``--annotations``.
    """

    def __init__(self, sources: Sequence[Source], files: list[ResultFile], annotations: AnnotationWriter | None):
        self.annotations = annotations
        self._files = files
        names = paths_of_images([source.path for source in sources], './', several=True)
        self._stem_of = {id(source): name.stem for source, name in zip(sources, names, strict=True)}
        self.n_annotated = 0
        self.n_failed = 0

    @property
    def folders(self) -> list[Path]:
        """The folders to create."""
        return [file.path for file in self._files if not file.is_table]

    @property
    def use_standard_output(self) -> bool:
        """True if the results are written to the standard output, which then contains nothing else."""
        paths = [file.path for file in self._files if file.is_table]
        return any(map(is_standard_output, paths + (self.annotations.paths if self.annotations else [])))

    def encode(
        self, frame: Frame, *, found: Detections | None, shown: Detections | None, ids: np.ndarray | None
    ) -> list[tuple[int, Any]]:
        """Return the results of a frame in the format of each file, for :meth:`write`; for any thread or process.

        Args:
            frame: The frame.
            found: All detections, ``None`` if they are not collected in this pass.
            shown: The detections of the picture, ``None`` if they are not collected in this pass.
            ids: The ids of ``shown`` in a video whose objects are tracked.
        """
        stem = self._stem_of[id(frame.source)]
        if frame.number:
            origin = Origin(frame.source.name, f'{stem}_{frame.number:06d}', frame.number, frame.seconds)
        else:
            origin = Origin(frame.source.name, stem)
        encoded = []
        for number, file in enumerate(self._files):
            detections = found if file.has_all else shown
            if detections is not None:
                encoded.append((number, file.sink.encode(origin, detections, None if file.has_all else ids)))
        return encoded

    def write(self, encoded: list[tuple[int, Any]]) -> None:
        """Write the results of a frame.

        Raises:
            mask_rcnn.io.atomic_file.FileError: A file cannot be written.
        """
        for number, content in encoded:
            file = self._files[number]
            file.sink.write(content)
            file.n_images += 1

    def annotate(self, image: Path, detections: Detections) -> None:
        """Add the annotations of an image."""
        if self.annotations is not None:
            self.annotations.add(image, detections)
            self.n_annotated += 1

    def close(self, n_images: int | None) -> None:
        """Complete the files, and write a line for each that lacks images.

        Args:
            n_images: The number of all images, ``None`` if it is unknown.

        Raises:
            mask_rcnn.io.atomic_file.FileError: A file cannot be written.
        """
        for file in self._files:
            self._close_file(file, n_images)
        self._close_annotations(n_images)

    def close_after_error(self, n_images: int | None) -> None:
        """Complete the files that can be; those without an image have not been created."""
        for file in self._files:
            if file.n_images:
                with contextlib.suppress(FileError):  # the error that is being handled, or one that comes from it
                    self._close_file(file, n_images)
        if self.n_annotated:
            with contextlib.suppress(FileError):
                self._close_annotations(n_images)

    def _close_file(self, file: ResultFile, n_images: int | None) -> None:
        file.sink.close()
        if file.is_table:
            self._report_missing(file.path, file.n_images, n_images)

    def _close_annotations(self, n_images: int | None) -> None:
        if self.annotations is not None:
            self.annotations.write()
            for path in self.annotations.paths[:1]:
                self._report_missing(path, self.n_annotated, n_images)

    def _report_missing(self, path: Path, n_written: int, n_images: int | None) -> None:
        if n_images is not None and n_written + self.n_failed < n_images:
            print_note(f'{path} contains the results of {n_written} of {counted(n_images, "image")}')
