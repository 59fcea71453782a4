// The detected objects of one picture.

import { chooseColors } from './colors.js';
import { Mask } from './rle.js';

/**
 * Return the objects of an answer of /v1/detect, in descending order of score.
 *
 * @param {object} answer
 * @param {object[]} previous The objects of the previous video frame, whose colours are kept.
 * @returns {object[]} Objects with `name`, `score`, `box` (x, y, width, height), `mask` (Mask or null), `keypoints`
 *   ([[x, y, visibility], ...] or null), `area` in pixels, and `colorIndex`.
 * @throws {Error} A mask is invalid.
 */
export function readObjects(answer, previous = []) {
  const objects = answer.detections.map((detection) => {
    const { bbox, segmentation, keypoints } = detection;
    const mask = segmentation ? new Mask(segmentation) : null;
    return {
      name: String(detection.class),
      score: detection.score,
      box: bbox,
      mask,
      keypoints: keypoints ? triples(keypoints) : null,
      area: mask ? mask.area : bbox[2] * bbox[3],
    };
  });
  objects.sort((a, b) => b.score - a.score);
  chooseColors(objects, answer.image, previous).forEach((color, i) => {
    objects[i].colorIndex = color;
  });
  return objects;
}

/** Return the topmost object at a point of the picture, or null: smaller ones are drawn over larger ones. */
export function objectAt(objects, x, y) {
  const hit = (object) => {
    if (object.mask) {
      return object.mask.contains(Math.floor(x), Math.floor(y));
    }
    const [left, top, width, height] = object.box;
    return x >= left && y >= top && x < left + width && y < top + height;
  };
  return bottomUp(objects).reverse().find(hit) ?? null;
}

/** Return the objects in the order in which they are drawn: large ones first. */
export function bottomUp(objects) {
  return [...objects].sort((a, b) => b.area - a.area);
}

/** Return the numbers of objects in words: in total, "3 objects", and of each class, ["2 person", "1 dog"]. */
export function summarise(objects) {
  const counts = new Map();
  for (const { name } of objects) {
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return {
    total: `${objects.length || 'No'} ${objects.length === 1 ? 'object' : 'objects'}`,
    classes: [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} ${name}`),
  };
}

function triples(values) {
  const rows = [];
  for (let i = 0; i + 2 < values.length; i += 3) {
    rows.push(values.slice(i, i + 3));
  }
  return rows;
}
