"""The pictures and videos that ``mask-rcnn demo`` writes: their names, and the checks before the work."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mask_rcnn.cli.command import UsageError, flag
from mask_rcnn.cli.demo_annotations import AnnotationWriter, COCOWriter, LabelmeWriter, is_folder
from mask_rcnn.cli.demo_options import DEFAULT_OUTPUT
from mask_rcnn.cli.demo_results import image_id
from mask_rcnn.cli.outputs import check_can_write, output_path, paths_of_images, refuse_inputs
from mask_rcnn.cli.pictures import can_write_picture
from mask_rcnn.io.atomic_file import is_same_file, is_standard_output
from mask_rcnn.io.wording import counted
from mask_rcnn.media.sources import Source
from mask_rcnn.media.video_writer import can_write_video

#: The default video.
_DEFAULT_VIDEO = 'output.mp4'


def choose_outputs(sources: Sequence[Source], args: argparse.Namespace, *, is_single: bool) -> list[Path] | None:
    """Return the path of each source's output.

    The output of a video is a video, or the path from which :func:`frame_path` makes those of the frames.

    Args:
        sources: The sources.
        args: ``output`` and ``show``.
        is_single: Whether an output need not be named after its source.

    Returns:
        The paths; ``None`` if there is only a window.

    Raises:
        UsageError: The output is a video, and a source is not.
    """
    output = args.output
    if output is DEFAULT_OUTPUT:
        if args.show:
            return None
        if sources and all(source.is_video for source in sources):
            output = _DEFAULT_VIDEO
    if is_video_output(Path(output)) and not os.path.isdir(output):
        for source in sources:
            if not source.is_video:
                raise UsageError(f'--output {output}: {source.name} is not a video')
    return paths_of_images([source.path for source in sources], output, several=not is_single)


def is_video_output(path: Path) -> bool:
    """Return whether the suffix of an output is that of a video."""
    return can_write_video(path.suffix)


def frame_path(output: Path, number: int) -> Path:
    """Return the picture of a frame of a video, such as ``frames/clip_000012.png``."""
    return output.with_name(f'{output.stem}_{number:06d}{output.suffix}')


def check_outputs(sources: Sequence[Source], outputs: Sequence[Path] | None, args: argparse.Namespace) -> None:
    """Refuse outputs that would replace an input, cannot be written, or have an unknown format.

    Raises:
        UsageError: An output is an input or has an unknown format, or images have the same ``image_id``.
        mask_rcnn.io.atomic_file.FileError: An output cannot be written.
    """
    inputs = set(map(_identify, _files(sources)))
    others = _other_inputs(args)
    for output in outputs or ():
        refuse_inputs('--output', output, others)
        if not can_write_video(output.suffix) and not can_write_picture(output.suffix):
            kind = output.suffix or 'a file without a suffix'
            raise UsageError(
                f'--output {args.output}: no picture can be written as {kind} (use .png or .jpg, for a video .mp4)'
            )
        if _identify(output) in inputs:
            noun = 'videos' if can_write_video(output.suffix) else 'images'
            raise UsageError(f'--output {args.output}: {output} is one of the {noun}')
        if os.path.lexists(output):  # new files need only their folder
            check_can_write(output)
    _refuse_names_of_frames('--output', args.output, sources, outputs or ())
    _check_results(sources, outputs, args)


def _refuse_names_of_frames(option: str, value: object, sources: Sequence[Source], names: Sequence[Path]) -> None:
    """Refuse an image whose output or result would have the name of that of a frame of a video.

    Args:
        option: The option.
        value: Its value.
        sources: The sources.
        names: The names of their outputs or results.

    Raises:
        UsageError: There is such an image.
    """
    videos = {
        name: source
        for name, source in zip(names, sources, strict=False)
        if source.is_video and not can_write_video(name.suffix)
    }
    for name, source in zip(names, sources, strict=False):
        prefix, _, number = name.stem.rpartition('_')
        video = videos.get(name.with_name(prefix + name.suffix)) if prefix and re.fullmatch(r'\d{6,}', number) else None
        if video is not None and not source.is_video:
            raise UsageError(f'{option} {value}: {source.name} and a frame of {video.name} have the name {name.stem}')


def _check_results(sources: Sequence[Source], outputs: Sequence[Path] | None, args: argparse.Namespace) -> None:
    """Check the files and folders of results."""
    others = _other_inputs(args)
    streams = [name for name in ('json', 'jsonl', 'csv') if (path := getattr(args, name)) and is_standard_output(path)]
    if len(streams) > 1:
        raise UsageError(f'{flag(streams[0])} and {flag(streams[1])} are both written to the standard output')
    for name in ('json', 'jsonl', 'csv'):
        path = getattr(args, name)
        if path is not None:
            _check_file(flag(name), path, sources, outputs, others)
            check_can_write(path)
            others.append((f'the file of {flag(name)}', path))
    if args.json is not None:
        ids = Counter((image_id(source.path.stem), source.is_video) for source in sources)
        for (number, is_video), count in ids.most_common(1):
            if count > 1:
                noun = counted(count, 'video' if is_video else 'image')
                raise UsageError(f'--json {args.json}: {noun} have the image_id {number!r}')
    names = paths_of_images([source.path for source in sources], './', several=True)
    for name in ('json', 'masks', 'instance_masks'):
        if getattr(args, name) is not None:
            _refuse_names_of_frames(flag(name), getattr(args, name), sources, names)
    if args.masks and args.instance_masks and is_same_file(args.masks, args.instance_masks):
        raise UsageError('--masks and --instance-masks are the same folder')
    for name in ('masks', 'instance_masks'):
        folder = getattr(args, name)
        for path in [*_files(sources), *(outputs or ())] if folder is not None else ():
            if is_same_file(folder, path.parent):
                raise UsageError(f'{flag(name)} {folder}: the folder of {path}; name another one for the masks')


def open_annotations(
    sources: Sequence[Source], outputs: Sequence[Path] | None, args: argparse.Namespace
) -> AnnotationWriter | None:
    """Check the value of ``--annotations`` and return its writer.

    Raises:
        UsageError: The value is not right.
        mask_rcnn.io.atomic_file.FileError: The file cannot be written.
    """
    if args.annotations is None:
        return None
    images = [source.path for source in sources]
    for image, count in Counter(images).most_common(1):
        if count > 1:
            raise UsageError(f'--annotations {args.annotations}: {image} is given {count} times')
    if is_folder(args.annotations):
        for source in sources:
            if source.is_video:
                raise UsageError(
                    f'--annotations {args.annotations}: {source.name} is a video; name a file, not a folder'
                )
        names = paths_of_images(images, os.path.join(args.annotations, ''), several=True)
        labelme = LabelmeWriter(images, [name.with_suffix('.json') for name in names])
        labelme.check()
        return labelme
    path = output_path(args.annotations)
    others = _other_inputs(args)
    others += [(f'the file of {flag(name)}', getattr(args, name)) for name in ('json', 'jsonl', 'csv')]
    _check_file('--annotations', path, sources, outputs, others)
    for name in ('json', 'jsonl', 'csv'):
        if (other := getattr(args, name)) is not None and is_standard_output(path) and is_standard_output(other):
            raise UsageError(f'{flag(name)} and --annotations are both written to the standard output')
    if path.is_file() and path.stat().st_size:
        raise UsageError(f'--annotations {path}: the file exists and may have been corrected')
    check_can_write(path)
    return COCOWriter(path, images)


def _files(sources: Iterable[Source]) -> list[Path]:
    """Return the paths of the sources; those of sources that are not files lead to none."""
    return [source.path for source in sources]


def _other_inputs(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Return the names and the paths of the inputs that are not images."""
    return [('the file of --modelfile', args.modelfile), ('the file of --font', args.font)]


def _check_file(
    option: str,
    path: Path,
    sources: Sequence[Source],
    outputs: Sequence[Path] | None,
    inputs: Iterable[tuple[str, Path | None]],
) -> None:
    """Refuse a file of results that is an input, an image or a picture, or has no folder."""
    refuse_inputs(option, path, inputs)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f'{option} {path}: not a file in an existing folder')
    if _identify(path) in set(map(_identify, [*_files(sources), *(outputs or ())])):
        raise UsageError(f'{option} {path}: that is an image, a video or the output of one')


def _identify(path: Path) -> object:
    """Return a value that is equal for paths that lead to one file, also through links and hard links."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)  # also of a link that leads to itself
    return status.st_dev, status.st_ino
