"""The report of ``mask-rcnn evaluate``: the analysis of the evaluation as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.cli.dataset_options import Dataset
from mask_rcnn.evaluation.coco import COCOEvaluator
from mask_rcnn.evaluation.metrics import Metrics
from mask_rcnn.preprocessing.image_io import to_pixels

if TYPE_CHECKING:
    from mask_rcnn.evaluation.analysis import Analysis


class EvaluationReport:
    """Analyses an evaluation and writes the report.  The analysis and Matplotlib are imported when they are needed.

    Args:
        path: The file to write.
        title: The title of the report.
        details: Names and values for the summary, such as the model and the dataset.
    """

    def __init__(self, path: Path, *, title: str, details: Sequence[tuple[str, str]] = ()):
        self.path = path
        self._title, self._details = title, details
        self._analysis: Analysis | None = None

    def evaluate(self, evaluator: COCOEvaluator) -> Metrics:
        """Analyse an evaluation and return its metrics, as :meth:`COCOEvaluator.evaluate` does."""
        from mask_rcnn.evaluation.analysis import analyse

        self._analysis = analyse(evaluator)
        return self._analysis.metrics

    def write(self, dataset: Dataset) -> None:
        """Write the report after :meth:`evaluate`.

        Args:
            dataset: The evaluated dataset, whose worst images are read again.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """
        from mask_rcnn.evaluation.analysis.report import make_report

        if self._analysis is None:
            raise RuntimeError('the report has no evaluation')
        index_of = {image_id: i for i, image_id in enumerate(dataset.image_ids)}

        def read_image(image_id: int | str) -> tuple[np.ndarray, str]:
            example = dataset[index_of[image_id]]
            return to_pixels(example.image), Path(example.name).name

        make_report(self._analysis, read_image, title=self._title, details=self._details).write(self.path)
