"""The records into which importers read annotations, whatever tool wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.io.omissions import Omissions


@dataclass(frozen=True)
class ImportedObject:
    """One object of an image.

    Args:
        class_name: Name of its class in the source.
        segmentation: Polygons (flat float64 arrays ``x, y, x, y, ...`` in pixels of the image) or COCO's compressed run
            lengths; ``()`` if the source has only a box.
        place: Where the source describes the object, for messages: ``'region 3'``, ``'line 12'``, ``'value 7'``.
        box: ``(x, y, width, height)`` in pixels, if the source declares one.
        is_crowd: True for a region of several objects that are not annotated individually.
    """

    class_name: str
    segmentation: Segmentation
    place: str
    box: tuple[float, float, float, float] | None = None
    is_crowd: bool = False


@dataclass(frozen=True)
class ImportedImage:
    """One image with its objects.

    Args:
        path: The image file, which exists unless ``read_data`` is set.
        size: Height and width in pixels, read from the image file with its orientation applied.
        objects: Its objects, in the order of the source; there may be none.
        read_data: Returns the bytes of an image file that exists only inside the annotations; ``path`` is its name.
    """

    path: Path
    size: tuple[int, int]
    objects: tuple[ImportedObject, ...]
    read_data: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class ImportedDataset:
    """The content of an annotation source.

    Args:
        format_name: The recognised format, as the user knows it: ``'VIA 2'``.
        images: The images, in the order of the source.
        class_names: All classes: in the order of the source if it declares one, otherwise sorted.
        omissions: The items that were left out.
        doubts: The items that were kept although they may be wrong.
    """

    format_name: str
    images: tuple[ImportedImage, ...]
    class_names: tuple[str, ...]
    omissions: Omissions = field(default_factory=lambda: Omissions('items'))
    doubts: Omissions = field(default_factory=lambda: Omissions('doubtful items', action='kept'))


@dataclass(frozen=True)
class ImportOptions:
    """Settings of an import.

    Args:
        image_folder: The folder of the images; ``None`` for the place that the source implies.
        skip_broken: Leave out and count unreadable items instead of raising an error.
        default_class: The class of objects for which the source names none (VIA regions without attributes, masks of
            instances).
        part: The part of a source that has several (``train``, ``val``); ``None`` if it has only one.
        attribute: The attribute of VIA's regions that names the class; ``None`` to choose it.
        crowds: ``'keep'`` for crowds as the source marks them, ``'objects'`` to import them as single objects.
        embedded_images: Whether an image may exist only inside the annotations; see :class:`ImportedImage`.
    """

    image_folder: Path | None = None
    skip_broken: bool = False
    default_class: str = 'object'
    part: str | None = None
    attribute: str | None = None
    crowds: str = 'keep'
    embedded_images: bool = False


class Importer(Protocol):
    """A module that reads one format (or several versions of it)."""

    #: The format as the user knows it, for ``--format`` and for messages.
    NAME: str

    def recognises(self, source: Path) -> bool:
        """Return whether a file or a folder has this format, judged by its content."""

    def read(self, source: Path, options: ImportOptions) -> ImportedDataset:
        """Read the source.

        Raises:
            mask_rcnn.datasets.coco_json.AnnotationFileError: The source is damaged: one line with the file and the
                place.
            mask_rcnn.preprocessing.image_io.ImageFileError: An image is missing or broken.
        """
