"""Detections of exported networks in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from mask_rcnn import Detections, MaskRCNN


def run_detections(session: Any, image: np.ndarray, model: MaskRCNN) -> Detections:
    """Return what a session of an exported network gives for an image, as the network's own detections.

    Args:
        session: The session of ONNX Runtime.
        image: ``(H, W, 3)`` uint8.
        model: The network.
    """
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {'image': image}), strict=True))
    keypoints = outputs.get('keypoints')
    return Detections(
        boxes=outputs['boxes'][:, [1, 0, 3, 2]],
        labels=outputs['labels'].astype(np.int32),
        scores=outputs['scores'],
        size=image.shape[:2],
        masks=outputs.get('masks'),
        keypoints=None if keypoints is None else keypoints[:, :, [1, 0, 2, 3]],
        class_names=model.class_names,
        category_ids=model.category_ids,
        dialect=model.config.dialect,
    )


def compare_detections(
    found: Detections, expected: Detections, *, boxes: float = 0.01, scores: float = 1e-5, pixels: float = 1e-3
) -> None:
    """Compare detections in their order.

    Args:
        found: The detections of ONNX Runtime.
        expected: Those of ``detect``.
        boxes: Largest difference of coordinates, in pixels.
        scores: Largest difference of scores.
        pixels: Largest share of pixels of the masks that differ.
    """
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=scores)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=boxes)
    assert found.has_masks == expected.has_masks
    if expected.has_masks:
        assert np.count_nonzero(found.masks != expected.masks) <= pixels * np.count_nonzero(expected.masks)
    assert (found.keypoints is None) == (expected.keypoints is None)
    if expected.keypoints is not None:
        np.testing.assert_allclose(found.keypoints, expected.keypoints, rtol=1e-3, atol=boxes)
