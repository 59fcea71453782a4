"""``make demo`` and ``make demo-coco``: a trained model at work, from nothing.

Without ``--coco``: the small model that comes along, on scenes that are drawn on the spot; needs no network.
With it: Detectron's R-50-C4 Mask R-CNN on a photo; fetches the weights (once, resumable) and converts them
(once), and without a network says which file to put where.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import cv2

from mask_rcnn.cli import convert, demo
from mask_rcnn.cli.command import report_error
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.weights import download

#: The bundled model; see ``scripts/train_demo_model.py``.
DEMO_MODEL = 'shapes_mobilenet_v1_fpn.npz'
#: A photo of COCO's val2017, used where none is named.
PHOTO = 'http://images.cocodataset.org/val2017/000000000139.jpg'


def main(argv=None, folder: Path = ROOT / 'modelfiles', photo_address: str = PHOTO) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--coco', action='store_true', help="Detectron's model on a photo")
    add('--image', help="picture to look at (default: drawn scenes; with --coco one of COCO's photos)")
    add('--output', default='output.png', help='picture to write; scenes add their names to it (default: %(default)s)')
    add('--scenes', type=int, default=6, help='how many scenes to draw (default: %(default)s)')
    add('--seed', type=int, default=2_000_016, help='other numbers draw others (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.coco:
        return _look_at_photo(args, folder, photo_address)
    if args.image:
        return _look(folder / DEMO_MODEL, args.image, args.output)
    with tempfile.TemporaryDirectory() as temporary:
        draw_scenes(Path(temporary), args.scenes, args.seed)
        return _look(folder / DEMO_MODEL, temporary, args.output)


def _look_at_photo(args: argparse.Namespace, folder: Path, photo_address: str) -> int:
    weights = folder / demo.DEFAULT_MODEL
    if not weights.exists():
        source = folder / convert.DEFAULT_INPUT
        status = (0 if source.exists() else download.main(folder)) or convert.main(
            ['--input', str(source), '--output', str(weights)]
        )
        if status:
            return status
    try:
        image = args.image or download.fetch(photo_address, folder / Path(photo_address).name)
    except download.DownloadError as error:
        return report_error(f'{error}; name a photo of your own: make demo-coco IMAGE=photo.jpg')
    return _look(weights, image, args.output)


def draw_scenes(folder: Path, count: int, seed: int, size: int = 512) -> None:
    """Write drawn scenes as ``scene_1.png`` ... into a folder."""
    for number, example in enumerate(RichShapesDataset(count, size=size, seed=seed), start=1):
        pixels = example.image.transpose(1, 2, 0)[:, :, ::-1].astype('uint8')
        cv2.imwrite(str(folder / f'scene_{number}.png'), pixels)


def _look(model: Path, image, output: str) -> int:
    return demo.main(
        [
            '--bn2affine',
            '--modelfile',
            str(model),
            '--image',
            str(image),
            '--contour',
            '--output',
            output,
            '--json',
            str(Path(output).with_suffix('.json')),
        ]
    )


if __name__ == '__main__':
    sys.exit(main())
