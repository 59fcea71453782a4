"""``make demo``: Detectron's R-50-C4 Mask R-CNN on a photo, from nothing.

Fetches the weights (once, resumable), converts them (once) and runs ``demo.py``.  Without a network it
says which file to put where.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask_rcnn.commands import convert, demo  # noqa: E402
from mask_rcnn.weights import download  # noqa: E402

#: A photo of COCO's val2017, used where none is named.
PHOTO = 'http://images.cocodataset.org/val2017/000000000139.jpg'


def main(argv=None, folder: Path = ROOT / 'modelfiles', photo_address: str = PHOTO) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--image', help="photo to look at (default: one of COCO's)")
    parser.add_argument('--output', default='output.png', help='picture to write (default: %(default)s)')
    args = parser.parse_args(argv)
    weights = folder / demo.DEFAULT_MODEL
    if not weights.exists():
        source = folder / convert.DEFAULT_INPUT
        status = (0 if source.exists() else download.main(folder)) or convert.main([
            '--input', str(source), '--output', str(weights)])
        if status:
            return status
    try:
        image = args.image or download.fetch(photo_address, folder / Path(photo_address).name)
    except download.DownloadError as error:
        sys.stderr.write(f'error: {error}; name a photo of your own: make demo IMAGE=photo.jpg\n')
        return 1
    return demo.main(['--bn2affine', '--modelfile', str(weights), '--image', str(image), '--contour',
                      '--output', args.output, '--json', str(Path(args.output).with_suffix('.json'))])


if __name__ == '__main__':
    sys.exit(main())
