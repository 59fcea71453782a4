"""Shared parts of the scripts that train with ``train.py`` and compare the result with goals."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Fields of a MobileNetV1-FPN whose file is small in half precision and that trains on a CPU.
SLIM_NETWORK = {
    'fpn_channels': 64,
    'rpn_channels': 64,
    'head_channels': 256,
    'mask_channels': 64,
    'mask_convs': 2,
    'roi_canonical_size': 112,
}


def make_parser(description: str, *, out: str, iterations: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all these scripts have.

    Args:
        description: The script's docstring.
        out: Default of ``--out``, the folder that the training writes.
        iterations: Default of ``--iterations``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path(out), help='output folder (default: %(default)s)')
    parser.add_argument('--iterations', type=int, default=iterations, help='(default: %(default)s)')
    parser.add_argument('--gpu', type=int, default=-1, help='number of the GPU, -1 for the CPU (default)')
    return parser


def train_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return command line words for ``train.py``.

    Args:
        options: Values by flag without the dashes; a list becomes several words.
    """
    words = []
    for flag, value in options.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f'--{flag}', *map(str, values)]
    return words


def step_options(n_iterations: int) -> dict[str, int]:
    """Return a schedule for a short training.

    The learning rate is a tenth during the first twentieth of the iterations and drops tenfold after three quarters and
    after nine tenths.  One evaluation takes place, at the end.
    """
    return {
        'iteration': n_iterations,
        'lr-initialchange': n_iterations // 20,
        'step-size': n_iterations * 3 // 4,
        'lr-step': n_iterations * 9 // 10,
        'validation': n_iterations,
        'snapshot': max(n_iterations // 4, 1),
        'keep': 1,
    }


def run_training(words: Sequence[str]) -> int:
    """Train, print the time that it took, and return the exit status."""
    from mask_rcnn.cli import train

    started = time.monotonic()
    status = train.main(words)
    if not status:
        sys.stdout.write(f'{(time.monotonic() - started) / 60:.1f} minutes\n')
    return status


def report(log: Path, goals: Mapping[str, float]) -> int:
    """Compare the metrics of the last evaluation in a log with the goals; see :func:`compare`."""
    last = [entry for entry in json.loads(log.read_text(encoding='utf-8')) if 'validation/bbox/AP' in entry][-1]
    return compare({name: last[f'validation/{name}'] for name in goals}, goals)


def store(source: Path, target: Path, **changes: Any) -> None:
    """Rewrite a model file with weights in half precision, which loading converts to float32.

    Args:
        source: The model file of a training.
        target: The file to write.
        **changes: New values of fields of its configuration.
    """
    import numpy as np

    from mask_rcnn.weights import read_weights, write_weights

    file = read_weights(source)
    arrays = {name: array.astype(np.float16) if array.ndim > 1 else array for name, array in file.arrays.items()}
    meta = dataclasses.replace(file.meta, config=file.meta.config.replace(**changes))
    write_weights(target, arrays, meta)


def compare(reached: Mapping[str, float], goals: Mapping[str, float], *, at_most: Collection[str] = ()) -> int:
    """Print values beside their goals; return 0 if all are reached, else 1.

    Args:
        reached: The values by name.
        goals: The minimum of each value.
        at_most: Names of the values whose goal is a maximum.
    """
    passed = {name: reached[name] <= goal if name in at_most else reached[name] >= goal for name, goal in goals.items()}
    for name, goal in goals.items():
        verdict = 'reached' if passed[name] else 'not reached'
        sys.stdout.write(f'{name} {reached[name]:.3f}, goal {goal:.2f}: {verdict}\n')
    return 0 if all(passed.values()) else 1
