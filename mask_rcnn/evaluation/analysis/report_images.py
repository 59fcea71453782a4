"""The worst images of an evaluation in its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mask_rcnn.evaluation.analysis.analysis import Analysis
from mask_rcnn.evaluation.analysis.image_losses import ImageErrors
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import format_box
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.visualization.error_pictures import MARKS, MarkedShapes, draw_errors, mark_title
from mask_rcnn.visualization.html_report import Report

_MAX_LOST = 10  # rows of a table

#: Returns the image with an id as ``(H, W, 3)`` uint8, RGB, and its name.
ImageReader = Callable[[int | str], tuple[np.ndarray, str]]


def add_worst_images(report: Report, analysis: Analysis, read_image: ImageReader) -> None:
    """Add the section on the worst images to a report.

    Args:
        report: The report.
        analysis: The analysis.
        read_image: Reads the images; one that cannot be read is named in the report.
    """
    report.add_heading('Worst images')
    if not analysis.worst_images:
        report.add_text('No image has an error that lowers AP50.')
        return
    report.add_text(
        f'The {len(analysis.worst_images)} of {counted(analysis.n_images_with_loss, "image")} with errors that cost '
        'most: by how much AP50 of all images would rise if the false positives of this image were removed, and the '
        'objects that are not detected were not counted. First the objects, then the detections '
        f'({analysis.main_kind.plural}), without the false positives with a score of at most '
        f'{analysis.confusion.score_threshold:g}.'
    )
    report.add_text(
        'A table lists the objects that are not detected. For an image file, "mask-rcnn inspect why FILE --modelfile '
        'WEIGHTS --box BOX --class CLASS" shows the step of the network at which an object was lost.'
    )
    for number, errors in enumerate(analysis.worst_images, 1):
        try:
            image, name = read_image(errors.image_id)
        except (OSError, ImageFileError) as error:
            report.add_text(f'{number}. {error}')
            continue
        picture, n_hidden = _draw(image, errors, analysis)
        report.add_figure(
            picture, f'{number}. {name}: {_describe(errors, n_hidden, analysis.confusion.score_threshold)}'
        )
        _add_lost_objects(report, errors, analysis.metrics.class_names)


def _draw(image: np.ndarray, errors: ImageErrors, analysis: Analysis) -> tuple[np.ndarray, int]:
    """Return the picture of an image, and the number of false positives that are not drawn."""
    names, threshold = analysis.metrics.class_names, analysis.confusion.score_threshold
    has_names = len(names) > 1
    scores = errors.scores.tolist()
    drawn = [i for i, kind in enumerate(errors.kinds) if kind == 'correct' or scores[i] > threshold]
    kinds = [errors.kinds[i] for i in drawn]
    texts = ['' if kind == 'correct' else f'{scores[i]:.2f}' for i, kind in zip(drawn, kinds, strict=True)]
    if has_names:
        texts = [text and f'{names[errors.labels[i]]} {text}' for i, text in zip(drawn, texts, strict=True)]
    object_texts = [
        names[label] if has_names and state not in ('correct', 'crowd') else ''
        for label, state in zip(errors.object_labels.tolist(), errors.object_states, strict=True)
    ]
    objects = MarkedShapes(errors.object_boxes, errors.object_masks, errors.object_states, object_texts)
    masks = [errors.masks[i] for i in drawn] if errors.masks else ()
    detections = MarkedShapes(errors.boxes[drawn], masks, kinds, texts)
    titles = f'objects: {errors.n_detected} of {errors.n_objects} detected', 'detections'
    n_hidden = sum(
        kind not in ('correct', 'ignored') and score <= threshold
        for kind, score in zip(errors.kinds, scores, strict=True)
    )
    return draw_errors(image, objects, detections, titles), n_hidden


def _describe(errors: ImageErrors, n_hidden: int, threshold: float) -> str:
    counts = {kind: errors.kinds.count(kind) for kind in MARKS if kind in errors.kinds}
    parts = [f'{n} {mark_title(kind)}' for kind, n in counts.items() if kind not in ('correct', 'ignored')]
    hidden = f' ({n_hidden} of them with a score of at most {threshold:g})' if n_hidden else ''
    false = f'; false positives: {", ".join(parts)}{hidden}' if parts else ''
    detected = f'{errors.n_detected} of {counted(errors.n_objects, "object")} detected'
    return f'costs {100 * errors.loss:.2f} points of AP50; {detected}{false}'


def _add_lost_objects(report: Report, errors: ImageErrors, class_names: Sequence[str]) -> None:
    """Add a table of the objects that no detection matches, with their boxes in the form of ``inspect why``."""
    rows = [
        (class_names[label], format_box(box), mark_title(state))
        for label, box, state in zip(
            errors.object_labels.tolist(), errors.object_boxes, errors.object_states, strict=True
        )
        if state not in ('correct', 'crowd')
    ]
    if rows:
        report.add_table(['class', 'box x0,y0,x1,y1', 'error'], rows[:_MAX_LOST])
    if len(rows) > _MAX_LOST:
        report.add_text(f'{counted(len(rows) - _MAX_LOST, "other object is", "other objects are")} not listed.')
