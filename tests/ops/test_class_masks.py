"""The masks of one class of each RoI."""

import numpy as np
import pytest

from mask_rcnn.ops.masks import class_masks
from mask_rcnn.ops.runtime import cuda_kernels


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('n_rois', [0, 1, 11])
@pytest.mark.parametrize('channels_last', [True, False])
def test_the_sigmoid_of_the_logits_of_the_label(backend, rng, monkeypatch, dtype, n_rois, channels_last):
    logits = rng.normal(0, 5, (n_rois, 3, 7, 7)).astype(dtype)
    labels = rng.randint(0, 3, n_rois).astype('i')
    expected = 1 / (1 + np.exp(-logits[np.arange(n_rois), labels].astype('f8')))
    if backend.name == 'emulated':
        monkeypatch.setattr(class_masks, 'probs_cpu', class_masks.probs_gpu)
    monkeypatch.setattr(cuda_kernels, '_MAX_BLOCKS', 1)  # fewer threads than pixels
    stored = backend.array(logits)
    if channels_last:
        stored = backend.xp.ascontiguousarray(stored.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    probs = backend.numpy(class_masks.class_mask_probs(stored, backend.array(labels)))
    assert probs.dtype == np.float32 and probs.flags.c_contiguous
    np.testing.assert_allclose(probs, expected, rtol=0, atol=2e-7)
