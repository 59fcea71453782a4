"""What ``convert`` and ``info`` say about a weight file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from mask_rcnn.weights import WeightFileError, formats
from mask_rcnn.weights.converters.mapping import ConvertedWeights, backbone_name, network_name

#: So many names of a group are listed; of what is unknown, all.
_LISTED = 5


def classes_of(
    file: ConvertedWeights,
    names_file: str | os.PathLike | None = None,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of a file's classes and their numbers in the data set.

    Args:
        file: The weights.
        names_file: Text file of one class name per line, or ``None`` for the file's own or the default names:
            COCO's where there are 80 classes, made-up ones otherwise.

    Raises:
        WeightFileError: The file of names cannot be read or has another number of names.
    """
    if file.kind == 'backbone':
        return (), ()
    n_class = file.config.n_fg_class
    if names_file is not None:
        names = _read_names(names_file, n_class)
    elif file.class_names:
        names = tuple(file.class_names)
    elif n_class == len(COCO_CLASS_NAMES):
        names = COCO_CLASS_NAMES
    else:
        names = tuple(f'class_{i}' for i in range(1, n_class + 1))
    if names == tuple(file.class_names) and file.category_ids:
        return names, tuple(file.category_ids)
    return names, COCO_CATEGORY_IDS if names == COCO_CLASS_NAMES else tuple(range(1, n_class + 1))


def _read_names(path, n_class: int) -> tuple[str, ...]:
    try:
        lines = pathlib.Path(path).read_text(encoding='utf-8-sig').splitlines()
    except OSError as error:
        raise WeightFileError(path, error.strerror or str(error)) from error
    except UnicodeDecodeError:
        raise WeightFileError(path, 'is not UTF-8 text') from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != n_class:
        raise WeightFileError(
            path, f'has {len(names)} class names, but the weights are for {n_class} classes (without the background)'
        )
    return names


def network_title(file: ConvertedWeights) -> str:
    """Return what a file holds, such as ``'R-50-FPN Mask R-CNN'``."""
    if file.kind == 'backbone':
        return f'{backbone_name(file.config)} backbone (ImageNet weights)'
    return network_name(file.config)


def describe_file(path: str | os.PathLike, file: ConvertedWeights, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return what there is to know about a file as plain data, for JSON.

    Args:
        path: The file.
        file: What was read from it.
        class_names: Of its foreground classes.
    """
    return {
        'file': os.fspath(path),
        'format': file.format,
        'title': formats.BY_NAME[file.format].title,
        'kind': file.kind,
        'network': network_title(file),
        'class_names': list(class_names),
        'dialect': file.config.dialect.name,
        'config': file.config.to_dict(),
        'n_parameter': sum(array.size for array in file.arrays.values()),
        'file_size': os.stat(path).st_size,
        'sha256': file.sha256,
        'n_taken': len(file.report.taken),
        'left': {group: list(members) for group, members in file.report.skipped.items()},
        'notes': list(file.report.notes),
        'warnings': list(file.report.warnings),
    }


def format_description(description: Mapping[str, Any]) -> str:
    """Return the same as lines of text for people."""
    names = description['class_names']
    classes = f', {len(names)} classes ({_some_names(names)})' if names else ''
    rows = [
        ('format', description['title']),
        ('dialect', description['dialect']),
        ('size', f'{description["n_parameter"] / 1e6:.1f} million numbers, {description["file_size"] / 1e6:.1f} MB'),
        ('input', _input(description['config']) if names else ''),
        ('SHA-256', description['sha256']),
        ('took', f'{description["n_taken"]} arrays'),
        *(
            ('left', f'{len(members)} of {group}{_listed(group, members)}')
            for group, members in description['left'].items()
        ),
        *(('note', note) for note in description['notes']),
        *(('WARNING', warning) for warning in description['warnings']),
    ]
    text = [f'{description["file"]}: {description["network"]}{classes}']
    text += [f'  {head:8} {value}' for head, value in rows if value]
    return '\n'.join(map(_shown, text)) + '\n'


def _shown(line: str) -> str:
    """A line without what a terminal might obey: names and notes come from the file."""
    return ''.join(character if character.isprintable() else '?' for character in line)


def _input(config: Mapping[str, Any]) -> str:
    return f'shorter side {config["min_size"]} pixels, longer at most {config["max_size"]}'


def _some_names(names: list[str]) -> str:
    return ', '.join(names) if len(names) <= _LISTED else f'{names[0]} ... {names[-1]}'


def _listed(group: str, members: list[str]) -> str:
    return f': {", ".join(members)}' if len(members) <= _LISTED or group == 'unknown' else ''
