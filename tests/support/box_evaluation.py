"""Small evaluations of boxes, written as lists of objects and detections."""

import numpy as np

from mask_rcnn.evaluation import COCOEvaluator
from mask_rcnn.inference.detections import Detections

SIZE = 1000  # of each image, pixels


def box_evaluator(objects, detections, *, n_classes=1, n_images=1, category_ids=None):
    """Return an evaluator of boxes.

    Args:
        objects: ``(image, label, (x, y, width, height))``, with a fourth entry for a crowd; images start at 1.
        detections: ``(image, label, (x, y, width, height), score)``.
        n_classes: Number of classes.
        n_images: Number of images.
        category_ids: Category id of each class; ``None`` for 1, 2, ...
    """
    category_ids = range(1, n_classes + 1) if category_ids is None else category_ids
    annotations = []
    for image, label, box, *crowd in objects:
        annotations.append(
            {
                'id': len(annotations) + 1,
                'image_id': image,
                'category_id': category_ids[label],
                'bbox': list(box),
                'area': box[2] * box[3],
                'iscrowd': int(bool(crowd)),
            }
        )
    truth = {
        'images': [{'id': i, 'height': SIZE, 'width': SIZE} for i in range(1, n_images + 1)],
        'annotations': annotations,
        'categories': [{'id': category_ids[k], 'name': f'class {k}'} for k in range(n_classes)],
    }
    evaluator = COCOEvaluator(
        truth,
        class_names=[f'class {k}' for k in range(n_classes)],
        category_ids=category_ids,
        masks=False,
    )
    for image in range(1, n_images + 1):
        found = [entry[1:] for entry in detections if entry[0] == image]
        boxes = [(y, x, y + height - 1, x + width - 1) for _, (x, y, width, height), _ in found]
        evaluator.add(
            image,
            Detections(
                boxes=np.array(boxes, np.float32).reshape(-1, 4),
                labels=np.array([label for label, *_ in found], np.int32),
                scores=np.array([score for *_, score in found], np.float32),
                size=(SIZE, SIZE),
            ),
        )
    return evaluator


def random_case(rng, *, n_images=12, n_classes=3):
    """Return objects and detections with all kinds of errors, crowds and equal scores."""
    objects, detections = [], []
    for image in range(1, n_images + 1):
        for _ in range(rng.randint(0, 6)):
            label, size = int(rng.randint(n_classes)), rng.randint(20, 150, 2)
            x, y = rng.randint(0, SIZE - 150, 2).tolist()
            box = (x, y, *size.tolist())
            objects.append((image, label, box, *(['crowd'] if rng.rand() < 0.1 else [])))
            for _ in range(rng.randint(0, 3)):
                dx, dy = np.rint(rng.normal(0, 0.2, 2) * size).astype(int).tolist()
                found = int(rng.randint(n_classes)) if rng.rand() < 0.2 else label
                moved = (max(x + dx, 0), max(y + dy, 0), *box[2:])
                detections.append((image, found, moved, round(float(rng.rand()), 1)))
        for _ in range(rng.randint(0, 3)):
            x, y = rng.randint(0, SIZE - 150, 2).tolist()
            detections.append((image, int(rng.randint(n_classes)), (x, y, 40, 60), round(float(rng.rand()), 1)))
    return objects, detections
