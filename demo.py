"""Find the objects in images; see ``--help``.  The same as ``mask-rcnn demo``."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from mask_rcnn.commands import demo  # noqa: E402

if __name__ == '__main__':
    sys.exit(demo.main(folder=ROOT / 'modelfiles'))
