"""The console command ``mask-rcnn``: one subcommand per module listed in :data:`COMMANDS`.

Each of these modules has ``configure(parser)``, which adds its options; ``run(args)``, which does the work; and
``main(argv)``, which parses, runs and returns the exit status (0, 1 for a failed run, 2 for bad arguments).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

import mask_rcnn
from mask_rcnn.io.console import escape, print_error, protected_streams

#: Subcommand -> its summary.  The module is imported when the subcommand is called, which keeps ``--help`` fast.
COMMANDS = {
    'train': 'train, fine-tune or resume training on COCO, your own data or generated shapes',
    'evaluate': "evaluate a model with COCO's metrics",
    'demo': 'detect objects in images, videos and cameras; write pictures, videos and results',
    'serve': 'detect objects over HTTP, with a page for the browser',
    'convert': 'convert weights of Detectron, torchvision, detectron2, Matterport and others to .npz, and back',
    'export': 'export a model as one ONNX file, from the image to the detections',
    'info': 'describe a weight file',
    'data': 'import, check, describe, show and split your own data',
    'doctor': 'describe the installation and the machine, and state what is missing',
    'inspect': 'show every step of a detection, the training targets, or the weights of a file',
}

# Where colorama is installed, Numba lets it replace the standard streams.  At the end of the process it would append a
# control sequence to the output, also to JSON that goes through the terminal of mpiexec.
os.environ.setdefault('NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING', '1')


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Arguments without the program's name; ``None`` for those of the process.

    Returns:
        The exit status, 130 after an interrupt; bad arguments end the process with status 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with protected_streams(), _without_backend():
        name = _parser().parse_args([escape(word) for word in argv[:1]]).command
        try:
            command = importlib.import_module(f'mask_rcnn.cli.{name}')
            return command.main(argv[1:], prog=f'mask-rcnn {name}')
        except KeyboardInterrupt:  # during the imports, which take a second; the command handles later ones
            print_error('interrupted')
            return 130
        except ImportError as error:
            if (error.name or '').partition('.')[0] == 'mask_rcnn':
                raise
            reason = ' '.join(str(error).split())
            print_error(f'a package cannot be imported ({reason}); "mask-rcnn doctor" states what to install')
            return 1


@contextlib.contextmanager
def _without_backend() -> Iterator[None]:
    """Hide ``MPLBACKEND``: commands open no windows, and Matplotlib cannot be imported if it names no backend."""
    backend = os.environ.pop('MPLBACKEND', None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ['MPLBACKEND'] = backend


def _parser() -> argparse.ArgumentParser:
    listing = '\n'.join(f'  {name:10}{summary}' for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='mask-rcnn',
        usage='mask-rcnn [-h] [--version] COMMAND ...',
        description=f'Mask R-CNN on Chainer and CuPy.\n\ncommands:\n{listing}\n\n'
        '"mask-rcnn COMMAND --help" lists the options of a command.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'mask-rcnn {mask_rcnn.__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    return parser
