"""A server of the page with prepared answers, in a thread."""

import asyncio
import contextlib
import inspect
import json
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from pycocotools import mask as coco_mask
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).resolve().parents[2] / 'mask_rcnn' / 'serving' / 'static'
POLICY = "default-src 'self'; img-src 'self' blob: data:"
MODEL = {
    'name': 'prepared',
    'input': {'apply_orientation': True},
    'keypoints': None,
    'score': {'json': 0.05, 'picture': 0.5},
    'limits': {'max_bytes': 100_000},
}


def rectangle(size, top, left, bottom, right):
    """Return a mask ``(H, W)`` with ones in a rectangle, ends excluded."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def detection(name, score, mask, **more):
    """Return the entry of a detection, with run lengths."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    segmentation = {'size': list(mask.shape), 'counts': rle['counts'].decode()}
    return {'class': name, 'category_id': 1, 'score': score, 'bbox': box, 'segmentation': segmentation, **more}


def answer(size, detections):
    """Return the answer for an image of ``size`` ``(H, W)``."""
    image = {'width': size[1], 'height': size[0]}
    return {'image': image, 'model': MODEL['name'], 'time_ms': 12.5, 'detections': detections}


def refusal(status, message):
    """Return the response to a request that is refused."""
    return JSONResponse({'error': {'status': status, 'message': message}}, status)


class PageServer:
    """The page, its files, and a ``/v1/detect`` with prepared answers.

    Attributes:
        reply: The answer, a response of Starlette, or a function of ``(accept, content)`` that returns one of them.
        delay: Seconds before an answer.
        detections: ``(query, content, headers)`` of the requests for detections.
        most_at_once: The maximum number of these requests that were answered at the same time.
    """

    def __init__(self):
        self.openapi = {}
        self.reset()
        self.n_running = 0
        routes = [
            Route('/', _page('index.html')),
            Route('/docs', _page('docs.html')),
            Route('/openapi.json', lambda request: JSONResponse(self.openapi)),
            Route('/v1/model', lambda request: JSONResponse(self.model)),
            Route('/v1/detect', self._detect, methods=['POST']),
            Mount('/static', StaticFiles(directory=STATIC)),
        ]
        self.app = Starlette(routes=routes)

    def reset(self):
        """Forget the requests and the prepared answers."""
        self.model, self.reply, self.delay = MODEL, None, 0
        self.detections, self.most_at_once = [], 0

    async def _detect(self, request):
        self.n_running += 1
        self.most_at_once = max(self.most_at_once, self.n_running)
        try:
            content = await request.body()
            self.detections.append((str(request.query_params), content, dict(request.headers)))
            await asyncio.sleep(self.delay)
        finally:
            self.n_running -= 1
        reply = self.reply(request.headers['accept'], content) if inspect.isfunction(self.reply) else self.reply
        return reply if isinstance(reply, Response) else Response(json.dumps(reply), media_type='application/json')

    @contextlib.contextmanager
    def running(self):
        """Yield the address of the server while it runs."""
        server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level='error', lifespan='off', ws='none'))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
        finally:
            server.should_exit = True
            thread.join()


def _page(name):
    headers = {'Content-Security-Policy': POLICY}
    return lambda request: FileResponse(STATIC / name, headers=headers)
