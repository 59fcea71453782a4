"""The figure of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.figures import GREY, INK, default_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_CELL, _MAX_SIDE = 0.45, 7.2  # inches, of a cell and of the matrix
_LETTER = 0.065  # inches


@default_style()
def plot_confusion(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Plot a confusion matrix: colours are fractions of the rows, numbers are counts.

    Args:
        counts: ``(R, C)`` integers.
        rows: Names of the rows, the true classes; the last one is the background.
        columns: Names of the columns, the predicted classes; the last one is the background.
    """
    n_rows, n_columns = counts.shape
    names = [[plot_name(name) for name in part] for part in (rows, columns)]
    margin = _LETTER * max(map(len, names[0] + names[1])) + 0.5
    cell = min(_MAX_CELL, _MAX_SIDE / max(n_rows, n_columns))
    figure, ((axes,),) = new_figure(cell * max(n_columns, 4) + margin + 0.9, cell * max(n_rows, 4) + margin)
    font = 8 if cell > 0.3 else 7
    totals = counts.sum(axis=1, keepdims=True)
    fractions = counts / np.maximum(totals, 1)
    picture = axes.imshow(fractions, cmap='Blues', vmin=0, vmax=1, interpolation='nearest', aspect='equal')
    for (i, j), count in np.ndenumerate(counts):
        if count:
            ink = 'white' if fractions[i, j] > 0.55 else INK
            axes.text(
                j,
                i,
                str(count) if cell > 0.4 else _short(int(count)),
                ha='center',
                va='center',
                color=ink,
                fontsize=font,
            )
    axes.set_xticks(range(n_columns), names[1], rotation=90, fontsize=font)
    axes.set_yticks(range(n_rows), names[0], fontsize=font)
    axes.tick_params(length=0)
    axes.set_xlabel('class of the detection')
    axes.set_ylabel('class of the object')
    axes.spines[:].set_color(GREY)
    axes.axhline(n_rows - 1.5, color=GREY, linewidth=0.8)
    axes.axvline(n_columns - 1.5, color=GREY, linewidth=0.8)
    bar = figure.colorbar(picture, ax=axes, label='fraction of the row', shrink=0.7, fraction=0.04, pad=0.02)
    bar.ax.tick_params(labelsize=font)
    return figure


def _short(count: int) -> str:
    """Return a count in at most four characters."""
    return str(count) if count < 1000 else f'{count / 1000:.1f}k' if count < 9950 else f'{count / 1000:.0f}k'
