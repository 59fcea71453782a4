"""The files of an earlier run in the output folder of a new one."""

from __future__ import annotations

from pathlib import Path

from mask_rcnn.training.snapshot import NEWEST_MODEL
from mask_rcnn.weights import formats

#: Patterns of the files and folders that a run writes, apart from :data:`NEWEST_MODEL` and those of an evaluation.
_PATTERNS = (
    'snapshot_iter_*.npz',
    'model_iter_*.npz',
    'model_best.npz',
    'results_iter_*.json',
    'log',
    'loss.png',
    'ap.png',
    'tensorboard',
)


def set_aside_run(folder: Path) -> Path | None:
    """Move the files of an earlier run in a folder to a new subfolder ``run_1``, ``run_2``, ...

    A ``snapshot_model.npz`` of the old Chainer port stays: it is renamed when the new run writes its own, which may
    start from it again until then.

    Args:
        folder: The output folder; it need not exist.

    Returns:
        The new subfolder, or ``None`` if the folder contains no files of a run.

    Raises:
        OSError: A file cannot be moved; those that have been moved stay in the subfolder.
    """
    paths = [path for pattern in _PATTERNS for path in sorted(folder.glob(pattern))]
    newest = folder / NEWEST_MODEL
    if newest.is_file() and formats.is_native(newest):
        paths.append(newest)
    if not paths:
        return None
    number = 1
    while (folder / f'run_{number}').exists():
        number += 1
    target = folder / f'run_{number}'
    target.mkdir()
    for path in paths:
        path.rename(target / path.name)
    return target
