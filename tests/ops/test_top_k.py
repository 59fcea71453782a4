"""The selection of the largest scores against a stable sort."""

import numpy as np
import pytest

from mask_rcnn.ops.boxes import top_k
from mask_rcnn.ops.boxes.top_k import top_k_indices


@pytest.fixture(params=['continuous', 'few values', 'equal', 'both signs', 'infinite', 'nan'])
def scores(request, rng):
    """Scores of several distributions; "both signs" has positive and negative zeros, "nan" both signs of NaN."""
    uniform = rng.uniform(0, 1, 700).astype('f')
    return {
        'continuous': uniform,
        'few values': np.round(uniform * 4) / 4,
        'equal': np.zeros(700, 'f'),
        'both signs': np.where(uniform < 0.3, np.float32([0.0, -0.0] * 350), uniform - 0.7),
        'nan': np.where(uniform < 0.6, np.float32([np.nan, -np.nan] * 350), uniform - 0.8),
        'infinite': np.where(uniform < 0.9, -np.inf, uniform).astype('f'),
    }[request.param].astype('f')


@pytest.fixture
def always_select(monkeypatch):
    """Make the GPU implementation select before it sorts, which it otherwise does only for many scores."""
    monkeypatch.setattr(top_k, '_MAX_FULL_SORT', 0)


def assert_equals_stable_sort(backend, scores, limit):
    order = backend.numpy(top_k_indices(backend.array(scores), limit))
    assert order.tolist() == np.argsort(-scores, kind='stable')[:limit].tolist()
    order = backend.numpy(top_k_indices(backend.array(scores), limit, last_of_ties_first=True))
    assert order.tolist() == np.lexsort((-np.arange(len(scores)), -scores))[:limit].tolist()


@pytest.mark.parametrize('limit', [1, 50, 300, 699, 700, 5000])
def test_the_order_is_that_of_a_stable_sort(backend, scores, limit):
    assert_equals_stable_sort(backend, scores, limit)


@pytest.mark.parametrize('limit', [1, 50, 300, 699])
def test_the_order_after_a_selection(backend, always_select, scores, limit):
    assert_equals_stable_sort(backend, scores, limit)


@pytest.mark.parametrize('limit', [1, 30, 700])
@pytest.mark.parametrize('kind', ['sigmoid', 'near each other', 'equal', 'few candidates', 'one block'])
def test_scores_of_several_blocks(backend, always_select, rng, kind, limit):
    uniform = rng.uniform(0, 1, 3003).astype('f')
    scores = {
        'sigmoid': 1 / (1 + np.exp(20 * uniform)),
        'near each other': np.float32(1) + uniform * np.float32(2e-6),
        'equal': np.full(3003, -2, 'f'),
        'few candidates': np.where(uniform < 0.98, -np.inf, uniform),
        'one block': np.where(np.arange(3003) // 1024 == 2, uniform, 0),
    }[kind].astype('f')
    assert_equals_stable_sort(backend, scores, limit)


def test_scores_in_a_view(backend, rng):
    scores = rng.uniform(0, 1, (30, 40)).astype('f')
    assert_equals_stable_sort(backend, scores[::2, ::3].T[3], 9)


def test_one_score_and_no_score(backend):
    assert backend.numpy(top_k_indices(backend.array(np.float32([3])), 5)).tolist() == [0]
    assert backend.numpy(top_k_indices(backend.array(np.zeros(0, 'f')), 5)).shape == (0,)
    assert backend.numpy(top_k_indices(backend.array(np.float32([3])), 0)).shape == (0,)


def test_a_limit_above_that_of_the_sorting_kernel(backend, rng, monkeypatch):
    monkeypatch.setattr(top_k, '_MAX_PAIRWISE_SORT', 20)
    assert_equals_stable_sort(backend, rng.uniform(0, 1, 100).astype('f'), 30)
