"""Download the original programs' outputs, with which the tests in ``tests/golden`` compare this project.

The outputs are attached to a release of the project on GitHub.  By default its address is that of the remote "origin";
in a fork, or without a remote, name the address of the archive or the downloaded file.  An interrupted download is
resumed, every file is checked against its SHA-256, and the tests find the folder ``.golden`` by themselves.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from golden_archive import ROOT, Pin, check_replaceable, is_complete, read_pin, unpack

from mask_rcnn.cli.command import UsageError, report_error
from mask_rcnn.io.errors import OneLineError
from mask_rcnn.io.wording import counted
from mask_rcnn.weights import download

#: Addresses of a repository on GitHub, as git writes them.
_GITHUB = re.compile(
    r'(?:https://(?:[^@/]+@)?github\.com/|(?:ssh://)?git@github\.com[:/])([\w.-]+/[\w.-]+?)(?:\.git)?/?'
)


def main(argv: list[str] | None = None) -> int:
    """Download and unpack the outputs unless they are there; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', nargs='?', help='address or file of the archive (default: the release of "origin")')
    parser.add_argument('--folder', type=Path, default=ROOT / '.golden', help='folder to write (default: .golden)')
    parser.add_argument(
        '--sha256', help='SHA-256 of the list in another archive than that of tests/golden/archive.json'
    )
    args = parser.parse_args(argv)
    try:
        pin = read_pin()
        return fetch_golden(args.source, args.folder, pin._replace(sha256=args.sha256 or pin.sha256))
    except OneLineError as error:
        return report_error(str(error))


def fetch_golden(source: str | None, folder: Path, pin: Pin, **options: float) -> int:
    """Download and unpack the outputs unless the folder is complete.

    Args:
        source: Address or file of the archive; ``None`` for the release of the remote ``origin``.
        folder: The folder to write.
        pin: The archive.
        **options: Arguments of :func:`mask_rcnn.weights.download.fetch`.

    Returns:
        The exit status, 0.

    Raises:
        OneLineError: The archive cannot be downloaded, is damaged or is another one, or the folder cannot be written.
    """
    if is_complete(folder, pin.sha256):
        print(f'{folder}: {pin.name} is complete')
        return 0
    folder = Path(os.path.realpath(folder))  # "." has no name that the archive beside it could have
    check_replaceable(folder)
    is_address = source is None or '://' in source
    archive = folder.with_name(f'{folder.name}-{pin.sha256[:16]}.zip') if is_address else Path(str(source))
    if is_address:
        download.fetch(source or release_address(pin.name), archive, **options)  # type: ignore[arg-type]
    try:
        n_files = unpack(archive, folder, pin.sha256)
    finally:
        if is_address:  # a damaged archive is downloaded again
            archive.unlink(missing_ok=True)
    print(f'{folder}: {counted(n_files, "file")} of {pin.name}')
    return 0


def release_address(name: str, root: Path = ROOT) -> str:
    """Return the address of the archive in the release of the repository that a checkout was cloned from.

    Args:
        name: The name of the archive and the tag of the release.
        root: The checkout.

    Raises:
        UsageError: The remote ``origin`` is not a repository on GitHub.
    """
    command = ['git', '-C', str(root), 'remote', 'get-url', 'origin']
    try:
        remote = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        remote = ''
    match = _GITHUB.fullmatch(remote)
    if match is None:
        found = f'the remote "origin" is {remote}, not a repository on GitHub' if remote else 'no remote "origin"'
        raise UsageError(f'{found}; name the address or the file of {name}.zip')
    return f'https://github.com/{match[1]}/releases/download/{name}/{name}.zip'


if __name__ == '__main__':
    sys.exit(main())
