// Downloads.

import { drawObjects, unitFor } from './drawing.js';

/** Save text or a picture under a name. */
export function saveFile(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it after the click
}

/**
 * Draw the objects over the picture in its own resolution.
 *
 * @returns {Promise<Blob>} A PNG file.
 * @throws {Error} The browser has no canvas of this size.
 */
export async function renderPng(bitmap, objects, show) {
  const { width, height } = bitmap;
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d');
  context?.drawImage(bitmap, 0, 0);
  if (context) {
    drawObjects(context, objects, { scale: 1, unit: unitFor(width, height), show });
  }
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
  if (!blob) {
    throw new Error(`The browser cannot save a picture of ${width} × ${height} pixels.`);
  }
  return blob;
}
