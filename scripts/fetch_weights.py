"""Fetch Detectron's R-50-C4 Mask R-CNN weights into ``modelfiles/``, unless they are there."""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask_rcnn.weights import download  # noqa: E402

if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(download.main(ROOT / 'modelfiles'))
