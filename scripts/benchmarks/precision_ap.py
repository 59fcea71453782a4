"""Measure the AP of each precision, against the annotations and against the detections of fp32.

    python scripts/benchmarks/precision_ap.py --modelfile FILE --val-annotations FILE --val-images DIR [--gpu 0]
        [--precisions tf32 fp16 bf16] [--images 500] [--json FILE]

"AP" uses the annotations as ground truth.  "As fp32" uses the detections of fp32 with a score of at least --min-score:
it is 100 if a precision gives the same detections, and much more sensitive, because errors of the model do not count.
Detections with an empty mask are left out of this comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmark import write_json
from pycocotools import mask as coco_mask

import mask_rcnn
from mask_rcnn.cli import dataset_options
from mask_rcnn.cli.command import run_and_report_errors
from mask_rcnn.cli.evaluate import check_classes
from mask_rcnn.cli.options import check_precision, choose_device, gpu_number
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.evaluation import COCOEvaluator, Metrics, evaluate_model
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.cudnn_frontend import PRECISIONS, using_precision
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.weights import WeightFileError


def detect_and_evaluate(model, dataset, precision: str, indices) -> tuple[Metrics, list[dict]]:
    """Return the metrics of a model in one precision, and its detections in COCO's result format.

    Args:
        model (mask_rcnn.MaskRCNN): The model.
        dataset: The dataset.
        precision: One of :data:`mask_rcnn.ops.cudnn_frontend.PRECISIONS`.
        indices: Indices of the images.
    """
    with tempfile.TemporaryDirectory() as folder, using_precision(precision):
        metrics = evaluate_model(model, dataset, results_file=Path(folder) / 'results.json', indices=indices)
        per_kind = [json.loads((Path(folder) / f'results.{kind}.json').read_text()) for kind in metrics.ap_per_class()]
    # One file per kind, all in the same order.
    return metrics, [
        {key: value for part in parts for key, value in part.items()} for parts in zip(*per_kind, strict=True)
    ]


def agreement(truth: list[dict], found: list[dict], dataset, *, min_score: float) -> Metrics:
    """Return the metrics of detections with other detections as ground truth.

    Args:
        truth: Detections in COCO's result format; those with a score of at least ``min_score`` are the ground truth.
        found: Detections to evaluate.
        dataset: Their dataset.
        min_score: Minimum score of the ground truth.
    """
    content = dataset.ground_truth()
    annotations = [
        _as_annotation(result, number)
        for number, result in enumerate(filter(_has_mask_or_none, truth), 1)
        if result['score'] >= min_score
    ]
    evaluator = COCOEvaluator(
        {**content, 'annotations': annotations},
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        masks=any('segmentation' in result for result in truth),
        keypoints=any('keypoints' in result for result in truth),
    )
    # Images that were not evaluated have no results.
    by_image: dict[int | str, list[dict]] = {image['id']: [] for image in content['images']}
    for result in filter(_has_mask_or_none, found):
        by_image[result['image_id']].append(result)
    for image_id, results in by_image.items():
        evaluator.add_results(image_id, results)
    return evaluator.evaluate()


def _has_mask_or_none(result: dict) -> bool:
    return 'segmentation' not in result or coco_mask.area(result['segmentation']) > 0


def _as_annotation(result: dict, number: int) -> dict:
    width, height = result['bbox'][2:]
    # OKS scales distances by the area; without a mask it is the area of the box.
    area = coco_mask.area(result['segmentation']) if 'segmentation' in result else width * height
    annotation = {**result, 'id': number, 'iscrowd': 0, 'area': float(area)}
    if 'keypoints' in result:
        annotation['num_keypoints'] = len(result['keypoints']) // 3
    return annotation


def compare(model, dataset, precisions, *, n_images: int | None = None, min_score: float = 0.5) -> dict:
    """Return the metrics of each precision as plain data.

    Args:
        model (mask_rcnn.MaskRCNN): The model, on its device.
        dataset: The dataset.
        precisions: Precisions to compare with fp32.
        n_images: Number of images, spread over the dataset; all by default.
        min_score: See :func:`agreement`.
    """
    n = len(dataset) if n_images is None else min(n_images, len(dataset))
    indices = [i * len(dataset) // n for i in range(n)]
    metrics, truth = detect_and_evaluate(model, dataset, 'fp32', indices)
    rows = {'fp32': {'ap': metrics.summary(), 'detections': len(truth)}}
    for precision in precisions:
        metrics, found = detect_and_evaluate(model, dataset, precision, indices)
        rows[precision] = {
            'ap': metrics.summary(),
            'detections': len(found),
            'as_fp32': agreement(truth, found, dataset, min_score=min_score).summary(),
        }
    return {'precisions': rows, 'images': n, 'min_score': min_score, 'network': model.config.to_dict()}


def table(result: dict) -> str:
    """Format the result as a table, in percent."""
    rows = result['precisions']
    kinds = [name.removesuffix('/AP') for row in rows.values() for name in row['ap'] if name.endswith('/AP')]
    kinds = list(dict.fromkeys(kinds))
    lines = [
        f'{result["network"]["extractor"]}, {counted(result["images"], "image")}',
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


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    dataset_options.add_arguments(parser, Path('.'), parts=('val',))
    parser.add_argument('--modelfile', type=Path, required=True, metavar='FILE', help='weights, .npz')
    parser.add_argument('--gpu', type=gpu_number, metavar='ID', help='(default: 0 where CUDA works, else the CPU)')
    parser.add_argument(
        '--precisions',
        nargs='+',
        choices=tuple(PRECISIONS),
        default=['tf32', 'fp16', 'bf16'],
        help='precisions to compare with fp32 (default: all others)',
    )
    parser.add_argument('--images', type=int, metavar='N', help='number of images (default: all)')
    parser.add_argument(
        '--min-score',
        type=float,
        default=0.5,
        metavar='S',
        help='minimum score of the fp32 detections that are the ground truth (default: %(default)s)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 1:
        parser.error('--images must be at least 1')
    return args


def run(args: argparse.Namespace) -> int:
    """Run the comparison that the arguments describe; returns the exit status."""
    data = dataset_options.DatasetArguments.from_namespace(args)
    gpu = choose_device(args.gpu)
    for precision in args.precisions:
        check_precision(precision, gpu)
    model = mask_rcnn.load(args.modelfile, gpu=gpu)
    dataset = data.open('val', size=model.config.min_size, keypoints=model.config.n_keypoint > 0)
    check_classes(model, dataset, data.title('val'))
    result = compare(model, dataset, args.precisions, n_images=args.images, min_score=args.min_score)
    print(table(result))
    if args.json:
        write_json(args.json, result)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    args = parse_arguments(argv)
    return run_and_report_errors(lambda: run(args), (WeightFileError, AnnotationFileError, ImageFileError))


if __name__ == '__main__':
    sys.exit(main())
