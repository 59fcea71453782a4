"""Say what narrower numbers cost in detections: COCO's AP in each precision, and against what fp32 finds.

    python scripts/benchmarks/precision_ap.py --modelfile FILE --val-annotations FILE --val-images DIR [--gpu 0]
        [--precisions tf32 fp16 bf16] [--images 500] [--json FILE]

"AP" is against the annotations.  "As fp32" is the AP against the detections of fp32, of which those with a score of at
least --min-score are taken as the truth: 100 where a precision finds the same, more sensitive than the other by far,
because the model's own mistakes do not count.  Detections with an empty mask are nothing that can be found again, and
take no part in the comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from pycocotools import mask as coco_mask

import mask_rcnn
from mask_rcnn.cli import dataset_options
from mask_rcnn.cli.arguments import gpu_number
from mask_rcnn.cli.command import run_and_report_errors
from mask_rcnn.cli.evaluate import check_classes
from mask_rcnn.cli.options import check_precision, choose_device
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.evaluation import COCOEvaluator, Metrics, evaluate_model
from mask_rcnn.ops.cudnn_frontend import PRECISIONS, using_precision
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.weights import WeightFileError


def find(model, data_set, precision: str, indices) -> tuple[Metrics, list[dict]]:
    """Return a model's metrics in a precision, and its detections in COCO's result format.

    Args:
        model (mask_rcnn.MaskRCNN): The model.
        data_set: The data.
        precision: One of :data:`mask_rcnn.ops.cudnn_frontend.PRECISIONS`.
        indices: The images that are looked at.
    """
    with tempfile.TemporaryDirectory() as folder, using_precision(precision):
        metrics = evaluate_model(model, data_set, results_file=Path(folder) / 'results.json', indices=indices)
        of_kinds = [json.loads((Path(folder) / f'results.{kind}.json').read_text()) for kind in metrics.ap_per_class()]
    # A file for each kind, all in the same order.
    return metrics, [{key: value for part in parts for key, value in part.items()} for parts in zip(*of_kinds)]


def agreement(truth: list[dict], found: list[dict], data_set, *, min_score: float) -> Metrics:
    """Return the metrics of detections, with others as the truth.

    Args:
        truth: Detections in COCO's result format; those with ``min_score`` or more are what is to be found.
        found: What is measured.
        data_set: Their data set.
        min_score: Score from which on a detection is a truth.
    """
    content = data_set.ground_truth()
    annotations = [
        _as_annotation(result, number)
        for number, result in enumerate(filter(_is_something, truth), 1)
        if result['score'] >= min_score
    ]
    evaluator = COCOEvaluator(
        {**content, 'annotations': annotations},
        class_names=data_set.class_names,
        category_ids=data_set.category_ids,
        masks=any('segmentation' in result for result in truth),
        keypoints=any('keypoints' in result for result in truth),
    )
    by_image = {image['id']: [] for image in content['images']}  # others than those looked at have nothing
    for result in filter(_is_something, found):
        by_image[result['image_id']].append(result)
    evaluator.merge([by_image])
    return evaluator.evaluate()


def _is_something(result: dict) -> bool:
    return 'segmentation' not in result or coco_mask.area(result['segmentation']) > 0


def _as_annotation(result: dict, number: int) -> dict:
    width, height = result['bbox'][2:]
    # Of a mask its size; of keypoints, by which OKS measures distances, that of the box.
    area = coco_mask.area(result['segmentation']) if 'segmentation' in result else width * height
    annotation = {**result, 'id': number, 'iscrowd': 0, 'area': float(area)}
    if 'keypoints' in result:
        annotation['num_keypoints'] = len(result['keypoints']) // 3
    return annotation


def compare(model, data_set, precisions, *, n_images: int | None = None, min_score: float = 0.5) -> dict:
    """Return what each precision finds, as plain data.

    Args:
        model (mask_rcnn.MaskRCNN): The model, on its device.
        data_set: The data.
        precisions: What is compared with fp32.
        n_images: Look only at so many images, spread over the data.
        min_score: See :func:`agreement`.
    """
    n = len(data_set) if n_images is None else min(n_images, len(data_set))
    indices = [i * len(data_set) // n for i in range(n)]
    metrics, truth = find(model, data_set, 'fp32', indices)
    rows = {'fp32': {'ap': metrics.summary(), 'detections': len(truth)}}
    for precision in precisions:
        metrics, found = find(model, data_set, precision, indices)
        rows[precision] = {
            'ap': metrics.summary(),
            'detections': len(found),
            'as_fp32': agreement(truth, found, data_set, min_score=min_score).summary(),
        }
    return {'precisions': rows, 'images': n, 'min_score': min_score, 'network': model.config.to_dict()}


def table(result: dict) -> str:
    """Return the result as text, in percent."""
    rows = result['precisions']
    kinds = [name.removesuffix('/AP') for row in rows.values() for name in row['ap'] if name.endswith('/AP')]
    kinds = list(dict.fromkeys(kinds))
    lines = [
        f'{result["network"]["extractor"]}, {result["images"]} images',
        f'{"precision":<10}'
        + ''.join(f'{f"{kind} AP":>14}{"change":>9}{"as fp32":>9}' for kind in kinds)
        + f'{"detections":>12}',
    ]
    for name, row in rows.items():
        cells = ''
        for kind in kinds:
            ap, first = row['ap'].get(f'{kind}/AP'), rows['fp32']['ap'].get(f'{kind}/AP')
            change = None if None in (ap, first) or name == 'fp32' else ap - first
            agreed = row.get('as_fp32', {}).get(f'{kind}/AP')
            cells += f'{_percent(ap):>14}{_percent(change, "+.2f"):>9}{_percent(agreed):>9}'
        lines.append(f'{name:<10}{cells}{row["detections"]:>12}')
    return '\n'.join(lines)


def _percent(value: float | None, format_spec: str = '.2f') -> str:
    return '-' if value is None else f'{100 * value:{format_spec}}'


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    dataset_options.add_arguments(parser, Path('.'), parts=('val',))
    parser.add_argument('--modelfile', type=Path, required=True, metavar='FILE', help='weights, .npz')
    parser.add_argument('--gpu', type=gpu_number, metavar='ID', help='(default: 0 where CUDA works, else the CPU)')
    parser.add_argument(
        '--precisions',
        nargs='+',
        choices=tuple(PRECISIONS),
        default=['tf32', 'fp16', 'bf16'],
        help='what is compared with fp32 (default: all others)',
    )
    parser.add_argument('--images', type=int, metavar='N', help='look at so many only (default: all)')
    parser.add_argument(
        '--min-score',
        type=float,
        default=0.5,
        metavar='S',
        help='detections of fp32 from this score on are the truth (default: %(default)s)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 1:
        parser.error('--images must be at least 1')
    return args


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; returns the exit status."""
    data = dataset_options.DatasetArguments.from_namespace(args)
    gpu = choose_device(args.gpu)
    for precision in args.precisions:
        check_precision(precision, gpu)
    model = mask_rcnn.load(args.modelfile, gpu=gpu)
    data_set = data.open('val', size=model.config.min_size, keypoints=model.config.n_keypoint > 0)
    check_classes(model, data_set, data.title('val'))
    result = compare(model, data_set, args.precisions, n_images=args.images, min_score=args.min_score)
    print(table(result))
    if args.json:
        partial = args.json.with_name(args.json.name + '.part')
        partial.write_text(json.dumps(result, indent=1) + '\n')
        os.replace(partial, args.json)
    return 0


def main(argv=None) -> int:
    args = parse_arguments(argv)
    return run_and_report_errors(lambda: run(args), (WeightFileError, AnnotationFileError, ImageFileError))


if __name__ == '__main__':
    sys.exit(main())
