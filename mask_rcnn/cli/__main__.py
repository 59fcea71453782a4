"""The console command ``mask-rcnn`` as ``python -m mask_rcnn.cli``, without an installation."""

import sys

from mask_rcnn.cli import main

if __name__ == '__main__':
    sys.exit(main())
