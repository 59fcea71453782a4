"""The report of an import: omissions, doubts, and the choice between an error and an omission."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.records import ImportedImage
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.preprocessing.image_io import ImageFileError


class ImportReport:
    """The items that an importer leaves out or keeps with doubts.

    Args:
        skip_broken: Whether :meth:`reject` counts unreadable items instead of raising an error.
    """

    def __init__(self, *, skip_broken: bool):
        self.omissions = Omissions('items')
        self.doubts = Omissions('doubtful items', action='kept')
        self._skip_broken = skip_broken

    def reject(self, error: AnnotationFileError | ImageFileError) -> None:
        """Raise an error about something that cannot be read, or count it."""
        if not self._skip_broken:
            raise error
        name = ' '.join(str(error).split())
        if isinstance(error, ImageFileError):
            self.omissions.add('unusable images', name, one='unusable image')
        else:
            self.omissions.add('malformed', name)

    def reject_object(self, source: Path, place: str, problem: ValueError) -> None:
        """Reject an object.

        Args:
            source: The annotation file.
            place: The object in it, such as ``'region 3 of a.jpg'``.
            problem: An error whose message continues the sentence: ``'has a polygon of 5 numbers'``.
        """
        error = AnnotationFileError(source, f'{place} {problem}')
        error.__cause__ = problem
        self.reject(error)

    def read_images(
        self, paths: Iterable[Path], read: Callable[[Path], ImportedImage | None]
    ) -> tuple[ImportedImage, ...]:
        """Read images one by one, and reject those that cannot be read.

        Args:
            paths: The images or annotation files.
            read: Reads one of them; returns ``None`` for an image that it has left out itself.

        Raises:
            AnnotationFileError, ImageFileError: A file is broken, and ``skip_broken`` is not set.
        """
        images = []
        for path in paths:
            try:
                images.append(read(path))
            except (AnnotationFileError, ImageFileError) as error:
                self.reject(error)
        return tuple(image for image in images if image is not None)
