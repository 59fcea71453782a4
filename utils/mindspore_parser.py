"""Convert MindSpore's checkpoints; see ``--help``.  The same as ``mask-rcnn convert``."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

from mask_rcnn.cli import convert

if __name__ == '__main__':
    sys.exit(convert.main(folder=ROOT / 'modelfiles', default='maskrcnn.ckpt'))
