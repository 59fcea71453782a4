"""Make the README's picture: a synthetic scene, and the instances in it as the demo draws them.

    python scripts/draw_example.py docs/example.jpg

The instances are the data set's own annotations, so that no weights are needed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402

import mask_rcnn  # noqa: E402
from mask_rcnn.datasets import ShapesDataset  # noqa: E402


def annotated(data_set: ShapesDataset, index: int) -> tuple[np.ndarray, mask_rcnn.Detections]:
    """Return a picture of the data set and its annotations as detections."""
    example = data_set[index]
    size, annotations = example.image.shape[1:], example.annotations
    rles = [shape if isinstance(shape, dict) else coco_mask.merge(coco_mask.frPyObjects(list(shape), *size))
            for shape in annotations.segmentations]
    masks = np.stack([np.asarray(coco_mask.decode(rle)).astype(bool) for rle in rles])
    return example.image, mask_rcnn.Detections(
        boxes=annotations.boxes, labels=annotations.labels, scores=np.ones(len(masks), np.float32), masks=masks,
        size=size, class_names=data_set.class_names)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('output', type=Path)
    parser.add_argument('--seed', type=int, default=4)
    args = parser.parse_args(argv)
    image, instances = annotated(ShapesDataset(1, size=480, seed=args.seed), 0)
    plain = image.transpose(1, 2, 0).astype(np.uint8)
    drawn = instances.draw(image, contour=True, scores=False, background='grey')
    gap = np.full((plain.shape[0], 16, 3), 255, np.uint8)
    if not cv2.imwrite(str(args.output), np.concatenate([plain, gap, drawn], axis=1)[:, :, ::-1]):
        sys.exit(f'{args.output}: cannot be written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
