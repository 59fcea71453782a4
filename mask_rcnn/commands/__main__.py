"""``python -m mask_rcnn.commands``: the console command without its installation."""

import sys

from mask_rcnn.commands import main

if __name__ == '__main__':
    sys.exit(main())
