"""COCO's metrics as values, names and tables."""

from __future__ import annotations

from dataclasses import dataclass

from mask_rcnn.io.console import escape

#: COCO's twelve metrics in its order: AP over IoU 0.50 to 0.95, at 0.50 and at 0.75, of small (below 32 x 32 pixels),
#: medium and large (above 96 x 96) objects; recall with 1, 10 and 100 detections per image, of small, medium and large
#: objects.  ``AR100`` is called ``AR300`` in an evaluation with ``max_detections=300``.
METRIC_NAMES = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl')

#: COCO's ten metrics for keypoints, all with 20 detections per image.  OKS (object keypoint similarity) replaces IoU,
#: and there are no small objects.
KEYPOINT_METRIC_NAMES = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR', 'AR50', 'AR75', 'ARm', 'ARl')


@dataclass(frozen=True)
class Kind:
    """A kind of prediction that is evaluated.

    Args:
        name: The ``iouType`` of pycocotools.
        key: Key of the prediction in a result or an annotation.
        singular, plural: Name in the table; the plural is also the field of :class:`Metrics`.
        metrics: Names of the metrics.
    """

    name: str
    key: str
    singular: str
    plural: str
    metrics: tuple[str, ...] = METRIC_NAMES

    def metric_names(self, max_detections: int) -> tuple[str, ...]:
        """Return the names of the metrics of an evaluation with at most ``max_detections`` detections per image."""
        return tuple(f'AR{max_detections}' if name == 'AR100' else name for name in self.metrics)


BOXES = Kind('bbox', 'bbox', 'box', 'boxes')
MASKS = Kind('segm', 'segmentation', 'mask', 'masks')
KEYPOINTS = Kind('keypoints', 'keypoints', 'keypoint', 'keypoints', KEYPOINT_METRIC_NAMES)
KINDS = BOXES, MASKS, KEYPOINTS


@dataclass(frozen=True)
class Metrics:
    """The result of COCO's evaluation.

    Values are between 0 and 1, or -1 (as in pycocotools) without objects.  The tuples for masks or keypoints are
    empty if they were not evaluated.

    Args:
        boxes: The twelve metrics of :data:`METRIC_NAMES` for boxes.
        masks: The twelve metrics for masks.
        class_names: Names of the classes.
        box_ap_per_class: AP of each class for boxes.
        mask_ap_per_class: AP of each class for masks.
        keypoints: The ten metrics of :data:`KEYPOINT_METRIC_NAMES`.
        keypoint_ap_per_class: AP of each class for keypoints.
        max_detections: Number of detections per image and class that count for boxes and masks.
    """

    boxes: tuple[float, ...]
    masks: tuple[float, ...]
    class_names: tuple[str, ...]
    box_ap_per_class: tuple[float, ...]
    mask_ap_per_class: tuple[float, ...]
    keypoints: tuple[float, ...] = ()
    keypoint_ap_per_class: tuple[float, ...] = ()
    max_detections: int = 100

    def ap_per_class(self) -> dict[str, tuple[float, ...]]:
        """Return the AP of each class by kind: ``'bbox'``, ``'segm'`` and ``'keypoints'``, if they were evaluated."""
        return {kind.name: getattr(self, f'{kind.singular}_ap_per_class') for kind in self._kinds()}

    def _kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if getattr(self, kind.plural)]

    def summary(self) -> dict[str, float]:
        """Return the metrics by name: ``'bbox/AP50'``, ``'segm/ARs'``, ``'keypoints/AP'``.

        Metrics without objects, whose value is -1, are omitted.
        """
        return {
            f'{kind.name}/{name}': value
            for kind in self._kinds()
            for name, value in zip(kind.metric_names(self.max_detections), getattr(self, kind.plural), strict=True)
            if value >= 0
        }

    def table(self) -> str:
        """Return all metrics in percent as a text table: boxes, masks and keypoints, then the AP of each class."""
        return '\n'.join([*self._metric_lines(), '', *self._class_lines()])

    def tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Return the metrics of :meth:`table` as header and rows of cells, one table for each set of names."""
        tables: list[tuple[list[str], list[list[str]]]] = []
        for kind in self._kinds():
            header = ['', *kind.metric_names(self.max_detections)]
            if not tables or tables[-1][0] != header:
                tables.append((header, []))
            tables[-1][1].append([kind.plural, *map(format_percent, getattr(self, kind.plural))])
        return tables

    def _metric_lines(self) -> list[str]:
        margin = max(6, *(len(kind.plural) + 1 for kind in self._kinds()))
        return [
            f'{name:{margin}}' + ''.join(f'{cell:>7}' for cell in cells)
            for header, rows in self.tables()
            for name, *cells in (header, *rows)
        ]

    def _class_lines(self) -> list[str]:
        names = [escape(name) for name in ('class', *self.class_names)]
        margin = max(map(len, names))
        headings = [f'{kind.singular} AP' for kind in self._kinds()]
        rows = [headings]
        rows += [list(map(format_percent, aps)) for aps in zip(*self.ap_per_class().values(), strict=True)]
        widths = [max(10, len(heading) + 3) for heading in headings]
        return [
            f'{name:{margin}}' + ''.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True))
            for name, row in zip(names, rows, strict=True)
        ]


def format_percent(value: float) -> str:
    """Return a metric in percent with one digit after the point, or ``'-'`` if it is negative: there are no objects."""
    return f'{100 * value:.1f}' if value >= 0 else '-'
