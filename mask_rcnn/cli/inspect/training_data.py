"""``mask-rcnn inspect data``: an HTML report on the training with images of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mask_rcnn.cli.command import ArgumentParser, UsageError, flag, run_and_report_errors
from mask_rcnn.cli.data.dataset_files import show_progress
from mask_rcnn.cli.dataset_options import GENERATED, SIZES, Dataset, print_dataset_warnings
from mask_rcnn.cli.evaluate import name_classes
from mask_rcnn.cli.initial_model import check_same_classes, data_options, load_model, make_model
from mask_rcnn.cli.options import add_gpu, choose_device, positive_int, seed
from mask_rcnn.cli.outputs import check_report
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.cli.train_options import add_augmentation, add_extractor, add_network_fields, add_sampling
from mask_rcnn.cli.train_options import configure as configure_training
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.datasets.example import TrainingExample
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.inspect.training.report import MAX_IMAGES, TrainingReport
from mask_rcnn.inspect.training.trace import trace_training
from mask_rcnn.io.console import print_line, print_lines
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.targets.sampling import network_sampling
from mask_rcnn.training.iterator import epoch_order, example_seed
from mask_rcnn.weights import WeightFileError

_DESCRIPTION = f"""\
Show the training with images of a dataset: the augmented network inputs, the role of every anchor, the sampled RoIs and
their targets, mask and keypoint targets, and the anchors and RoIs that contribute most to the loss. The report lists
the objects without a positive anchor and, for each class, the number of those without a proposal. Everything equals the
first epoch of "mask-rcnn train" with the same options and seed and a batch of one image, for the model as it is. The
report draws {MAX_IMAGES} images; its numbers are those of all selected images."""

#: Options of a new network, which a model file determines.
_NEW_NETWORK = ('extractor', 'keypoints', 'fields')


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        'annotations', type=Path, nargs='?', metavar='ANNOTATIONS', help="annotations in COCO's format (JSON)"
    )
    parser.add_argument(
        'images', type=Path, nargs='?', metavar='IMAGES', help='folder to which the names of the images refer'
    )
    add = parser.add_argument
    add('--dataset', choices=tuple(GENERATED), help='generated images instead of ANNOTATIONS and IMAGES')
    add('--out', '-o', type=Path, required=True, metavar='FILE', help='HTML file to write')
    add('--image', nargs='+', metavar='NAME', help='names or ids of the images (default: the first ones of the epoch)')
    add(
        '--limit',
        type=positive_int,
        default=MAX_IMAGES,
        metavar='N',
        help='number of images without --image (default: %(default)s)',
    )
    add(
        '--modelfile',
        type=Path,
        metavar='FILE',
        help='model or snapshot whose proposals and losses are shown (default: a new network with random weights)',
    )
    add('--seed', '-s', type=seed, metavar='N', help="seed of the training run (default: 0, or the snapshot's)")
    add_gpu(add)
    network = parser.add_argument_group('network').add_argument
    add_extractor(network)
    add_network_fields(network)
    add_sampling(network)
    add_augmentation(parser.add_argument_group('augmentation').add_argument)


def run(args: argparse.Namespace) -> int:
    """Write the report; returns the exit status (0, 1 if a file cannot be used, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _inspect(args), (AnnotationFileError, ImageFileError, WeightFileError))


def _inspect(args: argparse.Namespace) -> int:
    _check_arguments(args)
    arguments = _training_arguments(args)
    run_seed = arguments.seed if args.seed is None else args.seed
    np.random.seed(run_seed)  # determines random weights as in a training run
    dataset = _open_dataset(arguments, run_seed)
    chosen = _choose_images(dataset, args, run_seed)
    model = _make_model(arguments, dataset)
    model.to_device(get_device(choose_device(args.gpu)))
    sampling = network_sampling(model.config, roi_batch=arguments.roi_batch, proposals=arguments.train_proposals)
    report = TrainingReport(
        title=f'Training data: {Path(arguments.data.title("train")).name}',
        class_names=dataset.class_names,
        config=model.config,
        sampling=sampling,
        notes=_notes(args, model, dataset, len(chosen), run_seed),
    )
    traces = trace_training(
        model,
        _read_examples(dataset, chosen, TrainingTransform(model.config, arguments.augmentation)),
        sampling=sampling,
        frozen_stages=arguments.frozen_stages,
    )
    for trace in show_progress(traces, len(chosen), 'image'):
        report.add(trace)
    report.to_report().write(args.out)
    print_lines('\n'.join(report.summary()))
    print_line(f'wrote {args.out}')
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.dataset is None and args.images is None:
        missing = 'IMAGES is missing' if args.annotations else 'no data'
        raise UsageError(f'{missing}; give ANNOTATIONS and IMAGES, or --dataset {" or ".join(GENERATED)}')
    if args.dataset is not None and args.annotations is not None:
        raise UsageError('ANNOTATIONS and --dataset contradict each other: generated images have no files')
    for name in _NEW_NETWORK if args.modelfile else ():
        if getattr(args, name):
            given = '--set' if name == 'fields' else flag(name)
            raise UsageError(f'{given} and --modelfile contradict each other: the file determines the network')
    if args.modelfile is not None and args.modelfile.is_dir():
        raise UsageError(f'--modelfile {args.modelfile} is a folder; name a model or a snapshot')
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f'IMAGES {args.images} is not a folder')
    check_report('--out', args.out, [('the annotation file', args.annotations), ('the model file', args.modelfile)])


