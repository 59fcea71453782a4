"""Find the objects in images; see ``--help``.  The same as ``mask-rcnn demo``."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent

from mask_rcnn.cli import demo

if __name__ == '__main__':
    sys.exit(demo.main(folder=ROOT / 'modelfiles'))
