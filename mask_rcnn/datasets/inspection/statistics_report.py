"""Reports of a dataset's statistics: a text table, JSON, and a picture."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.datasets.inspection.statistics import (
    SIZE_LIMITS,
    ClassStatistics,
    Statistics,
    common_image_sizes,
    size_histogram,
    summarize_classes,
    summarize_counts,
    summarize_sizes,
)
from mask_rcnn.datasets.inspection.suggestions import Settings
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.wording import counted

#: Number of image sizes and of classes that the text lists.
_N_IMAGE_SIZES, _N_CLASSES = 5, 100
_BAR = 30  # characters
_N_PLOTTED_CLASSES = 25
_COLORS = {'original': '#0072b2', 'input': '#d55e00'}


def describe_statistics(statistics: Statistics, settings: Settings, config: Config) -> dict[str, Any]:
    """Return statistics and suggested settings as JSON-compatible values.

    Args:
        statistics: The statistics.
        settings: The suggested settings.
        config: A network with the suggested sizes.
    """
    sizes, input_sizes = statistics.object_sizes, statistics.input_object_sizes(config)
    heights, widths = statistics.image_sizes.T
    return {
        'n_images': len(statistics.image_sizes),
        'n_without_objects': statistics.n_without_objects,
        'n_objects': len(statistics.labels),
        'n_crowds': statistics.n_crowds,
        'objects_per_image': _named_counts(summarize_counts(statistics.objects_per_image)),
        'image_heights': _named_counts(summarize_counts(heights)),
        'image_widths': _named_counts(summarize_counts(widths)),
        'image_sizes': [
            {'height': height, 'width': width, 'n_images': n}
            for (height, width), n in common_image_sizes(statistics, len(statistics.image_sizes))
        ],
        'classes': [_describe_class(summary) for summary in summarize_classes(statistics)],
        'object_sizes': {
            'limits': list(SIZE_LIMITS),
            'original': {'n_objects': size_histogram(sizes), **_named_sizes(summarize_sizes(sizes))},
            'input': {'n_objects': size_histogram(input_sizes), **_named_sizes(summarize_sizes(input_sizes))},
        },
        'settings': {**dataclasses.asdict(settings), 'extractor': config.extractor},
    }


def format_statistics(statistics: Statistics, config: Config) -> str:
    """Return statistics as a text of several lines; the network has the suggested sizes."""
    counts = summarize_counts(statistics.objects_per_image)
    lines = [
        f'images   {len(statistics.image_sizes)} with objects, {statistics.n_without_objects} without (not used for '
        'training)',
        f'objects  {len(statistics.labels)} in {counted(len(statistics.class_names), "class", "classes")}, '
        f'{counted(statistics.n_crowds, "crowd")} (not counted below)',
        'objects per image  min {:g}, median {:g}, mean {:.1f}, max {:g}'.format(*counts),
        '',
        *_format_image_sizes(statistics),
        '',
        *_format_classes(summarize_classes(statistics)),
        '',
        *_format_histograms(statistics, config),
    ]
    return '\n'.join(lines)


def format_settings(settings: Settings) -> str:
    """Return suggested settings as a text: the options of ``mask-rcnn train``, with the reasons."""
    reasons, options = settings.reasons, settings.train_options
    rows = [
        (f'--min-size {settings.min_size} --max-size {settings.max_size}', reasons['min_size']),
        (f'--anchor-sizes {" ".join(map(str, settings.anchor_sizes))}', reasons['anchor_sizes']),
        (f'--batchsize {settings.batch_size}', reasons['batch_size']),
        (f'--subdivisions {settings.subdivisions}', reasons['subdivisions']),
        (f'--roi-batch {settings.rois_per_image}', reasons['rois_per_image']),
        (f'--iteration {settings.iterations}', reasons['iterations']),
        (f'--lr {options["lr"]:g}', f'{settings.lr:g} after the warm-up: {reasons["lr"]}'),
        (f'--lr-initialchange {settings.warmup}', reasons['warmup']),
        ('--step-size {} --lr-step {}'.format(*settings.steps), reasons['steps']),
        (
            f'--validation {settings.validation_interval}',
            f'{reasons["validation_interval"]}; needs --val-annotations and --val-images',
        ),
        (f'--clip-gradient {settings.clip_gradient:g}', reasons['clip_gradient']),
    ]
    rows += [(f'--set {name}={value}', reasons[name]) for name, value in settings.network_fields.items()]
    width = max(len(option) for option, _ in rows)
    return '\n'.join(f'  {option:{width}}  {reason}' for option, reason in rows)


def plot_statistics(path: str | os.PathLike, statistics: Statistics, config: Config, *, title: str) -> None:
    """Plot object sizes, objects per image, image sizes and objects per class.

    Args:
        path: The PNG file to write.
        statistics: The statistics.
        config: A network with the suggested sizes and anchors.
        title: The title of the picture, one line.

    Raises:
        mask_rcnn.io.atomic_file.FileError: The file cannot be written.
    """
    # Not through pyplot, which keeps figures alive and may select a backend that needs a display.
    from matplotlib.figure import Figure

    classes = sorted(summarize_classes(statistics), key=lambda summary: -summary.n_objects)[:_N_PLOTTED_CLASSES]
    figure = Figure(figsize=(11, 8), dpi=120, layout='constrained')
    figure.suptitle(title.replace('$', r'\$'))  # Matplotlib would typeset formulas
    axes = figure.subplots(2, 2)
    for part in axes.flat:
        part.spines[['top', 'right']].set_visible(False)
        part.grid(True, color='#999999', alpha=0.25, linewidth=0.6)
    _plot_object_sizes(axes[0, 0], statistics, config)
    _plot_objects_per_image(axes[0, 1], statistics)
    _plot_image_sizes(axes[1, 0], statistics)
    _plot_classes(axes[1, 1], classes, n_classes=len(statistics.class_names))
    data = io.BytesIO()
    figure.savefig(data, format='png')
    with open_for_writing(path) as file:
        file.write(data.getvalue())


def _named_counts(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(('min', 'median', 'mean', 'max'), values, strict=True))


def _named_sizes(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(('p10', 'median', 'p90'), values, strict=True))


def _describe_class(summary: ClassStatistics) -> dict[str, Any]:
    return {
        'name': summary.name,
        'n_objects': summary.n_objects,
        'n_images': summary.n_images,
        'per_image': None if summary.per_image is None else _named_counts(summary.per_image),
        'sizes': None if summary.sizes is None else _named_sizes(summary.sizes),
    }


def _format_image_sizes(statistics: Statistics) -> list[str]:
    heights, widths = statistics.image_sizes.T
    listed = common_image_sizes(statistics, _N_IMAGE_SIZES)
    n_others = len(statistics.image_sizes) - sum(n for _, n in listed)
    lines = [
        f'image sizes (height x width): {heights.min()} to {heights.max()} x {widths.min()} to {widths.max()}, '
        f'median {np.median(heights):g} x {np.median(widths):g} pixels'
    ]
    lines += [f'  {f"{height} x {width}":>13}  {n:>7}' for (height, width), n in listed]
    return lines + ([f'  {"others":>13}  {n_others:>7}'] if n_others else [])


def _format_classes(summaries: Sequence[ClassStatistics]) -> list[str]:
    listed = sorted(summaries, key=lambda summary: -summary.n_objects)
    rows = [
        ('class', 'objects', 'images', 'min', 'median', 'mean', 'max', 'size 10%', '50%', '90%'),
        *map(_class_row, listed[:_N_CLASSES]),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['objects per class, per image that has the class, and sizes (square root of the box area, pixels)']
    for row in rows:
        cells = [f'{cell:>{width}}' for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append('  ' + '  '.join([f'{row[0]:<{widths[0]}}', *cells]))
    n_others = len(summaries) - len(listed[:_N_CLASSES])
    return lines + ([f'  ... and {counted(n_others, "more class", "more classes")}, see --json'] if n_others else [])


def _class_row(summary: ClassStatistics) -> tuple[str, ...]:
    name = ' '.join(summary.name.split())
    name = name if len(name) <= 24 else name[:23] + '…'
    if summary.per_image is None or summary.sizes is None:
        return name, '0', '0', *['-'] * 7
    low, median, mean, high = summary.per_image
    return (
        name,
        str(summary.n_objects),
        str(summary.n_images),
        f'{low:g}',
        f'{median:g}',
        f'{mean:.1f}',
        f'{high:g}',
        *(f'{size:.0f}' for size in summary.sizes),
    )


def _format_histograms(statistics: Statistics, config: Config) -> list[str]:
    sizes = statistics.object_sizes, statistics.input_object_sizes(config)
    histograms = [size_histogram(values) for values in sizes]
    highest = max(map(max, histograms))
    lines = [
        f'object sizes in pixels of the original image, and of the input of --min-size {config.min_size} --max-size '
        f'{config.max_size}'
    ]
    names = [f'{low} to {high}' for low, high in itertools.pairwise(SIZE_LIMITS)] + [f'{SIZE_LIMITS[-1]} or more']
    for name, original, resized in zip(names, *histograms, strict=True):
        bars = [('#' * -(-_BAR * n // highest)).ljust(_BAR) for n in (original, resized)]
        lines.append(f'  {name:>11}  {original:>7} {bars[0]}  {resized:>7} {bars[1]}'.rstrip())
    percentiles = ['10% {:.1f}, median {:.1f}, 90% {:.1f}'.format(*summarize_sizes(values)) for values in sizes]
    return [*lines, f'  original: {percentiles[0]}; input: {percentiles[1]}']


def _plot_object_sizes(axes: Any, statistics: Statistics, config: Config) -> None:
    sizes = {'original': statistics.object_sizes, 'input': statistics.input_object_sizes(config)}
    low = max(min(values.min() for values in sizes.values()), 1)
    high = max(max(values.max() for values in sizes.values()), max(config.anchor_sizes), 2 * low)
    bins = np.geomspace(low / 1.1, high * 1.1, 50)
    for name, values in sizes.items():
        label = 'original image' if name == 'original' else f'network input ({config.min_size}, {config.max_size})'
        axes.hist(values, bins, histtype='stepfilled', alpha=0.35, color=_COLORS[name], label=label)
    for i, anchor in enumerate(config.anchor_sizes):
        axes.axvline(anchor, color='#222222', linestyle=':', linewidth=1, label=None if i else 'anchors')
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('object size, pixels (square root of the box area)')
    axes.set_ylabel('objects')
    axes.set_ylim(top=axes.get_ylim()[1] * 1.2)  # room for the legend
    axes.legend(loc='upper center', ncols=3, frameon=False, fontsize=8)


def _plot_objects_per_image(axes: Any, statistics: Statistics) -> None:
    counts = statistics.objects_per_image
    step = -(-int(counts.max()) // 40)  # bins of whole numbers
    axes.hist(counts, np.arange(0.5, counts.max() + step + 0.5, step), color=_COLORS['original'], alpha=0.7)
    axes.axvline(np.median(counts), color='#222222', linestyle=':', label=f'median {np.median(counts):g}')
    axes.set_xlabel('objects per image')
    axes.set_ylabel('images')
    axes.legend(frameon=False, fontsize=9)


def _plot_image_sizes(axes: Any, statistics: Statistics) -> None:
    items = common_image_sizes(statistics, len(statistics.image_sizes))
    heights, widths = np.array([size for size, _ in items]).T
    counts = np.array([n for _, n in items])
    axes.scatter(widths, heights, s=20 + 400 * counts / counts.max(), color=_COLORS['original'], alpha=0.4, linewidth=0)
    axes.set_xlim(0, widths.max() * 1.15)
    axes.set_ylim(0, heights.max() * 1.15)
    axes.set_xlabel('image width, pixels (area of a dot: number of images)')
    axes.set_ylabel('image height, pixels')


def _plot_classes(axes: Any, classes: Sequence[ClassStatistics], *, n_classes: int) -> None:
    names = [' '.join(summary.name.split())[:24].replace('$', r'\$') for summary in classes]
    axes.barh(range(len(classes)), [summary.n_objects for summary in classes], color=_COLORS['original'], alpha=0.7)
    axes.set_yticks(range(len(classes)), names, fontsize=9 if len(classes) < 15 else 7)
    axes.set_ylim(max(len(classes), 6) - 0.5, -0.5)  # from top to bottom; few bars are not thick
    axes.grid(False, axis='y')
    axes.set_xlabel(
        'objects'
        if len(classes) == n_classes
        else f'objects of the {counted(len(classes), "most frequent class", "most frequent classes")}'
    )
