"""The description of a weight file that ``convert`` and ``info`` print."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mask_rcnn.config import Dialect
from mask_rcnn.io.console import escape
from mask_rcnn.io.wording import counted
from mask_rcnn.models.builder import default_classes
from mask_rcnn.weights import WeightFileError, formats
from mask_rcnn.weights.converters.mapping import ConvertedWeights, backbone_name, network_name
from mask_rcnn.weights.files import read_text_file, sha256

#: Maximum number of names that are listed; all names of unknown arrays are listed.
_MAX_LISTED = 5


def classes_of(
    file: ConvertedWeights, names_file: str | os.PathLike | None = None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of a file's classes and their category ids in the dataset.

    Args:
        file: The weights.
        names_file: Text file of one class name per line, or ``None`` for the names in the weight file or the default
            names: COCO's if there are 80 classes, otherwise ``class_1``, ``class_2``, ...

    Raises:
        WeightFileError: The file of names cannot be read or has the wrong number of names.
    """
    if names_file is not None and file.kind == 'model':
        names = _read_names(names_file, file.config.n_fg_class)
        ids = file.category_ids if names == tuple(file.class_names) else ()
        file = dataclasses.replace(file, class_names=names, category_ids=ids)
    return default_classes(file)


def _read_names(path: str | os.PathLike, n_classes: int) -> tuple[str, ...]:
    names = tuple(line.strip() for line in read_text_file(path).splitlines() if line.strip())
    if len(names) != n_classes:
        raise WeightFileError(
            path,
            f'has {counted(len(names), "class name")}, but the weights are for '
            f'{counted(n_classes, "class", "classes")} (without the background)',
        )
    return names


def network_title(file: ConvertedWeights) -> str:
    """Return the title of a file's network, such as ``'R-50-FPN Mask R-CNN'``."""
    if file.kind == 'backbone':
        return f'{backbone_name(file.config)} backbone (ImageNet weights)'
    return network_name(file.config)


def describe_file(path: str | os.PathLike, file: ConvertedWeights, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return a file's description as plain data, for JSON.

    Args:
        path: The file.
        file: The contents of the file.
        class_names: Names of its foreground classes.
    """
    return {
        'file': os.fspath(path),
        'format': file.format,
        'title': formats.BY_NAME[file.format].title,
        'kind': file.kind,
        'network': network_title(file),
        'class_names': list(class_names),
        'dialect': file.config.dialect.name,
        'conventions': _conventions(file.config.dialect),
        'config': file.config.to_dict(),
        'n_parameter': sum(array.size for array in file.arrays.values()),
        'file_size': os.stat(path).st_size,
        'sha256': file.sha256 or sha256(path),
        'n_taken': len(file.report.taken),
        'left': {group: list(members) for group, members in file.report.skipped.items()},
        'notes': list(file.report.notes),
        'warnings': list(file.report.warnings),
        'assumptions': list(file.report.assumptions),
    }


def _conventions(dialect: Dialect) -> dict[str, dict[str, Any]]:
    """Return a dialect's conventions by group and name; infinity, which JSON does not have, is ``None``: no limit."""
    return {
        group: {name: None if value == math.inf else value for name, value in conventions.items()}
        for group, conventions in dataclasses.asdict(dialect).items()
        if group != 'name'
    }


def format_description(description: Mapping[str, Any]) -> str:
    """Return the result of :func:`describe_file` as lines of text."""
    names = description['class_names']
    classes = f', {counted(len(names), "class", "classes")} ({_first_and_last(names)})' if names else ''
    size = f'{description["n_parameter"] / 1e6:.1f} million parameters, {description["file_size"] / 1e6:.1f} MB'
    rows = [
        ('format', description['title']),
        ('dialect', description['dialect']),
        ('size', size),
        ('input', _input_size(description['config']) if names else ''),
        ('SHA-256', description['sha256']),
        ('used', counted(description['n_taken'], 'array')),
        *(
            ('skipped', f'{len(members)} of {group}{_members(group, members)}')
            for group, members in description['left'].items()
        ),
        *(('note', note) for note in description['notes']),
        *(('assumed', assumption) for assumption in description['assumptions']),
        *(('WARNING', warning) for warning in description['warnings']),
    ]
    text = [f'{description["file"]}: {description["network"]}{classes}']
    text += [f'  {title:8} {value}' for title, value in rows if value]
    return '\n'.join(map(escape, text))


def _input_size(config: Mapping[str, Any]) -> str:
    return f'shorter side {config["min_size"]} pixels, longer at most {config["max_size"]}'


def _first_and_last(names: Sequence[str]) -> str:
    return ', '.join(names) if len(names) <= _MAX_LISTED else f'{names[0]} ... {names[-1]}'


def _members(group: str, members: Sequence[str]) -> str:
    return f': {", ".join(members)}' if len(members) <= _MAX_LISTED or group == 'unknown' else ''
