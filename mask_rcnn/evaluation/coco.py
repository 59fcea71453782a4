"""COCO's metrics for boxes, masks and keypoints, computed by pycocotools, the reference implementation."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mask_rcnn.datasets.annotation_values import id_order, read_id
from mask_rcnn.datasets.coco_annotations import clean_ground_truth
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.evaluation.metrics import BOXES, KEYPOINTS, KINDS, MASKS, Kind, Metrics
from mask_rcnn.evaluation.quiet_pycocotools import COCO, COCOeval
from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.predictor import default_batch_size
from mask_rcnn.io.atomic_file import FileError, open_for_writing
from mask_rcnn.io.console import ProgressBar
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.runtime.cache import cache_weights

_logger = logging.getLogger(__name__)

#: Number of detections per image in COCO's metrics.
COCO_LIMIT = 100


@dataclass(frozen=True)
class KindEvaluation:
    """The finished evaluation of one kind of prediction, with all its matches.

    Args:
        kind: Boxes, masks or keypoints.
        coco_eval: The ``COCOeval`` after ``accumulate``.
        class_indices: Position of each of the dataset's labels in ``coco_eval.params.catIds``.
        image_ids: The id of each image of ``coco_eval.params.imgIds`` in the ground truth.
    """

    kind: Kind
    coco_eval: Any
    class_indices: tuple[int, ...]
    image_ids: tuple[int | str, ...]


class COCOEvaluator:
    """Collects detections and evaluates them against the ground truth.

    Only the images that were added are evaluated, against all their objects.

    Args:
        ground_truth: The ``images``, ``annotations`` and ``categories`` of a COCO annotation file; the result of a
            dataset's ``ground_truth()``.  See :func:`mask_rcnn.datasets.coco_annotations.clean_ground_truth`.
        class_names: Name of each of the dataset's labels.
        category_ids: The category id of each label in ``ground_truth``.
        model_class_names: Name of each of the model's labels, if known.  If they include all names of the dataset,
            labels are matched by name, and detections of other classes are ignored; otherwise labels are matched by
            their order.
        n_model_classes: Number of the model's classes, if it differs from the dataset's.
        masks: Evaluate masks, unless all objects of the ground truth are without an outline.
        keypoints: Evaluate COCO's 17 keypoints; the ground truth must contain them.
        max_detections: Number of detections per image and class that count for boxes and masks: those with the highest
            scores (the last of COCO's ``maxDets``).  For keypoints it is 20.

    Raises:
        ValueError: The model's classes cannot be matched with the dataset's, the ground truth is malformed or contains
            no keypoints, or ``max_detections`` is below 1.
    """

    def __init__(
        self,
        ground_truth: dict,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int | str],
        model_class_names: Sequence[str] | None = None,
        n_model_classes: int | None = None,
        masks: bool = True,
        keypoints: bool = False,
        max_detections: int = COCO_LIMIT,
    ):
        if max_detections < 1:
            raise ValueError(f'max_detections must be at least 1, got {max_detections}')
        self._ground_truth = clean_ground_truth(ground_truth, keypoints=keypoints)
        if keypoints and not all('num_keypoints' in annotation for annotation in ground_truth.get('annotations') or ()):
            raise ValueError('the model predicts keypoints, but the ground truth contains none')
        annotations = self._ground_truth['annotations']
        masks = masks and (not annotations or any('segmentation' in annotation for annotation in annotations))
        self._kinds = [BOXES, *([MASKS] if masks else []), *([KEYPOINTS] if keypoints else [])]
        self._max_detections = max_detections
        self.class_names = tuple(class_names)
        self.category_ids = tuple(read_id(category_id, 'a category id') for category_id in category_ids)
        self._categories = _match_categories(self.class_names, self.category_ids, model_class_names, n_model_classes)
        self._images = {image['id']: image for image in self._ground_truth['images']}
        # COCOeval needs ids that NumPy can sort and compare: it gets numbers in the order of the ids.
        self._image_numbers = _number_ids(self._images)
        self._category_numbers = _number_ids(
            {*self.category_ids, *(category['id'] for category in self._ground_truth['categories'])}
        )
        self._results: dict[int | str, list[dict]] = {}

    def add(self, image_id: int | str, detections: Detections) -> None:
        """Add the detections of one image.

        Args:
            image_id: The image's id in the ground truth.
            detections: The detections, with the masks and keypoints that are evaluated.  Their ``category_ids`` are
                not used.

        Raises:
            ValueError: The image is unknown, has another size or was added before, or masks or keypoints are missing.
        """
        self.add_results(image_id, self.convert(image_id, detections))

    def convert(self, image_id: int | str, detections: Detections) -> list[dict]:
        """Return the detections of one image as results for :meth:`add_results`, of any process's evaluator.

        Raises:
            ValueError: See :meth:`add`.
        """
        image_id = self._read_image_id(image_id)
        if MASKS in self._kinds and not detections.has_masks:
            raise ValueError(f'the detections of image {image_id!r} have no masks')
        if MASKS in self._kinds:
            _check_size(self._images[image_id], detections)
        if KEYPOINTS in self._kinds:
            _check_keypoints(image_id, detections)
        if detections.labels.size and detections.labels.max() >= len(self._categories):
            raise ValueError(
                f'label {detections.labels.max()} of image {image_id!r} is not below the number of classes, '
                f'{len(self._categories)}'
            )
        categories = [self._categories[label] for label in detections.labels.tolist()]
        detections = detections[np.array([category is not None for category in categories], bool)]
        results = detections.to_coco(image_id)
        for result, label in zip(results, detections.labels.tolist(), strict=True):
            result['category_id'] = self._categories[label]
        return results

    def add_results(self, image_id: int | str, results: list[dict]) -> None:
        """Add the results of one image; see :meth:`convert`.

        Raises:
            ValueError: The image is unknown or was added before.
        """
        self._results[self._read_image_id(image_id)] = results

    def _read_image_id(self, image_id: int | str) -> int | str:
        """Return the id of an image that can be added."""
        image_id = read_id(image_id.item() if isinstance(image_id, np.generic) else image_id, 'the image id')
        if image_id not in self._images:
            raise ValueError(f'image {image_id!r} is not in the ground truth')
        if image_id in self._results:
            raise ValueError(f'image {image_id!r} has been added before')
        return image_id

    def results(self) -> list[dict]:
        """Return all detections in COCO's result format, with boxes, masks and keypoints."""
        return [result for results in self._results.values() for result in results]

    def evaluate(self, on_kind: Callable[[KindEvaluation], object] | None = None) -> Metrics:
        """Return COCO's metrics.

        The sizes small, medium and large are determined by the box for boxes and by the mask for masks, as in
        Detectron.  pycocotools does so if the results contain only boxes or only masks; if they contain both, it
        determines the sizes of masks from the boxes.

        Args:
            on_kind: Called with the evaluation of each kind, which is discarded afterwards because of its size; see
                :func:`mask_rcnn.evaluation.analysis.analyse`.

        Raises:
            ValueError: No image was added.
        """
        if not self._results:
            raise ValueError('there is nothing to evaluate: no image was added')
        fields: dict[str, tuple[float, ...]] = {}
        for kind in KINDS:
            summary: tuple[float, ...] = ()
            per_class: tuple[float, ...] = ()
            if kind in self._kinds:
                evaluation = self._evaluate_kind(kind)
                summary, per_class = _summarize(evaluation.coco_eval, kind), _ap_per_class(evaluation)
                if on_kind is not None:
                    on_kind(evaluation)
            fields[kind.plural], fields[f'{kind.singular}_ap_per_class'] = summary, per_class
        return Metrics(class_names=self.class_names, max_detections=self._max_detections, **fields)

    def write_results(self, path: str | os.PathLike) -> tuple[Path, ...]:
        """Write the detections as JSON files, one for each kind that is evaluated.

        ``results.json`` becomes ``results.bbox.json``, ``results.segm.json`` and ``results.keypoints.json``, because
        pycocotools and COCO's server evaluate boxes, masks and keypoints separately; see :meth:`evaluate`.
        ``COCOeval`` computes the metrics of :meth:`evaluate` from these files.

        Args:
            path: Folder and base name of the files; a suffix is replaced.

        Returns:
            tuple: The paths of the files.

        Raises:
            mask_rcnn.io.atomic_file.FileError: A file cannot be written; an existing one stays unchanged.
        """
        path = Path(path)
        paths = tuple(path.with_name(f'{path.stem}.{kind.name}.json') for kind in self._kinds)
        for kind, file in zip(self._kinds, paths, strict=True):
            content = json.dumps(_select_kind(self.results(), kind)).encode('utf-8')  # before the file exists
            with open_for_writing(file) as stream:
                stream.write(content)
        return paths

    def _evaluate_kind(self, kind: Kind) -> KindEvaluation:
        """Match the detections of one kind with the objects."""
        truth = self._to_coco([a for a in self._ground_truth['annotations'] if kind.key in a])
        results = [self._with_numbers(result) for result in _select_kind(self.results(), kind)]
        evaluation = COCOeval(truth, truth.loadRes(results) if results else self._to_coco([]), kind.name)
        image_ids = sorted(self._results, key=self._image_numbers.__getitem__)
        evaluation.params.imgIds = [self._image_numbers[image_id] for image_id in image_ids]
        evaluation.params.catIds = [self._category_numbers[category] for category in self.category_ids]
        if kind != KEYPOINTS:
            evaluation.params.maxDets = [min(count, self._max_detections) for count in (1, 10)]
            evaluation.params.maxDets.append(self._max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        indices = [evaluation.params.catIds.index(self._category_numbers[category]) for category in self.category_ids]
        return KindEvaluation(kind, evaluation, tuple(indices), tuple(image_ids))

    def _to_coco(self, annotations: list[dict]) -> COCO:
        """Return a ``COCO`` index of copies of the annotations, because pycocotools modifies them."""
        coco = COCO()
        coco.dataset = {
            'info': {},
            'images': [{**image, 'id': self._image_numbers[image['id']]} for image in self._images.values()],
            'annotations': [self._with_numbers(annotation) for annotation in annotations],
            'categories': [{'id': number} for number in self._category_numbers.values()],
        }
        coco.createIndex()
        return coco

    def _with_numbers(self, entry: dict) -> dict:
        """Return a copy of an annotation or a result with the numbers of its image and category."""
        image, category = self._image_numbers[entry['image_id']], self._category_numbers[entry['category_id']]
        return {**entry, 'image_id': image, 'category_id': category}


class Communicator(Protocol):
    """The interface of :class:`mask_rcnn.training.distributed.Communicator` that an evaluation requires."""

    rank: int

    def map_in_order(
        self, compute: Callable[[Sequence[int]], Generator[Any, None, None]], n: int, *, block: int = 1
    ) -> AbstractContextManager[Iterator[Any]]:
        """Share items among the processes; process 0 gets the results of all in order."""

    def broadcast_object(self, obj: Any) -> Any:
        """Return process 0's object."""


def evaluate_model(
    model: MaskRCNN,
    dataset: Any,
    *,
    progress: bool = True,
    results_file: str | os.PathLike | None = None,
    indices: Sequence[int] | None = None,
    comm: Communicator | None = None,
    max_detections: int | None = None,
    evaluate: Callable[[COCOEvaluator], Metrics] = COCOEvaluator.evaluate,
) -> Metrics:
    """Evaluate a model on a dataset; the model does not change.

    Args:
        model: The model.
        dataset: A dataset of :mod:`mask_rcnn.datasets`.  COCO's metrics include images without objects, so a
            :class:`~mask_rcnn.datasets.coco.COCODataset` needs ``only_annotated=False``.
        progress: Show a progress bar on stderr.
        results_file: File for the detections, or ``None``; see :meth:`COCOEvaluator.write_results`.
        indices: Evaluate only these images.
        comm: Communicator of several processes, all of which call this function and process a part of the images;
            ``None`` for a single process.
        max_detections: See :class:`COCOEvaluator`.  The limit of the model applies first.  ``None`` for COCO's limit of
            100, or that of the model if it is larger.
        evaluate: Computes the metrics from all detections, in process 0, for instance with
            :func:`mask_rcnn.evaluation.analysis.analyse`.

    Returns:
        Metrics: The same in all processes.

    Raises:
        ValueError: The model's classes or keypoints do not match the dataset's, ``indices`` is empty, or
            ``max_detections`` is below 1.
        mask_rcnn.datasets.ImageFileError: An image cannot be read.
        ResultsFileError: ``results_file`` cannot be written; the error contains the metrics.  Only process 0 raises it.
    """
    indices = range(len(dataset)) if indices is None else indices
    if len(indices) == 0:
        raise ValueError('there is no image to evaluate')
    evaluator = COCOEvaluator(
        dataset.ground_truth(),
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        model_class_names=model.class_names,
        n_model_classes=model.config.n_fg_class,
        masks=model.config.masks,
        keypoints=model.config.n_keypoint > 0,
        max_detections=max(COCO_LIMIT, model.config.max_detections) if max_detections is None else max_detections,
    )

    def detect(positions: Sequence[int]) -> Generator[tuple[int | str, list[dict]], None, None]:
        pending: deque[int | str] = deque()  # ids of the images whose detections the model has not returned yet

        def images() -> Iterator[np.ndarray]:
            for position in positions:
                example = dataset[indices[position]]
                pending.append(example.image_id)
                yield example.image

        for detections in model.iter_detections(images()):
            image_id = pending.popleft()
            yield image_id, evaluator.convert(image_id, detections)

    is_main = comm is None or comm.rank == 0
    with cache_weights(), _share(comm, detect, len(indices), block=default_batch_size(model.device)) as results:
        for image_id, image_results in ProgressBar(
            results, desc='evaluating', unit='image', total=len(indices), disable=not (progress and is_main)
        ):
            evaluator.add_results(image_id, image_results)
    if comm is None:
        return _finish(evaluator, results_file, evaluate)
    metrics = error = None
    if is_main:
        try:
            metrics = _finish(evaluator, results_file, evaluate)
        except ResultsFileError as results_error:
            metrics, error = results_error.metrics, results_error
    metrics = comm.broadcast_object(metrics)
    if error is not None:
        raise error
    return metrics


def _share(
    comm: Communicator | None, compute: Callable[[Sequence[int]], Generator[Any, None, None]], n: int, *, block: int
) -> AbstractContextManager[Iterator[Any]]:
    """Share items as :meth:`Communicator.map_in_order` does, also without a communicator."""
    return contextlib.nullcontext(compute(range(n))) if comm is None else comm.map_in_order(compute, n, block=block)


class ResultsFileError(FileError):
    """The detections of an evaluation cannot be written.

    Attributes:
        metrics (Metrics): The metrics, which are complete.
    """

    metrics: Metrics


def _finish(
    evaluator: COCOEvaluator,
    results_file: str | os.PathLike | None,
    evaluate: Callable[[COCOEvaluator], Metrics],
) -> Metrics:
    try:
        if results_file is not None:  # first, because the detections are the expensive part
            evaluator.write_results(results_file)
    except FileError as cause:
        error = ResultsFileError(cause.errno, cause.strerror, cause.filename)
        error.metrics = evaluate(evaluator)
        raise error from cause
    return evaluate(evaluator)


def _match_categories(
    class_names: tuple[str, ...],
    category_ids: tuple[int | str, ...],
    model_class_names: Sequence[str] | None,
    n_model_classes: int | None,
) -> list[int | str | None]:
    """Return the dataset's category id of each of the model's labels, ``None`` for classes that it does not have."""
    if model_class_names is not None and class_names == tuple(model_class_names):  # also if two classes share a name
        return list(category_ids)
    if model_class_names is not None and set(class_names) <= set(model_class_names):
        category_of = dict(zip(class_names, category_ids, strict=True))
        return [category_of.get(name) for name in model_class_names]
    if n_model_classes not in (None, len(class_names)):
        missing = sorted(set(class_names) - set(model_class_names)) if model_class_names is not None else []
        raise ValueError(
            f'the model has {counted(n_model_classes, "class", "classes")}, the dataset {len(class_names)}'
            + (f'; the model has no class {missing[0]!r}' if missing else '')
        )
    if model_class_names is not None:
        _logger.warning("the model's class names differ from the dataset's: matching by their order")
    return list(category_ids)


def _check_keypoints(image_id: int | str, detections: Detections) -> None:
    if detections.keypoints is None:
        raise ValueError(f'the detections of image {image_id!r} have no keypoints')
    n_keypoints = detections.keypoints.shape[1]
    if n_keypoints != len(COCO_KEYPOINT_NAMES):
        raise ValueError(
            f'the detections of image {image_id!r} have {counted(n_keypoints, "keypoint")}; '
            f"COCO's metrics need {len(COCO_KEYPOINT_NAMES)}"
        )


def _check_size(image: dict, detections: Detections) -> None:
    size = image.get('height'), image.get('width')
    if None not in size and size != detections.size:
        raise ValueError(
            f'the detections of image {image["id"]!r} have the size {detections.size}, but the ground truth declares '
            f'{size}'
        )


def _select_kind(results: list[dict], kind: Kind) -> list[dict]:
    """Return copies of the results that contain only one kind of prediction."""
    dropped = {k.key for k in KINDS if k != kind}
    return [{key: value for key, value in result.items() if key not in dropped} for result in results]


def _number_ids(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Return the number, from 1, of each id in their order."""
    return {value: number for number, value in enumerate(sorted(ids, key=id_order), 1)}


def _summarize(evaluation: COCOeval, kind: Kind) -> tuple[float, ...]:
    """Return the means of ``COCOeval.summarize``, which finds no AP if ``maxDets`` does not end with 100."""
    thresholds = {'50': 0, '75': 5}  # indices in 0.5, 0.55, ..., 0.95
    sizes = {label[0]: i for i, label in enumerate(evaluation.params.areaRngLbl)}
    values = []
    for name in kind.metrics:
        part = name[2:]
        # The last axis of both is the number of detections per image; AR1 and AR10 are the only ones with fewer.
        count = {'1': 0, '10': 1}.get(part, -1)
        array = evaluation.eval['precision' if name.startswith('AP') else 'recall'][..., sizes.get(part, 0), count]
        values.append(_mean_of_valid(array[thresholds[part]] if part in thresholds else array))
    return tuple(values)


def _ap_per_class(evaluation: KindEvaluation) -> tuple[float, ...]:
    """Return the AP of each class."""
    # Axes of precision: IoU threshold, recall, class, size (0: all), number of detections per image (-1: largest).
    precision = evaluation.coco_eval.eval['precision']
    return tuple(_mean_of_valid(precision[:, :, k, 0, -1]) for k in evaluation.class_indices)


def _mean_of_valid(array: np.ndarray) -> float:
    valid = array[array > -1]
    return float(valid.mean()) if valid.size else -1.0
