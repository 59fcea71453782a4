"""Convert Matterport's weights; the same as ``mask-rcnn convert``.  See ``--help``."""

import sys
from pathlib import Path

from mask_rcnn.cli import convert

if __name__ == '__main__':
    sys.exit(convert.main(folder=Path(__file__).resolve().parents[1] / 'modelfiles', default='mask_rcnn_coco.h5'))
