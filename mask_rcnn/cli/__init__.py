"""The console command ``mask-rcnn``: one subcommand per module of this package.

Each module has ``configure(parser)``, which adds its options, and ``run(args)``, which does the work and
returns the exit status: 0, 1 for a failed run, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

#: What each subcommand does; its module is only imported when it is called, so that help comes at once.
COMMANDS = {
    'train': "train, fine-tune, go on; on COCO, data of one's own or drawn shapes",
    'evaluate': "evaluate a model with COCO's metrics",
    'demo': 'find the objects in images; write pictures and COCO results',
    'convert': "convert Detectron's, Matterport's, PyTorch's or MindSpore's weights to .npz",
    'info': 'say what a weight file is',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Arguments without the program's name (default: those of the process).

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name, rest = _parser().parse_args(argv[:1]).command, argv[1:]
    command = importlib.import_module(f'mask_rcnn.cli.{name}')
    parser = argparse.ArgumentParser(prog=f'mask-rcnn {name}')
    command.configure(parser)
    return command.run(parser.parse_args(rest))


def _parser() -> argparse.ArgumentParser:
    listing = '\n'.join(f'  {name:10}{what}' for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='mask-rcnn',
        usage='mask-rcnn [-h] [--version] COMMAND ...',
        add_help=True,
        description=f'Mask R-CNN on Chainer and CuPy.\n\ncommands:\n{listing}\n\n'
        '"mask-rcnn COMMAND --help" lists the options of a command.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action=_Version, nargs=0, help='show the version and exit')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    return parser


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser, namespace, values, option_string=None):
        import mask_rcnn

        sys.stdout.write(f'mask-rcnn {mask_rcnn.__version__}\n')
        parser.exit()
