// Requests to the server.

/** The lowest score that is requested; the slider selects among the objects without another request. */
export const LOWEST_SCORE = 0.05;

const RAW = 'application/octet-stream'; // the server reads the format in the file

/** An answer of the server that is an error, or no answer. `status` is 0 without an answer. */
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** True if the same request may succeed later. */
  get isTemporary() {
    return this.status === 429 || this.status === 503;
  }
}

/** Return the description of the model (/v1/model). */
export async function fetchModel() {
  return (await request('v1/model')).json();
}

/**
 * Detect the objects in a picture.
 *
 * @param {Blob} picture
 * @param {AbortSignal} [signal]
 * @returns {Promise<{text: string, answer: object}>} The answer as it was sent, and parsed.
 * @throws {RequestError} The server refuses the picture or does not answer.
 */
export async function detect(picture, signal) {
  const text = await (await post(picture, `score=${LOWEST_SCORE}&masks=rle`, 'application/json', signal)).text();
  try {
    return { text, answer: JSON.parse(text) };
  } catch {
    throw new RequestError(0, "The server's answer is not JSON.");
  }
}

/** Return a picture that the browser cannot decode as a PNG of the server, which has no object with a score of 1. */
export async function fetchPicture(picture, signal) {
  return (await post(picture, 'score=1&masks=none', 'image/png', signal)).blob();
}

function post(picture, query, accept, signal) {
  const headers = { Accept: accept, 'Content-Type': picture.type.startsWith('image/') ? picture.type : RAW };
  return request(`v1/detect?${query}`, { method: 'POST', body: picture, headers, signal });
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') {
      throw error;
    }
    throw new RequestError(0, 'The server does not answer. Is “mask-rcnn serve” still running?');
  }
  if (!response.ok) {
    throw new RequestError(response.status, await messageOf(response));
  }
  return response;
}

/** Return one line about an answer that is an error. */
async function messageOf(response) {
  if (response.status === 429) {
    return 'The server is busy with other pictures. Try again in a moment.';
  }
  try {
    const { message } = (await response.json()).error;
    return String(message).split('\n')[0];
  } catch {
    return `The server answered with the error ${response.status}.`;
  }
}
