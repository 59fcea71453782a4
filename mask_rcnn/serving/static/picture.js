// Pictures that are drawn as the server reads them.

import { fetchPicture } from './api.js';

// Segments of a JPEG file (ITU-T T.81, annex B): a marker of two bytes and a length, which includes its own two bytes.
const START_OF_IMAGE = 0xffd8;
const APP1 = 0xffe1;
const START_OF_SCAN = 0xffda;
const EXIF = 0x45786966; // "Exif"

/**
 * Decode a file.
 *
 * @param {Blob} file
 * @param {boolean} isTurned True to turn the picture upright, as its EXIF data states; false for the stored pixels of a
 *   JPEG file.
 * @returns {Promise<ImageBitmap|null>} null if the browser cannot decode it, which includes TIFF and JPEG 2000.
 */
export async function decode(file, isTurned) {
  try {
    return await createImageBitmap(isTurned ? file : await withoutExif(file));
  } catch {
    return null;
  }
}

/** Return a JPEG file whose EXIF data browsers ignore. Their option imageOrientation has no effect on it in Chromium. */
async function withoutExif(file) {
  const view = new DataView(await file.arrayBuffer());
  if (view.byteLength < 4 || view.getUint16(0) !== START_OF_IMAGE) {
    return file;
  }
  let position = 2;
  while (position + 8 <= view.byteLength && view.getUint16(position) !== START_OF_SCAN) {
    if (view.getUint16(position) === APP1 && view.getUint32(position + 4) === EXIF) {
      view.setUint32(position + 4, 0);
    }
    position += 2 + view.getUint16(position + 2);
  }
  return new Blob([view], { type: file.type });
}

/**
 * Return a bitmap of the size that the server states.
 *
 * Browsers ignore the orientation of some formats. If the picture does not have the server's size, the server sends its
 * own.
 *
 * @param {Blob} file
 * @param {ImageBitmap|null} bitmap The result of `decode`.
 * @param {{width: number, height: number}} size
 * @param {AbortSignal} [signal]
 */
export async function matchSize(file, bitmap, size, signal) {
  const fits = (candidate) => candidate && candidate.width === size.width && candidate.height === size.height;
  if (fits(bitmap)) {
    return bitmap;
  }
  const sent = await decode(await fetchPicture(file, signal), true);
  if (!fits(sent)) {
    throw new Error(`The browser cannot draw a picture of ${size.width} × ${size.height} pixels.`);
  }
  return sent;
}
