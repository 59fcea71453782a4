"""The files of an earlier run in the output folder of a new one."""

from __future__ import annotations

from pathlib import Path

from mask_rcnn.training.snapshot import list_snapshots

#: Patterns of the files and folders that a run writes, apart from those of an evaluation.
_PATTERNS = (
    'snapshot_iter_*.npz',
    'model_iter_*.npz',
    'model_best.npz',
    'snapshot_model.npz',
    'results_iter_*.json',
    'log',
    'loss.png',
    'ap.png',
    'tensorboard',
)


def set_aside_run(folder: Path) -> Path | None:
    """Move the files of an earlier run in a folder to a new subfolder ``run_1``, ``run_2``, ...

    Args:
        folder: The output folder; it need not exist.

    Returns:
        The new subfolder, or ``None`` if the folder contains no snapshots.

    Raises:
        OSError: A file cannot be moved; those that have been moved stay in the subfolder.
    """
    if not list_snapshots(folder):
        return None
    number = 1
    while (folder / f'run_{number}').exists():
        number += 1
    target = folder / f'run_{number}'
    target.mkdir()
    for pattern in _PATTERNS:
        for path in sorted(folder.glob(pattern)):
            path.rename(target / path.name)
    return target
