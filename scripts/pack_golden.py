"""Pack the original programs' outputs for a release: the archive that ``scripts/fetch_golden.py`` downloads.

The same files give the same bytes on every machine.  The last line of the output goes into
``tests/golden/archive.json``; a changed archive gets a new name: older versions of the project need the earlier one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from golden_archive import PIN, Pin, pack, read_pin

from mask_rcnn.cli.command import report_error
from mask_rcnn.io.errors import OneLineError


def main(argv: list[str] | None = None) -> int:
    """Write the archive and print its pin; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder of the outputs, with one folder for each program')
    parser.add_argument('--name', help='name of the archive without .zip (default: that of tests/golden/archive.json)')
    parser.add_argument('--out', type=Path, default=Path(), help='folder of the archive (default: the current one)')
    args = parser.parse_args(argv)
    try:
        known = read_pin()
        name = args.name or known.name
        packed = Pin(name, pack(args.folder, args.out / f'{name}.zip'))
    except OneLineError as error:
        return report_error(str(error))
    is_known = 'contains' if packed == known else 'does not contain'
    print(f'{args.out / name}.zip; {PIN.name} {is_known} this line:')
    print(json.dumps(packed._asdict()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
