"""``mask-rcnn train --auto``: options that are computed from the training data and the machine.

The options are added to the command line, which is then parsed as if the user had written them: the command that is
printed trains with the same losses.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mask_rcnn.cli.command import UsageError, flag
from mask_rcnn.cli.initial_model import data_options, selected_extractor
from mask_rcnn.cli.options import choose_device
from mask_rcnn.cli.train_arguments import SCHEDULE_OPTIONS, TrainArguments
from mask_rcnn.config.schedules import MIN_EVALUATION_INTERVAL, N_EVALUATIONS, decay_steps, warmup_length
from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.inspection.machine import find_machine
from mask_rcnn.datasets.inspection.statistics import collect_statistics
from mask_rcnn.datasets.inspection.suggestions import Settings, suggest_settings
from mask_rcnn.io.console import print_line
from mask_rcnn.io.programs import command_text
from mask_rcnn.io.wording import counted
from mask_rcnn.training.schedule import detectron_schedule
from mask_rcnn.training.snapshot import is_snapshot


def print_and_return_arguments(
    args: argparse.Namespace, given: argparse.Namespace, argv: Sequence[str], prog: str
) -> list[str]:
    """Return a command line with explicit options instead of ``--auto``, and print it.

    Args:
        args: The parsed arguments.
        given: The same, with ``None`` for all options in question that the user has not given.
        argv: The command line.
        prog: The name of the program.

    Raises:
        UsageError: An option contradicts ``--auto``.
        mask_rcnn.datasets.coco.AnnotationFileError: The training data cannot be used.
        mask_rcnn.weights.WeightFileError: The file of ``--resume`` or ``--pretrained`` cannot be used.
        ValueError: The GPU cannot be used.
    """
    if args.lr == 0:
        raise UsageError('--auto and --lr 0 contradict each other: nothing is trained')
    if args.communicator:
        raise UsageError('--auto and --communicator contradict each other: the settings are those of one process')
    arguments = TrainArguments.from_namespace(args)
    if arguments.data.is_generated:
        raise UsageError(
            f'--auto and --dataset {arguments.data.name} contradict each other: generated images have defaults'
        )
    if arguments.resume is not None and is_snapshot(arguments.resume):
        raise UsageError(
            f'--auto and --resume {arguments.resume} contradict each other: the run of a snapshot goes on with its own '
            'settings; give the command that --auto printed'
        )
    gpu = choose_device(arguments.gpu)
    machine = find_machine(gpu)
    dataset = arguments.data.open('train', size=0, **data_options(arguments))  # no generated images, so no size
    statistics = collect_statistics(cast(COCODataset, dataset))
    settings = suggest_settings(statistics, extractor=selected_extractor(arguments), machine=machine)
    options = choose_options(
        settings, vars(given), has_val=arguments.data.has('val'), keeps_network=arguments.resume is not None
    )
    if given.gpu is None:
        options['gpu'] = gpu
    # The parser accepts abbreviations of flags; shorter ones than --au are ambiguous.
    words = [word for word in argv if not ('--auto'.startswith(word) and word.startswith('--au'))]
    for name, value in options.items():
        words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    fields = choose_fields(settings, arguments)
    if fields:
        words += ['--set', *(f'{name}={json.dumps(value)}' for name, value in fields.items())]
    place = f'a {"GPU" if machine.has_gpu else "CPU"} with {machine.memory / 2**30:.0f} GiB'
    print_line(f'--auto: settings for {counted(len(dataset), "image")} on {place}; the same command without --auto is')
    print_line(command_text([*prog.split(), *words]))
    return words


def choose_fields(settings: Settings, arguments: TrainArguments) -> dict[str, Any]:
    """Return the fields of ``--set``: those of the settings and of the user, or none if the settings add none.

    The last ``--set`` of a command line counts, so it contains all fields.
    """
    given = dict(arguments.fields)
    added = {name: value for name, value in settings.network_fields.items() if name not in given}
    return {**given, **added} if added and arguments.resume is None else {}


def choose_options(
    settings: Settings, given: Mapping[str, Any], *, has_val: bool, keeps_network: bool = False
) -> dict[str, Any]:
    """Return the options to add to those of the user, which determine the others where they depend on each other.

    - Anchors are scaled with the user's size of the network input.
    - With another batch size, the learning rate is proportional to it, and the number of images stays.
    - With another number of iterations, the decays stay at 2/3 and 8/9 of it.

    Args:
        settings: The settings for the data and the machine.
        given: Value of each option, ``None`` if the user has not given it.
        has_val: Whether there are evaluation data.
        keeps_network: Whether a model file determines the sizes of images and anchors.
    """
    chosen = settings.train_options
    chosen |= _choose_size(settings, given)
    batch = given['batchsize'] or max(settings.batch_size, given['subdivisions'] or 1)
    images_per_pass = settings.batch_size // settings.subdivisions
    chosen |= {
        'batchsize': batch,
        'subdivisions': math.ceil(batch / images_per_pass),
        'lr': round(chosen['lr'] * batch / settings.batch_size, 10),
    }
    iterations = given['iteration']
    if given['schedule'] and not iterations:
        iterations = detectron_schedule(given['schedule'], batch)[1]
    if not iterations and batch != settings.batch_size:
        iterations = max(round(settings.iterations * settings.batch_size / batch), 1)
    if iterations:
        first, second = decay_steps(iterations)
        chosen |= {
            'iteration': iterations,
            'lr_initialchange': warmup_length(iterations),
            'step_size': max(first, 1),
            'lr_step': max(second, 1),
            'validation': max(iterations // N_EVALUATIONS, min(MIN_EVALUATION_INTERVAL, iterations)),
        }
    chosen['step_size'] = min(chosen['step_size'], given['lr_step'] or math.inf)
    chosen['lr_step'] = max(chosen['lr_step'], given['step_size'] or 0)
    dropped = {name for name in chosen if given[name] is not None}
    if given['schedule']:
        dropped |= {*SCHEDULE_OPTIONS, 'iteration'}
    if not has_val:
        dropped.add('validation')
    if keeps_network:
        dropped |= {'min_size', 'max_size', 'anchor_sizes'}
    return {name: value for name, value in chosen.items() if name not in dropped}


def _choose_size(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of images and anchors that fit those of the user."""
    min_size, max_size = given['min_size'], given['max_size']
    if min_size is None:
        min_size = min(settings.min_size, max_size or settings.max_size)
    scale = min_size / settings.min_size
    return {
        'min_size': min_size,
        'max_size': max(round(settings.max_size * scale), min_size),
        'anchor_sizes': tuple(max(round(size * scale), 1) for size in settings.anchor_sizes),
    }
