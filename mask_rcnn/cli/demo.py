"""``mask-rcnn demo`` and ``demo.py``: detection in images and videos, with pictures, videos and results as output."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask_rcnn.cli.command import UsageError, flag, parse_command_line, run_and_report_errors
from mask_rcnn.cli.demo_annotations import is_folder
from mask_rcnn.cli.demo_jobs import Job, detect_frames
from mask_rcnn.cli.demo_options import configure
from mask_rcnn.cli.demo_outputs import check_outputs, choose_outputs, open_annotations
from mask_rcnn.cli.demo_results import Results, open_results
from mask_rcnn.cli.demo_sources import SOURCE_ERRORS, find_sources
from mask_rcnn.cli.demo_writer import FrameWriter
from mask_rcnn.cli.network_options import check_modelfile, load_network
from mask_rcnn.cli.options import check_precision, choose_device
from mask_rcnn.config import VISUALIZE_SCORE_THRESHOLD
from mask_rcnn.io.atomic_file import created_folders
from mask_rcnn.io.console import progress_bar
from mask_rcnn.media.pipeline import OrderedWriter, ReadAhead
from mask_rcnn.media.sources import Frame, Source
from mask_rcnn.media.video_source import quiet_opencv
from mask_rcnn.media.window import NoWindowError, Window
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.visualization import load_font
from mask_rcnn.weights import WeightFileError

#: Maximum number of threads that draw and encode pictures.
_MAX_DRAWING_THREADS = 4
#: Seconds between two reads of the keys while the last picture is shown.
_KEY_INTERVAL = 0.05


def main(argv: Sequence[str] | None = None, folder: Path = Path('modelfiles'), *, prog: str | None = None) -> int:
    """Parse the command line, detect and report errors; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    args = parse_command_line(partial(configure, folder=folder), argv, prog)
    return run_and_report_errors(partial(run, args), (WeightFileError, *SOURCE_ERRORS))


def run(args: argparse.Namespace) -> int:
    """Detect objects; returns the exit status, 0 or 1 if there is an image without a picture."""
    with quiet_opencv(), contextlib.ExitStack() as stack:
        sources, n_failed, is_single = find_sources(args)
        stack.callback(_close, sources)
        outputs = choose_outputs(sources, args, is_single=is_single)
        check_outputs(sources, outputs, args)
        _check_font(args.font)
        results = Results(sources, open_results(args), open_annotations(sources, outputs, args))
        if not sources:
            return 1
        window = stack.enter_context(_open_window()) if args.show else None
        written = [*(outputs or ())]
        if results.annotations and is_folder(args.annotations):
            written += results.annotations.paths
        stack.enter_context(created_folders({*(path.parent for path in written), *results.folders}))
        model = _load(args)
        for name in ('masks', 'instance_masks'):
            if getattr(args, name) is not None and not model.config.masks:
                raise UsageError(f'{flag(name)}: the network of {args.modelfile} has no masks')
        run = _Run(model, args, sources, outputs, results, window)
        n_images = None if any(source.is_video for source in sources) else len(sources)
        try:
            n_failed += run.process()
        except BaseException:  # an interrupt leaves the results of the finished images
            results.close_after_error(n_images)
            raise
        results.close(n_images)
        if window is not None and n_images is not None:
            while not window.is_closed(wait=_KEY_INTERVAL):
                pass
    return 1 if n_failed else 0


def _close(sources: Sequence[Source]) -> None:
    for source in sources:
        source.close()


@contextlib.contextmanager
def _open_window() -> Iterator[Window]:
    try:
        window = Window()
    except NoWindowError as error:
        raise UsageError(f'--show: {error}') from error
    try:
        yield window
    finally:
        window.close()


