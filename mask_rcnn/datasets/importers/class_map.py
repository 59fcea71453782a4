"""Files that fix the names and the order of the classes, and rename, merge or drop those of a source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.assembly import clean_name
from mask_rcnn.datasets.importers.records import ImportedDataset
from mask_rcnn.datasets.importers.source_files import read_text
from mask_rcnn.io.omissions import Omissions

_MAX_FILE_SIZE = 1 << 22
_RENAMING = re.compile(r'(.+?)\s*[:=](?:\s+(.*))?')


@dataclass(frozen=True)
class ClassMap:
    """The classes of a dataset.

    Args:
        path: The file, for messages.
        names: Names in the order of the labels.
        targets: Name in the source -> name in the dataset, or ``None`` to drop its objects.
    """

    path: Path
    names: tuple[str, ...]
    targets: Mapping[str, str | None]


def read_class_map(path: Path) -> ClassMap:
    """Read a text file with one class per line.

    ``name`` keeps a class, ``old: new`` or ``old = new`` renames it, several lines with one new name merge their
    classes, and ``old:`` drops a class.  Empty lines and lines that begin with ``#`` are comments.

    Raises:
        AnnotationFileError: The file cannot be read, has no class, or has a class twice.
    """
    targets: dict[str, str | None] = {}
    for number, line in enumerate(read_text(path, max_bytes=_MAX_FILE_SIZE).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        match = _RENAMING.fullmatch(line.strip())
        old, new = (line, line) if match is None else (match[1], match[2] or '')
        old, new = clean_name(old), clean_name(new)
        if old in targets:
            raise AnnotationFileError(path, f'line {number}: the class {old!r} occurs twice')
        targets[old] = new or None
    names = tuple(dict.fromkeys(name for name in targets.values() if name is not None))
    if not names:
        raise AnnotationFileError(path, 'keeps no class; write one name in each line')
    return ClassMap(path, names, targets)


def apply_class_map(
    dataset: ImportedDataset, class_map: ClassMap, *, skip_broken: bool
) -> tuple[ImportedDataset, Counter[str]]:
    """Return a dataset with other classes, and the numbers of dropped objects by class.

    A name in the source may also be one of the new names.

    Args:
        dataset: The dataset.
        class_map: The classes.
        skip_broken: Leave out and count objects of unknown classes, instead of raising an error.

    Raises:
        AnnotationFileError: An object has a class that is not in the file.
    """
    targets = {**{name: name for name in class_map.names}, **class_map.targets}
    unknown = [name for name in dataset.class_names if name not in targets]
    used = {obj.class_name for image in dataset.images for obj in image.objects}
    unknown = [name for name in unknown if name in used]
    if unknown and not skip_broken:
        names = ', '.join(map(repr, unknown))
        raise AnnotationFileError(
            class_map.path, f'the data has classes that are not in the file: {names}; "{unknown[0]}:" drops one'
        )
    dropped: Counter[str] = Counter()
    omissions = Omissions('items')
    omissions.extend(dataset.omissions)
    images = []
    for image in dataset.images:
        objects = []
        for obj in image.objects:
            target = targets.get(obj.class_name)
            if target is not None:
                objects.append(replace(obj, class_name=target))
            elif obj.class_name in targets:
                dropped[obj.class_name] += 1
            else:
                omissions.add(f'of the class {obj.class_name!r}', f'{obj.place} of {image.path.name}')
        images.append(replace(image, objects=tuple(objects)))
    return replace(dataset, images=tuple(images), class_names=class_map.names, omissions=omissions), dropped
