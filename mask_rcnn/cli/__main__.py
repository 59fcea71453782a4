"""``python -m mask_rcnn.cli``: the console command without its installation."""

import sys

from mask_rcnn.cli import main

if __name__ == '__main__':
    sys.exit(main())
