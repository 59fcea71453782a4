"""Draw the README's picture: detections of the bundled model in generated scenes that it was not trained on.

python scripts/draw_example.py docs/example.jpg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

import mask_rcnn
from mask_rcnn.cli.command import report_error
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.io.atomic_file import FileError, open_for_writing

MODEL = Path(__file__).resolve().parents[1] / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
_GAP = 12  # pixels between scenes


def main(argv: list[str] | None = None) -> int:
    """Draw the picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('output', type=Path, help='JPEG file to write')
    add('--scenes', type=int, nargs='+', default=[0, 4, 5], help='indices of the scenes (default: 0 4 5)')
    add('--seed', type=int, default=2_000_000, help='random seed of the scenes (default: %(default)s)')
    add('--side', type=int, default=400, help='width of a scene in the picture in pixels (default: %(default)s)')
    args = parser.parse_args(argv)
    model = mask_rcnn.load(MODEL)
    scenes = RichShapesDataset(max(args.scenes) + 1, size=512, seed=args.seed)
    images = [scenes[i].image for i in args.scenes]
    columns = []
    for image, detections in zip(images, model.detect(images), strict=True):
        drawn = detections.above(0.7).draw(image, contour=True)
        columns += [
            cv2.resize(drawn, (args.side, args.side), interpolation=cv2.INTER_AREA),
            np.full((args.side, _GAP, 3), 255, np.uint8),
        ]
    bgr = np.concatenate(columns[:-1], axis=1)[:, :, ::-1]
    _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])
    try:
        with open_for_writing(args.output) as file:
            file.write(data.tobytes())
    except FileError as error:
        return report_error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
