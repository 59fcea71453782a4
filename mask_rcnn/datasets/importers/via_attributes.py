"""The attribute of VIA's regions that names the class of an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_rcnn.datasets.annotation_values import AnnotationError, shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.assembly import clean_name
from mask_rcnn.datasets.importers.records import ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport

#: Usual names of the attribute; the first one that a file has is used.
_USUAL_NAMES = ('class', 'label', 'category', 'name', 'type', 'object', 'class_name', 'object_name')


@dataclass(frozen=True)
class ClassAttribute:
    """The attribute that names the class.

    Args:
        name: Its name; ``None`` if no region has attributes.
        default: The class of regions without it.
    """

    name: str | None
    default: str

    def read(self, region: Mapping[str, Any], place: str, report: ImportReport) -> str:
        """Return the class of a region.

        Raises:
            AnnotationError: The value of the attribute is not one name.
        """
        if self.name is None:
            return self.default
        attributes = region.get('region_attributes')
        value = attributes.get(self.name) if isinstance(attributes, dict) else None
        if isinstance(value, dict):  # checkboxes: option -> True
            options = [option for option, is_set in value.items() if is_set]
            if len(options) > 1:
                raise AnnotationError(
                    f'has several values of {self.name!r}, {shorten(options)}; an object has one class'
                )
            value = options[0] if options else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise AnnotationError(f'has the {self.name!r} {shorten(value)}, not a text')
        class_name = clean_name(value or '')
        if not class_name:
            report.doubts.add(f'without a {self.name!r}, as {self.default!r} (--default-class)', place)
            return self.default
        return class_name


def find_attribute(
    source: Path, regions: Iterable[Mapping[str, Any]], declared: Iterable[str], options: ImportOptions
) -> ClassAttribute:
    """Return the attribute of a file: that of the options, the only one, or one with a usual name.

    Args:
        source: The file, for messages.
        regions: All regions.
        declared: Names of attributes that may have no values.
        options: The options ``attribute`` and ``default_class``.

    Raises:
        AnnotationFileError: The attribute of the options does not exist, or several attributes have no usual name.
    """
    used: dict[str, None] = {}
    for region in regions:
        attributes = region.get('region_attributes')
        if isinstance(attributes, dict):
            used.update(dict.fromkeys(name for name, value in attributes.items() if value not in ('', None, {})))
    if options.attribute is not None:
        known = dict.fromkeys([*used, *declared])
        if options.attribute not in known:
            names = ', '.join(known) or 'no attributes'
            raise AnnotationFileError(
                source, f'no region has the attribute {options.attribute!r} (--attribute); the regions have {names}'
            )
        return ClassAttribute(options.attribute, options.default_class)
    if len(used) <= 1:
        return ClassAttribute(next(iter(used), None), options.default_class)
    for usual in _USUAL_NAMES:
        for name in used:
            if name.strip().lower().replace(' ', '_') == usual:
                return ClassAttribute(name, options.default_class)
    raise AnnotationFileError(
        source, f'the regions have the attributes {", ".join(used)}; --attribute selects that of the class'
    )
