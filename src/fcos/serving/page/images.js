// From image files and camera frames to items with detections.

import { RequestError, detect, setToken } from "./api.js";
import { state } from "./state.js";
import { $, element, hideError, render, showError } from "./view.js";

const MAX_ITEMS = 500; // images that are kept
const PARALLEL = 4; // requests at a time, so that the server can process images together

/** Send files to the server. The first result is opened, the others are added. */
export async function add(files) {
  stopCamera();
  const queue = [...files];
  if (!queue.length) return;
  hideError();
  state.pending += queue.length;
  render();
  let isFirst = true;
  const work = async () => {
    while (queue.length) {
      const file = queue.shift();
      try {
        const [entry, bitmap] = await detectFile(file);
        state.items.push(entry);
        if (state.items.length > MAX_ITEMS) state.items.shift();
        if (isFirst) show(entry, bitmap);
        else bitmap?.close();
        isFirst = false;
      } catch (error) {
        showError(`${file.name || "Image"}: ${error.message.replace(/^image: /, "")}`); // the server's name for it
      }
      state.pending -= 1;
      render();
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
}

async function detectFile(file) {
  const limit = state.model.limits.bytes;
  if (file.size > limit) throw new RequestError(413, `is larger than ${(limit / 1e6).toFixed(0)} MB, the limit of this server.`);
  const [bitmap, result] = await Promise.all([decode(file), withToken(() => detect(file))]);
  const entry = { name: file.name || "image", blob: file, ...result };
  entry.thumbnail = thumbnail(entry, bitmap);
  return [entry, bitmap];
}

/** Return an image, or null if the browser cannot decode the format. Only that of the current item is kept. */
function decode(blob) {
  return createImageBitmap(blob).catch(() => null);
}

function thumbnail(size, bitmap) {
  if (!bitmap) return null;
  const canvas = element("canvas", { width: 168, height: 120 });
  const scale = Math.max(canvas.width / size.width, canvas.height / size.height);
  const [width, height] = [size.width * scale, size.height * scale];
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  return canvas;
}

/** Make an item the current one. */
export async function open(entry) {
  state.current = entry; // the last one that was opened wins
  const bitmap = entry.blob && (await decode(entry.blob));
  if (state.current === entry) show(entry, bitmap);
}

function show(entry, bitmap) {
  Object.assign(state, { current: entry, bitmap, selected: null, hovered: null });
  if (!bitmap && entry.blob) showError(`${entry.name}: this browser cannot display the format; see the boxes and the table.`);
  render();
}

/** Call a function; if the server wants a token, ask for it and try again. */
export async function withToken(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForToken();
    }
  }
}

function askForToken() {
  const dialog = $("login");
  $("token").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      setToken($("token").value);
      resolve();
    }, { once: true });
  });
}

let isStarting = false; // while the user is asked; a second camera could not be stopped

/** Start the camera and detect in one frame after the other, until it is stopped. */
export async function startCamera() {
  if (isStarting) return;
  isStarting = true;
  hideError();
  try {
    state.camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch {
    showError("The camera cannot be used: it is missing or not permitted. Browsers permit it on https and on localhost.");
    return;
  } finally {
    isStarting = false;
  }
  const video = $("video");
  video.srcObject = state.camera;
  await video.play();
  const live = { name: "camera", width: video.videoWidth, height: video.videoHeight, blob: null, detections: [] };
  state.items.push(live);
  show(live, null);
  try {
    while (state.camera) {
      const frame = new OffscreenCanvas(video.videoWidth, video.videoHeight);
      frame.getContext("2d").drawImage(video, 0, 0);
      const blob = await frame.convertToBlob({ type: "image/jpeg", quality: 0.92 });
      const result = await withToken(() => detect(blob));
      if (!state.camera) break;
      Object.assign(live, result, { blob, thumbnail: thumbnail(result, frame) });
      show(live, frame);
    }
  } catch (error) {
    stopCamera();
    showError(`Camera: ${error.message}`);
  }
}

export function stopCamera() {
  state.camera?.getTracks().forEach((track) => track.stop());
  state.camera = null;
  $("video").srcObject = null;
  render();
}
