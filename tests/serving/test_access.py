"""Requests of other hosts and origins, and tricks with paths."""

import pytest

from mask_rcnn.serving.access import AccessRules, is_loopback
from mask_rcnn.serving.errors import RequestError
from tests.support.serving import read_answer, request_bytes


def refusal(rules, method='POST', path='/v1/detect', **headers):
    """Return the status with which rules refuse a request, ``None`` if they accept it."""
    fields = [(name.replace('_', '-').lower().encode(), value.encode()) for name, value in headers.items()]
    try:
        rules.check({'type': 'http', 'method': method, 'path': path, 'raw_path': path.encode(), 'headers': fields})
    except RequestError as error:
        return error.status


@pytest.mark.parametrize(
    'host', ['127.0.0.1', '127.0.0.1:8000', 'localhost:8000', 'LOCALHOST', 'localhost.', '[::1]:8000', '[0:0::1]']
)
def test_names_of_the_machine(host):
    assert refusal(AccessRules('127.0.0.1'), Host=host) is None


@pytest.mark.parametrize(
    'host',
    [
        'evil.com',
        'evil.com:8000',
        '127.0.0.1.evil.com',
        'localhost.evil.com',
        '192.168.1.2',
        '',
        '[::2]',
        'a:b',
        '[::1',
    ],
)
def test_other_names_are_refused(host):
    """A site whose name leads to this machine (DNS rebinding) sends its own name."""
    assert refusal(AccessRules('127.0.0.1'), 'GET', '/', Host=host) == 403
    assert refusal(AccessRules('127.0.0.1'), 'GET', '/') == 403  # without the header


def test_names_that_are_allowed():
    rules = AccessRules('192.168.1.2', ['Detect.example.com'])
    assert refusal(rules, Host='detect.example.com') is None
    assert refusal(rules, Host='192.168.1.2:80') is None
    assert refusal(rules, Host='192.168.1.3') == 403


@pytest.mark.parametrize('host', ['0.0.0.0', '::'])
def test_all_addresses_of_the_machine(host):
    rules = AccessRules(host)
    assert refusal(rules, Host='192.168.1.3:8000') is None and refusal(rules, Host='[fe80::1]') is None
    assert refusal(rules, Host='evil.com') == 403


@pytest.mark.parametrize(
    ('host', 'origin', 'accepted'),
    [
        ('127.0.0.1:8000', 'http://127.0.0.1:8000', True),
        ('localhost', 'http://localhost', True),
        ('localhost', 'http://localhost:80', True),
        ('proxy.example.com', 'https://proxy.example.com', True),
        ('127.0.0.1:8000', 'https://proxy.example.com', True),  # a proxy that changes the host
        ('127.0.0.1:8000', 'http://localhost:8000', False),
        ('127.0.0.1:8000', 'http://127.0.0.1:3000', False),
        ('127.0.0.1:8000', 'http://127.0.0.1', False),
        ('127.0.0.1:8000', 'https://evil.com', False),
        ('127.0.0.1:8000', 'null', False),
        ('127.0.0.1:8000', 'file://', False),
        ('127.0.0.1:8000', 'http://[', False),
        ('127.0.0.1:8000', '', False),
    ],
)
def test_origins(host, origin, accepted):
    rules = AccessRules('127.0.0.1', ['proxy.example.com'])
    assert refusal(rules, Host=host, Origin=origin) == (None if accepted else 403)
    assert refusal(rules, 'GET', '/', Host=host, Origin=origin) is None  # which answers nothing to that page


@pytest.mark.parametrize(
    ('site', 'accepted'), [('same-origin', True), ('none', True), ('same-site', False), ('cross-site', False)]
)
def test_sites(site, accepted):
    assert refusal(AccessRules('127.0.0.1'), Host='localhost', Sec_Fetch_Site=site) == (None if accepted else 403)


def test_a_foreign_page_has_one_line_and_no_permission(client, scene):
    headers = {'Content-Type': 'image/png', 'Origin': 'https://evil.com'}
    response = client.post('v1/detect', content=scene, headers=headers)
    assert response.status_code == 403
    assert response.json()['error']['message'] == "requests of pages of 'https://evil.com' are refused"
    preflight = client.options('v1/detect', headers={**headers, 'Access-Control-Request-Method': 'POST'})
    assert preflight.status_code in (403, 405)
    for answer in (response, preflight, client.get('v1/model', headers=headers)):
        assert not [name for name in answer.headers if name.startswith('access-control')]


@pytest.mark.parametrize(
    'path',
    [
        '/static/../app.py',
        '/static/../../../../etc/passwd',
        '/static/%2e%2e/app.py',
        '/static/..%2fapp.py',
        '/static/%2e%2e%2f%2e%2e%2fcli%2fserve.py',
        '/static/..%5capp.py',
        '/static/..\\app.py',
        '/static//etc/passwd',
        '/static/index.html%00.png',
        '/static/',
        '/static',
        '/static/.',
        '/..',
        '//v1/model',
        '/v1%2fmodel',
        '/v1/./model',
        '/v1/../v1/model',
        '/v1/model/',
        '/static/%ff%fe',
        '/static/%',
        'http://evil.com/v1/model',
    ],
)
def test_tricks_with_paths(server, path):
    with server.connect() as connection:
        connection.sendall(request_bytes(path, 'GET', Connection='close'))
        status, data = read_answer(connection)
    assert status == 404 and data.endswith(b'{"error":{"status":404,"message":"no such page"}}')


@pytest.mark.parametrize(
    ('host', 'expected'),
    [('127.0.0.1', True), ('127.0.0.2', True), ('::1', True), ('localhost', True), ('0.0.0.0', False), ('box', False)],
)
def test_loopback(host, expected):
    assert is_loopback(host) == expected