def _training_arguments(args: argparse.Namespace) -> TrainArguments:
    """Return the arguments of a training run on the same data with the same options."""
    parser = ArgumentParser()
    configure_training(parser)
    namespace = parser.parse_args([])
    for name, value in vars(args).items():
        if name in vars(namespace):
            setattr(namespace, name, value)
    namespace.seed = None  # that of a snapshot does not bind the inspection
    namespace.train_annotations, namespace.train_images = args.annotations, args.images
    namespace.skip_broken = True if args.annotations else None
    namespace.resume, namespace.pretrained = args.modelfile, None if args.modelfile else 'none'
    namespace.validation = 0
    return TrainArguments.from_namespace(namespace)


def _open_dataset(arguments: TrainArguments, run_seed: int) -> Dataset:
    size = arguments.min_size or SIZES[arguments.data.name][0]
    dataset = arguments.data.open('train', size=size, seed=run_seed, **data_options(arguments))
    print_dataset_warnings(dataset, arguments.data.title('train'))
    return dataset


def _choose_images(dataset: Dataset, args: argparse.Namespace, run_seed: int) -> list[tuple[int, int]]:
    """Return the indices of the images and the seeds of their examples in the first epoch of a run."""
    order = epoch_order(run_seed, 0, len(dataset)).tolist()
    if args.image is None:
        return [(index, example_seed(run_seed, position)) for position, index in enumerate(order[: args.limit])]
    numbers: dict[str, int] = {}
    for i in reversed(range(len(dataset))):  # the first image of a name wins, and names win over ids
        numbers[str(dataset.image_ids[i])] = i
    for i in reversed(range(len(dataset))):
        path = Path(dataset.image_name(i))
        numbers |= dict.fromkeys((path.stem, path.name, str(path)), i)
    unknown = next((name for name in args.image if name not in numbers), None)
    if unknown is not None:
        example = Path(dataset.image_name(0)).name
        raise UsageError(
            f'--image {unknown}: no image with an object has this name or id; the first one is {example} '
            f'(id {dataset.image_ids[0]})'
        )
    positions = {index: position for position, index in enumerate(order)}
    indices = dict.fromkeys(numbers[name] for name in args.image)  # one image may be named several times
    return [(index, example_seed(run_seed, positions[index])) for index in indices]


def _make_model(arguments: TrainArguments, dataset: Dataset) -> MaskRCNN:
    if arguments.resume is None:
        return make_model(arguments, dataset, is_main=False)[0]
    model = load_model(arguments)
    name_classes(model, dataset)
    check_same_classes(model, arguments.data.title('train'), dataset)
    return model


def _notes(args: argparse.Namespace, model: MaskRCNN, dataset: Dataset, n_images: int, run_seed: int) -> list[str]:
    weights = f'the weights of {args.modelfile}'
    if args.modelfile is None:
        weights = (
            'random weights: its proposals are close to the anchors, and its losses are those of the first iteration'
        )
    return [
        f'{n_images} of {counted(len(dataset), "image")} with {counted(len(dataset.class_names), "class", "classes")}, '
        f'as in the first epoch of a training with the seed {run_seed}',
        f'The network is {model.config.extractor} with {weights}',
    ]


def _read_examples(
    dataset: Dataset, chosen: Sequence[tuple[int, int]], transform: TrainingTransform
) -> Iterator[TrainingExample]:
    for index, example_seed_ in chosen:
        yield transform(dataset.get_example(index), example_seed_)
