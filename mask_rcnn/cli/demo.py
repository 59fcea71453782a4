"""``mask-rcnn demo`` and ``demo.py``: detection in images, with pictures and COCO results as output."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn.cli.command import UsageError, parse_command_line, run_and_report_errors
from mask_rcnn.cli.demo_annotations import AnnotationWriter, COCOWriter, LabelmeWriter, is_folder, write_json
from mask_rcnn.cli.demo_options import configure
from mask_rcnn.cli.network_options import check_modelfile, load_network
from mask_rcnn.cli.options import check_precision, choose_device
from mask_rcnn.cli.outputs import check_can_write, output_path, paths_of_images, refuse_inputs
from mask_rcnn.cli.pictures import can_write_picture, write_picture
from mask_rcnn.config import VISUALIZE_SCORE_THRESHOLD
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import created_folders, is_standard_output
from mask_rcnn.io.console import print_error, print_line, print_note, print_warning, progress_bar
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.preprocessing.image_io import ImageFileError, list_images, read_image
from mask_rcnn.visualization import load_font
from mask_rcnn.weights import WeightFileError

#: Errors of one image, after which the other images are processed.
_IMAGE_ERRORS = (ValueError, OSError, MemoryError)


def main(argv: Sequence[str] | None = None, folder: Path = Path('modelfiles'), *, prog: str | None = None) -> int:
    """Parse the command line, detect and report errors; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    args = parse_command_line(partial(configure, folder=folder), argv, prog)
    return run_and_report_errors(partial(run, args), (WeightFileError, ImageFileError))


def run(args: argparse.Namespace) -> int:
    """Detect objects; returns the exit status, 0 or 1 if there is an image without a picture."""
    images, n_failed = _find_images(args.image, strict=args.strict)
    pictures = paths_of_images(images, args.output, several=len(args.image) > 1 or args.image[0].is_dir())
    _check_outputs(images, pictures, args)
    _check_font(args.font)
    results = _Results(args.json, _open_annotations(images, pictures, args))
    if not images:
        return 1
    written = [*pictures, *(results.annotations.paths if results.annotations and is_folder(args.annotations) else ())]
    with created_folders({path.parent for path in written}):
        model = _load(args)
        try:
            n_failed += _process(model, list(zip(images, pictures, strict=True)), args, results)
        except BaseException:  # an interrupt leaves the results of the finished images
            if results.n_images or results.n_annotated:
                results.write(len(images))
            raise
        results.write(len(images))
    return 1 if n_failed else 0


@dataclass
class _Results:
    """The results for ``--json`` and ``--annotations``, and the number of their images.

    Args:
        json_path: The file of ``--json``.
        annotations: The writer of ``--annotations``.
    """

    json_path: Path | None
    annotations: AnnotationWriter | None
    detections: list[dict[str, Any]] = field(default_factory=list)
    n_images: int = 0
    n_annotated: int = 0
    n_failed: int = 0

    @property
    def use_standard_output(self) -> bool:
        """True if the results are written to the standard output, which then contains nothing else."""
        paths = [self.json_path] if self.json_path is not None else []
        return any(map(is_standard_output, paths + (self.annotations.paths if self.annotations else [])))

    def add(self, image: Path, detections: Detections) -> None:
        """Add the results of an image for ``--json``."""
        self.detections += detections.to_coco(image_id(image))
        self.n_images += 1

    def annotate(self, image: Path, detections: Detections) -> None:
        """Add the annotations of an image."""
        if self.annotations is not None:
            self.annotations.add(image, detections)
            self.n_annotated += 1

    def write(self, n_images: int) -> None:
        """Write the results, and a line if images are missing because the command was interrupted."""
        if self.json_path is not None:
            write_json(self.json_path, self.detections)
            self._report_missing(self.json_path, self.n_images, n_images)
        if self.annotations is not None:
            self.annotations.write()
            for path in self.annotations.paths[:1]:
                self._report_missing(path, self.n_annotated, n_images)

    def _report_missing(self, path: Path, n_written: int, n_images: int) -> None:
        if n_written + self.n_failed < n_images:
            print_note(f'{path} contains the results of {n_written} of {counted(n_images, "image")}')


def _process(model: MaskRCNN, files: list[tuple[Path, Path]], args: argparse.Namespace, results: _Results) -> int:
    """Detect in images, write their pictures and add their results; returns the number of images with an error.

    Args:
        model: The model.
        files: The images and their pictures.
        args: The arguments of the command.
        results: Receives the results, also of an image whose picture cannot be written.
    """
    failed: set[tuple[Path, Path]] = set()
    passes = _passes(model, args)
    with (
        using_precision(args.precision),
        cache_weights(),
        progress_bar(len(files), unit='image') as bar,
    ):
        for part in passes:
            model.set_thresholds(nms=part.nms_threshold)
            for job in _detect(model, (_Job(*names, apply_orientation=part.apply_orientation) for names in files)):
                try:
                    _write_results(job, part, args, results)
                except _IMAGE_ERRORS as error:
                    failed.add((job.image, job.picture))
                    print_error(_describe_error(job.image, error))
                if part is passes[-1] or job.error is not None:
                    bar.update()
                if job.error is not None:
                    results.n_failed += 1
                    files = [names for names in files if names != (job.image, job.picture)]
                del job  # and its pixels, before the next images are read
    return len(failed)


