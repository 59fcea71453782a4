// What a screen reader speaks.

const DELAY = 300; // milliseconds; of several changes in this time, the last one is spoken
const LIVE_DELAY = 4000; // between frames of the camera

const region = document.getElementById('announcer');
let timer = null;
let pending = '';

/**
 * Announce a text unless it is the last one that was announced.
 *
 * @param {string} text
 * @param {boolean} isLive True for frames of the camera, which are announced less often.
 */
export function announce(text, isLive = false) {
  pending = text;
  if (isLive && timer !== null) {
    return;
  }
  clearTimeout(timer);
  timer = setTimeout(
    () => {
      timer = null;
      if (region.textContent !== pending) {
        region.textContent = pending;
      }
    },
    isLive ? LIVE_DELAY : DELAY,
  );
}
