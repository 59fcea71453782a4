"""Train Mask R-CNN or evaluate a model; see ``--help``.  The same as ``mask-rcnn train``."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent

if __name__ == '__main__':  # the processes that read images import this file, too
    from mask_rcnn.cli import train

    sys.exit(train.main(folder=ROOT))
