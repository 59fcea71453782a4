// Masks as COCO's compressed run lengths (common/maskApi.c of COCO's API).

/**
 * Return the run lengths in compressed counts: runs of 0, 1, 0, ... down the columns.
 *
 * A value is written as characters of 5 bits, the low bits first. Bit 5 of a character is set if more characters
 * follow, and bit 4 of the last one is the sign. The fourth and later values are differences from the value two
 * positions before.
 *
 * @param {string} counts
 * @returns {number[]}
 * @throws {Error} The counts are truncated or have an invalid character.
 */
export function decodeCounts(counts) {
  const lengths = [];
  let value = 0;
  let weight = 1; // of the next 5 bits; a product, because shifts of more than 31 bits wrap around
  for (let i = 0; i < counts.length; i++) {
    const character = counts.charCodeAt(i) - 48;
    if (character < 0 || character > 63) {
      throw new Error(`The server's answer is damaged: a mask has the invalid character ${JSON.stringify(counts[i])}`);
    }
    value += (character & 31) * weight;
    weight *= 32;
    if (character & 32) {
      continue;
    }
    if (character & 16) {
      value -= weight;
    }
    lengths.push(lengths.length > 2 ? value + lengths[lengths.length - 2] : value);
    value = 0;
    weight = 1;
  }
  if (weight > 1) {
    throw new Error("The server's answer is damaged: a mask is truncated");
  }
  return lengths;
}

/** A mask that is stored as the runs of its pixels; pixel (x, y) has the index x * height + y. */
export class Mask {
  /**
   * @param {{size: [number, number], counts: string}} segmentation `size` is height and width.
   * @throws {Error} The counts are invalid or do not fit the size.
   */
  constructor({ size: [height, width], counts }) {
    this.height = height;
    this.width = width;
    /** First pixel of each run, and the first pixel after it. */
    this.starts = [];
    this.ends = [];
    this.area = 0;
    let position = 0;
    decodeCounts(counts).forEach((length, i) => {
      if (length < 0 || position + length > height * width) {
        throw new Error(`The server's answer is damaged: a mask does not fit ${width} × ${height} pixels`);
      }
      if (i % 2 && length) {
        this.starts.push(position);
        this.ends.push(position + length);
        this.area += length;
      }
      position += length;
    });
  }

  /** Return whether the mask contains a pixel. */
  contains(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) {
      return false;
    }
    const index = x * this.height + y;
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] <= index) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < this.starts.length && this.starts[low] <= index;
  }

  /** Return the intervals `[top, bottom]` of each column that has any, ends excluded: column -> intervals. */
  columns() {
    const columns = new Map();
    for (let i = 0; i < this.starts.length; i++) {
      let start = this.starts[i];
      while (start < this.ends[i]) {
        const column = Math.floor(start / this.height);
        const top = start - column * this.height;
        const bottom = Math.min(this.height, this.ends[i] - column * this.height);
        if (!columns.has(column)) {
          columns.set(column, []);
        }
        columns.get(column).push([top, bottom]);
        start = (column + 1) * this.height;
      }
    }
    return columns;
  }

  /**
   * Return the border between mask and background as closed polygons of corners of pixels, `[x, y, x, y, ...]` each.
   * The even-odd rule fills them, holes included. The cost depends on the number of runs, not on that of pixels.
   */
  outline() {
    const stride = this.height + 1;
    const next = new Map();
    const add = (x, y, toX, toY) => {
      const key = x * stride + y;
      const target = toX * stride + toY;
      const others = next.get(key);
      if (others) {
        others.push(target);
      } else {
        next.set(key, [target]);
      }
    };
    const columns = this.columns();
    for (const [x, intervals] of columns) {
      for (const [top, bottom] of intervals) {
        add(x, top, x + 1, top);
        add(x + 1, bottom, x, bottom);
      }
      for (const [top, bottom] of subtract(intervals, columns.get(x - 1))) {
        add(x, bottom, x, top);
      }
      for (const [top, bottom] of subtract(intervals, columns.get(x + 1))) {
        add(x + 1, top, x + 1, bottom);
      }
    }
    return chain(next, stride);
  }
}

/** Return the parts of ascending intervals that other ascending intervals do not cover. */
function subtract(intervals, others = []) {
  const parts = [];
  let first = 0;
  for (const [top, bottom] of intervals) {
    let start = top;
    while (first < others.length && others[first][1] <= top) {
      first++;
    }
    for (let i = first; i < others.length && others[i][0] < bottom; i++) {
      if (others[i][0] > start) {
        parts.push([start, others[i][0]]);
      }
      start = Math.max(start, others[i][1]);
    }
    if (start < bottom) {
      parts.push([start, bottom]);
    }
  }
  return parts;
}

/** Join directed edges to closed polygons without corners on straight lines. */
function chain(next, stride) {
  const polygons = [];
  for (const [first, targets] of next) {
    while (targets.length) {
      const corners = [];
      let from = first;
      do {
        const to = next.get(from).pop();
        corners.push(from);
        from = to;
      } while (from !== first);
      polygons.push(withoutStraightCorners(corners, stride));
    }
  }
  return polygons;
}

function withoutStraightCorners(corners, stride) {
  const polygon = [];
  for (let i = 0; i < corners.length; i++) {
    const before = corners[(i || corners.length) - 1];
    const after = corners[(i + 1) % corners.length];
    const [x0, x1, x2] = [before, corners[i], after].map((key) => Math.floor(key / stride));
    const [y0, y1, y2] = [before - x0 * stride, corners[i] - x1 * stride, after - x2 * stride];
    if (!(x0 === x1 && x1 === x2) && !(y0 === y1 && y1 === y2)) {
      polygon.push(x1, y1);
    }
  }
  return polygon;
}
