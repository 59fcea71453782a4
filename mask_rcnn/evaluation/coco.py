"""COCO's metrics for boxes, masks and keypoints, computed by pycocotools, which is their reference."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.ops.runtime.cache import cache_weights

_logger = logging.getLogger(__name__)

#: COCO's twelve numbers in its order: AP over IoU 0.50 to 0.95, at 0.50 and at 0.75, of small (below
#: 32 x 32 pixels), medium and large (above 96 x 96) objects; recall with 1, 10 and 100 detections an
#: image, of small, medium and large objects.
METRIC_NAMES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl')

#: COCO's ten numbers for keypoints, all with 20 detections an image; OKS (how near the keypoints are, for the
#: size of the object) stands for IoU, and there are no small objects.
KEYPOINT_METRIC_NAMES = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR', 'AR50', 'AR75', 'ARm', 'ARl')


@dataclass(frozen=True)
class _Kind:
    """Something that is compared.

    Args:
        name: COCO's: pycocotools' ``iouType``.
        key: Where a result or an annotation has it.
        singular, plural: In words; the plural is the field of :class:`Metrics`, too.
        metrics: Names of its numbers.
    """

    name: str
    key: str
    singular: str
    plural: str
    metrics: tuple[str, ...] = METRIC_NAMES


_BOXES = _Kind('bbox', 'bbox', 'box', 'boxes')
_MASKS = _Kind('segm', 'segmentation', 'mask', 'masks')
_KEYPOINTS = _Kind('keypoints', 'keypoints', 'keypoint', 'keypoints', KEYPOINT_METRIC_NAMES)
_KINDS = _BOXES, _MASKS, _KEYPOINTS


@dataclass(frozen=True)
class Metrics:
    """What COCO's evaluation found.

    Numbers are between 0 and 1, and -1 (as pycocotools has it) where there is no object to find.  What the
    model does not find at all, masks or keypoints, has no numbers: its tuples are empty.

    Args:
        boxes: The twelve numbers of :data:`METRIC_NAMES` for boxes.
        masks: The same for masks.
        class_names: Names of the classes.
        box_ap_per_class: AP of each class for boxes.
        mask_ap_per_class: The same for masks.
        keypoints: The ten numbers of :data:`KEYPOINT_METRIC_NAMES`.
        keypoint_ap_per_class: AP of each class for keypoints.
    """

    boxes: tuple[float, ...]
    masks: tuple[float, ...]
    class_names: tuple[str, ...]
    box_ap_per_class: tuple[float, ...]
    mask_ap_per_class: tuple[float, ...]
    keypoints: tuple[float, ...] = ()
    keypoint_ap_per_class: tuple[float, ...] = ()

    def ap_per_class(self) -> dict[str, tuple[float, ...]]:
        """Return the AP of each class for ``'bbox'``, ``'segm'`` and ``'keypoints'``, as far as measured."""
        return {kind.name: getattr(self, f'{kind.singular}_ap_per_class') for kind in self._kinds()}

    def _kinds(self) -> list[_Kind]:
        return [kind for kind in _KINDS if getattr(self, kind.plural)]

    def summary(self) -> dict[str, float]:
        """Return the numbers for a log, as ``'bbox/AP50'``, ``'segm/ARs'`` or ``'keypoints/AP'``.

        What has no objects is left out: -1 is no measurement.
        """
        return {
            f'{kind.name}/{name}': value
            for kind in self._kinds()
            for name, value in zip(kind.metrics, getattr(self, kind.plural))
            if value >= 0
        }

    def table(self) -> str:
        """Return all numbers in percent as text: of boxes, masks and keypoints, then each class's AP."""
        kinds, lines, names = self._kinds(), [], ()
        margin = max(6, *(len(kind.plural) + 1 for kind in kinds))
        for kind in kinds:
            if kind.metrics != names:
                names = kind.metrics
                lines.append(' ' * margin + ''.join(f'{name:>7}' for name in names))
            lines.append(f'{kind.plural:{margin}}' + ''.join(map(_percent, getattr(self, kind.plural))))
        width = max(map(len, ('class', *self.class_names)))
        columns = [(f'{kind.singular} AP', aps) for kind, aps in zip(kinds, self.ap_per_class().values())]
        widths = [max(10, len(heading) + 3) for heading, _ in columns]
        headings = ''.join(f'{heading:>{w}}' for w, (heading, _) in zip(widths, columns))
        lines += ['', f'{"class":{width}}{headings}']
        for i, name in enumerate(self.class_names):
            lines.append(
                f'{name:{width}}' + ''.join(f'{_percent(aps[i]):>{w}}' for w, (_, aps) in zip(widths, columns))
            )
        return '\n'.join(lines)


def _percent(value: float) -> str:
    return f'{100 * value:7.1f}' if value >= 0 else f'{"-":>7}'


