"""The parts that all commands share: the parser, the main function, and errors as one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from mask_rcnn.io.console import (
    escape,
    print_error,
    print_note,
    print_warning,
    protected_streams,
    report_lost_output,
)
from mask_rcnn.io.errors import OneLineError


class UsageError(OneLineError):
    """Arguments that contradict each other, the machine or the files; exit status 2."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose long flags, defined with hyphens, may be written with underscores: ``--lr_step``."""

    def parse_known_args(  # type: ignore[override]  # the base class has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse arguments after replacing the underscores in flags; see :class:`argparse.ArgumentParser`."""
        args = list(sys.argv[1:] if args is None else args)
        n_options = args.index('--') if '--' in args else len(args)
        args[:n_options] = map(_with_hyphens, args[:n_options])
        self._check_not_empty(args)
        return super().parse_known_args(args, namespace)

    def _check_not_empty(self, args: Sequence[str]) -> None:
        """Refuse empty values: the empty name of a file would be the current folder."""
        for previous, argument in zip(['', *args], args, strict=False):
            if not argument or re.fullmatch(r'--[\w-]+=', argument):
                option = argument.removesuffix('=') or previous
                place = f'argument {option}: the value' if re.match(r'--?[A-Za-z]', option) else 'an argument'
                self.error(f'{place} is empty; a variable of the shell may be unset')

    def error(self, message: str) -> NoReturn:
        """Write the usage and the message as one line, and end the process with status 2."""
        super().error(escape(message))


def _with_hyphens(argument: str) -> str:
    """Return ``--lr-step=1`` for ``--lr_step=1``; arguments that are not long flags stay as they are."""
    match = re.fullmatch(r'(--\w[\w-]*)(=.*)?', argument, re.DOTALL)
    return argument if match is None else match[1].replace('_', '-') + (match[2] or '')


def flag(dest: str) -> str:
    """Return the documented flag of an argument: ``--lr-step`` for ``lr_step``."""
    return '--' + dest.replace('_', '-')


def parse_command_line(
    configure: Callable[[argparse.ArgumentParser], None],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> argparse.Namespace:
    """Parse the arguments of a command.  Arguments that the parser refuses end the process with status 2.

    Args:
        configure: Adds the command's description and options to a parser.
        argv: Arguments without the program's name; ``None`` for those of the process.
        prog: The program's name in the help; ``None`` for that of the process.
    """
    parser = ArgumentParser(prog=prog)
    configure(parser)
    with protected_streams():
        return parser.parse_args(argv)


def report_error(message: str, status: int = 1) -> int:
    """Write an error line and return the exit status."""
    print_error(message)
    return status


@functools.cache
def announce_compilation() -> None:
    """Write one line if this process compiles kernels, when it compiles the first one."""
    from mask_rcnn.ops.runtime.compilation import on_first_compilation  # mask-rcnn doctor also runs without Numba

    message = 'compiling CPU kernels, which are then cached; this can take a minute'
    on_first_compilation(lambda: print_note(message))


class _ConsoleHandler(logging.Handler):
    """Writes the warnings of the package's loggers as lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # as logging does: a message that cannot be formatted ends no command
            print_warning(record.getMessage())


@contextlib.contextmanager
def _logging_to_console() -> Iterator[None]:
    """Write warnings of the package to the console, unless the caller of the command has configured logging."""
    logger = logging.getLogger('mask_rcnn')
    if logger.hasHandlers():
        yield
        return
    handler = _ConsoleHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def run_and_report_errors(action: Callable[[], int], errors: tuple[type[Exception], ...]) -> int:
    """Run an action and turn errors that the user can correct into one line and an exit status.

    Args:
        action: Does the work; returns the exit status.
        errors: Types of errors whose message is a complete line.  :class:`UsageError`, :class:`OSError`,
            :class:`MemoryError`, :class:`KeyboardInterrupt` and errors of CUDA and its libraries are always caught.

    Returns:
        The exit status: that of the action, 1 for a failed run, 2 for bad arguments or 130 after an interrupt.  A
        standard output that cannot be written fails the run after its work is done, unless its reader has ended.
    """
    with protected_streams(), _logging_to_console():
        announce_compilation()
        return report_lost_output(_run(action, errors))


def _run(action: Callable[[], int], errors: tuple[type[Exception], ...]) -> int:
    try:
        return action()
    except UsageError as error:
        return report_error(str(error), 2)
    except errors as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(f'{error.filename}: {error.strerror}' if error.filename else str(error))
    except MemoryError as error:
        return report_error(f'not enough memory: {" ".join(str(error).split()) or "an array cannot be allocated"}')
    except KeyboardInterrupt:
        return report_error('interrupted', 130)
    except Exception as error:
        reason = _describe_gpu_error(error)
        if reason is None:
            raise
        return report_error(reason)


def _describe_gpu_error(error: Exception) -> str | None:
    try:
        from mask_rcnn.ops.runtime.gpu_errors import describe_gpu_error  # mask-rcnn doctor also runs without Chainer
    except ImportError:
        return None
    return describe_gpu_error(error)
