"""A command's outputs: their paths, and checks before its work: they can be written, and replace no input."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mask_rcnn.cli.command import UsageError
from mask_rcnn.io.atomic_file import STANDARD_OUTPUT, FileError, check_writable, is_same_file, is_standard_output
from mask_rcnn.io.console import stdout_is_closed
from mask_rcnn.io.paths import spelling_key


def output_path(text: str) -> Path:
    """Return the path that an argument names: ``-`` is the standard output, ``./-`` is a file."""
    return STANDARD_OUTPUT if text == '-' else Path(text)


def refuse_inputs(flag: str, output: Path, inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse an output that would replace a file that the command reads, also through links.

    Args:
        flag: The option that names the output.
        output: The file to write.
        inputs: The title of each input for the message, such as ``'the font'``, and its path; ``None`` is left out.

    Raises:
        UsageError: The output is one of the inputs.
    """
    for title, path in inputs:
        if path is not None and not is_standard_output(output) and is_same_file(output, path):
            raise UsageError(f'{flag} {output} is {title}')


def check_output(flag: str, output: Path, inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse an output that would replace an input or cannot be written; see :func:`refuse_inputs`.

    Raises:
        UsageError: The output is one of the inputs.
        mask_rcnn.io.atomic_file.FileError: The output cannot be written.
    """
    refuse_inputs(flag, output, inputs)
    check_can_write(output)


def check_report(flag: str, output: Path, inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse the file of an HTML report that has another extension or that :func:`check_output` refuses.

    Raises:
        UsageError: The output does not end with .html, or is one of the inputs.
        mask_rcnn.io.atomic_file.FileError: The output cannot be written.
    """
    if output.suffix.lower() not in ('.html', '.htm'):
        raise UsageError(f'{flag} {output} does not end with .html')
    check_output(flag, output, inputs)


def check_can_write(output: Path) -> None:
    """Check that an output can be written, also if it is the standard output.

    Raises:
        mask_rcnn.io.atomic_file.FileError: The output cannot be written.
    """
    if is_standard_output(output) and stdout_is_closed():  # its descriptor leads to the null device
        raise FileError(errno.EBADF, 'cannot be written: it is closed', 'standard output')
    check_writable(output)


def paths_of_images(images: Sequence[Path], output: str, *, several: bool, suffix: str = '.png') -> list[Path]:
    """Return the path of each image's output, such as a picture; the help of ``mask-rcnn demo`` states the rule.

    Args:
        images: The image files.
        output: A file, or a folder: an existing one, or a name that ends with ``/``.
        several: Whether files are named after their images.
        suffix: The suffix of files in a folder.

    Returns:
        Paths that are distinct on all systems: if images in different folders have the same name, or names that
        differ only in case, ``_2``, ``_3``, ... are appended.
    """
    path = Path(output)
    if output.endswith(('/', os.sep)) or path.is_dir():
        names = [path / f'{image.stem}{suffix}' for image in images]
    elif several:
        names = [path.with_name(f'{path.stem}_{image.stem}{path.suffix}') for image in images]
    else:
        names = [path] * len(images)
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 2
        while spelling_key(names[i]) in taken:
            names[i] = name.with_name(f'{name.stem}_{number}{name.suffix}')
            number += 1
        taken.add(spelling_key(names[i]))
    return names
