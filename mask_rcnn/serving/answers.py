"""The answers to detection requests: their parameters, JSON and pictures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.config.fields import describe_value
from mask_rcnn.inference.detections import Detections
from mask_rcnn.ops.masks.polygons import trace_polygons
from mask_rcnn.serving.errors import RequestError
from mask_rcnn.visualization.pictures import encode_picture

JSON = 'application/json'

#: Media type of a picture -> suffix of its files.
PICTURE_SUFFIXES = {'image/png': '.png', 'image/jpeg': '.jpg'}

#: The media types of answers; the first one that the client accepts equally is sent.
MEDIA_TYPES = (JSON, *PICTURE_SUFFIXES)

#: The values of the parameter ``masks``.
MASK_FORMATS = ('rle', 'polygons', 'none')

_PARAMETERS = ('score', 'masks')
_NUMBER = re.compile(r'[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+', re.ASCII)  # float() also accepts '0_1'

#: Maximum height and width of a JPEG file that libjpeg writes.
_MAX_JPEG_SIDE = 65_500

_QUALITY = re.compile(r'0(?:\.[0-9]*)?|1(?:\.0*)?')


@dataclass(frozen=True)
class DefaultScores:
    """The minimum scores of answers to requests without the parameter ``score``.

    Args:
        json: Minimum score in JSON: the threshold of the model.
        picture: Minimum score in pictures.
    """

    json: float
    picture: float


@dataclass(frozen=True)
class AnswerFormat:
    """The answer that a request describes.

    Args:
        media_type: One of :data:`MEDIA_TYPES`.
        score: Minimum score, or ``None`` for the default.
        masks: One of :data:`MASK_FORMATS`.
    """

    media_type: str = JSON
    score: float | None = None
    masks: str = 'rle'

    @classmethod
    def parse(cls, parameters: Mapping[str, str], n_parameters: int, accept: str | None) -> AnswerFormat:
        """Return the answer that the parameters in the URL and the header ``Accept`` describe.

        Args:
            parameters: The parameters.
            n_parameters: Their number, with repeated ones.
            accept: The value of the header, or ``None``.

        Raises:
            RequestError: A parameter is unknown, repeated or out of range, or no accepted type can be sent.
        """
        for name in parameters:
            if name not in _PARAMETERS:
                raise RequestError(
                    400, f'unknown parameter {describe_value(name)}, expected {" or ".join(_PARAMETERS)}'
                )
        if n_parameters != len(parameters):
            raise RequestError(400, 'a parameter is repeated')
        masks = parameters.get('masks', 'rle')
        if masks not in MASK_FORMATS:
            raise RequestError(400, f'masks={describe_value(masks)} is not one of {", ".join(MASK_FORMATS)}')
        return cls(choose_media_type(accept), _parse_score(parameters.get('score')), masks)

    def check_size(self, size: tuple[int, int]) -> None:
        """Check that the answer for an image of this height and width can be encoded.

        Raises:
            RequestError: The image is too large for a JPEG file.
        """
        if self.media_type == 'image/jpeg' and max(size) > _MAX_JPEG_SIDE:
            height, width = size
            raise RequestError(
                406, f'{width} x {height} pixels do not fit into a JPEG file; expected Accept: image/png or {JSON}'
            )

    def minimum_score(self, defaults: DefaultScores) -> float:
        """Return the minimum score of the detections in the answer; 0 for all detections of the model."""
        if self.score is not None:
            return self.score
        return 0.0 if self.media_type == JSON else defaults.picture


def _parse_score(text: str | None) -> float | None:
    if text is None:
        return None
    score = float(text) if _NUMBER.fullmatch(text) else -1.0
    if not 0 <= score <= 1:
        raise RequestError(400, f'score={describe_value(text)} is not a number from 0 to 1')
    return score


def choose_media_type(accept: str | None) -> str:
    """Return the media type that a client prefers (RFC 9110, section 12.5.1).

    Args:
        accept: The value of the header ``Accept``; ``None`` or an empty text for JSON.

    Raises:
        RequestError: The client accepts none of :data:`MEDIA_TYPES`.
    """
    ranges = [_split_range(part) for part in (accept or '*/*').split(',') if part.strip()] or [('*/*', 1.0)]
    qualities = {media_type: _quality(media_type, ranges) for media_type in MEDIA_TYPES}
    best = max(MEDIA_TYPES, key=qualities.__getitem__)
    if not qualities[best]:
        raise RequestError(406, f'Accept: {describe_value(accept)} contains none of {", ".join(MEDIA_TYPES)}')
    return best


def _split_range(part: str) -> tuple[str, float]:
    media_range, *options = (word.strip().lower() for word in part.split(';'))
    for option in options:
        if option.startswith('q='):
            return media_range, float(option[2:]) if _QUALITY.fullmatch(option[2:]) else 0.0
    return media_range, 1.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """Return the quality of a media type in the most specific range that contains it."""
    for name in (media_type, f'{media_type.split("/")[0]}/*', '*/*'):
        found = [quality for media_range, quality in ranges if media_range == name]
        if found:
            return max(found)
    return 0.0


def encode_answer(
    detections: Detections,
    pixels: np.ndarray,
    answer: AnswerFormat,
    defaults: DefaultScores,
    model_name: str,
    start: float,
) -> bytes:
    """Return the answer for an image: JSON, or the file of a picture.

    Args:
        detections: All detections of the model.
        pixels: The image, ``(H, W, 3)`` uint8, RGB.
        answer: The format.
        defaults: The minimum scores without a parameter.
        model_name: The model's name.
        start: The value of ``time.perf_counter`` when the image was received.
    """
    detections = detections[detections.scores >= answer.minimum_score(defaults)].sorted_by_score()
    if answer.media_type != JSON:
        return encode_picture(detections.draw(pixels), PICTURE_SUFFIXES[answer.media_type])
    height, width = detections.size
    found = list(describe_detections(detections, answer.masks))
    return to_json(
        {
            'image': {'width': width, 'height': height},
            'model': model_name,
            'time_ms': round(1000 * (time.perf_counter() - start), 3),
            'detections': found,
        }
    )


def describe_detections(detections: Detections, masks: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON data of each detection.

    The numbers are those of :meth:`mask_rcnn.Detections.to_coco`.  Polygons are exact outlines: pycocotools rasterises
    them to the pixels of the mask.

    Args:
        detections: The detections.
        masks: One of :data:`MASK_FORMATS`.
    """
    entries = detections.to_coco(0, masks=masks == 'rle')
    outlines = detections.iter_masks() if masks == 'polygons' and detections.has_masks else None
    for name, entry in zip(detections.names, entries, strict=True):
        del entry['image_id']
        if outlines is not None:
            entry['segmentation'] = [polygon.tolist() for polygon in trace_polygons(next(outlines))]
        order = ('category_id', 'score', 'bbox', 'segmentation', 'keypoints')
        yield {'class': name, **{key: entry[key] for key in order if key in entry}}


def to_json(content: Any) -> bytes:
    """Return compact JSON in UTF-8; surrogates, which UTF-8 does not have, become question marks."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(',', ':')).encode('utf-8', 'replace')
