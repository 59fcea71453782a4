"""The origin of a detection, and the step at which an expected object was lost.

The answers are read from the tables of a :class:`~mask_rcnn.inspect.Trace`; nothing is estimated.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.inspect.tables import Fate, Trace
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import box_iou, format_box

#: Number of classes that are listed for an RoI.
_MAX_CLASSES = 5
#: Minimum IoU of a detection that is mentioned although it does not fit.
_MIN_OVERLAP = 0.1


@dataclass(frozen=True, eq=False)
class Origin:
    """The origin of a detection: the result of :func:`why`.  ``str()`` is a text of several lines.

    Args:
        detection: Index of the detection.
        name: Name of its class.
        score: Its score.
        box: ``(4,)`` float32 in pixels of the image, as the other boxes.
        candidate: Index of its candidate in ``Trace.candidates``.
        roi: Index of its RoI.
        roi_box: ``(4,)`` box of the RoI.
        roi_level: Name of the feature map from which the RoI is pooled.
        class_scores: The classes of the RoI with the highest scores, in descending order, with the background.
        anchor: Index of its anchor.
        anchor_box: ``(4,)`` box of the anchor.
        anchor_level: Name of the anchor's feature map.
        anchor_cell: Row and column of the anchor in its feature map.
        objectness: Probability of an object at the anchor.
        anchor_rank: Rank of the anchor's objectness among all anchors, 1 for the highest.
        n_anchors: Number of anchors.
        suppressed: Indices of the candidates of the same class that the detection suppresses, in descending order of
            score.
        suppressed_scores: Their scores.
    """

    detection: int
    name: str
    score: float
    box: np.ndarray
    candidate: int
    roi: int
    roi_box: np.ndarray
    roi_level: str
    class_scores: tuple[tuple[str, float], ...]
    anchor: int
    anchor_box: np.ndarray
    anchor_level: str
    anchor_cell: tuple[int, int]
    objectness: float
    anchor_rank: int
    n_anchors: int
    suppressed: np.ndarray
    suppressed_scores: np.ndarray

    @property
    def title(self) -> str:
        """The detection in one line."""
        return f'detection {self.detection}: {self.name} {self.score:.3f} at {format_box(self.box)}'

    @property
    def steps(self) -> dict[str, str]:
        """Name -> description of each step that led to the detection."""
        row, column = self.anchor_cell
        steps = {
            'anchor': f'{self.anchor_level}, row {row}, column {column}, at {format_box(self.anchor_box)}: '
            f'objectness {self.objectness:.3f}, rank {self.anchor_rank} of {self.n_anchors}',
            'proposal': f'RoI {self.roi}, pooled from {self.roi_level}, at {format_box(self.roi_box)}',
            'classes': ', '.join(f'{name} {score:.3f}' for name, score in self.class_scores),
        }
        if len(self.suppressed):
            boxes, best = counted(len(self.suppressed), 'box', 'boxes'), self.suppressed_scores[0]
            steps['NMS'] = f'suppresses {boxes} of the class with scores up to {best:.3f}'
        return steps

    def __str__(self) -> str:
        return '\n'.join([self.title, *(f'  {name:8}  {text}' for name, text in self.steps.items())])


class Step(enum.Enum):
    """The steps of a detection at which an object can be lost, in their order; the values are their titles."""

    ANCHORS = 'RPN regression'
    OBJECTNESS = 'selection by objectness'
    SIZE = 'filter of proposals'
    PROPOSAL_NMS = 'NMS of proposals'
    PROPOSAL_LIMIT = 'limit of proposals'
    REFINEMENT = 'box regression'
    CLASSIFICATION = 'classification'
    BOX_SIZE = 'filter of detections'
    DETECTION_NMS = 'NMS of detections'
    DETECTION_LIMIT = 'limit of detections'
    ROUNDING = 'rounding of boxes'
    #: The object is not lost.
    DETECTED = 'detected'


@dataclass(frozen=True, eq=False)
class Rejection:
    """The step at which an expected object was lost; the result of :func:`why_not`.

    ``str()`` is a text of several lines.

    Args:
        step: The step; :attr:`Step.DETECTED` if the object is detected.
        name: Name of the expected class.
        box: ``(4,)`` float32, the expected box in pixels of the image.
        min_iou: IoU with the expected box at which a box counts as fitting.
        reason: The event at the step, one sentence.
        counts: For each table in the order of the network its title, the number of fitting boxes, and the best IoU of
            its boxes with the expected box (0 without boxes).
        table: The last table of the trace with a box that fits: ``'anchors'``, ``'proposals'``, ``'rois'``,
            ``'candidates'`` or ``'detections'``; ``'anchors'`` if there is none.
        index: Index of the best box in this table; -1 if the table is empty.
        others: Indices of the detections of other classes that fit the expected box.
    """

    step: Step
    name: str
    box: np.ndarray
    min_iou: float
    reason: str
    counts: tuple[tuple[str, int, float], ...]
    table: str
    index: int
    others: np.ndarray

    @property
    def title(self) -> str:
        """The result in one line: the object, the step and the reason."""
        status = 'is detected' if self.step is Step.DETECTED else f'is lost at the {self.step.value}'
        return f'{self.name} at {format_box(self.box)} {status}: {self.reason}'

    def __str__(self) -> str:
        lines = [self.title]
        width = max(34, *(len(title) for title, _, _ in self.counts))
        lines += [
            f'  {title:{width}}{count:7} with IoU >= {self.min_iou:g}, best {best:.2f}'
            for title, count, best in self.counts
        ]
        return '\n'.join(lines)


def why(trace: Trace, detection: int) -> Origin:
    """Return the origin of a detection: its candidate, RoI and anchor, and the boxes with which it competed.

    Args:
        trace: The steps.
        detection: Index of the detection in ``trace.detections``.

    Raises:
        IndexError: There is no such detection.
        TypeError: The index is not an integer.
    """
    detections, detection = trace.detections, check_detection(trace, detection)
    candidate = int(trace.candidate_of_detection[detection])
    roi = int(trace.candidates.rois[candidate])
    anchor = int(trace.proposals.anchors[trace.rois.candidates[roi]])
    suppressed = np.flatnonzero(trace.candidates.suppressed_by == candidate)
    suppressed = suppressed[np.argsort(-trace.candidates.scores[suppressed], kind='stable')]
    score = trace.anchors.scores[anchor]
    return Origin(
        detection=detection,
        name=detections.names[detection],
        score=float(detections.scores[detection]),
        box=detections.boxes[detection],
        candidate=candidate,
        roi=roi,
        roi_box=trace.in_image(trace.rois.boxes[roi]),
        roi_level=trace.level_names[trace.rois.levels[roi]],
        class_scores=best_classes(trace, roi),
        anchor=anchor,
        anchor_box=trace.in_image(trace.anchors.boxes[anchor]),
        anchor_level=trace.level_names[trace.anchors.levels[anchor]],
        anchor_cell=_find_cell(trace, anchor),
        objectness=float(trace.probabilities(score)),
        anchor_rank=1 + int(np.count_nonzero(trace.anchors.scores > score)),
        n_anchors=len(trace.anchors),
        suppressed=suppressed,
        suppressed_scores=trace.candidates.scores[suppressed],
    )


def why_not(trace: Trace, box: Sequence[float], label: int | str, *, min_iou: float = 0.5) -> Rejection:
    """Return the step at which an expected object was lost.

    The tables are searched from the detections back to the anchors for a box that fits the expected one.  The step that
    follows the last table with such a box has lost the object: it has dropped, suppressed, misclassified or moved it.
    If several boxes fit, the one with the highest score counts.

    Args:
        trace: The steps.
        box: The expected box, ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        label: The expected class: its label, 0 for the first foreground class, or its name.
        min_iou: IoU with the expected box at or above which a box fits; above 0 and at most 1.

    Raises:
        ValueError: The class does not exist, the box is not ``(y_min, x_min, y_max, x_max)`` with finite increasing
            numbers, or ``min_iou`` is not above 0 and at most 1.
        TypeError: The class is neither an integer nor a name, or ``min_iou`` is not a number.
    """
    search = _Search(trace, _check_box(box), _find_label(trace, label), _check_iou(min_iou))
    searches = {
        'detections': search.in_detections,
        'candidates': search.in_candidates,
        'rois': search.in_rois,
        'proposals': search.in_proposals,
        'anchors': search.in_anchors,
    }
    table, (step, index, reason) = next((name, found) for name, find in searches.items() if (found := find()))
    others = np.flatnonzero(search.fits['detections'] & (trace.detections.labels != search.label))
    reason += search.describe(others)
    if step is not Step.DETECTED:
        reason += search.describe_closest()
    return Rejection(step, search.name, search.box, min_iou, reason, search.count(), table, index, others)


class _Search:
    """The search for an expected object in the tables of a trace.

    Attributes:
        ious: For each table, the IoU of its boxes with the expected box.
        fits: For each table, a mask of the boxes that fit.
    """

    def __init__(self, trace: Trace, box: np.ndarray, label: int, min_iou: float):
        self.trace, self.box, self.label, self.min_iou = trace, box, label, min_iou
        self.name = trace.class_names[label]
        in_input = trace.transform.apply_boxes(box[None])[0]
        self.ious = {
            'placed': self._iou(trace.anchors.boxes, in_input),
            'anchors': self._iou(trace.anchors.decoded, in_input),
            'proposals': self._iou(trace.proposals.boxes, in_input),
            'rois': self._iou(trace.rois.boxes, in_input),
            'refined': self._iou(trace.rois.class_boxes[:, 1 + label], box),
            'candidates': self._iou(trace.candidates.boxes, box),
            'detections': self._iou(trace.detections.boxes, box),
        }
        self.fits = {name: iou >= min_iou for name, iou in self.ious.items()}

    def _iou(self, boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
        offset = self.trace.config.dialect.boxes.offset
        iou = box_iou(np.ascontiguousarray(boxes), box[None].astype(np.float32), offset=offset)
        return np.nan_to_num(iou[:, 0])

    def count(self) -> tuple[tuple[str, int, float], ...]:
        """Return the number of fitting boxes and the best IoU of each table."""
        is_class = self.trace.candidates.labels == self.label
        is_detected = self.trace.detections.labels == self.label
        every = np.ones(1, bool)
        config = self.trace.config
        inclusive = config.dialect.detections.score_threshold_inclusive
        bound = f'{"of at least" if inclusive else "above"} {config.score_threshold:g}'
        tables = (
            ('anchors', 'placed', every),
            ('anchors after regression', 'anchors', every),
            ('proposals before NMS', 'proposals', every),
            ('RoIs (proposals after NMS)', 'rois', every),
            (f'RoIs after regression as {self.name}', 'refined', every),
            (f'... with a score {bound}, before NMS', 'candidates', is_class),
            ('detections', 'detections', is_detected),
        )
        return tuple(
            (title, int((self.fits[name] & mask).sum()), float((self.ious[name] * mask).max(initial=0.0)))
            for title, name, mask in tables
        )

    def describe(self, others: np.ndarray) -> str:
        """Return the detections of other classes that fit the box, as a clause."""
        detections = self.trace.detections
        listed = ', '.join(f'{detections.names[i]} {detections.scores[i]:.3f}' for i in others[:3].tolist())
        return f'; detected as another class: {listed}' if listed else ''

    def describe_closest(self) -> str:
        """Return the detection of the class that overlaps the box without fitting it, as a clause."""
        detections = self.trace.detections
        ious = self.ious['detections'] * (detections.labels == self.label)
        i = int(ious.argmax()) if len(ious) else -1
        if i < 0 or ious[i] < _MIN_OVERLAP:
            return ''
        return f'; the closest detection of {self.name} has the score {detections.scores[i]:.3f} and IoU {ious[i]:.2f}'

    def in_detections(self) -> tuple[Step, int, str] | None:
        """Search the detections for the object."""
        detections = self.trace.detections
        i = _best(detections.scores, self.fits['detections'] & (detections.labels == self.label))
        if i < 0:
            return None
        iou = self.ious['detections'][i]
        return Step.DETECTED, i, f'detection {i} has the score {detections.scores[i]:.3f} and IoU {iou:.2f}'

    def in_candidates(self) -> tuple[Step, int, str] | None:
        """Search the boxes with a sufficient score, which enter NMS, for the object."""
        table, config = self.trace.candidates, self.trace.config
        i = _best(table.scores, self.fits['candidates'] & (table.labels == self.label))
        if i < 0:
            return None
        subject = f'the box of RoI {table.rois[i]} has the score {table.scores[i]:.3f}'
        if table.fates[i] == Fate.SUPPRESSED:
            j = int(table.suppressed_by[i])
            text = f'{subject}, but a box with the score {table.scores[j]:.3f} and IoU '
            text += f'{self._overlap(table.boxes, i, j):.2f} suppresses it (threshold {config.nms_threshold:g}); '
            return (
                Step.DETECTION_NMS,
                i,
                text + f'that box has IoU {self.ious["candidates"][j]:.2f} with the expected one',
            )
        detections = config.dialect.detections
        if table.fates[i] == Fate.INVALID and not detections.integer_boxes:
            space = 'network input' if detections.postprocess_in_input_space else 'image'
            text = f'{subject}, but it has a side of less than {detections.min_box_size:g} pixels of the {space}'
            return Step.BOX_SIZE, i, text
        if table.fates[i] != Fate.BEYOND_LIMIT:
            return Step.ROUNDING, i, f'{subject}, but it does not fit after rounding to whole pixels'
        text = f'{subject}, but max_detections is {config.max_detections}, and the last detection has '
        return Step.DETECTION_LIMIT, i, text + f'{self.trace.detections.scores.min(initial=1):.3f}'

    def in_rois(self) -> tuple[Step, int, str] | None:
        """Search the RoIs for the object, before and after their regression."""
        rois, config = self.trace.rois, self.trace.config
        scores = rois.probs[:, 1 + self.label]
        i = _best(scores, self.fits['refined'])
        if i < 0:
            i = _best(scores, self.fits['rois'])
        if i < 0:
            return None
        ious = f'IoU {self.ious["rois"][i]:.2f}, {self.ious["refined"][i]:.2f} after regression'
        is_candidate = (self.trace.candidates.rois == i) & (self.trace.candidates.labels == self.label)
        if is_candidate.any():
            text = f'RoI {i} has the score {scores[i]:.3f}, but its box moves away ({ious})'
            return Step.REFINEMENT, i, text
        best = ', '.join(f'{name} {score:.3f}' for name, score in best_classes(self.trace, i)[:2])
        text = f'RoI {i} ({ious}) has the score {scores[i]:.3f} for {self.name}'
        if config.dialect.detections.best_class_only and scores[i] >= config.score_threshold:
            return Step.CLASSIFICATION, i, f'{text}, but only its best class counts: {best}'
        return Step.CLASSIFICATION, i, f'{text} (threshold {config.score_threshold:g}); its best classes are {best}'

    def in_proposals(self) -> tuple[Step, int, str] | None:
        """Search the candidates for proposals for the object."""
        table, config = self.trace.proposals, self.trace.config
        fits = self.fits['proposals']
        i = _best(table.scores, fits & (table.fates != Fate.INVALID))
        if i < 0:
            i = _best(table.scores, fits)
        if i < 0:
            return None
        level = self.trace.level_names[table.levels[i]]
        objectness = float(self.trace.probabilities(table.scores[i]))
        subject = f'a proposal of {level} with IoU {self.ious["proposals"][i]:.2f} has the objectness {objectness:.3f}'
        if table.fates[i] == Fate.INVALID:
            return Step.SIZE, i, f'{subject}, but {self._describe_invalid()}'
        if table.fates[i] == Fate.SUPPRESSED:
            j = int(table.suppressed_by[i])
            text = f'{subject}, but a proposal with IoU {self._overlap(table.boxes, i, j):.2f} suppresses it '
            text += (
                f'(threshold {config.rpn_nms_threshold:g}); that one has IoU {self.ious["proposals"][j]:.2f} with the '
            )
            return Step.PROPOSAL_NMS, i, text + 'expected box'
        text = f'{subject}, but rpn_post_nms is {config.rpn_post_nms}, and no proposal has a lower one'
        return Step.PROPOSAL_LIMIT, i, text

    def in_anchors(self) -> tuple[Step, int, str]:
        """Search all anchors for the object."""
        table, config = self.trace.anchors, self.trace.config
        i = _best(table.scores, self.fits['anchors'])
        if i < 0:
            i = int(self.ious['anchors'].argmax()) if len(table) else -1
            text = f'no anchor is regressed to it: the best has IoU {self.ious["anchors"].max(initial=0):.2f}, and '
            return Step.ANCHORS, i, text + f'{self.ious["placed"].max(initial=0):.2f} before regression'
        level, objectness = table.levels[i], float(self.trace.probabilities(table.scores[i]))
        per_level = config.dialect.rpn.proposals_per_level
        rivals = table.scores[table.levels == level] if per_level else table.scores
        rank = 1 + int(np.count_nonzero(rivals > table.scores[i]))
        name = self.trace.level_names[level]
        subject = (
            f'the best anchor that fits (of {name}) has the objectness {objectness:.3f}, rank {rank} of {len(rivals)}'
        )
        if rank <= config.rpn_pre_nms:
            return Step.SIZE, i, f'{subject}, but {self._describe_invalid()}'
        return Step.OBJECTNESS, i, f'{subject}; rpn_pre_nms keeps {config.rpn_pre_nms}'

    def _describe_invalid(self) -> str:
        """Return the reason for which a proposal is invalid, as a clause."""
        has_centre_rule = self.trace.config.dialect.rpn.require_centre_inside
        return 'it is too small' + (', or its centre is outside the image' if has_centre_rule else '')

    def _overlap(self, boxes: np.ndarray, i: int, j: int) -> float:
        return float(self._iou(boxes[[i]], boxes[j])[0])


def _best(scores: np.ndarray, mask: np.ndarray) -> int:
    """Return the index of the highest score where ``mask`` is true; -1 if it is nowhere."""
    indices = np.flatnonzero(mask)
    return int(indices[np.argmax(scores[indices])]) if len(indices) else -1


def best_classes(trace: Trace, roi: int) -> tuple[tuple[str, float], ...]:
    """Return the names and probabilities of the best classes of an RoI, in descending order, with the background."""
    names = ('background', *trace.class_names)
    probs = trace.rois.probs[roi]
    order = np.argsort(-probs, kind='stable')[:_MAX_CLASSES]
    return tuple((names[k], float(probs[k])) for k in order.tolist())


def _find_cell(trace: Trace, anchor: int) -> tuple[int, int]:
    """Return the row and the column of an anchor in its feature map."""
    level = trace.anchors.levels[anchor]
    height, width = trace.features[level].shape[1:]
    first = int(np.searchsorted(trace.anchors.levels, level))
    n_anchors = int(np.count_nonzero(trace.anchors.levels == level)) // (height * width)
    row, column = divmod((anchor - first) // n_anchors, width)
    return row, column


def _find_label(trace: Trace, label: int | str) -> int:
    names = trace.class_names
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f'unknown class {label!r}; the classes are {", ".join(names)}')
        return names.index(label)
    label = _check_integer(label, 'a label must be an index or the name of a class')
    if not 0 <= label < len(names):
        raise ValueError(f'label {label} is not from 0 to {len(names) - 1}')
    return label


def check_detection(trace: Trace, detection: Any) -> int:
    """Return the index of a detection.

    Raises:
        IndexError: There is no such detection.
        TypeError: The index is not an integer.
    """
    index = _check_integer(detection, 'a detection must be an index')
    if not 0 <= index < len(trace.detections):
        raise IndexError(f'detection {index} does not exist: there are {len(trace.detections)}')
    return index


def _check_integer(value: Any, expected: str) -> int:
    """Return an integer of any type; a truth value is most likely a comparison's result in the wrong place."""
    if isinstance(value, (bool, np.bool_)) or np.ndim(value):
        raise TypeError(f'{expected}, not {value!r}')
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f'{expected}, not {value!r}') from None


def _check_box(box: Sequence[float]) -> np.ndarray:
    try:
        with np.errstate(over='ignore'):  # becomes infinite, which is refused
            array = np.asarray(box, np.float32)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0, np.float32)
    if array.shape != (4,) or not np.isfinite(array).all() or not (array[2:] > array[:2]).all():
        raise ValueError(f'a box must be (y_min, x_min, y_max, x_max) with finite increasing numbers, not {box!r}')
    return array


def _check_iou(value: float) -> float:
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f'min_iou must be a number, not {value!r}')
    if not 0 < value <= 1:
        raise ValueError(f'min_iou must be above 0 and at most 1, not {value!r}')
    return value
