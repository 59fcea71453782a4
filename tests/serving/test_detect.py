"""``POST /v1/detect``: its answers equal ``detect``."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

PNG = {'Content-Type': 'image/png'}


@pytest.fixture(scope='module')
def expected(model, scene, tmp_path_factory):
    """The detections of the model in the file."""
    path = tmp_path_factory.mktemp('scene') / 'scene.png'
    path.write_bytes(scene)
    (detections,) = model.detect([path])
    assert len(detections) > 3
    return detections


def found_in(response):
    assert response.status_code == 200, response.text
    assert response.headers['content-type'] == 'application/json'
    return response.json()['detections']


def test_the_answer_equals_detect(client, scene, expected):
    response = client.post('v1/detect', content=scene, headers=PNG)
    results = [
        {'class': name, **{key: value for key, value in result.items() if key != 'image_id'}}
        for name, result in zip(expected.names, expected.to_coco(0), strict=True)
    ]
    assert found_in(response) == json.loads(json.dumps(results))
    answer = response.json()
    assert answer['image'] == {'width': 160, 'height': 160} and answer['model'] == 'model' and answer['time_ms'] > 0
    scores = [found['score'] for found in answer['detections']]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize('content_type', ['application/octet-stream', 'image/jpeg; charset=binary', None])
def test_the_content_decides_about_the_format(client, scene, content_type):
    headers = {} if content_type is None else {'Content-Type': content_type}
    reference = client.post('v1/detect', content=scene, headers=PNG)
    assert found_in(client.post('v1/detect', content=scene, headers=headers)) == found_in(reference)


def test_a_form_equals_the_bytes(client, scene):
    reference = found_in(client.post('v1/detect', content=scene, headers=PNG))
    assert found_in(client.post('v1/detect', files={'image': ('../../a.png', scene)})) == reference
    chunks = (scene[start : start + 1000] for start in range(0, len(scene), 1000))  # Transfer-Encoding: chunked
    assert found_in(client.post('v1/detect', content=chunks, headers=PNG)) == reference


def test_a_minimum_score_includes_equal_scores(client, scene, expected):
    score = float(expected.scores[2])
    found = found_in(client.post('v1/detect', params={'score': score}, content=scene, headers=PNG))
    assert [item['score'] for item in found] == expected.scores[:3].tolist()
    assert found_in(client.post('v1/detect', params={'score': 1}, content=scene, headers=PNG)) == []


def test_polygons_are_the_masks(client, scene, expected):
    found = found_in(client.post('v1/detect', params={'masks': 'polygons'}, content=scene, headers=PNG))
    assert len(found) == len(expected)
    for item, mask in zip(found, expected.masks, strict=True):
        polygons = coco_mask.frPyObjects(item['segmentation'], *mask.shape)
        assert np.array_equal(coco_mask.decode(coco_mask.merge(polygons)), mask)


def test_answers_without_masks(client, scene, expected):
    found = found_in(client.post('v1/detect', params={'masks': 'none'}, content=scene, headers=PNG))
    assert len(found) == len(expected) and all('segmentation' not in item for item in found)


def test_the_picture_is_drawn(client, scene, expected):
    pixels = np.array(Image.open(io.BytesIO(scene)).convert('RGB'))
    response = client.post('v1/detect', content=scene, headers={**PNG, 'Accept': 'image/png'})
    assert response.headers['content-type'] == 'image/png'
    drawn = np.array(Image.open(io.BytesIO(response.content)))
    assert np.array_equal(drawn, expected[expected.scores >= 0.7].draw(pixels))  # the default of pictures
    response = client.post('v1/detect?score=1', content=scene, headers={**PNG, 'Accept': 'image/png'})
    assert np.array_equal(np.array(Image.open(io.BytesIO(response.content))), pixels)


def test_a_picture_as_jpeg(client, scene):
    response = client.post('v1/detect', content=scene, headers={**PNG, 'Accept': 'image/jpeg'})
    assert response.headers['content-type'] == 'image/jpeg'
    with Image.open(io.BytesIO(response.content)) as picture:
        assert picture.format == 'JPEG' and picture.size == (160, 160)


def test_the_orientation_of_a_photo_is_applied(client, scene, model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(scene)).convert('RGB').crop((0, 0, 160, 120)).save(file, 'JPEG', exif=exif, quality=95)
    path = tmp_path / 'photo.jpg'
    path.write_bytes(file.getvalue())
    (expected,) = model.detect([path])
    response = client.post('v1/detect', content=file.getvalue(), headers={'Content-Type': 'image/jpeg'})
    assert response.json()['image'] == {'width': 120, 'height': 160}
    assert [item['score'] for item in found_in(response)] == expected.scores.tolist()