class COCOEvaluator:
    """Collects detections, and compares them with what should have been found.

    Only the images that were added are compared, with all their objects.

    Args:
        ground_truth: The ``images``, ``annotations`` and ``categories`` of a COCO annotation file; the data
            sets' ``ground_truth()``.
        class_names: Name of each label of the data set.
        category_ids: The number of each label in ``ground_truth``.
        model_class_names: What the model calls its labels, where it is known.  If all names of the data
            set are among them, labels are matched by name and other detections are left out; otherwise by
            their order.
        n_model_class: Number of the model's classes, if it differs from the data set's.
        masks: Compare masks.
        keypoints: Compare COCO's 17 keypoints; the ground truth must have them.

    Raises:
        ValueError: The model's classes cannot be matched with the data set's, or the ground truth has no
            keypoints.
    """

    def __init__(
        self,
        ground_truth: dict,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        model_class_names: Sequence[str] | None = None,
        n_model_class: int | None = None,
        masks: bool = True,
        keypoints: bool = False,
    ):
        if keypoints and not all('num_keypoints' in annotation for annotation in ground_truth['annotations']):
            raise ValueError('the model finds keypoints, but the data have none')
        self._kinds = [kind for kind, wanted in zip(_KINDS, (True, masks, keypoints)) if wanted]
        self._ground_truth = ground_truth
        self._known_images = {image['id'] for image in ground_truth['images']}
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self._categories = _match_categories(self.class_names, self.category_ids, model_class_names, n_model_class)
        self._results: dict[int | str, list[dict]] = {}

    def add(self, image_id: int | str, detections: Detections) -> None:
        """Take the detections of one image.

        Args:
            image_id: Its number in the ground truth.
            detections: With the masks and keypoints that are compared.  Their own ``category_ids`` are not
                used.

        Raises:
            ValueError: The image is unknown or was added before, or there are no masks or keypoints.
        """
        if image_id not in self._known_images:
            raise ValueError(f'image {image_id!r} is not in the ground truth')
        if image_id in self._results:
            raise ValueError(f'image {image_id!r} has been added before')
        if _MASKS in self._kinds and not detections.has_masks:
            raise ValueError(f'the detections of image {image_id!r} have no masks')
        if _KEYPOINTS in self._kinds:
            _check_keypoints(image_id, detections)
        if detections.labels.size and detections.labels.max() >= len(self._categories):
            raise ValueError(
                f'label {detections.labels.max()} of image {image_id!r} is beyond the {len(self._categories)} classes'
            )
        categories = [self._categories[label] for label in detections.labels.tolist()]
        detections = detections[np.array([category is not None for category in categories], bool)]
        results = detections.to_coco(image_id)
        for result, label in zip(results, detections.labels.tolist()):
            result['category_id'] = self._categories[label]
        self._results[image_id] = results

    def partial_results(self) -> dict[int | str, list[dict]]:
        """Return the results by image: what :meth:`merge` of another process's evaluator takes."""
        return self._results

    def merge(self, parts: Iterable[dict[int | str, list[dict]]]) -> None:
        """Replace the results by those of several evaluators, each of which has seen other images."""
        merged = {image_id: results for part in parts for image_id, results in part.items()}
        self._results = {
            image['id']: merged[image['id']] for image in self._ground_truth['images'] if image['id'] in merged
        }

    def results(self) -> list[dict]:
        """Return all detections in COCO's result format, with all that the model finds."""
        return [result for results in self._results.values() for result in results]

    def evaluate(self) -> Metrics:
        """Return COCO's metrics.

        The sizes (small, medium, large) are those of the boxes for boxes and those of the masks for
        masks, as in Detectron.  pycocotools does so for results with only one of both; given both at
        once, it would take the sizes of masks from the boxes.

        Raises:
            ValueError: No image was added.
        """
        if not self._results:
            raise ValueError('there is nothing to evaluate: no image was added')
        numbers = {}
        for kind in _KINDS:
            numbers[kind.plural], numbers[f'{kind.singular}_ap_per_class'] = (
                self._evaluate_kind(kind) if kind in self._kinds else ((), ())
            )
        return Metrics(class_names=self.class_names, **numbers)

    def write_results(self, path: str | os.PathLike) -> tuple[Path, ...]:
        """Write the detections as JSON files: ``results.json`` becomes ``results.bbox.json``,
        ``results.segm.json`` and ``results.keypoints.json``, those of them that are compared.

        Not as one, because pycocotools (and COCO's server) measures boxes, masks and keypoints by themselves;
        see :meth:`evaluate`.  From each, ``COCOeval`` gives the numbers of :meth:`evaluate`.

        Args:
            path: Says the folder and the beginning of the names.

        Returns:
            tuple: The files' paths.

        Raises:
            mask_rcnn.io.atomic_file.FileError: A file cannot be written; an existing one stays unchanged.
        """
        path = Path(path)
        paths = tuple(path.with_name(f'{path.stem}.{kind.name}.json') for kind in self._kinds)
        for kind, file in zip(self._kinds, paths):
            with open_for_writing(file) as stream:
                stream.write(json.dumps(_of_kind(self.results(), kind)).encode('utf-8'))
        return paths

    def _evaluate_kind(self, kind: _Kind) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return COCO's numbers and the AP of each class."""
        with _silence():
            truth = _to_coco(
                self._ground_truth,
                [annotation for annotation in self._ground_truth['annotations'] if kind.key in annotation],
            )
            results = _of_kind(self.results(), kind)
            found = truth.loadRes(results) if results else _to_coco(self._ground_truth, [])
            evaluation = COCOeval(truth, found, kind.name)
            evaluation.params.imgIds = sorted(self._results)
            evaluation.params.catIds = list(self.category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        order = [evaluation.params.catIds.index(category) for category in self.category_ids]
        # precision: IoU threshold, recall, class, size (0 is all), number of detections (-1: the most)
        per_class = [_mean_of_valid(evaluation.eval['precision'][:, :, k, 0, -1]) for k in order]
        return tuple(evaluation.stats.tolist()), tuple(per_class)


def evaluate_model(
    model,
    dataset,
    *,
    progress: bool = True,
    results_file: str | os.PathLike | None = None,
    indices: Sequence[int] | None = None,
    comm=None,
) -> Metrics:
    """Measure a model on a data set; nothing of the model changes.

    Args:
        model (mask_rcnn.MaskRCNN): The model.
        dataset: A data set of :mod:`mask_rcnn.datasets`.  COCO's metrics count images without objects as
            well: make a :class:`~mask_rcnn.datasets.coco.COCODataset` with ``only_annotated=False``.
        progress: Show a bar with the time left on stderr.
        results_file: Where the detections go, if anywhere; see :meth:`COCOEvaluator.write_results`.
        indices: Look only at these images.
        comm (mask_rcnn.training.distributed.Communicator): Several processes, each of which calls this
            function and looks at its part of the images.

    Returns:
        Metrics: The same in all processes.

    Raises:
        ValueError: The model's classes or keypoints do not fit the data set's, or ``indices`` is empty.
        mask_rcnn.datasets.ImageFileError: An image cannot be read.
        mask_rcnn.io.atomic_file.FileError: ``results_file`` cannot be written.
    """
    rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
    indices = range(len(dataset)) if indices is None else indices
    if len(indices) == 0:
        raise ValueError('there is no image to evaluate')
    evaluator = COCOEvaluator(
        dataset.ground_truth(),
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        model_class_names=model.class_names,
        n_model_class=model.config.n_fg_class,
        masks=model.config.masks,
        keypoints=model.config.n_keypoint > 0,
    )
    own, seen = indices[rank::size], deque()

    def images():
        for i in own:
            example = dataset[i]
            seen.append(example.image_id)
            yield example.image

    with cache_weights():
        for detections in tqdm(
            model.iter_detections(images()),
            desc='evaluating',
            unit='image',
            total=len(own),
            disable=not progress or rank != 0,
        ):
            evaluator.add(seen.popleft(), detections)
    if comm is None:
        return _finish(evaluator, results_file)
    parts = comm.gather(evaluator.partial_results())
    metrics = None
    if rank == 0:
        evaluator.merge(parts)
        metrics = _finish(evaluator, results_file)
    return comm.broadcast_object(metrics)


def _finish(evaluator: COCOEvaluator, results_file: str | os.PathLike | None) -> Metrics:
    if results_file is not None:  # before anything else: the detections have cost most
        evaluator.write_results(results_file)
    return evaluator.evaluate()


def _match_categories(
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    model_class_names: Sequence[str] | None,
    n_model_class: int | None,
) -> list[int | None]:
    """Return the data set's category number of each of the model's labels, ``None`` where it has none."""
    if model_class_names is not None and set(class_names) <= set(model_class_names):
        category_of = dict(zip(class_names, category_ids))
        return [category_of.get(name) for name in model_class_names]
    if n_model_class not in (None, len(class_names)):
        missing = (
            ''
            if model_class_names is None
            else (f'; it does not know {sorted(set(class_names) - set(model_class_names))[0]!r}')
        )
        raise ValueError(f'the model has {n_model_class} classes, the data set {len(class_names)}{missing}')
    if model_class_names is not None:
        _logger.warning("the model's class names differ from the data set's: matching by their order")
    return list(category_ids)


def _check_keypoints(image_id: int | str, detections: Detections) -> None:
    if detections.keypoints is None:
        raise ValueError(f'the detections of image {image_id!r} have no keypoints')
    count = detections.keypoints.shape[1]
    if count != len(COCO_KEYPOINT_NAMES):
        raise ValueError(
            f"the detections of image {image_id!r} have {count} keypoints; COCO's metrics are for "
            f'its {len(COCO_KEYPOINT_NAMES)}'
        )


def _of_kind(results: list[dict], kind: _Kind) -> list[dict]:
    """Return copies with only the box, only the mask or only the keypoints."""
    others = {other.key for other in _KINDS if other != kind}
    return [{key: value for key, value in result.items() if key not in others} for result in results]


def _to_coco(content: dict, annotations: list[dict]) -> COCO:
    """Return pycocotools' index; it gets its own annotations, because it writes into them."""
    coco = COCO()
    coco.dataset = {'info': {}, **content, 'annotations': [dict(annotation) for annotation in annotations]}
    coco.createIndex()
    return coco


def _mean_of_valid(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else -1.0


@contextlib.contextmanager
def _silence():
    """Send what pycocotools prints to the log."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        yield
    _logger.debug('%s', output.getvalue())