@dataclass(frozen=True)
class _Pass:
    """One pass over the images.

    Args:
        nms_threshold: IoU threshold of NMS.
        picture_threshold: Minimum score of the detections in pictures, or ``None`` for a pass without pictures.
        collects_results: Whether the detections are added to the JSON file.
        apply_orientation: Whether the orientation of the images is applied.
    """

    nms_threshold: float
    picture_threshold: float | None
    collects_results: bool
    apply_orientation: bool


def _passes(model: MaskRCNN, args: argparse.Namespace) -> list[_Pass]:
    """Return the passes over the images: one, or two if pictures and JSON have different thresholds of NMS."""
    config = model.config
    preset = {name: config.for_preset(args.preset or name).nms_threshold for name in ('visualize', 'evaluate')}
    threshold = VISUALIZE_SCORE_THRESHOLD if args.preset != 'evaluate' else config.score_threshold
    if args.score_thresh is not None:
        threshold = args.score_thresh
    orientation = config.dialect.input.apply_orientation
    if args.json is None or preset['visualize'] == preset['evaluate']:
        return [_Pass(preset['visualize'], threshold, args.json is not None, orientation)]
    return [
        _Pass(preset['visualize'], threshold, False, orientation),
        _Pass(preset['evaluate'], None, True, orientation),
    ]


def _find_images(paths: Iterable[Path], *, strict: bool) -> tuple[list[Path], int]:
    """Expand folders; returns the images, and the number of paths without one, each of which is reported.

    What is left out of a folder is reported in one line.

    Raises:
        ImageFileError: ``strict`` is set, and a path has no image or a folder contains a file that is left out.
    """
    images: list[Path] = []
    n_failed = 0
    for path in paths:
        omissions = Omissions('files')
        try:
            images += list_images([path], omissions=omissions)
        except ImageFileError as error:
            if strict:
                raise
            n_failed += 1
            print_error(str(error))
        if omissions and strict:
            raise ImageFileError(path, f'{omissions} (--strict)')
        if omissions:
            print_warning(f'{path}: {omissions}')
    return images, n_failed


def image_id(image: Path) -> int | str:
    """Return an image's id in COCO results; the command's help states the rule."""
    return int(image.stem) if image.stem.isascii() and image.stem.isdigit() else image.stem


def _check_outputs(images: Sequence[Path], pictures: Sequence[Path], args: argparse.Namespace) -> None:
    inputs = set(map(_identify, images))
    others = _other_inputs(args)
    for picture in pictures:
        refuse_inputs('--output', picture, others)
        if not can_write_picture(picture.suffix):
            kind = picture.suffix or 'a file without a suffix'
            raise UsageError(f'--output {args.output}: no picture can be written as {kind} (use .png or .jpg)')
        if _identify(picture) in inputs:
            raise UsageError(f'--output {args.output}: {picture} is one of the images')
        if os.path.lexists(picture):  # new files need only their folder
            check_can_write(picture)
    if args.json is not None:
        _check_file('--json', args.json, images, pictures, others)
        for number, count in Counter(map(image_id, images)).most_common(1):
            if count > 1:
                raise UsageError(f'--json {args.json}: {counted(count, "image")} have the image_id {number!r}')
        check_can_write(args.json)


