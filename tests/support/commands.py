"""The names of all commands of ``mask-rcnn``, with those of nested commands: ``'data import'``."""

from mask_rcnn.cli import COMMANDS
from mask_rcnn.cli.data import SUBCOMMANDS

#: Every command that does work; ``data`` alone does not.
COMMAND_NAMES = [*(name for name in COMMANDS if name != 'data'), *(f'data {name}' for name in SUBCOMMANDS)]


def module_name(command: str) -> str:
    """Return the name of the module of a command."""
    name, _, subcommand = command.partition(' ')
    return f'mask_rcnn.cli.data.{SUBCOMMANDS[subcommand][0]}' if subcommand else f'mask_rcnn.cli.{name}'
