"""``mask-rcnn demo`` and ``demo.py``: images in, pictures and COCO results out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import mask_rcnn
from mask_rcnn.cli.options import (
    UsageError,
    add_precision,
    check_precision,
    choose_device,
    gpu_number,
    print_error,
    write_line,
)
from mask_rcnn.config import EXTRACTORS
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.preprocessing.image_io import ImageFileError, list_images, read_image
from mask_rcnn.visualization import BACKGROUNDS, load_font
from mask_rcnn.weights import WeightFileError

DEFAULT_MODEL = 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz'
#: What a picture shows unless --score-thresh says otherwise.
PICTURE_THRESHOLD = 0.7

#: What one image may fail with while the others go on.
_FAILURES = ValueError, OSError, MemoryError

_DESCRIPTION = 'Find the objects in images and write them as pictures and, with --json, as COCO results.'

_EPILOG = """\
names of the pictures:
  One image: --output is the picture. Several images, or a folder: --output photos.png gives
  photos_NAME.png for the image NAME.jpg. If --output is a folder (an existing one, or with / at the
  end) the pictures are NAME.png in it. The suffix says the format.

scores:
  A picture shows what scores above 0.7; the JSON file holds everything that the model found, which is
  what scores above 0.05. --score-thresh replaces both numbers.

image_id in the JSON file:
  The number if the file's name is one (000000000139.jpg: 139), the name without its suffix otherwise.

exit status:
  0; 1 if something failed (a damaged image is named and the others go on); 2 for bad arguments.
"""


def configure(parser: argparse.ArgumentParser, folder: Path = Path('modelfiles')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: Of the command or of a subcommand.
        folder: Where the default weights lie.
    """
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        '--image',
        nargs='+',
        action='extend',
        required=True,
        type=Path,
        metavar='PATH',
        help='image files, or folders of them',
    )
    add(
        '--modelfile',
        type=Path,
        default=folder / DEFAULT_MODEL,
        metavar='FILE',
        help='weights, .npz (default: %(default)s)',
    )
    add(
        '--gpu',
        type=gpu_number,
        metavar='ID',
        help='number of the GPU, -1 for the CPU (default: 0 where CUDA works, else the CPU)',
    )
    add_precision(add)
    add(
        '--output',
        default='output.png',
        metavar='PATH',
        help='picture, or folder for pictures; see below (default: %(default)s)',
    )
    add('--json', type=Path, metavar='FILE', help='write the results in COCO format, too')
    add(
        '--score-thresh',
        type=_score,
        metavar='S',
        help='only what scores above S, in pictures and JSON alike; see below',
    )
    add('--contour', action='store_true', help='draw the outlines of the masks')
    add(
        '--background',
        choices=BACKGROUNDS,
        default='image',
        help='what the objects are drawn on: the image, the image in grey, or nothing but black or white '
        '(default: %(default)s)',
    )
    add(
        '--font',
        type=Path,
        metavar='FILE',
        help='TrueType or OpenType font of the labels (default: DejaVu Sans, which has no Chinese, Japanese or Korean)',
    )
    add('--bn2affine', action='store_true', help='turn batch normalisation into affine channels first')
    add(
        '--roialign',
        action=argparse.BooleanOptionalAction,
        help='RoIAlign, or RoI max pooling (default: as the weights were trained)',
    )
    add('--roi_size', type=int, choices=(7, 14), help='bins of a RoI (default: as the weights were trained)')
    add('--extractor', choices=EXTRACTORS, help='must be what the weights are for (default: just that)')


def run(args: argparse.Namespace) -> int:
    """Detect; returns the exit status (0, 1 for a failed run, 2 for bad arguments)."""
    try:
        return _run(args)
    except UsageError as error:
        return print_error(str(error), 2)
    except (WeightFileError, OSError) as error:
        return print_error(str(error))
    except KeyboardInterrupt:
        return print_error('interrupted', 130)


def main(argv: Sequence[str] | None = None, folder: Path = Path('modelfiles')) -> int:
    """Parse the command line and detect.

    Args:
        argv: Arguments without the program's name (default: those of the process).
        folder: Where the default weights lie.

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser()
    configure(parser, folder)
    return run(parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    images, n_failed = _find_images(args.image)
    pictures = picture_paths(images, args.output, several=len(args.image) > 1 or args.image[0].is_dir())
    _check_outputs(images, pictures, args)
    _check_font(args.font)
    if not images:
        return 1
    model = _load(args)
    for folder in {picture.parent for picture in pictures}:
        folder.mkdir(parents=True, exist_ok=True)
    results = []
    with (
        using_precision(args.precision),
        cache_weights(),
        tqdm(total=len(images), unit='image', disable=len(images) < 2) as bar,
    ):
        for job in _detect(model, images, pictures):
            try:
                if job.error is not None:
                    raise job.error
                _show(job, args)
                if args.json is not None:
                    results += job.detections.to_coco(image_id(job.image))
            except _FAILURES as error:
                n_failed += 1
                write_line(f'error: {_reason(job.image, error)}', sys.stderr)
            bar.update()
            del job  # and its pixels, before the next ones are read
    if args.json is not None:
        with open_for_writing(args.json) as file:
            file.write(json.dumps(results).encode('ascii'))
    return 1 if n_failed else 0


def _find_images(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Expand folders; returns the images and how many paths lead to none (each is named)."""
    images, n_failed = [], 0
    for path in paths:
        try:
            images += list_images([path])
        except ImageFileError as error:
            n_failed += 1
            print_error(str(error))
    return images, n_failed


