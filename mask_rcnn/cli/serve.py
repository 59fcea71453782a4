"""``mask-rcnn serve``: detection over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mask_rcnn.cli.command import UsageError, parse_command_line, run_and_report_errors
from mask_rcnn.cli.network_options import add_conventions, add_modelfile, check_modelfile, load_network
from mask_rcnn.cli.options import (
    AddArgument,
    add_gpu,
    add_max_detections,
    add_precision,
    check_precision,
    choose_device,
    fraction,
    positive_float,
    positive_int,
)
from mask_rcnn.config import VISUALIZE_SCORE_THRESHOLD
from mask_rcnn.io.console import print_line, print_lines, print_warning
from mask_rcnn.serving.limits import MIB, Limits
from mask_rcnn.weights import WeightFileError

if TYPE_CHECKING:
    import socket

#: Import names of the extra ``serve``.
_LIBRARIES = ('starlette', 'uvicorn', 'python_multipart', 'prometheus_client')

_DEFAULT_PORT = 8000
_DEFAULTS = Limits()

_DESCRIPTION = """\
Detect objects over HTTP: POST /v1/detect takes an image and answers with JSON or a picture, and the page at / takes
pictures, or those of a camera, in a browser. The server has no passwords; without --host, only programs on this machine
reach it."""

_EPILOG = """\
example:
  mask-rcnn serve --modelfile model.npz
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/detect

  /docs describes the interface, docs/server.md also limits, metrics and proxies.

scores:
  JSON contains all detections of the model, by default those with scores above 0.05, pictures those above 0.7.
  --score-thresh replaces both thresholds; the parameter score of a request can raise them.

exit status:
  0 after Ctrl-C or SIGTERM, when the requests that it had taken are answered; 130 after a second signal; 1 if something
  failed; 2 for bad arguments.
"""


def configure(parser: argparse.ArgumentParser, folder: Path = Path('modelfiles')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: The parser of the command.
        folder: The folder of the default weights.
    """
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_model(parser.add_argument_group('model').add_argument, folder)
    _add_address(parser.add_argument_group('address').add_argument)
    _add_limits(parser.add_argument_group('limits').add_argument)


def _add_model(add: AddArgument, folder: Path) -> None:
    add_modelfile(add, folder)
    add_gpu(add, '-g')
    add_precision(add)
    add_conventions(add)
    add_max_detections(add)
    add(
        '--score-thresh',
        type=fraction,
        metavar='S',
        help='minimum score (default: that of the weights, usually 0.05, for JSON and 0.7 for pictures)',
    )


def _add_address(add: AddArgument) -> None:
    add(
        '--host',
        default='127.0.0.1',
        metavar='ADDRESS',
        help='address of this machine on which to listen; 0.0.0.0 for all (default: %(default)s, which only programs '
        'on this machine reach)',
    )
    add(
        '--port',
        type=_port,
        default=_DEFAULT_PORT,
        metavar='N',
        help='port; 0 for a free one, which is printed (default: %(default)s)',
    )
    add(
        '--allow-host',
        action='append',
        default=[],
        metavar='NAME',
        help='another name of the server, such as that of a reverse proxy; requests to other names are refused; '
        'can be repeated',
    )


def _add_limits(add: AddArgument) -> None:
    add(
        '--max-size',
        type=positive_float,
        default=_DEFAULTS.max_bytes / MIB,
        metavar='MIB',
        help='maximum size of an image file in MiB (default: %(default)g)',
    )
    add(
        '--max-pixels',
        type=positive_int,
        default=_DEFAULTS.max_pixels,
        metavar='N',
        help='maximum number of pixels of an image (default: %(default)s)',
    )
    add(
        '--queue',
        type=positive_int,
        default=_DEFAULTS.queue,
        metavar='N',
        help='maximum number of requests that wait or run; others have status 429 (default: %(default)s)',
    )
    add(
        '--batch-size',
        type=positive_int,
        metavar='N',
        help='maximum number of images in a batch (default: 4 on a GPU, 1 on the CPU)',
    )
    add(
        '--timeout',
        type=positive_float,
        default=_DEFAULTS.timeout,
        metavar='SECONDS',
        help='maximum time of a request (default: %(default)g)',
    )


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port < 1 << 16:
        raise argparse.ArgumentTypeError(f'{text!r} is not a port, a number from 0 to 65535')
    return port


def main(argv: Sequence[str] | None = None, folder: Path = Path('modelfiles'), *, prog: str | None = None) -> int:
    """Parse the command line and serve; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    args = parse_command_line(partial(configure, folder=folder), argv, prog)
    return run_and_report_errors(partial(run, args), (WeightFileError,))


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    check_libraries()
    check_modelfile(args.modelfile)
    with _listen(args.host, args.port) as listener:  # before the model is loaded, which takes longer
        _serve(args, listener)
    return 0


def _serve(args: argparse.Namespace, listener: socket.socket) -> None:
    from mask_rcnn.serving.access import AccessRules, is_loopback
    from mask_rcnn.serving.app import create_app
    from mask_rcnn.serving.server import address_of, run_server
    from mask_rcnn.serving.service import DetectionService

    gpu = choose_device(args.gpu)
    check_precision(args.precision, gpu)
    model = load_network(args, gpu=gpu, score_threshold=args.score_thresh)
    service = DetectionService(
        model,
        args.modelfile.stem,
        limits=_limits(args),
        picture_score=VISUALIZE_SCORE_THRESHOLD if args.score_thresh is None else args.score_thresh,
        precision=args.precision,
    )
    with _logging_to_stderr(), service:
        app = create_app(service, AccessRules(args.host, args.allow_host))
        if not is_loopback(args.host):
            print_warning(f'--host {args.host}: other machines can reach the server, which has no passwords')
        print_line(f'serving {service.name} at {address_of(listener)} (Ctrl-C stops)')
        run_server(app, service, listener)


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(
        max_bytes=max(round(min(args.max_size, sys.maxsize) * MIB), 1),
        max_pixels=args.max_pixels,
        queue=args.queue,
        batch_size=args.batch_size,
        timeout=args.timeout,
    )


def check_libraries() -> None:
    """Import the libraries of the server.

    Raises:
        UsageError: One of them is not installed.
    """
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            packages = ' '.join(_LIBRARIES).replace('_', '-')
            raise UsageError(
                f'the server needs {name}, which cannot be imported ({error}): pip install {packages}'
            ) from error


def _listen(host: str, port: int) -> socket.socket:
    from mask_rcnn.serving.server import open_socket

    try:
        return open_socket(host, port)
    except (OSError, UnicodeError) as error:
        raise UsageError(f'--host {host} --port {port}: {_listening_error(error)}') from error


def _listening_error(error: OSError | UnicodeError) -> str:
    number = getattr(error, 'errno', None)
    if number == errno.EADDRINUSE:
        return 'another program uses this port; --port 0 selects a free one'
    if number == errno.EACCES:
        return 'ports below 1024 need the rights of an administrator'
    return getattr(error, 'strerror', None) or str(error)


@contextlib.contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Write the errors of the server with their tracebacks, which only its operator reads."""
    handler = _TracebackHandler(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ('mask_rcnn.serving', 'uvicorn', 'asyncio')]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger('python_multipart').setLevel(logging.ERROR)  # it warns of each form that is damaged
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


class _TracebackHandler(logging.Handler):
    """Writes log records with their tracebacks to the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # as logging does
            print_lines(self.format(record), file=sys.stderr)
