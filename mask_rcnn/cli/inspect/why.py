"""``mask-rcnn inspect why``: why an object was detected, or at which step it was lost."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mask_rcnn.cli.command import UsageError, run_and_report_errors
from mask_rcnn.cli.inspect.photos import add_network, load_model, trace_photo
from mask_rcnn.cli.network_options import check_modelfile
from mask_rcnn.cli.options import non_negative_int
from mask_rcnn.cli.outputs import check_output
from mask_rcnn.config import VISUALIZE_SCORE_THRESHOLD
from mask_rcnn.config.fields import describe_value
from mask_rcnn.inspect import figures
from mask_rcnn.inspect.reasons import Origin, Rejection, Step, why, why_not
from mask_rcnn.inspect.tables import Trace
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.console import print_lines, print_note
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.visualization.figures import encode_figure
from mask_rcnn.visualization.html_report import Report
from mask_rcnn.weights import WeightFileError

_DESCRIPTION = """\
Print at which step of the network an expected object was lost: --box and --class name the object. If it was detected,
or with --detection, print where the detection comes from: its anchor, its proposal, its class scores, and the boxes
that it suppresses."""

_REJECTION_CAPTION = (
    'The expected object, the best box of the step at which it was lost, and the number of boxes that fit at each step.'
)
_ORIGIN_CAPTION = 'The anchor, the proposal and the box of the detection, and the class scores of its RoI.'
_TERMS = (
    'The IoU (intersection over union) of two boxes is 1 if they are equal, and 0 if they do not overlap. The region '
    'proposal network (RPN) moves anchors, boxes of fixed sizes, to objects: the proposals. Non-maximum suppression '
    '(NMS) keeps the best of those that overlap, the regions of interest (RoIs), which are classified and moved once '
    'more. "mask-rcnn inspect image" shows every step.'
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description = _DESCRIPTION
    add = parser.add_argument
    add('photo', type=Path, metavar='PHOTO', help='image file')
    add(
        '--box',
        type=corners,
        metavar='X0,Y0,X1,Y1',
        help='the expected object: the corners of its box in pixels of the image',
    )
    add('--class', dest='class_name', metavar='NAME', help='the class of the expected object')
    add(
        '--iou',
        type=_iou,
        default=0.5,
        metavar='T',
        help='IoU with --box at or above which a box fits (default: %(default)s)',
    )
    add(
        '--detection',
        type=non_negative_int,
        metavar='N',
        help='a detection instead of an expected object: 0 has the highest score',
    )
    add('--out', '-o', type=Path, metavar='FILE', help='also write a figure, as .png or as a report .html')
    add_network(parser)


def corners(text: str) -> tuple[float, ...]:
    """Parse the corners of a box, ``(x_min, y_min, x_max, y_max)``."""
    try:
        values = tuple(float(part) for part in text.split(','))
    except ValueError:
        values = ()
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f'{describe_value(text)} is not four numbers x0,y0,x1,y1')
    if not (0 <= values[0] < values[2] and 0 <= values[1] < values[3]):
        raise argparse.ArgumentTypeError(f'{describe_value(text)} is not a box: x0 < x1 and y0 < y1, none below 0')
    return values


def _iou(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'{describe_value(text)} is not a number above 0 and at most 1')
    return value


def run(args: argparse.Namespace) -> int:
    """Print the reason; returns the exit status (0, 1 if the photo or the weights cannot be used, 2 for arguments)."""
    return run_and_report_errors(lambda: _explain(args), (WeightFileError, ImageFileError))


def _explain(args: argparse.Namespace) -> int:
    _check(args)
    model = load_model(args)
    steps = trace_photo(model, args.photo)
    rejection = origin = None
    if args.detection is not None:
        _check_detection(args.detection, steps)
        detection = args.detection
    else:
        rejection = _search(steps, args)
        detection = rejection.index if rejection.step is Step.DETECTED else -1
        print_lines(str(rejection))
    if detection >= 0:
        origin = why(steps, detection)
        print_lines(str(origin))
    if detection >= 0 and steps.detections.scores[detection] <= VISUALIZE_SCORE_THRESHOLD:
        print_note(
            f'mask-rcnn demo does not draw detection {detection} by default: its score '
            f'{steps.detections.scores[detection]:.3f} is not above {VISUALIZE_SCORE_THRESHOLD}'
        )
    if args.out is not None:
        _write(steps, args, rejection, origin)
        print_note(f'wrote {args.out}')
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check the arguments that need no network."""
    if args.detection is not None and (args.box is not None or args.class_name is not None):
        raise UsageError('--detection names a detection, --box and --class an expected object; give one of them')
    if args.detection is None and (args.box is None or args.class_name is None):
        raise UsageError('give --box and --class, or --detection')
    check_modelfile(args.modelfile)
    if args.out is not None:
        if args.out.suffix.lower() not in ('.html', '.htm', '.png'):
            raise UsageError(f'--out {args.out} does not end with .png or .html')
        check_output('--out', args.out, [('the photo', args.photo), ('the file of --modelfile', args.modelfile)])


def _check_detection(detection: int, steps: Trace) -> None:
    n = len(steps.detections)
    if detection >= n:
        raise UsageError(f'--detection {detection} does not exist: there {"is" if n == 1 else "are"} {n}')


def _search(steps: Trace, args: argparse.Namespace) -> Rejection:
    """Return the step at which the expected object was lost."""
    height, width = steps.image.shape[:2]
    left, top, right, bottom = args.box
    if right > width or bottom > height:
        raise UsageError(f'--box {_format(args.box)} is not inside the image of {width} x {height} pixels')
    if args.class_name not in steps.class_names:
        listed = ', '.join(steps.class_names[:100])
        raise UsageError(f'--class {args.class_name!r} is not a class of the network: {listed}')
    return why_not(steps, (top, left, bottom, right), args.class_name, min_iou=args.iou)


def _format(box: tuple[float, ...]) -> str:
    return ','.join(f'{value:g}' for value in box)


def _write(steps: Trace, args: argparse.Namespace, rejection: Rejection | None, origin: Origin | None) -> None:
    """Write the figures of the object, of which a picture contains the last one."""
    if args.out.suffix.lower() == '.png':
        if origin is not None:
            figure = figures.draw_why(steps, origin.detection)
        else:
            assert rejection is not None
            figure = figures.draw_rejection(steps, rejection)
        with open_for_writing(args.out) as file:
            file.write(encode_figure(figure))
        return
    title = f'Detection {args.detection}' if rejection is None else f'{args.class_name} at {_format(args.box)}'
    report = Report(f'{title} in {args.photo.name}')
    if rejection is not None:
        report.add_text(rejection.title)
        rows = [(title, count, f'{best:.2f}') for title, count, best in rejection.counts]
        report.add_table(('boxes', f'IoU >= {rejection.min_iou:g}', 'best IoU'), rows)
        report.add_figure(figures.draw_rejection(steps, rejection), _REJECTION_CAPTION)
    if origin is not None:
        report.add_text(origin.title)
        report.add_table(('step', 'result'), list(origin.steps.items()))
        report.add_figure(figures.draw_why(steps, origin.detection), _ORIGIN_CAPTION)
    report.add_text(_TERMS)
    report.write(args.out)
