// Masks, boxes, keypoints and labels over a picture.

import { cssColor, textColor } from './colors.js';
import { bottomUp } from './objects.js';

const MAX_LABEL_LENGTH = 32;

/**
 * Draw objects on a transparent canvas or over a picture.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {object[]} objects Those of readObjects.
 * @param {object} options
 * @param {number} options.scale Pixels of the canvas per pixel of the picture.
 * @param {number} options.unit Pixels of the canvas per unit of lines and letters.
 * @param {object} options.show What to draw: `masks`, `boxes`, `labels` and `keypoints`, which are booleans, and
 *   `skeleton`, the pairs of keypoints that are connected.
 * @param {object|null} options.active The object to emphasise.
 */
export function drawObjects(context, objects, { scale, unit, show, active = null }) {
  context.save();
  context.lineJoin = 'round';
  const ordered = bottomUp(objects).filter((object) => object !== active);
  if (active) {
    ordered.push(active);
  }
  for (const object of ordered) {
    const emphasis = active ? (object === active ? 'active' : 'faint') : 'normal';
    if (object.mask && (show.masks || object === active)) {
      drawMask(context, object, scale, unit, emphasis);
    }
    if (show.boxes || (object === active && !object.mask)) {
      drawBox(context, object, scale, unit, emphasis);
    }
    if (object.keypoints && show.keypoints) {
      drawKeypoints(context, object, scale, unit, emphasis, show.skeleton);
    }
  }
  if (show.labels || active) {
    drawLabels(context, show.labels ? objects : [active], scale, unit, active);
  }
  context.restore();
}

/** Return the size of lines and letters in a picture that is stored in its own resolution. */
export function unitFor(width, height) {
  return Math.max(1, Math.sqrt(width * height) / 800);
}

function drawMask(context, object, scale, unit, emphasis) {
  object.path ??= pathOf(object.mask);
  context.save();
  context.scale(scale, scale);
  context.fillStyle = cssColor(object.colorIndex, { normal: 0.42, active: 0.55, faint: 0.2 }[emphasis]);
  context.fill(object.path, 'evenodd');
  if (emphasis === 'active') {
    context.strokeStyle = '#fff';
    context.lineWidth = (4.5 * unit) / scale;
    context.stroke(object.path);
  }
  context.strokeStyle = cssColor(object.colorIndex, emphasis === 'faint' ? 0.5 : 1);
  context.lineWidth = ((emphasis === 'active' ? 2.25 : 1.75) * unit) / scale;
  context.stroke(object.path);
  context.restore();
}

/** Return the outline of a mask through the middles of the steps between pixels, which rounds slanted edges. */
function pathOf(mask) {
  const path = new Path2D();
  for (const polygon of mask.outline()) {
    for (let i = 0; i < polygon.length; i += 2) {
      const [x, y] = [polygon[i], polygon[i + 1]];
      const [nextX, nextY] = [polygon[(i + 2) % polygon.length], polygon[(i + 3) % polygon.length]];
      const [stepX, stepY] = [Math.sign(nextX - x) / 2, Math.sign(nextY - y) / 2];
      path[i ? 'lineTo' : 'moveTo'](x + stepX, y + stepY);
      path.lineTo(nextX - stepX, nextY - stepY);
    }
    path.closePath();
  }
  return path;
}

function drawBox(context, object, scale, unit, emphasis) {
  context.strokeStyle = cssColor(object.colorIndex, emphasis === 'faint' ? 0.4 : 1);
  context.lineWidth = (emphasis === 'active' ? 2.5 : 1.5) * unit;
  context.strokeRect(...object.box.map((value) => value * scale));
}

function drawKeypoints(context, object, scale, unit, emphasis, skeleton) {
  const points = object.keypoints;
  context.globalAlpha = emphasis === 'faint' ? 0.4 : 1;
  context.strokeStyle = cssColor(object.colorIndex);
  context.lineWidth = 2 * unit;
  for (const [a, b] of skeleton) {
    if (points[a]?.[2] && points[b]?.[2]) {
      context.beginPath();
      context.moveTo(points[a][0] * scale, points[a][1] * scale);
      context.lineTo(points[b][0] * scale, points[b][1] * scale);
      context.stroke();
    }
  }
  context.fillStyle = '#fff';
  context.lineWidth = 1.5 * unit;
  for (const [x, y, visibility] of points) {
    if (visibility) {
      context.beginPath();
      context.arc(x * scale, y * scale, 2.5 * unit, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    }
  }
  context.globalAlpha = 1;
}

/** Draw the labels in descending order of score; one that would cover another is left out, except the active one. */
function drawLabels(context, objects, scale, unit, active) {
  const [height, padding] = [19 * unit, 6 * unit];
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  context.textBaseline = 'middle';
  const placed = [];
  for (const object of active ? [active, ...objects.filter((other) => other !== active)] : objects) {
    const text = labelOf(object);
    const size = [context.measureText(text).width + 2 * padding, height];
    const place = placeLabel(context.canvas, object, size, scale, unit, placed);
    if (!place) {
      continue;
    }
    placed.push(place);
    context.globalAlpha = active && object !== active ? 0.6 : 1;
    context.fillStyle = cssColor(object.colorIndex);
    context.beginPath();
    context.roundRect(...place, 4 * unit);
    context.fill();
    context.fillStyle = textColor(object.colorIndex);
    context.fillText(text, place[0] + padding, place[1] + height / 2 + 0.5 * unit);
  }
  context.globalAlpha = 1;
}

/** Return the class and the score of an object; long names are shortened. */
export function labelOf({ name, score }) {
  const short = name.length > MAX_LABEL_LENGTH ? `${name.slice(0, MAX_LABEL_LENGTH - 1)}…` : name;
  return `${short} ${score.toFixed(2)}`;
}

/** Return x, y, width and height of the first free place above, in, or below the box; null if there is none. */
function placeLabel(canvas, object, [width, height], scale, unit, placed) {
  const [left, top, boxWidth, boxHeight] = object.box.map((value) => value * scale);
  const middle = left + (boxWidth - width) / 2;
  const places = [
    [left, top - height - 2 * unit],
    [left, top + 2 * unit],
    [middle, top + (boxHeight - height) / 2],
    [left + boxWidth - width, top - height - 2 * unit],
    [left, top + boxHeight - height - 2 * unit],
    [left, top + boxHeight + 2 * unit],
  ].map(([x, y]) => [
    Math.max(0, Math.min(x, canvas.width - width)),
    Math.max(0, Math.min(y, canvas.height - height)),
    width,
    height,
  ]);
  return places.find((place) => placed.every((other) => !overlap(place, other))) ?? null;
}

function overlap([x, y, width, height], [otherX, otherY, otherWidth, otherHeight]) {
  return x < otherX + otherWidth && otherX < x + width && y < otherY + otherHeight && otherY < y + height;
}
