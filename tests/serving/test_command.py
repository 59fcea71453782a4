"""``mask-rcnn serve``: its arguments, its lines and its end."""

import logging
import os
import signal
import socket
import sys
import threading

import httpx
import pytest

from mask_rcnn import cli
from mask_rcnn.cli import serve
from tests.support.bundled_model import MODEL_FILE
from tests.support.serving import GatedModel, gray_png, request_bytes, wait_until

ARGUMENTS = ['serve', '--modelfile', str(MODEL_FILE), '--bn2affine', '--gpu', '-1']


@pytest.fixture
def apps(monkeypatch):
    """The applications and services of commands that end at once, instead of serving."""
    started = []
    monkeypatch.setattr(serve, 'load_network', lambda args, **options: GatedModel())
    monkeypatch.setattr(
        'mask_rcnn.serving.server.run_server', lambda app, service, listener: started.append((service, listener))
    )
    return started


def free_port():
    """Return the number of a port that is free."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def in_thread(action):
    """Run an action beside the server, and then interrupt the server."""
    errors = []

    def run():
        try:
            action()
        except BaseException as error:
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_server_until_ctrl_c(scene, capfd):
    """The model of the repository answers a request; Ctrl-C ends the server with status 0."""
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    answers = []

    def is_ready():
        try:
            return httpx.get(f'{url}/readyz').status_code == 200
        except httpx.ConnectError:
            return False

    def use():
        wait_until(is_ready, 60)
        answers.append(httpx.post(f'{url}/v1/detect', content=scene, timeout=60))
        answers.append(httpx.get(f'{url}/v1/model'))

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread, errors = in_thread(use)
    status = cli.main([*ARGUMENTS, '--port', str(port), '--score-thresh', '0.6'])
    thread.join()
    assert (status, errors) == (0, [])
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    out, err = capfd.readouterr()
    assert out == f'serving shapes_mobilenet_v1_fpn at {url}/ (Ctrl-C stops)\n'
    assert err == 'SIGINT: the server answers its requests and ends; a second signal ends it at once\n'
    scores = [found['score'] for found in answers[0].json()['detections']]
    assert scores and min(scores) > 0.6
    assert answers[1].json()['score'] == {'json': 0.6, 'picture': 0.6}


def test_a_second_signal_ends_at_once(monkeypatch, capfd):
    model = GatedModel(is_open=False)
    monkeypatch.setattr(serve, 'load_network', lambda args, **options: model)
    port, connections = free_port(), []

    def connect():
        return socket.create_connection(('127.0.0.1', port))

    def is_listening():
        try:
            connect().close()
        except OSError:
            return False
        return True

    def use():
        wait_until(lambda: model.images)  # the warm-up, which lasts until the end of the test
        connections.append(connect())
        connections[0].sendall(request_bytes(content=gray_png(1)))
        metrics = f'http://127.0.0.1:{port}/metrics'
        wait_until(lambda: 'mask_rcnn_queue_length 1.0' in httpx.get(metrics).text)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: not is_listening())

    thread, errors = in_thread(use)
    status = cli.main([*ARGUMENTS, '--port', str(port)])
    thread.join()
    model.gate.set()
    connections[0].close()
    assert (status, errors) == (130, [])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith('SIGINT: ') and lines[1] == 'error: interrupted'


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        assert cli.main([*ARGUMENTS, '--port', str(port)]) == 2
    out, err = capsys.readouterr()
    line = f'error: --host 127.0.0.1 --port {port}: another program uses this port; --port 0 selects a free one\n'
    assert (out, err) == ('', line)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--host', 'no.such.name.invalid'], 'error: --host no.such.name.invalid --port 8000: '),
        (['--host', 'a' * 300], f'error: --host {"a" * 300} --port 8000: '),
        (['--modelfile', 'missing.npz'], 'error: missing.npz: no such file'),
    ],
)
def test_other_errors_are_one_line(capsys, arguments, message):
    assert cli.main([*ARGUMENTS, *arguments]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == '' and err.startswith(message) and err.count('\n') == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--port', '65536'], "'65536' is not a port, a number from 0 to 65535"),
        (['--port', 'http'], "'http' is not a port"),
        (['--queue', '0'], "'0' is not a positive integer"),
        (['--max-size', '0'], "'0' is not a positive number"),
        (['--timeout', 'inf'], "'inf' is not a positive number"),
        (['--host', ''], 'argument --host: the value is empty'),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.main([*ARGUMENTS, *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize('library', ['uvicorn', 'starlette', 'python_multipart', 'prometheus_client'])
def test_a_missing_library_is_named(monkeypatch, capsys, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert cli.main(ARGUMENTS) == 2
    err = capsys.readouterr().err
    assert err.startswith(f'error: the server needs {library}, ') and err.count('\n') == 1
    assert err.endswith('pip install starlette uvicorn python-multipart prometheus-client\n')


def test_limits_of_the_command_line(apps):
    limits = '--max-size 0.5 --max-pixels 1000 --queue 3 --batch-size 2 --timeout 7.5 --port 0'
    assert cli.main([*ARGUMENTS, *limits.split()]) == 0
    found = apps[0][0].limits
    assert (found.max_bytes, found.max_pixels, found.queue, found.batch_size) == (1 << 19, 1000, 3, 2)
    assert found.timeout == 7.5


def test_a_size_that_no_file_has(apps):
    assert cli.main([*ARGUMENTS, '--port', '0', '--max-size', '1e305']) == 0  # its bytes exceed a float
    assert apps[0][0].limits.max_bytes > 1 << 60


def test_an_address_that_other_machines_reach_is_a_warning(apps, capsys):
    assert cli.main([*ARGUMENTS, '--port', '0']) == 0
    assert capsys.readouterr().err == ''
    assert cli.main([*ARGUMENTS, '--port', '0', '--host', '0.0.0.0']) == 0
    out, err = capsys.readouterr()
    assert err == 'warning: --host 0.0.0.0: other machines can reach the server, which has no passwords\n'
    assert out.startswith('serving shapes_mobilenet_v1_fpn at http://127.0.0.1:')


def test_tracebacks_are_written_to_the_standard_error(capsys):
    with serve._logging_to_stderr():
        try:
            raise ValueError('an error with\x1b an escape')
        except ValueError:
            logging.getLogger('mask_rcnn.serving.guard').exception('POST /v1/detect failed')
        logging.getLogger('python_multipart.multipart').warning('each damaged form')
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'POST /v1/detect failed' and lines[1] == 'Traceback (most recent call last):'
    assert lines[-1] == 'ValueError: an error with\\x1b an escape'
