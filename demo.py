"""Detect objects in images; the same as ``mask-rcnn demo``.  See ``--help``."""

import sys
from pathlib import Path

from mask_rcnn.cli import demo

if __name__ == '__main__':
    sys.exit(demo.main(folder=Path(__file__).resolve().parent / 'modelfiles'))
