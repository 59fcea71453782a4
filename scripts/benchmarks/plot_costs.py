"""Plot the time of a prediction over the number of proposals, pixels and images.

    python scripts/benchmarks/plot_costs.py --out docs/costs.png [--extractors resnet50 resnet50_fpn] [--gpu 0]
        [--json FILE]

Each column varies one quantity, each row is a network; the stages of ``benchmark.py`` are stacked.  On the CPU the plot
shows CPU seconds (the sum over all cores), which other processes disturb least; on a GPU, wall-clock seconds.  The
dashed line is straight: a curve that leaves it does not grow linearly.  ``--from-json`` plots an earlier measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import mask_rcnn  # makes Chainer importable

# isort: split
import chainer
import numpy as np
from benchmark import STAGES, StageClock, detect_by_stages, machine, random_image, random_model, write_json

from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.device import get_device

#: Detectron's image size: the aspect ratio, and the shorter side in pixels.
_ASPECT, _SIDE = 1333 / 800, 800


@dataclass(frozen=True)
class Sweep:
    """One varied quantity: its values, and the configuration and number of images for each value."""

    title: str
    label: str
    values: tuple[int, ...]

    def settings(self, value: int) -> tuple[dict, int]:
        """Return the changes of the configuration and the number of images."""
        if self.title == 'proposals':
            return {'rpn_post_nms': value, 'rpn_pre_nms': max(6000, value)}, 1
        if self.title == 'image':
            return {'min_size': value, 'max_size': round(value * _ASPECT)}, 1
        return {}, value

    def work(self, value: int) -> float:
        """Return the amount of work, in which the cost should be linear."""
        return value * round(value * _ASPECT) / 1e6 if self.title == 'image' else value


SWEEPS = (
    Sweep('proposals', 'proposals', (100, 250, 500, 1000, 1500, 2000)),
    Sweep('image', 'million pixels of the network input', (200, 400, 600, 800, 1000, 1200)),
    Sweep('batch', 'images', (1, 2, 4)),
)


def measure(extractor: str, sweep: Sweep, value: int, *, runs: int, gpu: int) -> dict[str, float]:
    """Return the seconds of each stage, summed over the images, of the fastest run."""
    changes, n_images = sweep.settings(value)
    model = random_model(extractor, **changes)
    model.to_device(get_device(gpu))
    image = random_image((_SIDE, round(_SIDE * _ASPECT)))
    totals = []
    with chainer.using_config('train', False), chainer.no_backprop_mode(), cache_weights():
        detect_by_stages(model, image, StageClock(model.device))
        for _ in range(runs):
            clock = StageClock(model.device)
            for _ in range(n_images):
                detect_by_stages(model, image, clock)
            seconds = clock.cpu if model.xp is np else clock.wall
            totals.append({stage: sum(seconds[stage]) for stage in STAGES})
    return min(totals, key=lambda stages: sum(stages.values()))


def measure_all(args: argparse.Namespace) -> dict:
    """Return the seconds per stage by network, sweep and value as plain data."""
    figures: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for extractor in args.extractors:
        for sweep in SWEEPS:
            for value in sweep.values:
                stages = measure(extractor, sweep, value, runs=args.runs, gpu=args.gpu)
                figures.setdefault(extractor, {}).setdefault(sweep.title, {})[str(value)] = stages
                print(f'{extractor:<14}{sweep.title:<10}{value:>6}{sum(stages.values()):>10.3f} s', flush=True)
    facts = machine(get_device(args.gpu))
    return {'figures': figures, 'machine': facts, 'unit': 's' if 'gpu' in facts else 'CPU s'}


def draw(result: dict):
    """Return a Matplotlib figure of the result of :func:`measure_all`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    networks = list(result['figures'])
    figure = Figure(figsize=(4.2 * len(SWEEPS), 3.2 * len(networks) + 0.7), layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(networks), len(SWEEPS), squeeze=False)
    for network, row in zip(networks, grid, strict=True):
        for sweep, axes in zip(SWEEPS, row, strict=True):
            draw_sweep(axes, sweep, result['figures'][network][sweep.title])
            axes.set_title(f'{network}: {sweep.title}', loc='left', fontsize=10)
        row[0].set_ylabel(result['unit'])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc='outside right center', frameon=False, fontsize=9)
    facts = result['machine']
    figure.suptitle(
        f'{facts.get("gpu", facts["processor"])}, {counted(facts["cpus"], "CPU")}, {facts["date"]}',
        x=0.01,
        ha='left',
        fontsize=9,
        color='0.35',
    )
    return figure


def draw_sweep(axes, sweep: Sweep, figures: dict[str, dict[str, float]]) -> None:
    """Draw one varied quantity for one network."""
    values = sorted(map(int, figures))
    heights = [[figures[str(value)][stage] for value in values] for stage in STAGES]
    work = [sweep.work(value) for value in values]
    axes.stackplot(work, heights, labels=STAGES, colors=[f'C{i}' for i in range(len(STAGES))], alpha=0.75)
    total = np.sum(heights, axis=0)
    axes.plot(work, total, 'o-', color='0.15', linewidth=1, markersize=3)
    axes.plot([work[0], work[-1]], [total[0], total[-1]], '--', color='0.15', linewidth=0.8, label='straight')
    axes.set(xlabel=sweep.label, xlim=(0, work[-1]), ylim=(0, total.max() * 1.08))
    axes.grid(alpha=0.25, linewidth=0.5)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='PNG file to write')
    parser.add_argument(
        '--extractors',
        nargs='+',
        default=['resnet50', 'resnet50_fpn'],
        choices=sorted(mask_rcnn.PRESETS),
        metavar='NETWORK',
    )
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    parser.add_argument('--runs', type=int, default=2)
    parser.add_argument('--json', type=Path, help='also write the figures to this file')
    parser.add_argument('--from-json', type=Path, help='plot these figures instead of measuring')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and plot; returns the exit status."""
    args = parse_arguments(argv)
    result = json.loads(args.from_json.read_text()) if args.from_json else measure_all(args)
    if args.json:
        write_json(args.json, result)
    with open_for_writing(args.out) as file:
        draw(result).savefig(file, dpi=110, format='png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
