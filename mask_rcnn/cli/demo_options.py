"""The options of ``mask-rcnn demo`` and ``demo.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from mask_rcnn.cli.demo_sources import image_argument
from mask_rcnn.cli.network_options import add_conventions, add_modelfile
from mask_rcnn.cli.options import (
    AddArgument,
    add_gpu,
    add_max_detections,
    add_precision,
    fraction,
    non_negative_int,
    positive_float,
    positive_int,
)
from mask_rcnn.cli.outputs import output_path
from mask_rcnn.config import EXTRACTORS
from mask_rcnn.media.selection import parse_time
from mask_rcnn.visualization import BACKDROPS, LABELS

_DESCRIPTION = (
    'Detect objects in images, videos and cameras, and write the results as pictures, as a video and, with --json, in '
    'COCO format.'
)

_EPILOG = """\
sources:
  --image takes image files, folders of images (with --recursive also their subfolders), video files, addresses
  (rtsp://..., http://..., https://...), patterns in quotes ("photos/*.jpg", "photos/**/*.jpg"), lists
  (@list.txt: one file, folder, pattern or address in each line, relative to the folder of the list) and - for
  an image on the standard input. A path that exists is never a pattern or a list. --camera reads a camera.
  Ctrl-C ends a video at any time; what was written until then is complete.

images:
  Greyscale, RGBA and 16-bit images are converted to 8-bit RGB; of 16 bits, the upper 8 of the bits in use
  are read, so 12-bit photos are not dark. The orientation of EXIF (or else XMP) is applied, except with
  weights of programs that ignore it (Chainer_Mask_R-CNN, torchvision).

names of the pictures:
  One image: --output is the picture. Several images or a folder: --output photos.png writes photos_NAME.png
  for the image NAME.jpg. If --output is a folder (an existing one, or a name that ends with /), the pictures
  are NAME.png in that folder. The suffix determines the image format.

videos:
  The output of a video is a video (output.mp4 by default; .mp4, .mov, .mkv, .avi or .webm) with the rate, the
  size and the frames of its source. It has the sound of the source if ffmpeg is installed. If --output is a
  picture or a folder, each frame is a picture: NAME_000001.png for the first frame of NAME.mp4. The
  image_id and the file names of annotations are those of the frames. Of a camera or another live source, as
  many frames are processed as the model can; each is shown until the next one.

scores:
  Pictures show detections with scores above 0.7; --jsonl, --csv, masks and annotations contain the detections
  of the pictures. The JSON file contains all detections of the model, by default those with scores above 0.05.
  --score-thresh replaces both thresholds. Models of Chainer_Mask_R-CNN also have two thresholds of NMS, as in
  that program: 0.3 for pictures (--preset visualize) and 0.5 for JSON (--preset evaluate); the images are then
  processed once for each.

annotations:
  --annotations found.json writes one COCO dataset (images, annotations, categories) that CVAT, Label Studio,
  VIA and others import and "mask-rcnn train" reads; the file names are relative to the folder that contains
  all images. --annotations labels/ (an existing folder, or a name that ends with /) writes a file of labelme
  for each image and replaces none. Both contain the detections of the pictures, as polygons whose IoU with
  the masks is at least 0.99. Polygons have no holes: a line joins each hole to the outline around it.

labels:
  --labels auto draws no label that is larger than its object, and a legend that counts the objects of each
  class with an object without a label. If most objects are too small for a label, or 20 or more are all of
  one class, the legend replaces all labels; objects of several classes then have shades of the colours in the
  legend, and 20 or more objects with masks have no boxes. Pictures have the size of their images.

old command lines:
  --background (no window) is accepted and has no effect, because this program opens no window. --backdrop
  selects the picture behind the objects.

image_id in the JSON file:
  The file name as a number if it is one (000000000139.jpg: 139), otherwise the file name without its suffix.

exit status:
  0; 1 if something failed (a damaged image is reported, and the others are processed), or --strict found
  files that would be left out; 2 for bad arguments.
"""


class _Default(str):
    """A default, as opposed to the same text on the command line."""


#: The default of ``--output``.
DEFAULT_OUTPUT = _Default('output.png')


def time(text: str) -> float:
    """Parse a time in a video, in seconds."""
    try:
        return parse_time(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a time, such as 75.5, 1:15.5 or 0:01:15.5') from None


def frame_rate(text: str) -> Fraction:
    """Parse a number of frames per second."""
    rate = Fraction(positive_float(text)).limit_denominator(1001)
    if not rate:
        raise argparse.ArgumentTypeError(f'{text!r} is less than one frame in 1001 seconds')
    return rate


def configure(parser: argparse.ArgumentParser, folder: Path = Path('modelfiles')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: The parser of the command.
        folder: The folder of the default weights.
    """
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_input(parser.add_argument_group('input').add_argument)
    _add_model(parser.add_argument_group('model').add_argument, folder)
    _add_output(parser.add_argument_group('output').add_argument)
    _add_style(parser.add_argument_group('style of the pictures').add_argument)


def _add_input(add: AddArgument) -> None:
    add(
        '--image',
        nargs='+',
        action='extend',
        required=True,
        type=image_argument,
        metavar='PATH',
        help='images, folders, videos, addresses, patterns, @lists, or - for the standard input; see below',
    )
    add(
        '--camera',
        action=_Camera,
        type=non_negative_int,
        metavar='N',
        help='read camera N instead of --image; 0 is the first one',
    )
    add('--recursive', action='store_true', help='also read the images in subfolders')
    add('--every', type=positive_int, metavar='N', help='process every Nth frame of a video')
    add('--start', type=time, metavar='TIME', help='start in a video, in seconds or as [hh:]mm:ss')
    add('--end', type=time, metavar='TIME', help='end in a video, likewise')
    add(
        '--max-fps',
        type=frame_rate,
        metavar='RATE',
        help='maximum number of frames of a second of a video that are processed',
    )
    add(
        '--strict',
        action='store_true',
        help='stop with status 1 before the first image if one is missing or a folder contains files that are left '
        'out: unknown formats, dangling links, subfolders (default: one line for each, and the other images are '
        'processed)',
    )


def _add_model(add: AddArgument, folder: Path) -> None:
    add_modelfile(add, folder)
    add_gpu(add, '-g')
    add_precision(add)
    add_conventions(add)
    add('--extractor', choices=EXTRACTORS, help='must be the extractor of the weights, which is the default')


def _add_output(add: AddArgument) -> None:
    add(
        '--output',
        default=DEFAULT_OUTPUT,
        metavar='PATH',
        help='picture, video, or folder for pictures; see below (default: %(default)s, output.mp4 for a video, nothing '
        'with --show)',
    )
    add('--show', action='store_true', help='show the pictures in a window, which q or Esc closes')
    add(
        '--json',
        type=output_path,
        metavar='FILE',
        help='also write the results in COCO format: image_id, category_id, bbox, score, and segmentation (RLE) or '
        'keypoints; - for the standard output',
    )
    add(
        '--jsonl',
        type=output_path,
        metavar='FILE',
        help='also write a JSON object for each image or frame, in a line of its own, when it is done; - for the '
        'standard output',
    )
    add('--csv', type=output_path, metavar='FILE', help='also write a table with a row for each object; - as above')
    add(
        '--masks',
        type=Path,
        metavar='FOLDER',
        help='also write a PNG label image for each image or frame: the number of the object at each pixel, or 0',
    )
    add(
        '--instance-masks',
        type=Path,
        metavar='FOLDER',
        help='also write a black and white PNG picture of the mask of each object',
    )
    add(
        '--annotations',
        metavar='PATH',
        help='also write the detections of the pictures for annotation tools: a COCO dataset with polygons, or, if '
        'this is a folder, files of labelme; see below',
    )
    add(
        '--score-thresh',
        type=fraction,
        metavar='S',
        help='minimum score (default: 0.7 for pictures, 0.05 for JSON); see below',
    )
    add_max_detections(add)
    add(
        '--preset',
        choices=('visualize', 'evaluate'),
        help='thresholds of pictures and JSON: visualize for few detections, evaluate for all (default: visualize for '
        'pictures, evaluate for JSON); see below',
    )


def _add_style(add: AddArgument) -> None:
    add(
        '--track',
        action='store_true',
        help='follow the objects over the frames of a video, or over the images in their order: each keeps its colour '
        'and its number, and a line shows its way',
    )
    add('--contour', action='store_true', help='draw the outlines of the masks')
    add('--no-fill', action='store_true', help='do not fill the masks: boxes alone, or outlines with --contour')
    add('--no-boxes', action='store_true', help='draw no boxes')
    add(
        '--backdrop',
        choices=BACKDROPS,
        default='image',
        help='picture behind the objects: the image, the image in grey, black or white; splash, blur and cutout show '
        'the objects in their original colours, without fillings and boxes, on the image in grey, on the blurred '
        'image, or on nothing, which is transparent in .png (default: %(default)s)',
    )
    add(
        '--labels',
        choices=LABELS,
        default='auto',
        help='names of the objects: all has a label for each object that has room for one, none has no text; see below '
        'for auto (default: %(default)s)',
    )
    # The usage would show an optional value, which is read only to be refused; the epilog describes the flag.
    add('--background', action=_NoWindow, help=argparse.SUPPRESS)
    add(
        '--font',
        type=Path,
        metavar='FILE',
        help='TrueType or OpenType font for the labels (default: DejaVu Sans, which has no Chinese, Japanese or '
        'Korean characters)',
    )


class _Camera(argparse.Action):
    """The option ``--camera``, which takes the place of ``--image``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the number, and require no ``--image``."""
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            if action.dest == 'image':
                action.required = False


class _NoWindow(argparse.Action):
    """The flag ``--background`` of the old Chainer port: open no window, as this program always does.

    A value is an error that names ``--backdrop``.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs='?', default=False, **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Accept the flag without a value."""
        if values is not None:
            raise argparse.ArgumentError(
                self,
                f'takes no value, not {values!r}; --backdrop ({", ".join(BACKDROPS)}) selects the picture behind the '
                'objects, and images follow --image',
            )
        setattr(namespace, self.dest, True)