def picture_paths(images: Sequence[Path], output: str, *, several: bool) -> list[Path]:
    """Name the picture of each image; the rule is in the command's help.

    Args:
        images: The images' files.
        output: What ``--output`` says.
        several: Whether pictures are named after their images.

    Returns:
        Paths, all different: where images of different folders have one name, ``_2``, ``_3`` ... follow.
    """
    path = Path(output)
    if output.endswith(('/', os.sep)) or path.is_dir():
        names = [path / f'{image.stem}.png' for image in images]
    elif several:
        names = [path.with_name(f'{path.stem}_{image.stem}{path.suffix}') for image in images]
    else:
        names = [path] * len(images)
    taken = set()
    for i, name in enumerate(names):
        number = 2
        while names[i] in taken:
            names[i] = name.with_name(f'{name.stem}_{number}{name.suffix}')
            number += 1
        taken.add(names[i])
    return names


def image_id(image: Path) -> int | str:
    """Return the number of an image in COCO results; the rule is in the command's help."""
    return int(image.stem) if image.stem.isascii() and image.stem.isdigit() else image.stem


def _check_outputs(images: Sequence[Path], pictures: Sequence[Path], args: argparse.Namespace) -> None:
    inputs = {path.resolve() for path in images}
    for picture in pictures:
        if not picture.suffix or not cv2.haveImageWriter(picture.name):
            kind = picture.suffix or 'a file without a suffix'
            raise UsageError(f'--output {args.output}: no picture can be written as {kind} (use .png or .jpg)')
        if picture.resolve() in inputs:
            raise UsageError(f'--output {args.output}: {picture} is one of the images')
    if args.json is None:
        return
    if args.json.is_dir() or not args.json.absolute().parent.is_dir():
        raise UsageError(f'--json {args.json}: not a file in an existing folder')
    if args.json.resolve() in inputs | {picture.resolve() for picture in pictures}:
        raise UsageError(f'--json {args.json}: that is an image')
    for number, count in Counter(map(image_id, images)).most_common(1):
        if count > 1:
            raise UsageError(f'--json {args.json}: {count} images have the image_id {number!r}')


def _check_font(font: Path | None) -> None:
    try:
        load_font(font, 10)
    except OSError as error:
        raise UsageError(f'--font {error}') from error


def _load(args: argparse.Namespace):
    given = {
        'roi_align': args.roialign,
        'roi_size': args.roi_size,
        'extractor': args.extractor,
        'score_threshold': args.score_thresh,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    if not os.path.lexists(args.modelfile):
        raise WeightFileError(
            args.modelfile,
            'no such file; "make demo" fetches Detectron\'s weights, and '
            'utils/detectron_parser.py makes them from model_final.pkl',
        )
    gpu = choose_device(args.gpu)
    check_precision(args.precision, gpu)
    try:
        return mask_rcnn.load(args.modelfile, gpu=gpu, bn2affine=args.bn2affine, **overrides)
    except WeightFileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


@dataclass
class _Job:
    """An image on its way to a picture, or to the error that prevents it."""

    image: Path
    picture: Path
    pixels: np.ndarray | None = None
    detections: Detections | None = None
    error: Exception | None = None


def _detect(model, images: Sequence[Path], pictures: Sequence[Path]) -> Iterator[_Job]:
    """Detect in images, several at a time where the model does; yield each with its detections or its error."""
    left = map(_Job, images, pictures)
    begun = deque()

    def read():
        for job in left:
            begun.append(job)
            try:
                job.pixels = read_image(job.image)
            except _FAILURES as error:
                job.error = error
            else:
                yield job.pixels

    def failed():
        while begun and begun[0].error is not None:
            yield begun.popleft()

    while True:
        try:
            for detections in model.iter_detections(read()):
                yield from failed()
                job = begun.popleft()
                job.detections = detections
                yield job
                del job, detections
            yield from begun  # what failed behind the last detections
            return
        except _FAILURES:  # of one of those that are begun: which one?
            while begun:
                yield _detect_alone(model, begun.popleft())


def _detect_alone(model, job: _Job) -> _Job:
    if job.error is None:
        try:
            (job.detections,) = model.detect([job.pixels], batch_size=1)
        except _FAILURES as error:
            job.error = error
    return job


def _show(job: _Job, args: argparse.Namespace) -> None:
    """Write an image's picture and say what there was."""
    shown = job.detections.above(PICTURE_THRESHOLD if args.score_thresh is None else args.score_thresh)
    drawn = shown.draw(job.pixels, contour=args.contour, background=args.background, font=args.font)
    _write_picture(job.picture, drawn)
    counts = ', '.join(f'{count} {name}' for name, count in Counter(shown.names).most_common())
    write_line(f'{job.image}: {counts or "nothing found"} -> {job.picture}', sys.stdout)


def _write_picture(path: Path, rgb: np.ndarray) -> None:
    try:
        done, data = cv2.imencode(path.suffix, np.ascontiguousarray(rgb[:, :, ::-1]))
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f'a picture of this size cannot be written as {path.suffix}')
    with open_for_writing(path) as file:
        file.write(data)


def _reason(image: Path, error: Exception) -> str:
    if isinstance(error, (ImageFileError, WeightFileError, OSError)):
        return str(error)  # these name the file themselves
    if isinstance(error, MemoryError):
        return f'{image}: not enough memory'
    return f'{image}: {" ".join(str(error).split())}'


def _score(text: str) -> float:
    score = float(text)
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not between 0 and 1')
    return score


_score.__name__ = 'number'  # argparse names the type in its messages
