"""Servers for tests: a model that a test controls, and a real server on a free port in a thread."""

import contextlib
import socket
import threading
import time

import numpy as np

from mask_rcnn.config import PRESETS
from mask_rcnn.inference import Detections
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.serving.access import AccessRules
from mask_rcnn.serving.app import create_app
from mask_rcnn.serving.limits import Limits
from mask_rcnn.serving.server import address_of, make_server, open_socket
from mask_rcnn.serving.service import DetectionService
from mask_rcnn.visualization.pictures import encode_picture


class GatedModel:
    """A model that detects the brightness of an image when a test permits it, and records the images.

    The only detection has the class ``'thing'``, and its score is the value of the first pixel over 255.
    """

    def __init__(self, *, is_open=True):
        self.config = PRESETS['resnet50_fpn'].replace(n_fg_class=1, min_size=32, max_size=64, masks=False)
        self.class_names, self.category_ids = ('thing',), (7,)
        self.device, self.xp = get_device(-1), np
        self.gate = threading.Event()
        self.images, self.batches, self.errors = [], [], {}
        if is_open:
            self.gate.set()

    def iter_detections(self, images, *, batch_size=None):
        """Yield the detections of each image, one after the other."""
        for image in images:
            yield self._detect(image)

    def detect(self, images, *, batch_size=None):
        """Return the detections of images."""
        return [self._detect(image) for image in images]

    def _detect(self, image):
        value = int(image[0, 0, 0])
        self.images.append(value)
        assert self.gate.wait(20)
        if value in self.errors:
            raise self.errors[value]
        return Detections(
            boxes=np.array([[1, 2, 11, 22]], np.float32),
            labels=np.zeros(1, np.int32),
            scores=np.array([value / 255], np.float32),
            size=image.shape[:2],
            class_names=self.class_names,
            category_ids=self.category_ids,
            dialect=self.config.dialect,
        )


def gray_png(value, size=(24, 32)):
    """Return a PNG file of one colour."""
    return encode_picture(np.full((*size, 3), value, np.uint8), '.png')


class RunningServer:
    """A server in a thread.

    Attributes:
        url (str): Its address.
        service (DetectionService): Its service.
        thread (threading.Thread): The thread of the server.
    """

    def __init__(self, model, *, name='model', allowed=(), picture_score=0.7, **limits):
        self.service = DetectionService(
            model, name, limits=Limits(**limits), picture_score=picture_score, warm_up=False
        )
        self.listener = open_socket('127.0.0.1', 0)
        self.port = self.listener.getsockname()[1]
        self.url = address_of(self.listener)
        self.server = make_server(create_app(self.service, AccessRules('127.0.0.1', allowed)), self.service)
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        import asyncio

        asyncio.run(self.server.serve(sockets=[self.listener]))

    def __enter__(self):
        self.service.__enter__()
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *exception):
        self.server.stop()
        self.thread.join()
        self.service.__exit__(*exception)

    def connect(self):
        """Return a connected socket."""
        return socket.create_connection(('127.0.0.1', self.port), timeout=10)


def request_bytes(path='/v1/detect', method='POST', content=b'', **headers):
    """Return a request as bytes; a header's underscores become hyphens, ``None`` omits a header."""
    fields = {'Host': '127.0.0.1', 'Content-Type': 'image/png', 'Content-Length': str(len(content))}
    fields |= {name.replace('_', '-'): value for name, value in headers.items()}
    lines = [f'{method} {path} HTTP/1.1', *(f'{name}: {value}' for name, value in fields.items() if value is not None)]
    return ('\r\n'.join(lines) + '\r\n\r\n').encode() + content


def read_answer(connection):
    """Return the status and everything that a server sends until it closes the connection."""
    data = b''
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    return int(data.split(b' ', 2)[1]) if data else None, data


def wait_until(condition, seconds=10):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'the condition was not met in time'
        time.sleep(0.005)
