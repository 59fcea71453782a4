"""The HTTP application: its routes."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, COCO_SKELETON
from mask_rcnn.serving.access import AccessRules
from mask_rcnn.serving.answers import JSON, to_json
from mask_rcnn.serving.errors import RequestError, error_response
from mask_rcnn.serving.guard import Guard
from mask_rcnn.serving.metrics import METRICS_TYPE
from mask_rcnn.serving.openapi import openapi_document
from mask_rcnn.serving.service import DetectionService
from mask_rcnn.serving.static_files import StaticFiles

_PHRASES = {404: 'no such page', 405: 'this method is not allowed here'}


def create_app(service: DetectionService, rules: AccessRules) -> ASGIApp:
    """Return the ASGI application of a server.

    Args:
        service: The service, which runs as long as the application.
        rules: The hosts and origins that are answered.
    """
    pages = _Pages(service)
    routes = [
        Route('/v1/detect', service.detect, methods=['POST']),
        Route('/v1/model', pages.model),
        Route('/healthz', pages.health),
        Route('/readyz', pages.readiness),
        Route('/metrics', pages.metrics),
        Route('/openapi.json', pages.openapi),
        Route('/docs', pages.docs),
        Route('/', pages.index),
        Route('/static/{name:path}', pages.static),
    ]
    handlers: Any = {HTTPException: _answer_http_error, RequestError: _answer_request_error, Exception: _answer_failure}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    paths = tuple(route.path.removesuffix('{name:path}') for route in routes)
    return Guard(app, rules, service.metrics, paths)


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, _PHRASES.get(error.status_code, error.detail), error.headers)


async def _answer_request_error(request: Request, error: RequestError) -> Response:
    return error_response(error.status, str(error), error.headers)


async def _answer_failure(request: Request, error: Exception) -> Response:
    """Answer after a bug; Starlette raises the error again, and :class:`Guard` logs it."""
    return error_response(500, 'the server has failed; its log contains the reason')


class _Pages:
    """The pages and documents of a server.

    Args:
        service: The service that they describe.
    """

    def __init__(self, service: DetectionService):
        self._service = service
        self._files = StaticFiles()
        self._model = to_json(describe_model(service))
        self._openapi = to_json(openapi_document(service))

    async def model(self, request: Request) -> Response:
        return Response(self._model, media_type=JSON)

    async def health(self, request: Request) -> Response:
        is_alive = self._service.is_alive
        return Response(to_json({'status': 'ok' if is_alive else 'failed'}), 200 if is_alive else 503, media_type=JSON)

    async def readiness(self, request: Request) -> Response:
        state = self._service.state
        return Response(to_json({'status': state}), 200 if state == 'ready' else 503, media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={'Content-Type': METRICS_TYPE})

    async def openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type=JSON)

    async def docs(self, request: Request) -> Response:
        return self._files.answer('docs.html', request)

    async def index(self, request: Request) -> Response:
        return self._files.answer('index.html', request)

    async def static(self, request: Request) -> Response:
        return self._files.answer(request.path_params['name'], request)


def describe_model(service: DetectionService) -> dict[str, Any]:
    """Return the description of a model and its limits, the answer of ``GET /v1/model``."""
    model, config, limits = service.model, service.model.config, service.limits
    ids = model.category_ids or range(1, config.n_fg_class + 1)
    names = model.class_names or [f'class {label}' for label in range(config.n_fg_class)]
    return {
        'name': service.name,
        'classes': [{'id': number, 'name': name} for number, name in zip(ids, names, strict=True)],
        'network': {'extractor': config.extractor, 'masks': config.masks, 'n_keypoints': config.n_keypoint},
        'keypoints': _describe_keypoints(config.n_keypoint),
        'dialect': config.dialect.name,
        'input': {
            'min_size': config.min_size,
            'max_size': config.max_size,
            'apply_orientation': config.dialect.input.apply_orientation,
        },
        'score': {'json': service.default_scores.json, 'picture': service.default_scores.picture},
        'max_detections': config.max_detections,
        'device': 'cpu' if model.xp.__name__ == 'numpy' else 'gpu',
        'limits': {
            'max_bytes': limits.max_bytes,
            'max_pixels': limits.max_pixels,
            'queue': limits.queue,
            'batch_size': service.batch_size,
            'timeout': limits.timeout,
        },
    }


def _describe_keypoints(n_keypoints: int) -> dict[str, Any] | None:
    """Return names and connections of COCO's keypoints, ``None`` for a model without these."""
    if n_keypoints != len(COCO_KEYPOINT_NAMES):
        return None
    return {'names': list(COCO_KEYPOINT_NAMES), 'skeleton': [list(pair) for pair in COCO_SKELETON]}
