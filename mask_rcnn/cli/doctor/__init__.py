"""``mask-rcnn doctor``: the parts of the installation and the machine, and the remedy for each that does not work.

The modules of this package import neither NumPy nor another library that may be broken.  Libraries are imported by
:mod:`mask_rcnn.cli.doctor.probes`, in child processes; :mod:`.findings` collects their results, and the other modules
describe and judge them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import mask_rcnn
from mask_rcnn.cli.command import parse_command_line
from mask_rcnn.cli.doctor.findings import Findings, gather
from mask_rcnn.cli.doctor.gpu import describe_cuda, describe_cudnn, describe_gpus
from mask_rcnn.cli.doctor.mpi import describe_mpi
from mask_rcnn.cli.doctor.packages import describe_extras, describe_packages, describe_program, describe_weights
from mask_rcnn.cli.doctor.processor import describe_blas, describe_kernels, describe_processor
from mask_rcnn.cli.doctor.report import Advice, Section, exit_status, format_json, format_report, shorten
from mask_rcnn.io.console import print_line, print_lines, protected_streams, report_lost_output

_DESCRIPTION = """\
Describe the installation and the machine in a few lines, and state a remedy for each part that is missing or broken:
packages, CPU kernels, BLAS, GPU, driver, CuPy, cuDNN, MPI, optional parts and the folders of weights. The exit status
is 0 if commands work on the CPU, and 1 if something that they need is broken."""

#: Name -> the function that describes and judges a part, in the order of the report.
SECTIONS: dict[str, Callable[[Findings], Section]] = {
    'mask-rcnn': describe_program,
    'packages': describe_packages,
    'CPU': describe_processor,
    'kernels': describe_kernels,
    'BLAS': describe_blas,
    'GPU': describe_gpus,
    'CUDA': describe_cuda,
    'cuDNN': describe_cudnn,
    'MPI': describe_mpi,
    'extras': describe_extras,
    'weights': describe_weights,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and options to a parser."""
    parser.description = _DESCRIPTION
    parser.add_argument('--json', action='store_true', help='write one line of JSON with more details, for bug reports')


def run(args: argparse.Namespace) -> int:
    """Write the report; returns the exit status (0, 1 if something that commands need is broken)."""
    with protected_streams():
        sections = describe(gather())
        if args.json:
            print_line(format_json(sections, mask_rcnn.__version__))
        else:
            print_lines(format_report(sections))
        return report_lost_output(exit_status(sections))


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse the command line and write the report; see :func:`mask_rcnn.cli.command.parse_command_line`."""
    return run(parse_command_line(configure, argv, prog))


def describe(findings: Findings) -> list[Section]:
    """Return the sections of the report; one that fails contains the reason."""
    sections = []
    for name, function in SECTIONS.items():
        try:
            sections.append(function(findings))
        except Exception as error:  # facts of an unknown form: the other sections remain useful
            reason = shorten(f'{type(error).__name__}: {error}')
            advice = Advice('warning', f'{name} cannot be described ({reason}): please report this line')
            sections.append(Section(name, 'not described', [advice]))
    return sections
