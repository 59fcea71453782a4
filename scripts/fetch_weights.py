"""Download Detectron's R-50-C4 Mask R-CNN weights into ``modelfiles/`` unless they are already there."""

import argparse
import sys
from pathlib import Path

from mask_rcnn.weights import download

if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(download.main(Path(__file__).resolve().parents[1] / 'modelfiles'))
