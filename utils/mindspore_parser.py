"""Convert MindSpore's checkpoints; see ``--help``.  The same as ``mask-rcnn convert``."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask_rcnn.commands import convert  # noqa: E402

if __name__ == '__main__':
    sys.exit(convert.main(folder=ROOT / 'modelfiles', default='maskrcnn.ckpt'))
