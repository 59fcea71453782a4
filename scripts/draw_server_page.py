"""Draw the page of ``mask-rcnn serve``: the bundled model in a generated scene that it was not trained on.

python scripts/draw_server_page.py docs/server.png

It needs the extra ``serve``, Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mask_rcnn.cli.command import report_error
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.io.atomic_file import FileError, open_for_writing

MODEL = Path(__file__).resolve().parents[1] / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
_TIMEOUT = 120_000  # milliseconds; the first request may compile kernels


def main(argv: list[str] | None = None) -> int:
    """Draw the picture; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('output', type=Path, help='PNG file to write')
    add('--scene', type=int, default=5, help='index of the scene (default: %(default)s)')
    add('--seed', type=int, default=2_000_000, help='random seed of the scenes (default: %(default)s)')
    add('--size', type=int, nargs=2, default=[1080, 680], metavar='PIXELS', help='size of the page (default: 1080 680)')
    add('--dark', action='store_true', help='draw the page in its dark colours')
    args = parser.parse_args(argv)
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        return report_error('no chromium and no google-chrome on the PATH')
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / 'scene.png'
        image = RichShapesDataset(args.scene + 1, size=512, seed=args.seed)[args.scene].image
        Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8)).save(scene)
        command = [
            sys.executable,
            '-m',
            'mask_rcnn.cli',
            'serve',
            '--modelfile',
            str(MODEL),
            '--bn2affine',
            '--port',
            '0',
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                _draw(chromium, _read_address(server), scene, args)
            except FileError as error:
                return report_error(str(error))
            finally:
                server.terminate()
    return 0


def _read_address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if address := re.search(r'http://\S+', line):
            return address[0]
    raise RuntimeError('the server has not started')


def _draw(chromium: str, address: str, scene: Path, args: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    options = ['--no-sandbox'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    width, height = args.size
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(
            viewport={'width': width, 'height': height}, color_scheme='dark' if args.dark else 'light'
        )
        page.goto(address)
        page.locator('#file').set_input_files(scene)
        page.locator('#objects button').first.wait_for(timeout=_TIMEOUT)
        # A second request, without the compilation, whose time is in the picture.
        page.locator('#file').set_input_files(scene)
        page.locator('#objects button').first.wait_for(state='detached')
        page.locator('#objects button').first.wait_for(timeout=_TIMEOUT)
        page.wait_for_timeout(500)  # transitions
        data = page.screenshot()
        browser.close()
    # 256 colours: half the size, and no visible difference.
    quantized = Image.open(io.BytesIO(data)).convert('RGB').quantize(256, dither=Image.Dither.NONE)
    with open_for_writing(args.output) as file:
        quantized.save(file, 'PNG', optimize=True)


if __name__ == '__main__':
    sys.exit(main())
