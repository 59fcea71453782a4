"""The HTML report of training passes: inputs, anchors, RoIs, mask targets and losses of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.inspect.training.pictures import (
    MAX_NOT_SAMPLED,
    draw_anchor_costs,
    draw_anchors,
    draw_input,
    draw_keypoints,
    draw_masks,
    draw_roi_costs,
    draw_rois,
)
from mask_rcnn.inspect.training.summary import TrainedObject, describe_training, summarize_objects
from mask_rcnn.inspect.training.tables import Table, class_table, level_table, missing_table, object_table
from mask_rcnn.inspect.training.trace import TrainingTrace
from mask_rcnn.io.wording import counted
from mask_rcnn.targets import Sampling
from mask_rcnn.visualization.contact_sheet import Tile, compose_sheet
from mask_rcnn.visualization.html_report import Report
from mask_rcnn.visualization.target_figures import Overlaps, plot_overlaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images with figures; more would make the file too large.
MAX_IMAGES = 6
_MAX_CLASSES, _MAX_MISSING, _MAX_OBJECTS = 100, 50, 30  # rows of tables
_SHEET_SIDE, _SHEET_COLUMNS = 380, 4  # pixels, pictures

_ANCHOR_TEXT = (
    'An anchor is positive if its IoU with an object is at least {high:g}, or if no anchor has a higher IoU with that '
    'object. It is negative if its best IoU is below {low:g}. Anchors between the thresholds are ignored{outside}. '
    '{batch} anchors are sampled, at most {most} of them positive.'
)
_OUTSIDE_TEXT = ', as are those that extend beyond the image'
_ANCHOR_CAPTION = (
    'Anchors by role; objects have the numbers of the table. A panel contains at most '
    f'{MAX_NOT_SAMPLED} ignored anchors, and as many positive ones that were not sampled.'
)
_TABLE_TEXT = (
    'Sizes are square roots of areas in pixels of the network input. Anchors are sampled positive anchors. RoIs are '
    'sampled foreground RoIs: proposals and the annotated boxes. The IoUs are the best ones with any anchor and with '
    'any proposal. Losses are means of the foreground RoIs.'
)
_ROI_TEXT = (
    'The proposals and the annotated boxes are foreground if their IoU with an object is at least {foreground:g}, and '
    'background if it is at least {low:g} and below {high:g}. {batch} RoIs are sampled, at most {most} of them '
    'foreground.'
)


@dataclass(eq=False)
class TrainingReport:
    """A report that is filled image by image.

    Args:
        title: The title.
        class_names: Names of the classes.
        config: The network.
        sampling: Sampling sizes and IoU thresholds of the training passes.
        notes: Sentences on the network and the data, for the first section.

    Attributes:
        objects: The training of the objects of all images.
    """

    title: str
    class_names: Sequence[str]
    config: Config
    sampling: Sampling
    notes: Sequence[str] = ()
    objects: list[TrainedObject] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._losses: list[dict[str, float]] = []
        self._tiles: list[Tile] = []
        self._sections: list[_Section] = []

    def add(self, trace: TrainingTrace) -> None:
        """Add an image; the first :data:`MAX_IMAGES` get a section with figures."""
        objects = summarize_objects(trace)
        self.objects += objects
        self._losses.append(trace.losses)
        if len(self._sections) < MAX_IMAGES:
            title = Path(trace.example.name).name
            details = f'{counted(len(trace.objects), "object")}, {_describe_size(trace.picture.shape)}'
            picture = draw_input(trace, side=_SHEET_SIDE)
            self._tiles.append(Tile(picture, title, details))
            self._sections.append(_make_section(trace, objects))

    def summary(self) -> list[str]:
        """Return the most important results as sentences."""
        lines = describe_training(self.objects, self.config.anchor_sizes, self.sampling, self.class_names)
        means = {name: np.mean([losses[name] for losses in self._losses]) for name in self._loss_names()}
        parts = ', '.join(
            f'{name.removesuffix("_loss")} {value:.3g}' for name, value in means.items() if name != 'loss'
        )
        return [*lines, f'mean loss {means["loss"]:.3g}: {parts}'] if means else lines

    def to_report(self) -> Report:
        """Return the document."""
        report = Report(self.title)
        self._add_summary(report)
        self._add_explanations(report)
        if self._tiles:
            report.add_heading('Network inputs')
            report.add_text(
                'The images after augmentation, in the size and the colours in which the network reads them, with the '
                'boxes and masks in the same coordinates.'
            )
            sheet = compose_sheet(self._tiles, columns=_SHEET_COLUMNS, side=_SHEET_SIDE)
            drawn, n_images = len(self._tiles), len(self._losses)
            report.add_figure(
                sheet,
                f'The first {drawn} of {counted(n_images, "input")}' if drawn < n_images else 'All network inputs',
            )
        for section in self._sections:
            section.add_to(report)
        return report

    def _loss_names(self) -> list[str]:
        return list(self._losses[0]) if self._losses else []

    def _add_summary(self, report: Report) -> None:
        report.add_heading('Summary')
        for line in (*self.notes, *self.summary()):
            report.add_text(_as_sentence(line))
        if len(self._losses) > len(self._sections):
            report.add_text(
                f'Of {counted(len(self._losses), "image")}, the first {len(self._sections)} are drawn below.'
            )
        if not self.objects:
            return
        _add_limited_table(
            report, *class_table(self.objects, self.class_names, self.sampling.roi_foreground_iou), limit=_MAX_CLASSES
        )
        report.add_text(f'{_TABLE_TEXT} Those of classes are means of the objects.')
        report.add_figure(_plot_overlaps(self), 'Best overlap of every object with an anchor and with a proposal')
        missing = [obj for obj in self.objects if obj.missing]
        if missing:
            report.add_heading('Objects without a positive anchor', level=3)
            _add_limited_table(report, *missing_table(missing, self.class_names), limit=_MAX_MISSING)

    def _add_explanations(self, report: Report) -> None:
        sampling = self.sampling
        report.add_heading('Roles of anchors and RoIs')
        report.add_text(
            _ANCHOR_TEXT.format(
                outside=_OUTSIDE_TEXT if self.config.dialect.training.anchors_inside_only else '',
                high=sampling.rpn_positive_iou,
                low=sampling.rpn_negative_iou,
                batch=sampling.rpn_batch,
                most=int(sampling.rpn_positive_fraction * sampling.rpn_batch),
            )
        )
        if self.config.dialect.training.redraw_negatives:
            report.add_text(
                'Negative anchors are drawn with replacement, so that fewer different ones may be sampled, and they '
                "replace positive ones: an object's best anchor with a low IoU can become negative."
            )
        low, high = sampling.roi_background_iou
        report.add_text(
            _ROI_TEXT.format(
                foreground=sampling.roi_foreground_iou,
                low=low,
                high=high,
                batch=sampling.roi_batch,
                most=round(sampling.roi_foreground_fraction * sampling.roi_batch),
            )
        )


@dataclass(eq=False)
class _Section:
    """The section of one image: its tables, figures and pictures."""

    title: str
    texts: list[str]
    objects: Table
    levels: Table
    losses: Table
    figures: list[tuple[str, Figure | np.ndarray, str]]  # heading, picture, caption

    def add_to(self, report: Report) -> None:
        report.add_heading(self.title)
        for text in self.texts:
            report.add_text(text)
        report.add_table(*self.losses)
        if self.objects[1]:
            report.add_heading('Objects', level=3)
            _add_limited_table(report, *self.objects, limit=_MAX_OBJECTS)
        heading = ''
        for title, picture, caption in self.figures:
            if title != heading:
                report.add_heading(title, level=3)
                if title == 'Anchors':
                    report.add_table(*self.levels)
            heading = title
            report.add_figure(picture, caption)


def _make_section(trace: TrainingTrace, objects: Sequence[TrainedObject]) -> _Section:
    names, transform = trace.class_names, trace.example.image_transform
    height, width = transform.size
    n_crowds = int(trace.objects.crowd.sum())
    padding = '' if trace.picture.shape[:2] == transform.input_size else ' with padding'
    texts = [
        f'Seed {trace.example.seed}. The augmented image of {width} x {height} pixels is resized by '
        f'{transform.scale:.3g}; the network input has {_describe_size(trace.picture.shape)}{padding}. '
        f'{counted(len(objects), "object")}'
        + (f' and {counted(n_crowds, "crowd region")}.' if n_crowds else '.')
        + f' {counted(trace.rois.n_proposals, "proposal")}, {counted(trace.rois.n_foreground, "foreground RoI")}, '
        f'{counted(int((trace.rois.labels == 0).sum()), "background RoI")}.'
    ]
    figures = [
        ('Anchors', draw_anchors(trace), _ANCHOR_CAPTION),
        ('RoIs', draw_rois(trace), 'Sampled RoIs, and the targets of the foreground'),
        (
            'Mask targets',
            draw_masks(trace),
            'The RoI, its target, and the predicted mask (yellow: 1, blue: 0)',
        ),
        ('Keypoint targets', draw_keypoints(trace), 'Targets (green discs) and predictions (orange crosses)'),
        ('Losses', draw_roi_costs(trace), 'The RoIs that contribute most to the loss'),
        ('Losses', draw_anchor_costs(trace), 'The anchors that contribute most to the loss'),
    ]
    if len(objects) > _MAX_OBJECTS:
        objects = sorted(objects, key=lambda obj: (obj.n_positive, obj.number))
        texts.append('The table of objects begins with those that have the fewest positive anchors.')
    return _Section(
        title=Path(trace.example.name).name,
        texts=texts,
        objects=object_table(objects, names, has_masks=trace.masks is not None),
        levels=level_table(trace),
        losses=(list(trace.losses), [list(trace.losses.values())]),
        figures=[(title, picture, caption) for title, picture, caption in figures if picture is not None],
    )


def _add_limited_table(report: Report, header: list[str], rows: list[list], *, limit: int) -> None:
    report.add_table(header, rows[:limit])
    if len(rows) > limit:
        report.add_text(f'The first {limit} of {counted(len(rows), "row")}.')


def _plot_overlaps(report: TrainingReport) -> Figure:
    sampling, objects = report.sampling, report.objects
    return plot_overlaps(
        np.array([obj.size for obj in objects]),
        np.array([obj.label for obj in objects]),
        report.class_names,
        [
            Overlaps(
                'anchors',
                np.array([obj.best_anchor for obj in objects]),
                {'positive': sampling.rpn_positive_iou, 'negative below': sampling.rpn_negative_iou},
            ),
            Overlaps(
                'proposals',
                np.array([obj.best_proposal for obj in objects]),
                {'foreground': sampling.roi_foreground_iou},
            ),
        ],
        report.config.anchor_sizes,
    )


def _describe_size(shape: Sequence[int]) -> str:
    return f'{shape[1]} x {shape[0]} pixels'


def _as_sentence(line: str) -> str:
    return f'{line[0].upper()}{line[1:].rstrip(".")}.'
