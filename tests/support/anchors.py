"""Training targets of sampled anchors as arrays of all anchors, and back."""

import numpy as np

from mask_rcnn.targets import IGNORED, RPNTargets


def sampled_targets(labels, deltas):
    """Return the targets of the anchors that are not ignored.

    Args:
        labels: ``(K,)`` int32: 1, 0, or -1 for ignored anchors.
        deltas: ``(K, 4)`` float32.
    """
    indices = np.concatenate([np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)])
    return RPNTargets(indices, labels[indices], deltas[indices])


def label_map(n_anchors, positive, negative):
    """Return the labels ``(K,)`` of all anchors from the indices of the sampled ones, which are distinct."""
    labels = np.full(n_anchors, IGNORED, np.int32)
    labels[positive], labels[negative] = 1, 0
    assert np.count_nonzero(labels != IGNORED) == len(positive) + len(negative)
    return labels


def dense_targets(targets, n_anchors):
    """Return the labels ``(K,)`` and the deltas ``(K, 4)`` of all anchors."""
    deltas = np.zeros((n_anchors, 4), np.float32)
    deltas[targets.indices] = targets.deltas
    return label_map(n_anchors, targets.indices[targets.labels == 1], targets.indices[targets.labels == 0]), deltas
