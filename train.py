"""Train Mask R-CNN or evaluate a model; the same as ``mask-rcnn train``.  See ``--help``."""

import sys
from pathlib import Path

if __name__ == '__main__':  # the worker processes that read images import this file as well
    from mask_rcnn.cli import train

    sys.exit(train.main(folder=Path(__file__).resolve().parent))
