"""``mask-rcnn demo`` and ``demo.py``: detection in images and videos, with pictures, videos and results as output."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn.cli.command import UsageError, flag, parse_command_line
from mask_rcnn.cli.demo_annotations import is_folder
from mask_rcnn.cli.demo_jobs import Job, detect_frames
from mask_rcnn.cli.demo_options import configure
from mask_rcnn.cli.demo_outputs import check_outputs, choose_outputs, open_annotations
from mask_rcnn.cli.demo_results import Results, open_results
from mask_rcnn.cli.demo_sharing import Outcome, check_can_share, check_sources, compute_outcomes
from mask_rcnn.cli.demo_sources import SOURCE_ERRORS, FoundSources, find_sources
from mask_rcnn.cli.demo_writer import FrameWriter
from mask_rcnn.cli.network_options import check_modelfile, load_network
from mask_rcnn.cli.options import check_precision
from mask_rcnn.cli.processes import choose_shared_device, quiet_unless_main, run_shared
from mask_rcnn.config import VISUALIZE_SCORE_THRESHOLD
from mask_rcnn.inference.predictor import default_batch_size
from mask_rcnn.io.atomic_file import created_folders
from mask_rcnn.io.console import ProgressBar, progress_bar
from mask_rcnn.media.pipeline import OrderedWriter, ReadAhead
from mask_rcnn.media.sources import Frame, Source
from mask_rcnn.media.video_source import quiet_opencv
from mask_rcnn.media.window import NoWindowError, Window
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.parallel import cpu_count
from mask_rcnn.training.distributed import Communicator
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
    with quiet_unless_main():
        args = parse_command_line(partial(configure, folder=folder), argv, prog)
        return run_shared(partial(run, args), (WeightFileError, *SOURCE_ERRORS))


def run(args: argparse.Namespace, communicator: Communicator) -> int:
    """Detect objects; returns the exit status, 0 or 1 if there is an image without a picture."""
    with quiet_opencv(), contextlib.ExitStack() as stack:
        is_main = communicator.is_main
        found = communicator.broadcast_object(_find_sources(args, communicator) if is_main else None)
        (sources, n_failed, _), outputs = found
        stack.callback(_close, sources)
        annotations = open_annotations(sources, outputs, args) if is_main else None
        results = Results(sources, open_results(args), annotations)
        if not sources:
            return 1
        window = stack.enter_context(_open_window()) if args.show else None
        written = [*(outputs or ())]
        if results.annotations and is_folder(args.annotations):
            written += results.annotations.paths
        if is_main:
            stack.enter_context(created_folders({*(path.parent for path in written), *results.folders}))
        communicator.barrier()
        model = _load(args, communicator)
        for name in ('masks', 'instance_masks'):
            if getattr(args, name) is not None and not model.config.masks:
                raise UsageError(f'{flag(name)}: the network of {args.modelfile} has no masks')
        run = _Run(model, args, sources, outputs, results, window, communicator)
        n_images = None if any(source.is_video for source in sources) else len(sources)
        try:
            n_failed += run.process()
        except BaseException:  # an interrupt leaves the results of the finished images
            results.close_after_error(n_images)
            raise
        if is_main:
            results.close(n_images)
        if window is not None and n_images is not None:
            while not window.is_closed(wait=_KEY_INTERVAL):
                pass
    return 1 if n_failed else 0


def _find_sources(args: argparse.Namespace, communicator: Communicator) -> tuple[FoundSources, list[Path] | None]:
    """Find the sources, and choose and check their outputs."""
    if communicator.size > 1:
        check_can_share(args)
    found = find_sources(args)
    if communicator.size > 1:
        check_sources(found.sources)
    outputs = choose_outputs(found.sources, args, is_single=found.is_single)
    check_outputs(found.sources, outputs, args)
    _check_font(args.font)
    return found, outputs


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
        communicator: The processes that share the sources.
    """

    def __init__(
        self,
        model: MaskRCNN,
        args: argparse.Namespace,
        sources: list[Source],
        outputs: list[Path] | None,
        results: Results,
        window: Window | None,
        communicator: Communicator,
    ):
        self._communicator = communicator
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
        run_pass = self._run_pass if self._communicator.size == 1 else self._run_shared_pass
        if not self._communicator.is_main:
            total = 0  # no progress bar
        with using_precision(self._args.precision), cache_weights(), progress_bar(total, unit=unit) as bar:
            for part in passes:
                self._model.set_thresholds(nms=part.nms_threshold)
                is_closed = run_pass(part, partial(self._count, bar=bar, is_last=part is passes[-1]))
                if is_closed:
                    break
        return len({source for source, _ in self._failed})

    def _count(self, job: Job, bar: ProgressBar, is_last: bool) -> None:
        """Move the progress bar after an image or a frame of the last pass, or one that no other pass will read."""
        source = job.frame.source
        is_step = not source.is_video or job.frame.number > 0
        is_lost = job.error is not None and not source.is_video
        if is_lost:
            self._unreadable.add(id(source))
        if is_step and (is_last or is_lost):
            bar.update()

    def _make_writer(self, part: _Pass, progress: Callable[[Job], None]) -> FrameWriter:
        args = self._args
        return FrameWriter(
            self._outputs,
            self._results,
            _drawing_style(args),
            picture_threshold=part.picture_threshold,
            collects_results=part.collects_results,
            failed=self._failed,
            track=args.track,
            progress=progress,
            show=self._set_newest if self._window is not None else None,
        )

    def _run_pass(self, part: _Pass, progress: Callable[[Job], None]) -> bool:
        """Run a pass; returns whether the user has closed the window."""
        writer = self._make_writer(part, progress)
        queue = OrderedWriter(writer.prepare, writer.write, n_threads=_count_drawing_threads())
        try:
            with queue, ReadAhead(self._read(part, self._sources), size_of=_size, is_live=_is_live) as frames:
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

    def _run_shared_pass(self, part: _Pass, progress: Callable[[Job], None]) -> bool:
        """Run a pass over images in several processes; returns ``False``, because there is no window."""
        writer = self._make_writer(part, progress)
        compute = partial(self._compute_outcomes, part, writer)
        block = default_batch_size(self._model.device)
        with self._communicator.map_in_order(compute, len(self._sources), block=block) as outcomes:
            for source, outcome in zip(self._sources, outcomes, strict=False):  # other processes get none
                if outcome is not None:
                    writer.write(outcome.to_drawing(source))
        return False

    def _compute_outcomes(
        self, part: _Pass, writer: FrameWriter, indices: Sequence[int]
    ) -> Generator[Outcome | None, None, None]:
        sources = [self._sources[i] for i in indices]
        yield from compute_outcomes(
            sources,
            partial(self._detect, part),
            writer,
            skipped=set(self._unreadable),
            n_threads=_count_drawing_threads(),
        )

    def _detect(self, part: _Pass, sources: Sequence[Source]) -> Generator[Job, None, None]:
        with ReadAhead(self._read(part, sources), size_of=_size) as frames:
            for job in detect_frames(self._model, frames):
                if job.error is not None:
                    self._unreadable.add(id(job.frame.source))  # process 0 also knows those of the others
                yield job

    def _read(self, part: _Pass, sources: Sequence[Source]) -> Iterator[Frame]:
        for source in sources:
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


def _drawing_style(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :meth:`mask_rcnn.Detections.draw` that the options select."""
    switches = {'masks': not args.no_fill, 'boxes': not args.no_boxes}
    return {'contour': args.contour, 'backdrop': args.backdrop, 'labels': args.labels, 'font': args.font, **switches}


def _count_drawing_threads() -> int:
    return max(1, min(_MAX_DRAWING_THREADS, cpu_count() // 2))


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


def _load(args: argparse.Namespace, communicator: Communicator) -> MaskRCNN:
    check_modelfile(args.modelfile)
    gpu = choose_shared_device(args.gpu, communicator)
    check_precision(args.precision, gpu)
    threshold = VISUALIZE_SCORE_THRESHOLD if args.preset == 'visualize' else None
    if args.score_thresh is not None:
        threshold = args.score_thresh
    return load_network(args, gpu=gpu, extractor=args.extractor, score_threshold=threshold)
