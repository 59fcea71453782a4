"""The description of the HTTP interface, OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

import mask_rcnn
from mask_rcnn.serving.answers import JSON, MASK_FORMATS, PICTURE_SUFFIXES
from mask_rcnn.serving.limits import MIB
from mask_rcnn.serving.metrics import METRICS_TYPE
from mask_rcnn.serving.service import DetectionService
from mask_rcnn.serving.uploads import IMAGE_FIELD

_INTEGER, _NUMBER, _STRING = ({'type': name} for name in ('integer', 'number', 'string'))


def openapi_document(service: DetectionService) -> dict[str, Any]:
    """Return the document of a server, as data for JSON."""
    return {
        'openapi': '3.1.0',
        'info': {
            'title': 'Mask R-CNN',
            'version': mask_rcnn.__version__,
            'summary': f'Detection of objects with the model {service.name}.',
            'license': {'name': 'MIT', 'identifier': 'MIT'},
        },
        'servers': [{'url': '/'}],
        'paths': {
            '/v1/detect': {'post': _detect(service)},
            '/v1/model': {'get': _get('The model, its classes and the limits of the server.', 'model', _ref('Model'))},
            '/healthz': {'get': _get('The process works.', 'health', _ref('State'), fails='it does not')},
            '/readyz': {
                'get': _get('The model is ready.', 'readiness', _ref('State'), fails='it is loading, or stopping')
            },
            '/metrics': {'get': _get_text('Metrics for Prometheus.', 'metrics', METRICS_TYPE)},
            '/openapi.json': {'get': _get('This document.', 'openapi', {'type': 'object'})},
            '/docs': {'get': _get_text('This document as a page.', 'docs', 'text/html')},
            '/': {'get': _get_text('A page that detects in pictures and with a camera.', 'index', 'text/html')},
        },
        'components': {'schemas': _schemas()},
    }


def _detect(service: DetectionService) -> dict[str, Any]:
    limits, defaults = service.limits, service.default_scores
    image: dict[str, Any] = {'schema': {}}  # OpenAPI 3.1 describes bytes by their media type
    form = _object({IMAGE_FIELD: {'contentMediaType': 'application/octet-stream'}})
    return {
        'summary': 'Detect objects in an image.',
        'description': 'The image is JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, JPEG 2000 or AVIF, of at most '
        f'{limits.max_bytes / MIB:g} MiB and {limits.max_pixels:,} pixels. '
        'The header Accept selects JSON or a picture.',
        'operationId': 'detect',
        'parameters': [
            {
                'name': 'score',
                'in': 'query',
                'description': f'Minimum score (default: {defaults.json:g} in JSON, {defaults.picture:g} in pictures).',
                'schema': {'type': 'number', 'minimum': 0, 'maximum': 1},
            },
            {
                'name': 'masks',
                'in': 'query',
                'description': "Masks in JSON: COCO's compressed run lengths, exact outlines, or none.",
                'schema': {'type': 'string', 'enum': list(MASK_FORMATS), 'default': MASK_FORMATS[0]},
            },
        ],
        'requestBody': {
            'required': True,
            'content': {'image/*': image, 'application/octet-stream': image, 'multipart/form-data': {'schema': form}},
        },
        'responses': {
            '200': {
                'description': 'The detections in descending order of score, or the image with them.',
                'content': {JSON: {'schema': _ref('Answer')}, **dict.fromkeys(PICTURE_SUFFIXES, image)},
            },
            '400': _error('A parameter or the form is not correct.'),
            '403': _error('The request is that of a page of another site, or names another host.'),
            '406': _error('The header Accept contains no type that the server sends.'),
            '408': _error(f'The request body paused for {limits.idle_timeout:g} s, or took too long.'),
            '413': _error('The request body is too large.'),
            '415': _error('The request body is not an image of a supported format.'),
            '422': _error('The image has too many pixels, or is damaged.'),
            '429': _error('Too many requests wait; Retry-After contains seconds.'),
            '500': _error('The server has failed.'),
            '503': _error(f'The server is stopping, has too little memory, or needs more than {limits.timeout:g} s.'),
        },
    }


def _get(summary: str, name: str, schema: dict[str, Any], *, fails: str | None = None) -> dict[str, Any]:
    content = {JSON: {'schema': schema}}
    responses = {'200': {'description': summary, 'content': content}}
    if fails is not None:
        responses['503'] = {'description': f'Not true: {fails}.', 'content': content}
    return {'summary': summary, 'operationId': name, 'responses': responses}


def _get_text(summary: str, name: str, media_type: str) -> dict[str, Any]:
    content = {media_type.split(';')[0]: {'schema': _STRING}}
    return {'summary': summary, 'operationId': name, 'responses': {'200': {'description': summary, 'content': content}}}


def _error(description: str) -> dict[str, Any]:
    return {'description': description, 'content': {JSON: {'schema': _ref('Error')}}}


def _ref(name: str) -> dict[str, Any]:
    return {'$ref': f'#/components/schemas/{name}'}


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {'type': 'object', 'properties': properties, 'required': required, 'additionalProperties': False}


def _list(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {'type': 'array', 'items': items, **limits}


def _schemas() -> dict[str, Any]:
    size = _object({'width': _INTEGER, 'height': _INTEGER})
    run_lengths = _object({'size': _list(_INTEGER, minItems=2, maxItems=2), 'counts': _STRING})
    detection = _object(
        {
            'class': _STRING,
            'category_id': _INTEGER,
            'score': _NUMBER,
            'bbox': {**_list(_NUMBER, minItems=4, maxItems=4), 'description': 'x, y, width and height in pixels'},
            'segmentation': {
                'oneOf': [run_lengths, _list(_list(_NUMBER))],
                'description': 'size is [height, width]; a polygon is x, y, x, y, ...',
            },
            'keypoints': {**_list(_NUMBER), 'description': 'x, y and 1 for each keypoint'},
        },
        optional=('segmentation', 'keypoints'),
    )
    return {
        'Answer': _object(
            {
                'image': size,
                'model': _STRING,
                'time_ms': {**_NUMBER, 'description': 'from the received image to the answer, waiting included'},
                'detections': _list(_ref('Detection')),
            }
        ),
        'Detection': detection,
        'Model': _model_schema(),
        'State': _object({'status': {'enum': ['ok', 'failed', 'loading', 'ready', 'stopping']}}),
        'Error': _object({'error': _object({'status': _INTEGER, 'message': _STRING})}),
    }


def _model_schema() -> dict[str, Any]:
    limits = dict.fromkeys(('max_bytes', 'max_pixels', 'queue', 'batch_size'), _INTEGER)
    keypoints = _object({'names': _list(_STRING), 'skeleton': _list(_list(_INTEGER, minItems=2, maxItems=2))})
    return _object(
        {
            'name': _STRING,
            'classes': _list(_object({'id': _INTEGER, 'name': _STRING})),
            'network': _object({'extractor': _STRING, 'masks': {'type': 'boolean'}, 'n_keypoints': _INTEGER}),
            'keypoints': {'oneOf': [keypoints, {'type': 'null'}]},
            'dialect': _STRING,
            'input': _object({'min_size': _INTEGER, 'max_size': _INTEGER, 'apply_orientation': {'type': 'boolean'}}),
            'score': _object({'json': _NUMBER, 'picture': _NUMBER}),
            'max_detections': _INTEGER,
            'device': {'enum': ['cpu', 'gpu']},
            'limits': _object({**limits, 'timeout': _NUMBER}),
        }
    )
