// The camera.

const IDEAL_WIDTH = 1280; // pixels
const JPEG_QUALITY = 0.9;

/** A camera whose pictures are shown in a video element. */
export class Camera {
  /** @param {HTMLVideoElement} video */
  constructor(video) {
    this.video = video;
    this.canvas = document.createElement('canvas');
    /** Called when the camera is disconnected. */
    this.onEnd = () => {};
  }

  /**
   * Start the camera; the user is asked for permission.
   *
   * @throws {Error} There is no camera for this page; the message is one line for the user.
   */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error(
        `The browser gives this page no camera: it must come from https:// or from localhost, not from ${location.host}.`,
      );
    }
    const video = { facingMode: 'environment', width: { ideal: IDEAL_WIDTH } };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      throw new Error(MESSAGES[error.name] ?? `The camera does not start: ${error.message || error.name}`);
    }
    for (const track of this.stream.getTracks()) {
      track.addEventListener('ended', () => this.onEnd());
    }
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  /** Return the current picture as a JPEG file and as a bitmap. */
  async capture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    this.canvas.width = width;
    this.canvas.height = height;
    this.canvas.getContext('2d').drawImage(this.video, 0, 0);
    const [file, bitmap] = await Promise.all([
      new Promise((resolve) => this.canvas.toBlob(resolve, 'image/jpeg', JPEG_QUALITY)),
      createImageBitmap(this.canvas),
    ]);
    return { file, bitmap };
  }

  /** Stop the camera. */
  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }
}

const MESSAGES = {
  NotAllowedError: 'The camera is blocked. Allow it for this page in the settings of the browser.',
  NotFoundError: 'There is no camera.',
  OverconstrainedError: 'There is no camera.',
  NotReadableError: 'Another program uses the camera.',
};
