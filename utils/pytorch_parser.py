"""Convert PyTorch's files of Matterport's network; see ``--help``.  The same as ``mask-rcnn convert``."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

from mask_rcnn.cli import convert

if __name__ == '__main__':
    sys.exit(convert.main(folder=ROOT / 'modelfiles', default='mask_rcnn_coco.pth'))
