import numpy as np
import pytest

from mask_rcnn.ops.boxes import top_k
from mask_rcnn.ops.boxes.top_k import top_k_indices


@pytest.fixture(params=['continuous', 'few values', 'equal', 'both signs', 'infinite'])
def scores(request, rng):
    numbers = rng.uniform(0, 1, 700).astype('f')
    return {
        'continuous': numbers,
        'few values': np.round(numbers * 4) / 4,
        'equal': np.zeros(700, 'f'),
        'both signs': np.where(numbers < 0.3, np.float32([0.0, -0.0] * 350), numbers - 0.7),
        'infinite': np.where(numbers < 0.9, -np.inf, numbers).astype('f'),
    }[request.param].astype('f')


@pytest.fixture
def chooses(monkeypatch):
    """Few scores are chosen before they are sorted, as many are."""
    monkeypatch.setattr(top_k, '_MAX_FULL_SORT', 0)


def is_as_a_stable_sort(backend, scores, limit):
    order = backend.numpy(top_k_indices(backend.array(scores), limit))
    return order.tolist() == np.argsort(-scores, kind='stable')[:limit].tolist()


@pytest.mark.parametrize('limit', [1, 50, 300, 699, 700, 5000])
def test_order_is_that_of_a_stable_sort(backend, scores, limit):
    assert is_as_a_stable_sort(backend, scores, limit)


@pytest.mark.parametrize('limit', [1, 50, 300, 699])
def test_order_of_what_was_chosen(backend, chooses, scores, limit):
    assert is_as_a_stable_sort(backend, scores, limit)


@pytest.mark.parametrize('limit', [1, 30, 700])
@pytest.mark.parametrize('kind', ['sigmoid', 'near each other', 'equal', 'few candidates', 'one block'])
def test_scores_of_many_blocks(backend, chooses, rng, kind, limit):
    numbers = rng.uniform(0, 1, 3003).astype('f')
    scores = {
        'sigmoid': 1 / (1 + np.exp(20 * numbers)),
        'near each other': np.float32(1) + numbers * np.float32(2e-6),
        'equal': np.full(3003, -2, 'f'),
        'few candidates': np.where(numbers < 0.98, -np.inf, numbers),
        'one block': np.where(np.arange(3003) // 1024 == 2, numbers, 0),
    }[kind].astype('f')
    assert is_as_a_stable_sort(backend, scores, limit)


def test_scores_in_a_view(backend, rng):
    scores = rng.uniform(0, 1, (30, 40)).astype('f')
    assert is_as_a_stable_sort(backend, scores[::2, ::3].T[3], 9)


def test_one_score_and_none(backend):
    assert backend.numpy(top_k_indices(backend.array(np.float32([3])), 5)).tolist() == [0]
    assert backend.numpy(top_k_indices(backend.array(np.zeros(0, 'f')), 5)).shape == (0,)
    assert backend.numpy(top_k_indices(backend.array(np.float32([3])), 0)).shape == (0,)


def test_more_than_the_device_sorts_itself(backend, rng, monkeypatch):
    monkeypatch.setattr(top_k, '_MAX_PAIRWISE_SORT', 20)
    scores = rng.uniform(0, 1, 100).astype('f')
    assert backend.numpy(top_k_indices(backend.array(scores), 30)).tolist() == np.argsort(-scores)[:30].tolist()
