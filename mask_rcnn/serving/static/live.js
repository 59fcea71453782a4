// Detection in one camera frame after another.

import { detect } from './api.js';
import { Camera } from './camera.js';

const RETRY_DELAY = 1000; // milliseconds

/** The camera's loop; one request is under way at a time. */
export class Live {
  /**
   * @param {HTMLVideoElement} video The preview.
   * @param {object} callbacks
   * @param {(frame: {file: Blob, bitmap: ImageBitmap, text: string, answer: object, rate: number}) => void} callbacks.onFrame
   * @param {(message: string) => void} callbacks.onNotice A condition that passes; '' when it has passed.
   * @param {(message: string) => void} callbacks.onStop The loop has ended; the message is '' if the user ended it.
   */
  constructor(video, { onFrame, onNotice, onStop }) {
    this.camera = new Camera(video);
    this.camera.onEnd = () => this.stop('The camera was disconnected.');
    Object.assign(this, { onFrame, onNotice, onStop });
    this.controller = null;
  }

  get isRunning() {
    return this.controller !== null;
  }

  /** Run until `stop`. */
  async start() {
    const controller = new AbortController();
    this.controller = controller;
    try {
      await this.camera.start();
      if (controller.signal.aborted) {
        this.camera.stop(); // permission was given after the user had ended the loop
      }
      for (let started = performance.now(); !controller.signal.aborted; ) {
        await whenVisible();
        const detected = await this.detectFrame(controller.signal);
        const now = performance.now();
        if (detected && !controller.signal.aborted) {
          this.onFrame({ ...detected, rate: 1000 / (now - started) });
        }
        started = now;
      }
    } catch (error) {
      if (!controller.signal.aborted) {
        this.stop(error.message);
      }
    }
  }

  /** Return a frame with the server's answer; null if the server is busy. */
  async detectFrame(signal) {
    const { file, bitmap } = await this.camera.capture();
    try {
      const detected = { file, bitmap, ...(await detect(file, signal)) };
      this.onNotice('');
      return detected;
    } catch (error) {
      bitmap.close();
      if (!error.isTemporary) {
        throw error;
      }
      this.onNotice(error.message);
      await new Promise((resolve) => setTimeout(resolve, RETRY_DELAY));
      return null;
    }
  }

  /** End the loop and the request that is under way. */
  stop(message = '') {
    if (this.controller) {
      this.controller.abort();
      this.controller = null;
      this.camera.stop();
      this.onStop(message);
    }
  }
}

/** Wait while the page is in the background. */
function whenVisible() {
  return new Promise((resolve) => {
    const check = () => {
      if (!document.hidden) {
        document.removeEventListener('visibilitychange', check);
        resolve();
      }
    };
    document.addEventListener('visibilitychange', check);
    check();
  });
}