class _Run:
    """The work of a command after its checks.

    Args:
        model: The model.
        args: The arguments of the command.
        sources: The sources.
        outputs: The output of each source, or ``None`` for none.
        results: Receives the results, also of an image whose picture cannot be written.
        window: Shows the pictures; ``None`` for no window.
    """

    def __init__(
        self,
        model: MaskRCNN,
        args: argparse.Namespace,
        sources: list[Source],
        outputs: list[Path] | None,
        results: Results,
        window: Window | None,
    ):
        self._model, self._args, self._sources, self._results, self._window = model, args, sources, results, window
        paths = outputs if outputs is not None else [None] * len(sources)
        self._outputs = {id(source): path for source, path in zip(sources, paths, strict=True)}
        self._newest: np.ndarray | None = None  # picture for the window
        self._failed: set[tuple[int, bool]] = set()
        self._unreadable: set[int] = set()

    def process(self) -> int:
        """Detect in all sources, write their pictures and collect their results.

        Returns:
            The number of sources with an error.
        """
        passes = _passes(self._model, self._args)
        if len(passes) > 1 and any(source.is_live for source in self._sources):
            raise UsageError(
                '--json: this model has a threshold of NMS for pictures and one for JSON, but a live source can be '
                'read only once; choose one with --preset'
            )
        counts = [source.n_frames for source in self._sources]
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else None
        unit = 'frame' if any(source.is_video for source in self._sources) else 'image'
        with using_precision(self._args.precision), cache_weights(), progress_bar(total, unit=unit) as bar:
            for part in passes:
                self._model.set_thresholds(nms=part.nms_threshold)
                is_closed = self._run_pass(part, partial(self._count, bar=bar, is_last=part is passes[-1]))
                if is_closed:
                    break
        return len({source for source, _ in self._failed})

    def _count(self, job: Job, bar: tqdm, is_last: bool) -> None:
        """Move the progress bar after an image or a frame of the last pass, or one that no other pass will read."""
        source = job.frame.source
        is_step = not source.is_video or job.frame.number > 0
        is_lost = job.error is not None and not source.is_video
        if is_lost:
            self._unreadable.add(id(source))
        if is_step and (is_last or is_lost):
            bar.update()

    def _run_pass(self, part: _Pass, progress: Callable[[Job], None]) -> bool:
        """Run a pass; returns whether the user has closed the window."""
        args = self._args
        writer = FrameWriter(
            self._outputs,
            self._results,
            {'contour': args.contour, 'backdrop': args.backdrop, 'labels': args.labels, 'font': args.font},
            picture_threshold=part.picture_threshold,
            collects_results=part.collects_results,
            failed=self._failed,
            track=args.track,
            progress=progress,
            show=self._set_newest if self._window is not None else None,
        )
        n_threads = max(1, min(_MAX_DRAWING_THREADS, (os.cpu_count() or 1) // 2))
        queue = OrderedWriter(writer.prepare, writer.write, n_threads=n_threads)
        try:
            with queue, ReadAhead(self._read(part), size_of=_size, is_live=_is_live) as frames:
                batch_size = 1 if any(source.is_live for source in self._sources) else None
                for job in detect_frames(self._model, frames, batch_size=batch_size):
                    size = job.frame.n_bytes
                    queue.submit(writer.begin(job), size)
                    del job  # and its pixels, before the next frames are read
                    if self._window is not None and self._update_window():
                        return True
        finally:
            if queue.is_abandoned:
                writer.abort()
            else:
                writer.finish()
        if self._window is not None:
            self._update_window()
        return False

    def _read(self, part: _Pass) -> Iterator[Frame]:
        for source in self._sources:
            if id(source) not in self._unreadable:
                yield from source.read(apply_orientation=part.apply_orientation)

    def _set_newest(self, picture: np.ndarray) -> None:
        self._newest = picture

    def _update_window(self) -> bool:
        """Show the newest picture; returns whether the user has closed the window."""
        assert self._window is not None
        picture, self._newest = self._newest, None
        if picture is not None:
            self._window.show(picture)
        return self._window.is_closed()


def _size(frame: Frame) -> int:
    return frame.n_bytes


def _is_live(frame: Frame) -> bool:
    return frame.source.is_live


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