def _other_inputs(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Return the names and the paths of the inputs that are not images."""
    return [('the file of --modelfile', args.modelfile), ('the file of --font', args.font)]


def _check_file(
    flag: str,
    path: Path,
    images: Sequence[Path],
    pictures: Sequence[Path],
    inputs: Iterable[tuple[str, Path | None]],
) -> None:
    """Refuse a file of results that is an input, an image or a picture, or has no folder."""
    refuse_inputs(flag, path, inputs)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f'{flag} {path}: not a file in an existing folder')
    if _identify(path) in set(map(_identify, [*images, *pictures])):
        raise UsageError(f'{flag} {path}: that is an image')


def _open_annotations(
    images: Sequence[Path], pictures: Sequence[Path], args: argparse.Namespace
) -> AnnotationWriter | None:
    """Check the value of ``--annotations`` and return its writer."""
    if args.annotations is None:
        return None
    for image, count in Counter(images).most_common(1):
        if count > 1:
            raise UsageError(f'--annotations {args.annotations}: {image} is given {count} times')
    if is_folder(args.annotations):
        names = paths_of_images(images, os.path.join(args.annotations, ''), several=True)
        labelme = LabelmeWriter(images, [name.with_suffix('.json') for name in names])
        labelme.check()
        return labelme
    path = output_path(args.annotations)
    others = [*_other_inputs(args), ('the file of --json', args.json)]
    _check_file('--annotations', path, images, pictures, others)
    if args.json is not None and is_standard_output(path) and is_standard_output(args.json):
        raise UsageError('--json and --annotations are both written to the standard output')
    if path.is_file() and path.stat().st_size:
        raise UsageError(f'--annotations {path}: the file exists and may have been corrected')
    check_can_write(path)
    return COCOWriter(path, images)


def _identify(path: Path) -> object:
    """Return a value that is equal for paths that lead to one file, also through links and hard links."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)  # also of a link that leads to itself
    return status.st_dev, status.st_ino


def _check_font(font: Path | None) -> None:
    try:
        load_font(font, 10)
    except OSError as error:
        raise UsageError(f'--font {error}') from error


def _load(args: argparse.Namespace) -> MaskRCNN:
    check_modelfile(args.modelfile)
    gpu = choose_device(args.gpu)
    check_precision(args.precision, gpu)
    threshold = VISUALIZE_SCORE_THRESHOLD if args.preset == 'visualize' else None
    if args.score_thresh is not None:
        threshold = args.score_thresh
    return load_network(args, gpu=gpu, extractor=args.extractor, score_threshold=threshold)


@dataclass
class _Job:
    """An image, its picture, and the results in between: pixels and detections, or an error."""

    image: Path
    picture: Path
    apply_orientation: bool = True
    pixels: np.ndarray = field(init=False)
    detections: Detections = field(init=False)
    error: Exception | None = None

    def read(self) -> None:
        """Read the image."""
        try:
            self.pixels = read_image(self.image, apply_orientation=self.apply_orientation)
        except _IMAGE_ERRORS as error:
            self.error = error

    def detect(self, model: MaskRCNN) -> None:
        """Detect in this image alone."""
        try:
            (self.detections,) = model.detect([self.pixels], batch_size=1)
        except _IMAGE_ERRORS as error:
            self.error = error


class _JobQueue:
    """Jobs in the order of their images; the model takes pixels from one end, jobs with results leave at the other.

    Args:
        jobs: The jobs, whose images are read when the model requests them.
    """

    def __init__(self, jobs: Iterable[_Job]):
        self._jobs = iter(jobs)
        self._begun: deque[_Job] = deque()

    def read_pixels(self) -> Iterator[np.ndarray]:
        """Yield the pixels of the readable images; a further call continues after the last image."""
        for job in self._jobs:
            self._begun.append(job)
            job.read()
            if job.error is None:
                yield job.pixels

    def pop_unreadable(self) -> Iterator[_Job]:
        """Yield the jobs before the first readable image, or all jobs if there is no readable image."""
        while self._begun and self._begun[0].error is not None:
            yield self._begun.popleft()

    def pop(self) -> _Job:
        """Return the first job."""
        return self._begun.popleft()

    def pop_all(self) -> Iterator[_Job]:
        """Yield all jobs whose images have been read."""
        while self._begun:
            yield self._begun.popleft()


def _detect(model: MaskRCNN, jobs: Iterable[_Job]) -> Iterator[_Job]:
    """Yield each job with its detections or its error, in order.

    The model reads ahead, because it processes several images at once.  If it fails, the images that it has read are
    processed one by one, so that only the image that causes the error fails.
    """
    queue = _JobQueue(jobs)
    while True:
        try:
            for detections in model.iter_detections(queue.read_pixels()):
                yield from queue.pop_unreadable()
                job = queue.pop()
                job.detections = detections
                yield job
                del job, detections  # free the memory before the next image is read
        except _IMAGE_ERRORS:
            for job in queue.pop_all():
                if job.error is None:
                    job.detect(model)
                yield job
        else:
            yield from queue.pop_unreadable()
            return


def _write_results(job: _Job, part: _Pass, args: argparse.Namespace, results: _Results) -> None:
    """Add an image's results and annotations, write its picture and print a summary, as the pass requires.

    Raises:
        Exception: The error of the job, if it has one, or of its picture.
    """
    if job.error is not None:
        raise job.error
    detections = job.detections
    if part.collects_results:  # before the picture, which can fail
        results.add(job.image, detections)
    if part.picture_threshold is not None:
        shown = detections.above(part.picture_threshold)
        results.annotate(job.image, shown)
        style = {'contour': args.contour, 'backdrop': args.backdrop, 'labels': args.labels, 'font': args.font}
        write_picture(job.picture, shown.draw(job.pixels, **style))
        counts = ', '.join(f'{count} {name}' for name, count in Counter(shown.names).most_common())
        stream = sys.stderr if results.use_standard_output else sys.stdout
        print_line(f'{job.image}: {counts or "nothing found"} -> {job.picture}', file=stream)


def _describe_error(image: Path, error: Exception) -> str:
    if isinstance(error, (ImageFileError, WeightFileError, OSError)):
        return str(error)  # names the file
    if isinstance(error, MemoryError):
        return f'{image}: not enough memory'
    return f'{image}: {" ".join(str(error).split())}'
