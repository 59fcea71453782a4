// Colours of objects: stable, and different for objects that are near each other.

/** RGB colours, those of the package's pictures (mask_rcnn/visualization/colors.py). */
export const PALETTE = [
  [56, 165, 255], [255, 140, 0], [0, 190, 130], [240, 70, 160], [245, 215, 40], [140, 95, 250],
  [235, 60, 50], [40, 215, 235], [150, 215, 50], [176, 110, 50], [255, 160, 200], [45, 90, 220],
];

const NEIGHBOUR_DISTANCE = 0.1; // at which a neighbour loses importance, as a fraction of the picture's diagonal
const SAME_OBJECT_IOU = 0.3;

/**
 * Return an index into the palette for each box.
 *
 * A box that continues an object of the previous video frame keeps its colour. Each other one gets the colour that is
 * used least around it, and among those the least used of all.
 *
 * @param {{name: string, box: number[]}[]} objects `box` is x, y, width and height.
 * @param {{width: number, height: number}} image
 * @param {{name: string, box: number[], colorIndex: number}[]} previous The objects of the previous frame.
 * @returns {number[]}
 */
export function chooseColors(objects, image, previous = []) {
  const chosen = inheritColors(objects, previous);
  const reach = NEIGHBOUR_DISTANCE * Math.hypot(image.width, image.height);
  objects.forEach((object, i) => {
    if (chosen[i] !== null) {
      return;
    }
    const cost = new Array(PALETTE.length).fill(0);
    objects.forEach((other, j) => {
      if (chosen[j] !== null) {
        cost[chosen[j]] += Math.exp(-gap(object.box, other.box) / reach) + 1e-3;
      }
    });
    chosen[i] = cost.indexOf(Math.min(...cost));
  });
  return chosen;
}

/** Return a colour's CSS text. */
export function cssColor(index, alpha = 1) {
  return `rgb(${PALETTE[index].join(' ')} / ${alpha})`;
}

/** Return black or white, the colour with the higher contrast ratio to a colour of the palette (WCAG 2.1). */
export function textColor(index) {
  const [red, green, blue] = PALETTE[index].map((value) => {
    const fraction = value / 255;
    return fraction <= 0.04045 ? fraction / 12.92 : ((fraction + 0.055) / 1.055) ** 2.4;
  });
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) ** 2 > 1.05 * 0.05 ? '#000' : '#fff';
}

function inheritColors(objects, previous) {
  const pairs = [];
  objects.forEach((object, i) => {
    previous.forEach((earlier, j) => {
      const overlap = object.name === earlier.name ? iou(object.box, earlier.box) : 0;
      if (overlap >= SAME_OBJECT_IOU) {
        pairs.push([overlap, i, j]);
      }
    });
  });
  const chosen = objects.map(() => null);
  const continued = new Set();
  for (const [, i, j] of pairs.sort((a, b) => b[0] - a[0])) {
    if (chosen[i] === null && !continued.has(j)) {
      chosen[i] = previous[j].colorIndex;
      continued.add(j);
    }
  }
  return chosen;
}

function iou([x, y, width, height], [otherX, otherY, otherWidth, otherHeight]) {
  const common =
    Math.max(0, Math.min(x + width, otherX + otherWidth) - Math.max(x, otherX)) *
    Math.max(0, Math.min(y + height, otherY + otherHeight) - Math.max(y, otherY));
  return common && common / (width * height + otherWidth * otherHeight - common);
}

/** Return the distance between two boxes, 0 if they touch. */
function gap([x, y, width, height], [otherX, otherY, otherWidth, otherHeight]) {
  const across = Math.max(x - otherX - otherWidth, otherX - x - width, 0);
  return Math.hypot(across, Math.max(y - otherY - otherHeight, otherY - y - height, 0));
}
