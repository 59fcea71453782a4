"""The sources that the arguments of ``mask-rcnn demo`` name: files, folders, patterns, lists, videos and cameras."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mask_rcnn.cli.command import UsageError, flag
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.io.console import print_error, print_warning
from mask_rcnn.io.file_kinds import N_KIND_BYTES, VIDEO, describe_kind
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.media.selection import FrameSelection
from mask_rcnn.media.sources import ImageBytes, ImageFile, Source
from mask_rcnn.media.video_source import VideoError, VideoSource, is_address, is_video_file
from mask_rcnn.preprocessing.image_io import ImageFileError, list_images

#: Errors of one argument, after which the others are used.
SOURCE_ERRORS = (ImageFileError, VideoError)
#: The argument for the standard input.
STANDARD_INPUT = '-'


def image_argument(text: str) -> str | Path:
    """Return a value of ``--image``: addresses and ``-``, the standard input, as text, everything else as a path."""
    return text if text == STANDARD_INPUT or is_address(text) else Path(text)


class FoundSources(NamedTuple):
    """The sources of a command.

    Attributes:
        sources: The sources, in the order of the arguments.
        n_failed: The number of arguments without a source, each of which was reported.
        is_single: Whether the arguments are one file, camera or address, after which no output needs to be named.
    """

    sources: list[Source]
    n_failed: int
    is_single: bool


def find_sources(args: argparse.Namespace) -> FoundSources:
    """Find the sources of a command.  What is left out of a folder is reported in one line.

    Args:
        args: ``image``, ``camera``, ``recursive``, ``strict``, ``every``, ``start``, ``end`` and ``max_fps``.

    Raises:
        ImageFileError, VideoError: There is no such camera; or ``strict`` is set, and an argument has no image, or a
            folder contains a file that is left out.
        UsageError: The standard input is named twice, or frames are selected although there is no video.
    """
    selection = FrameSelection(args.every or 1, args.start or 0.0, args.end, args.max_fps)
    if selection.end is not None and selection.end <= selection.start:
        raise UsageError(f'--end {selection.end:g} s is not after --start {selection.start:g} s')
    if args.camera is not None:
        if args.image:
            raise UsageError('--camera and --image cannot be used together')
        return FoundSources([VideoSource(args.camera, selection)], 0, True)
    if args.image.count(STANDARD_INPUT) > 1:
        raise UsageError('--image: - is given twice, but the standard input is one image')
    sources: list[Source] = []
    errors = _Errors(args.strict)
    for argument in args.image:
        for place in _expand(argument, errors):
            with errors.reported():
                sources += _open(place, selection, args)
    _check_selection(args, sources)
    return FoundSources(sources, errors.n_reported, len(args.image) == 1 and not _is_collection(args.image[0]))


def _check_selection(args: argparse.Namespace, sources: list[Source]) -> None:
    names = [name for name in ('every', 'start', 'end', 'max_fps') if getattr(args, name) is not None]
    if names and sources and not any(source.is_video for source in sources):
        raise UsageError(f'{flag(names[0])} selects frames of videos, and the sources are images')


def _is_collection(argument: str | Path) -> bool:
    """Return whether an argument is a folder, a list or a pattern."""
    return isinstance(argument, Path) and (argument.is_dir() or _is_list(argument) or _is_pattern(argument))


def _is_list(path: Path) -> bool:
    return str(path).startswith('@') and not os.path.lexists(path)


def _is_pattern(path: Path) -> bool:
    """Return whether a path is a pattern; a file whose name has brackets is not."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


class _Errors:
    """The errors of arguments, each of which is reported in one line before the others are used.

    Args:
        is_strict: Whether the first error ends the command.
    """

    def __init__(self, is_strict: bool):
        self._is_strict = is_strict
        self.n_reported = 0

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Report an error of the context."""
        try:
            yield
        except SOURCE_ERRORS as error:
            if self._is_strict:
                raise
            self.n_reported += 1
            print_error(str(error))


def _expand(argument: str | Path, errors: _Errors) -> Iterator[str | Path]:
    """Yield the files, folders and addresses of an argument."""
    entries = [argument]
    if isinstance(argument, Path) and _is_list(argument):
        entries = []
        with errors.reported():
            entries = _read_list(Path(str(argument)[1:]))
    for entry in entries:
        with errors.reported():
            yield from _match(entry)


def _read_list(path: Path) -> list[str | Path]:
    """Return the entries of a list; an empty line and one with ``#`` at its start are none."""
    try:
        with open_for_reading(path) as (file, _):
            content = file.read().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ImageFileError(path, f'the list cannot be read: {(error.strerror or str(error)).lower()}') from error
    if b'\0' in content:
        raise ImageFileError(
            path, 'is not a list (a text in UTF-8 with a file, folder, pattern or address in each line)'
        )
    lines = [os.fsdecode(line.strip()) for line in content.splitlines()]
    entries = [line for line in lines if line and not line.startswith('#')]
    if not entries:
        raise ImageFileError(path, 'the list names no image')
    return [line if is_address(line) else path.parent / line for line in entries]


def _match(entry: str | Path) -> list[str | Path]:
    """Return the files that match a pattern, or what is not a pattern itself."""
    if isinstance(entry, str) or not _is_pattern(entry):
        return [entry]
    files = [name for name in map(Path, sorted(glob.glob(str(entry), recursive=True))) if name.is_file()]
    if not files:
        raise ImageFileError(entry, 'no file matches this pattern')
    return [*files]


def _open(place: str | Path, selection: FrameSelection, args: argparse.Namespace) -> list[Source]:
    """Return the sources of a file, a folder, an address or the standard input."""
    if place == STANDARD_INPUT:
        return [ImageBytes('standard input', Path('stdin'), _read_standard_input())]
    if isinstance(place, str) or is_video_file(place):
        return [VideoSource(place, selection)]
    omissions = Omissions('files')
    images = list_images([place], omissions=omissions, recursive=args.recursive)
    if omissions and args.strict:
        raise ImageFileError(place, f'{omissions} (--strict)')
    if omissions:
        print_warning(f'{place}: {omissions}')
    return [ImageFile(image) for image in images]


def _read_standard_input() -> bytes:
    data = sys.stdin.buffer.read() if sys.stdin is not None else b''
    if not data:
        raise ImageFileError('standard input', 'is empty; an image was expected')
    if describe_kind(data[:N_KIND_BYTES]) == VIDEO:
        raise ImageFileError('standard input', 'is a video; an image was expected (write the video to a file)')
    return data
