"""The names of all commands of ``mask-rcnn``, with those of nested commands: ``'data import'``."""

from mask_rcnn.cli import COMMANDS
from mask_rcnn.cli.data import SUBCOMMANDS as DATA_SUBCOMMANDS
from mask_rcnn.cli.inspect import SUBCOMMANDS as INSPECT_SUBCOMMANDS

#: The subcommands of the commands that consist of them.
NESTED = {'data': DATA_SUBCOMMANDS, 'inspect': INSPECT_SUBCOMMANDS}

#: Every command that does work; ``data`` alone does not.
COMMAND_NAMES = [
    *(name for name in COMMANDS if name not in NESTED),
    *(f'{command} {name}' for command, subcommands in NESTED.items() for name in subcommands),
]


def module_name(command: str) -> str:
    """Return the name of the module of a command."""
    name, _, subcommand = command.partition(' ')
    return f'mask_rcnn.cli.{name}.{NESTED[name][subcommand][0]}' if subcommand else f'mask_rcnn.cli.{name}'
