"""The queue, batches, time limits, disconnections and the end of a server."""

import contextlib
import io
import logging
import re
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

import mask_rcnn  # noqa: F401  (makes Chainer importable, so it comes first)

# isort: split
import chainer

from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.serving import guard
from mask_rcnn.serving.batching import DetectionThread
from tests.support.serving import GatedModel, RunningServer, gray_png, read_answer, request_bytes, wait_until


def post(server, value, **options):
    """Send an image of one colour."""
    return httpx.post(f'{server.url}v1/detect', content=gray_png(value), timeout=30, **options)


def value_of(response):
    """Return the colour that a server has found."""
    assert response.status_code == 200, response.text
    (found,) = response.json()['detections']
    return round(found['score'] * 255)


@pytest.fixture
def pool():
    """Threads that send requests."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


def image(value, size=(24, 32)):
    return np.full((*size, 3), value, np.uint8)


def test_images_that_wait_form_batches_of_equal_size():
    model, batches = GatedModel(is_open=False), []
    sizes = [(24, 32), (24, 32), (32, 24), (24, 32), (24, 32), (32, 24), (24, 32)]
    with DetectionThread(model, batch_size=3, on_batch=batches.append, warm_up=False) as worker:
        first = worker.submit(image(100))
        wait_until(lambda: model.images)  # the others arrive while it is processed
        futures = [worker.submit(image(value, size)) for value, size in enumerate(sizes, 1)]
        assert worker.n_waiting == 7
        model.gate.set()
        assert [round(255 * float(future.result(10).scores[0])) for future in futures] == [1, 2, 3, 4, 5, 6, 7]
        first.result(10)
    # The first image and two of its size; the first one that waits and the other of its size; the rest.
    assert model.images == [100, 1, 2, 3, 6, 4, 5, 7] and batches == [3, 2, 3]


def test_batches_of_a_network_have_the_detections_of_single_images(model):
    dataset, batches = RichShapesDataset(4, size=160, seed=5), []
    scenes = [dataset[i].image.transpose(1, 2, 0).astype(np.uint8) for i in range(4)]
    worker = DetectionThread(model, batch_size=3, on_batch=batches.append, warm_up=False)
    futures = [worker.submit(scene) for scene in scenes]
    with worker:
        found = [future.result(30) for future in futures]
    assert batches == [3, 1]
    for detections, scene in zip(found, scenes, strict=True):
        (expected,) = model.detect([scene])
        assert len(expected) and detections.names == expected.names
        np.testing.assert_allclose(detections.scores, expected.scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(detections.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_an_error_of_one_image_does_not_concern_the_others():
    model = GatedModel()
    model.errors = {2: ValueError('an image that the model refuses')}
    with DetectionThread(model, batch_size=2, warm_up=False) as worker:
        futures = [worker.submit(image(value)) for value in (1, 2, 3)]
        assert futures[0].result(10) and futures[2].result(10)
        with pytest.raises(ValueError, match='refuses'):
            futures[1].result(10)
        assert worker.is_alive


class FullModel(GatedModel):
    """A model on a device whose memory is full as long as the arrays of a failed batch exist."""

    def __init__(self):
        super().__init__()
        self.arrays = []

    def iter_detections(self, images, *, batch_size=None):
        features = np.zeros(3)
        self.arrays.append(weakref.ref(features))
        raise MemoryError(f'{sum(1 for _ in images)} images do not fit')
        yield

    def detect(self, images, *, batch_size=None):
        assert all(array() is None for array in self.arrays)
        return super().detect(images)

    def _detect(self, image):
        features = np.zeros(3)
        if image[0, 0, 0] in self.errors:
            self.arrays.append(weakref.ref(features))
        return super()._detect(image)


def test_images_of_a_failed_batch_have_its_memory():
    """The error of the batch, and that of an image, which its request keeps, do not keep their arrays."""
    model = FullModel()
    model.errors = {2: MemoryError('too large')}
    with DetectionThread(model, batch_size=3, warm_up=False) as worker:
        futures = [worker.submit(image(value)) for value in (1, 2, 3)]
        assert futures[0].result(10) and futures[2].result(10)
        with pytest.raises(MemoryError, match='too large'):
            futures[1].result(10)


def test_a_gpu_that_has_failed_is_a_bad_health():
    """Only another process can use it again: the program that starts the server must know."""

    class Device:
        xp = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(deviceSynchronize=lambda: raise_next())))
        create_context = staticmethod(contextlib.nullcontext)

    def raise_next():
        if failures:
            raise failures.pop()

    error_type = type('CUDARuntimeError', (RuntimeError,), {'__module__': 'cupy_backends.cuda.api.runtime'})
    model, failures = GatedModel(), []
    with RunningServer(model) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chainer, 'using_device', lambda device: device.create_context())
        patch.setattr(model, 'device', Device)
        model.errors = {1: error_type('cudaErrorInvalidValue'), 2: error_type('cudaErrorIllegalAddress')}
        assert post(server, 1).status_code == 500
        assert httpx.get(f'{server.url}healthz').status_code == 200  # the next call works
        failures.append(model.errors[2])
        assert post(server, 2).status_code == 500
        answer = httpx.get(f'{server.url}healthz')
        assert (answer.status_code, answer.json()) == (503, {'status': 'failed'})


def test_a_warm_up_without_memory_is_one_line(caplog):
    model = GatedModel()
    model.errors = {value: MemoryError('8 bytes') for value in range(256)}
    with DetectionThread(model) as worker:
        wait_until(lambda: worker.is_ready)
        model.errors = {}
        assert worker.submit(image(1)).result(10)
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and record.exc_info is None
    assert record.getMessage() == 'the detection in an image of noise failed: not enough memory: 8 bytes'


def test_cancelled_images_are_skipped():
    model = GatedModel(is_open=False)
    with DetectionThread(model, warm_up=False) as worker:
        futures = [worker.submit(image(value)) for value in (1, 2, 3)]
        wait_until(lambda: model.images)
        assert futures[1].cancel() and not futures[0].cancel()
        model.gate.set()
    assert model.images == [1, 3] and futures[2].result(0)
    with pytest.raises(RuntimeError, match='closed'):
        worker.submit(image(1))


def test_the_warm_up_precedes_the_readiness(caplog):
    model = GatedModel(is_open=False)
    with DetectionThread(model) as worker:
        wait_until(lambda: model.images)
        assert not worker.is_ready
        model.gate.set()
        wait_until(lambda: worker.is_ready)
    model = GatedModel()
    model.iter_detections = model.detect = None  # a model that fails
    with DetectionThread(model) as worker:
        wait_until(lambda: worker.is_ready)
    assert 'noise failed' in caplog.text


def test_answers_belong_to_their_requests(pool):
    with RunningServer(GatedModel()) as server:
        values = [*range(10, 250, 12)]
        assert [value_of(response) for response in pool.map(lambda value: post(server, value), values)] == values


def test_a_full_queue(pool):
    with RunningServer(GatedModel(is_open=False), queue=2) as server:
        waiting = [pool.submit(post, server, value) for value in (1, 2)]
        wait_until(lambda: server.service.n_admitted == 2)
        refused = post(server, 3)
        assert refused.status_code == 429 and refused.headers['retry-after'] == '1'
        assert refused.json()['error']['message'] == 'too many requests wait; try again later'
        assert httpx.get(f'{server.url}healthz').status_code == 200
        server.service.model.gate.set()
        assert [value_of(request.result()) for request in waiting] == [1, 2]
        assert value_of(post(server, 3)) == 3
        assert server.service.n_admitted == 0


def test_a_request_that_the_full_queue_refuses_after_its_upload(pool):
    with RunningServer(GatedModel(is_open=False), queue=1) as server, server.connect() as connection:
        content = gray_png(9)
        connection.sendall(request_bytes(content=content, Connection='close')[:-5])
        wait_until(lambda: server.service.n_uploads == 1)
        waiting = pool.submit(post, server, 1)
        wait_until(lambda: server.service.n_admitted == 1)
        connection.sendall(content[-5:])
        assert read_answer(connection)[0] == 429
        server.service.model.gate.set()
        assert value_of(waiting.result()) == 1


def test_a_client_that_disconnects_cancels_its_request(pool):
    model = GatedModel(is_open=False)
    with RunningServer(model) as server:
        first = pool.submit(post, server, 1)
        wait_until(lambda: model.images == [1])
        with server.connect() as connection:
            connection.sendall(request_bytes(content=gray_png(2)))
            wait_until(lambda: server.service.n_admitted == 2)
        wait_until(lambda: server.service.n_admitted == 1)
        with server.connect() as connection:  # and one that disconnects during the upload
            connection.sendall(request_bytes(content=gray_png(3))[:-5])
            wait_until(lambda: server.service.n_uploads == 1)
        wait_until(lambda: server.service.n_uploads == 0)
        model.gate.set()
        assert value_of(first.result()) == 1 and value_of(post(server, 4)) == 4
        assert model.images == [1, 4]
        assert 'path="/v1/detect",status="499"} 2.0' in httpx.get(f'{server.url}metrics').text


def test_a_request_that_takes_too_long():
    with RunningServer(GatedModel(is_open=False), timeout=0.2) as server:
        response = post(server, 1)
        assert response.status_code == 503 and response.headers['retry-after'] == '1'
        assert response.json()['error']['message'] == 'no answer within 0.2 s, the limit of this server'
        server.service.model.gate.set()


@pytest.fixture
def impatient():
    """A server with short time limits."""
    with RunningServer(GatedModel(), idle_timeout=0.2, timeout=0.6) as server:
        yield server


def test_a_client_that_sends_no_request(impatient):
    with impatient.connect() as connection:
        assert read_answer(connection) == (None, b'')


def test_a_slow_header(impatient):
    with impatient.connect() as connection:
        connection.sendall(b'GET / HTTP/1.1\r\n')
        status, data = read_answer(connection)
    assert status == 408 and data.endswith(b'"message":"the request header was not complete within 0.2 s"}}')
    with impatient.connect() as connection:  # also on a connection that is kept alive
        connection.sendall(request_bytes('/healthz', 'GET'))
        assert connection.recv(1 << 16).startswith(b'HTTP/1.1 200 ')
        connection.sendall(b'GET / HT')
        assert read_answer(connection)[0] == 408


def test_a_slow_upload(impatient):
    with impatient.connect() as connection:
        connection.sendall(request_bytes(content=gray_png(1))[:-5])
        status, data = read_answer(connection)
    assert status == 408 and b'the request body came too slowly: no data for 0.2 s' in data


def test_an_upload_in_small_parts(impatient):
    """Every part comes in time, but all of them take longer than the rate permits."""
    stop = threading.Event()
    with impatient.connect() as connection:
        connection.sendall(request_bytes(content=b'', Content_Length='1000000'))

        def trickle():
            while not stop.wait(0.05):
                connection.sendall(b'x')

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            status, data = read_answer(connection)
        finally:
            stop.set()
            thread.join()
    assert status == 408 and b'fewer than 4,096 bytes per second' in data


def test_a_client_that_does_not_read():
    """Its connection is closed, and the server can end."""
    file = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 256, (1000, 2000), np.uint8)
    Image.fromarray(noise).save(file, 'JPEG', quality=5)
    with RunningServer(GatedModel(), idle_timeout=0.3) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        connection.connect(('127.0.0.1', server.port))
        connection.sendall(request_bytes(content=file.getvalue(), Accept='image/png'))
        wait_until(lambda: server.service.metrics.images._value.get() == 1)
        wait_until(lambda: not server.server.server_state.connections)
        status, data = read_answer(connection)
    length = int(re.search(rb'content-length: (\d+)', data)[1])
    assert status == 200 and len(data) < length


def test_what_is_not_http(server):
    with server.connect() as connection:
        connection.sendall(b'\x16\x03\x01\x02\x00\x01\x00' + bytes(30) + b'\r\n\r\n')  # TLS
        status, data = read_answer(connection)
    assert status == 400 and data.endswith(b'{"error":{"status":400,"message":"this is not a valid HTTP request"}}')
    with server.connect() as connection:
        connection.sendall(b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ' + b'x' * 100_000)
        assert read_answer(connection)[0] == 400


def test_a_chunk_that_is_damaged(server):
    with server.connect() as connection:
        connection.sendall(request_bytes(Content_Length=None, Transfer_Encoding='chunked') + b'zz\r\n')
        assert read_answer(connection)[0] == 400
    wait_until(lambda: server.service.n_uploads == 0)


def test_the_end_answers_what_was_taken(pool):
    model = GatedModel(is_open=False)
    with RunningServer(model) as server:
        waiting = [pool.submit(post, server, value) for value in (1, 2)]
        wait_until(lambda: server.service.n_admitted == 2)
        with server.connect() as uploading, httpx.Client(base_url=server.url) as late:
            content = gray_png(3)
            uploading.sendall(request_bytes(content=content)[:-5])
            wait_until(lambda: server.service.n_uploads == 1)
            late.get('healthz')  # opens the connection
            server.service.stop()
            response = late.post('v1/detect', content=gray_png(4))
            assert response.status_code == 503 and response.headers['connection'] == 'close'
            assert response.json()['error']['message'] == 'the server is stopping'
            assert httpx.get(f'{server.url}readyz').json() == {'status': 'stopping'}
            server.server.stop()
            wait_until(lambda: not server.server.servers or not server.server.servers[0].is_serving())
            with pytest.raises(httpx.ConnectError):
                post(server, 5)
            uploading.sendall(content[-5:])
            wait_until(lambda: server.service.n_admitted == 3)
            model.gate.set()
            assert [value_of(request.result()) for request in waiting] == [1, 2]
            assert read_answer(uploading)[0] == 200
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_a_bug_is_logged_and_not_shown(caplog):
    model = GatedModel()
    model.errors = {1: RuntimeError('a secret of the server')}
    with RunningServer(model) as server, caplog.at_level(logging.ERROR):
        response = post(server, 1)
        assert value_of(post(server, 2)) == 2
    assert response.status_code == 500 and 'secret' not in response.text
    assert response.json()['error']['message'] == 'the server has failed; its log contains the reason'
    assert 'content-security-policy' in response.headers
    assert 'a secret of the server' in caplog.text and '/v1/detect failed' in caplog.text


def test_too_little_memory_is_not_a_bug():
    model = GatedModel()
    model.errors = {1: MemoryError()}
    with RunningServer(model) as server:
        response = post(server, 1)
    assert response.status_code == 503
    assert response.json()['error']['message'] == 'not enough memory for this image'


def test_the_rest_of_a_refused_request_is_not_read_for_ever(monkeypatch, server):
    monkeypatch.setattr(guard, 'DISCARD_SECONDS', 0.1)
    with server.connect() as connection:
        connection.sendall(request_bytes('/no/such/page', content=b'', Content_Length='1000000'))
        status, data = read_answer(connection)
    assert status == 404 and b'connection: close' in data.lower()


def test_names_that_utf_8_does_not_have():
    model = GatedModel()
    model.class_names = ('a\ud800',)
    with RunningServer(model, name='model\udcff') as server:
        answer = post(server, 1).json()
        assert (answer['model'], answer['detections'][0]['class']) == ('model?', 'a?')
        assert httpx.get(f'{server.url}v1/model').json()['classes'] == [{'id': 7, 'name': 'a?'}]
        assert 'model="model?"' in httpx.get(f'{server.url}metrics').text
