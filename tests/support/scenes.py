"""Four images with rectangles in memory, and the same data as COCO files."""

import json

import cv2
import numpy as np
from pycocotools import mask as coco_mask


class Scenes:
    """Images of 64 x 48 pixels with one to three rectangles of two classes; the second image has none."""

    class_names = ('red', 'green')
    n_images = 4

    def __len__(self):
        return self.n_images

    def image(self, i):
        image = np.random.RandomState(i).randint(0, 50, (48, 64, 3)).astype(np.uint8)
        for mask, label in zip(*self.objects(i), strict=True):
            image[mask, label] = 250
        return image

    def objects(self, i):
        rng = np.random.RandomState(100 + i)
        n_objects = 0 if i == 1 else 1 + i % 3
        masks = np.zeros((n_objects, 48, 64), bool)
        for mask in masks:
            y, x = rng.randint(0, 24, 2)
            mask[y : y + 20, x : x + 30] = True
        return masks, rng.randint(0, 2, n_objects)


def write_coco(data, folder):
    """Write the images as PNG and the masks as run lengths."""
    images, annotations = [], []
    for i in range(len(data)):
        cv2.imwrite(str(folder / f'{i}.png'), data.image(i)[:, :, ::-1])
        images.append({'id': i + 1, 'file_name': f'{i}.png', 'height': 48, 'width': 64})
        for mask, label in zip(*data.objects(i), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle['counts'] = rle['counts'].decode()
            annotations.append({'image_id': i + 1, 'category_id': int(label) + 1, 'segmentation': rle})
    categories = [{'id': k, 'name': name} for k, name in enumerate(data.class_names, 1)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (folder / 'coco.json').write_text(json.dumps(content))
    return folder / 'coco.json'
