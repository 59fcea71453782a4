"""The command under load: four clients, requests of mixed sizes, broken ones among them, and Ctrl-C in between."""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.visualization.pictures import encode_picture
from tests.serving.test_uploads import png_file
from tests.support.bundled_model import MODEL_FILE
from tests.support.environment import subprocess_environment

pytestmark = pytest.mark.slow

N_REQUESTS, N_CLIENTS, BROKEN_PERCENT = 500, 4, 5
MAX_GROWTH = 40 << 20  # bytes


def make_images():
    """Return PNG files of many sizes."""
    scenes = [example.image.transpose(1, 2, 0).astype(np.uint8) for example in RichShapesDataset(20, size=320, seed=9)]
    sizes = [(320, 320), (200, 320), (320, 160), (120, 120), (60, 200)]
    return [
        encode_picture(scene[: sizes[i % 5][0], : sizes[i % 5][1]], '.png' if i % 3 else '.bmp')
        for i, scene in enumerate(scenes)
    ]


#: Broken requests: the content and the status of its answer.
BROKEN = [
    (b'', 400),
    (b'this is text', 415),
    (b'\x89PNG\r\n\x1a\n' + bytes(50), 422),
    (png_file(100_000, 100_000, b'x'), 422),
]


def expected_answers(images, folder):
    """Return the results of ``detect`` for files, in the form of the answers."""
    model = mask_rcnn.load(MODEL_FILE, bn2affine=True)
    answers = []
    for i, data in enumerate(images):
        path = folder / f'{i}.image'
        path.write_bytes(data)
        (detections,) = model.detect([path])
        results = detections.to_coco(0)
        for name, result in zip(detections.names, results, strict=True):
            result['class'] = name
            del result['image_id']
        answers.append(json.loads(json.dumps(results)))
    assert sum(map(len, answers)) > 100
    return answers


class Server:
    """The command in a process, on a free port."""

    def __init__(self, root):
        command = [sys.executable, '-m', 'mask_rcnn.cli', 'serve', '--bn2affine', '--modelfile', str(MODEL_FILE)]
        self.process = subprocess.Popen(
            [*command, '--gpu', '-1', '--port', '0'],
            env=subprocess_environment(root, OPENBLAS_NUM_THREADS='1', PYTHONUNBUFFERED='1'),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = re.search(r'http://\S+', self.process.stdout.readline())[0]
        end = time.monotonic() + 120
        while httpx.get(f'{self.url}readyz').status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)

    def metrics(self, *names):
        """Return the values of metrics at one time."""
        text = httpx.get(f'{self.url}metrics').text
        return [float(re.search(rf'^{name} (\S+)$', text, re.MULTILINE)[1]) for name in names]


def run_client(url, number, images, expected, wrong):
    """Send a quarter of the requests and compare their answers."""
    chance = random.Random(number)
    with httpx.Client(base_url=url, timeout=60) as client:
        for i in range(N_REQUESTS // N_CLIENTS):
            if chance.random() < BROKEN_PERCENT / 100:
                content, status = chance.choice(BROKEN)
                if client.post('v1/detect', content=content).status_code != status:
                    wrong.append((number, i, status))
                continue
            index = chance.randrange(len(images))
            if chance.random() < 0.5:
                response = client.post('v1/detect', content=images[index], headers={'Content-Type': 'image/png'})
            else:
                response = client.post('v1/detect', files={'image': ('a.png', images[index])})
            if response.status_code != 200 or response.json()['detections'] != expected[index]:
                wrong.append((number, i, response.status_code))


def test_many_requests_of_several_clients(root, tmp_path, one_blas_thread):
    images = make_images()
    expected = expected_answers(images, tmp_path)
    server = Server(root)
    try:
        wrong = []
        run_client(server.url, -1, images, expected, wrong)  # the memory after the first requests is the reference
        (memory,) = server.metrics('process_resident_memory_bytes')
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            list(pool.map(lambda number: run_client(server.url, number, images, expected, wrong), range(N_CLIENTS)))
        assert wrong == []
        grown, n_waiting, n_images = server.metrics(
            'process_resident_memory_bytes', 'mask_rcnn_queue_length', 'mask_rcnn_images_total'
        )
        assert grown - memory < MAX_GROWTH and n_waiting == 0

        answers = []

        def send():
            answers.append(httpx.post(f'{server.url}v1/detect', content=images[0], timeout=60))

        threads = [threading.Thread(target=send) for _ in range(10)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while sum(server.metrics('mask_rcnn_queue_length', 'mask_rcnn_images_total')) < n_images + len(threads):
            assert time.monotonic() < end
        assert server.metrics('mask_rcnn_queue_length')[0] > 1
        server.process.send_signal(signal.SIGINT)
        out, err = server.process.communicate(timeout=60)
        for thread in threads:
            thread.join()
    finally:
        server.process.kill()
    assert server.process.returncode == 0 and out == ''
    assert [line for line in err.splitlines() if not line.startswith('compiling')] == [
        'SIGINT: the server answers its requests and ends; a second signal ends it at once'
    ]
    assert len(answers) == len(threads)  # each of them had been taken
    assert all(answer.json()['detections'] == expected[0] for answer in answers)
