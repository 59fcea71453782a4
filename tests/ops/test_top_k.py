import numpy as np
import pytest

from mask_rcnn.ops import top_k
from mask_rcnn.ops.top_k import best_first


@pytest.fixture(params=['continuous', 'few values', 'equal', 'both signs', 'infinite'])
def scores(request, rng):
    numbers = rng.uniform(0, 1, 700).astype('f')
    return {
        'continuous': numbers, 'few values': np.round(numbers * 4) / 4, 'equal': np.zeros(700, 'f'),
        'both signs': np.where(numbers < 0.3, np.float32([0.0, -0.0] * 350), numbers - 0.7),
        'infinite': np.where(numbers < 0.9, -np.inf, numbers).astype('f'),
    }[request.param].astype('f')


@pytest.mark.parametrize('limit', [1, 50, 300, 699, 700, 5000])
def test_order_is_that_of_a_stable_sort(form, scores, limit):
    order = form.numpy(best_first(form.array(scores), limit))
    expected = sorted(range(700), key=lambda i: (-scores[i], i))[:limit]
    assert order.tolist() == expected


def test_one_score_and_none(form):
    assert form.numpy(best_first(form.array(np.float32([3])), 5)).tolist() == [0]
    assert form.numpy(best_first(form.array(np.zeros(0, 'f')), 5)).shape == (0,)
    assert form.numpy(best_first(form.array(np.float32([3])), 0)).shape == (0,)


def test_more_than_the_device_sorts_itself(form, rng, monkeypatch):
    monkeypatch.setattr(top_k, '_MAX_SORTED', 20)
    scores = rng.uniform(0, 1, 100).astype('f')
    assert form.numpy(best_first(form.array(scores), 30)).tolist() == np.argsort(-scores)[:30].tolist()
