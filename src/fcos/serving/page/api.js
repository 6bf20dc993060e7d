// Requests to the server. The token is kept in memory only.

let token = "";

export function setToken(text) {
  token = text;
}

/** Error with the status code and the explanation of the server. */
export class RequestError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new RequestError(0, "The server cannot be reached.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new RequestError(answer.status, content.detail ?? `The server answered ${answer.status}.`);
  return content;
}

export function getModel() {
  return request("v1/model");
}

/** Return the detections of an image file at any score, so that the threshold can be changed without the server. */
export async function detect(blob) {
  const headers = { "Content-Type": "application/octet-stream" };
  const result = await request("v1/detect?threshold=0", { method: "POST", headers, body: blob });
  return result.images[0];
}
