"""Matplotlib figures: their style, and their encoding as files."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of lines and bars that colour-blind readers distinguish (Okabe and Ito, "Color Universal Design", 2008).
INK, GREY = '#222222', '#999999'
BLUE, SKY, GREEN, YELLOW = '#0072b2', '#56b4e9', '#009e73', '#f0e442'
ORANGE, VERMILION, PURPLE = '#e69f00', '#d55e00', '#cc79a7'
#: The colours of several curves, in this order.
CYCLE = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY)

#: Resolution of figures, pixels per inch.
DPI = 120


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Use Matplotlib's defaults in a context or, as a decorator, in a function that draws a figure.

    The settings of a user (``matplotlibrc`` in the working folder or at home) are for figures of other sizes: large
    fonts hide plots, and TeX reads the names of classes and files.  They are restored afterwards.
    """
    import matplotlib.style

    with matplotlib.style.context('default'):
        yield


def new_figure(
    width: float, height: float, n_rows: int = 1, n_columns: int = 1, *, sharex: bool = False, **grid: Any
) -> tuple[Figure, np.ndarray]:
    """Return an empty figure and its axes, without the window that ``pyplot`` may open.

    Args:
        width: Width in inches.
        height: Height in inches.
        n_rows: Number of rows of axes.
        n_columns: Number of columns of axes.
        sharex: Whether all axes share the x axis.
        **grid: Options of Matplotlib's ``GridSpec``, such as ``height_ratios``.

    Returns:
        tuple: The figure and the axes, an array ``(n_rows, n_columns)``.
    """
    from matplotlib.figure import Figure  # not through pyplot, which keeps figures alive

    figure = Figure(figsize=(width, height), dpi=DPI, layout='constrained')
    axes = figure.subplots(n_rows, n_columns, sharex=sharex, squeeze=False, gridspec_kw=grid)
    return figure, axes


def style_plot(axes: Axes) -> None:
    """Remove the frame above and to the right of a plot, and add a pale grid."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(True, color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def show_picture(axes: Axes, picture: np.ndarray, title: str = '', **options: Any) -> None:
    """Show a picture without ticks, so that data coordinates are pixels: ``(0, 0)`` is the outer corner of the first.

    Args:
        axes: The axes.
        picture: ``(H, W, 3)`` uint8, or ``(H, W)`` values for a colour map.
        title: Text above the picture.
        **options: Options of Matplotlib's ``imshow``, such as ``cmap``.
    """
    height, width = picture.shape[:2]
    axes.imshow(picture, **{'extent': (0, width, height, 0), 'interpolation': 'nearest', **options})
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize='medium')


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture whose longer side is at most ``side`` pixels; a smaller picture is returned as it is.

    Args:
        picture: ``(H, W, 3)`` uint8, or ``(H, W)`` floats.
        side: Maximum height and width.
    """
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


@default_style()
def picture_grid(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    *,
    n_columns: int = 3,
    width: float = 10,
    **options: Any,
) -> Figure:
    """Return a figure of several pictures in rows, such as those of :meth:`mask_rcnn.Detections.draw`.

    Args:
        pictures: One or more pictures for :func:`show_picture`; the aspect ratio of the first one determines the height
            of the rows.
        titles: Text above each picture, or nothing.
        n_columns: Maximum number of pictures in a row.
        width: Width of the figure in inches.
        **options: Options of :func:`show_picture`.

    Raises:
        ValueError: There is no picture, or the number of titles differs from that of the pictures.
    """
    if not pictures or len(titles) not in (0, len(pictures)):
        raise ValueError(f'need one or more pictures with a title for each, got {len(pictures)} and {len(titles)}')
    n_columns = min(n_columns, len(pictures))
    n_rows = math.ceil(len(pictures) / n_columns)
    aspect = pictures[0].shape[0] / pictures[0].shape[1]
    row_height = aspect * width / n_columns + (0.3 if titles else 0.1)  # a line of text, or a gap
    figure, axes = new_figure(width, n_rows * row_height, n_rows, n_columns)
    for axis in axes.flat[len(pictures) :]:
        axis.set_axis_off()
    for axis, picture, title in zip(axes.flat, pictures, titles or [''] * len(pictures), strict=False):
        show_picture(axis, picture, title, **options)
    return figure


def encode_figure(figure: Figure, suffix: str = 'png') -> bytes:
    """Return a figure as the contents of a file.

    Args:
        figure: The figure.
        suffix: A format of Matplotlib, such as ``'png'``, ``'svg'`` or ``'pdf'``.
    """
    data = io.BytesIO()
    with default_style(), warnings.catch_warnings():
        # Names may have letters of any script; those that the font lacks are drawn as boxes.
        warnings.filterwarnings('ignore', 'Glyph .* missing from', UserWarning)
        figure.savefig(data, format=suffix)
    return data.getvalue()
