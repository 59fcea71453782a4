"""``mask-rcnn data import``: conversion of labelling tools' annotations to COCO's format."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from functools import partial
from pathlib import Path

from mask_rcnn.cli.command import UsageError, run_and_report_errors
from mask_rcnn.cli.outputs import check_output, output_path, refuse_inputs
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import (
    FORMATS,
    ImportedDataset,
    ImportOptions,
    coco,
    import_annotations,
    merge_datasets,
)
from mask_rcnn.datasets.importers.class_map import apply_class_map, read_class_map
from mask_rcnn.datasets.importers.coco_writer import write_coco
from mask_rcnn.datasets.importers.image_copies import common_folder, copy_images
from mask_rcnn.datasets.importers.source_files import json_or_none
from mask_rcnn.io.atomic_file import is_replaced, is_same_file, is_standard_output
from mask_rcnn.io.console import print_line, print_note, print_warning
from mask_rcnn.io.programs import command_text
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import ImageFileError

_DESCRIPTION = f"""\
Convert annotations of labelling tools to one JSON file in COCO's format, which "mask-rcnn train" and "evaluate" read.
The format is recognised by the content: {'; '.join(text for _, text in FORMATS.values())}.
Several sources become one dataset. The images stay where they are, unless --copy-images is given."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and options to a parser."""
    parser.description = _DESCRIPTION
    add = parser.add_argument
    add('sources', nargs='+', type=Path, metavar='SOURCE', help='annotation file, or folder of annotation files')
    add('--output', required=True, type=output_path, metavar='FILE', help='JSON file to write; - for standard output')
    add('--images', type=Path, metavar='DIR', help='folder of the images (default: where the annotations imply it)')
    add('--format', choices=tuple(FORMATS), help='format of the sources (default: recognised by the content)')
    add(
        '--part',
        metavar='NAME',
        help='part of a source that has several, such as train, valid and test (each becomes a file of its own)',
    )
    add(
        '--copy-images',
        type=Path,
        metavar='DIR',
        help='copy the images to this folder, including those that exist only inside of labelme files',
    )
    add(
        '--classes',
        type=Path,
        metavar='FILE',
        help='text file with one class per line, which fixes names and order; "old: new" or "old = new" renames or '
        'merges, "old:" drops a class; any other class in the data is an error, or left out with --skip-broken '
        '(default: all classes, in the order of the source or sorted)',
    )
    add(
        '--attribute',
        metavar='NAME',
        help="attribute of VIA's regions that names the class (default: the only one, or one named class, label, "
        'category, name or type)',
    )
    add(
        '--default-class',
        default='object',
        metavar='NAME',
        help='class of objects for which the source names none (default: %(default)s)',
    )
    add(
        '--crowds',
        choices=('keep', 'objects'),
        default='keep',
        help='keep crowds of COCO files, which are not trained, or make them single objects: CVAT marks each object '
        'that was painted with a brush as a crowd (default: %(default)s)',
    )
    add(
        '--skip-broken',
        action='store_true',
        help='leave out and count broken images and annotations instead of stopping at the first one',
    )
    add('--strict', action='store_true', help='stop with status 1 if anything would be left out or is doubtful')


def run(args: argparse.Namespace) -> int:
    """Import annotations and report errors; returns the exit status."""
    return run_and_report_errors(partial(_run, args), (AnnotationFileError, ImageFileError))


def _run(args: argparse.Namespace) -> int:
    inputs = [('a source', source) for source in args.sources] + [('the file of --classes', args.classes)]
    check_output('--output', args.output, inputs)
    _check_folders(args)
    class_map = read_class_map(args.classes) if args.classes else None
    options = ImportOptions(
        image_folder=args.images,
        skip_broken=args.skip_broken,
        default_class=args.default_class,
        part=args.part,
        attribute=args.attribute,
        crowds=args.crowds,
        embedded_images=args.copy_images is not None,
    )
    dataset = merge_datasets([import_annotations(source, options, format_name=args.format) for source in args.sources])
    dropped: Counter[str] = Counter()
    if class_map is not None:
        dataset, dropped = apply_class_map(dataset, class_map, skip_broken=args.skip_broken)
    if not dataset.images:
        reason = f'no image remains; {dataset.omissions}' if dataset.omissions else 'has no images'
        raise AnnotationFileError(args.sources[0], reason)
    if not dataset.class_names:
        raise AnnotationFileError(args.sources[0], 'has neither objects nor classes; --classes names the classes')
    problems = [str(items) for items in (dataset.omissions, dataset.doubts) if items]
    if args.strict and problems:
        raise AnnotationFileError(args.sources[0], f'{"; ".join(problems)} (--strict)')
    _refuse_replacing_source(args, dataset)
    folder = common_folder(dataset.images, args.images)
    if args.copy_images is not None:
        dataset = copy_images(dataset, folder, args.copy_images)
        folder = args.copy_images
    write_coco(dataset, args.output, folder)
    _print_summary(args.output, dataset, dropped, folder)
    for problem in problems:
        print_warning(problem)
    return 0


def _check_folders(args: argparse.Namespace) -> None:
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f'--images {args.images}: no such folder')
    if args.copy_images is not None and args.images is not None and is_same_file(args.copy_images, args.images):
        raise UsageError(f'--copy-images {args.copy_images} is the folder of --images')


def _refuse_replacing_source(args: argparse.Namespace, dataset: ImportedDataset) -> None:
    """Refuse an output that would replace an image, or a file in a source folder that may be an annotation.

    A file in COCO's format is replaced if the source has another format: it is probably that of an earlier import.
    """
    if not is_replaced(args.output):
        return
    refuse_inputs('--output', args.output, (('an image of the source', image.path) for image in dataset.images))
    if dataset.format_name != coco.NAME and coco.is_coco(json_or_none(args.output)):
        return
    for source in args.sources:
        if Path(os.path.realpath(args.output)).is_relative_to(os.path.realpath(source)):
            raise UsageError(f'--output {args.output} exists in the source {source}; name another file, or remove it')


def _print_summary(output: Path, dataset: ImportedDataset, dropped: Counter[str], folder: Path) -> None:
    """Print the numbers of images and objects, and the options that use the file."""
    print_result = print_note if is_standard_output(output) else print_line
    counts = Counter(obj.class_name for image in dataset.images for obj in image.objects)
    n_empty = sum(not image.objects for image in dataset.images)
    empty = f' ({n_empty} without objects)' if n_empty else ''
    n_images, n_objects = counted(len(dataset.images), 'image'), counted(counts.total(), 'object')
    print_result(f'{dataset.format_name}: {n_images}{empty}, {n_objects}')
    print_result('classes: ' + ', '.join(f'{name} ({counts[name]})' for name in dataset.class_names))
    if dropped:
        print_result('dropped: ' + ', '.join(f'{name} ({n})' for name, n in dropped.items()))
    if is_standard_output(output):
        return
    print_result(f'wrote {output}; for training:')
    print_result(command_text(['--train-annotations', str(output), '--train-images', str(folder)]))
