"""The documents of a server, and the headers of all answers."""

import re

import httpx
import jsonschema
import pytest
from starlette.requests import Request

from mask_rcnn.serving.errors import RequestError
from mask_rcnn.serving.metrics import Metrics
from mask_rcnn.serving.static_files import StaticFiles
from tests.support.serving import GatedModel, RunningServer, gray_png


def test_the_model_is_described(client, model):
    answer = client.get('v1/model').json()
    names = ['square', 'circle', 'triangle', 'star', 'ring', 'cross', 'heart', 'crescent']
    assert answer['classes'] == [{'id': i, 'name': name} for i, name in enumerate(names, 1)]
    assert answer['network'] == {'extractor': 'mobilenet_v1_fpn', 'masks': True, 'n_keypoints': 0}
    assert answer['name'] == 'model' and answer['dialect'] == 'mobilenet' and answer['device'] == 'cpu'
    assert answer['input'] == {'min_size': 96, 'max_size': 160, 'apply_orientation': True}
    assert answer['score'] == {'json': 0.05, 'picture': 0.7}
    assert answer['limits'] == {
        'max_bytes': 20 * 2**20, 'max_pixels': 50_000_000, 'queue': 32, 'batch_size': 1, 'timeout': 60.0,
    }  # fmt: skip


def test_health_and_readiness(client):
    assert client.get('healthz').json() == {'status': 'ok'}
    assert client.get('readyz').json() == {'status': 'ready'}


def test_a_failed_thread_is_not_healthy():
    with RunningServer(GatedModel()) as server:
        server.service._worker.close()
        assert httpx.get(f'{server.url}healthz').status_code == 503
        assert httpx.get(f'{server.url}readyz').json() == {'status': 'loading'}


def sample(text, name):
    """Return the value of a metric."""
    return float(re.search(rf'^{re.escape(name)} (\S+)$', text, re.MULTILINE)[1])


def test_metrics():
    with RunningServer(GatedModel()) as server, httpx.Client(base_url=server.url) as client:
        for content in (gray_png(9), gray_png(200), b'text'):
            client.post('v1/detect', content=content)
        client.get('no/such/page')
        client.get('static/nothing')
        response = client.get('metrics')
    assert response.headers['content-type'].startswith('text/plain')
    text = response.text
    assert sample(text, 'mask_rcnn_requests_total{method="POST",path="/v1/detect",status="200"}') == 2
    assert sample(text, 'mask_rcnn_requests_total{method="POST",path="/v1/detect",status="415"}') == 1
    assert sample(text, 'mask_rcnn_requests_total{method="GET",path="other",status="404"}') == 1
    assert sample(text, 'mask_rcnn_requests_total{method="GET",path="/static/",status="404"}') == 1
    assert sample(text, 'mask_rcnn_images_total') == sample(text, 'mask_rcnn_request_seconds_count') == 2
    assert sample(text, 'mask_rcnn_detections_total') == 2
    assert sample(text, 'mask_rcnn_batch_size_count') == sample(text, 'mask_rcnn_batch_size_sum') == 2
    assert sample(text, 'mask_rcnn_queue_length') == 0


def test_two_servers_have_separate_metrics():
    first, second = Metrics('a'), Metrics('b')
    first.images.inc()
    assert b'mask_rcnn_images_total 1.0' in first.text() and b'mask_rcnn_images_total 0.0' in second.text()


def test_the_document_describes_the_answers(client, scene):
    document = client.get('openapi.json').json()
    assert document['openapi'].startswith('3.1.')

    def check(path, method, response):
        media_types = document['paths'][path][method]['responses'][str(response.status_code)]['content']
        schema = media_types[response.headers['content-type'].split(';')[0]]['schema']
        jsonschema.Draft202012Validator({**document, **schema}).validate(response.json())

    for path in ('/v1/model', '/healthz', '/readyz', '/openapi.json'):
        check(path, 'get', client.get(path))
    for masks in ('rle', 'polygons', 'none'):
        check('/v1/detect', 'post', client.post('v1/detect', params={'masks': masks}, content=scene))
    check('/v1/detect', 'post', client.post('v1/detect', content=b'text'))
    check('/v1/detect', 'post', client.post('v1/detect?score=x', content=scene))
    schema = document['paths']['/v1/detect']['post']['responses']['200']['content']['application/json']['schema']
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator({**document, **schema}).validate({'image': {}})


def test_the_document_contains_every_path(client):
    paths = client.get('openapi.json').json()['paths']
    assert set(paths) == {
        '/v1/detect', '/v1/model', '/healthz', '/readyz', '/metrics', '/openapi.json', '/docs', '/',
    }  # fmt: skip
    names = [operation['operationId'] for path in paths.values() for operation in path.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('path', ['', 'v1/model', 'no/such/page', 'metrics'])
def test_security_headers(client, path):
    headers = client.get(path).headers
    policy = headers['content-security-policy'].split('; ')
    assert (
        "default-src 'self'" in policy and "img-src 'self' blob: data:" in policy and "frame-ancestors 'none'" in policy
    )
    assert 'unsafe' not in headers['content-security-policy']
    assert headers['permissions-policy'].startswith('camera=(self)')
    assert headers['x-content-type-options'] == 'nosniff' and headers['x-frame-options'] == 'DENY'
    assert 'server' not in headers


@pytest.mark.parametrize(
    ('method', 'path'), [('GET', 'v1/detect'), ('POST', 'v1/model'), ('PUT', ''), ('DELETE', 'docs')]
)
def test_methods(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 405 and response.json()['error']['message'] == 'this method is not allowed here'
    assert response.headers['allow']


def test_files_of_a_folder(tmp_path):
    for name in ('page.css', 'index.html', 'secret.py', '.hidden'):
        (tmp_path / name).write_text(f'content of {name}')
    (tmp_path / 'folder.js').mkdir()
    files = StaticFiles(tmp_path)

    def answer(name, **headers):
        fields = [(key.replace('_', '-').encode(), value.encode()) for key, value in headers.items()]
        return files.answer(name, Request({'type': 'http', 'headers': fields}))

    response = answer('page.css')
    assert response.body == b'content of page.css' and response.headers['content-type'] == 'text/css; charset=utf-8'
    assert response.headers['cache-control'] == 'no-cache'  # the browser compares the tag
    unchanged = answer('page.css', if_none_match=response.headers['etag'])
    assert unchanged.status_code == 304 and unchanged.body == b''
    assert answer('page.css', if_none_match=answer('index.html').headers['etag']).status_code == 200
    for name in ('secret.py', '.hidden', 'folder.js', '', '../page.css', 'page.css/'):
        with pytest.raises(RequestError, match='no such page'):
            answer(name)
