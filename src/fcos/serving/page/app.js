// The page: images to the server, detections on a canvas and in a table.

import { RequestError, detect, getModel, setToken } from "./api.js";
import { paint } from "./draw.js";

const $ = (id) => document.getElementById(id);
const MAX_ITEMS = 500; // images that are kept
const PARALLEL = 4; // requests at a time, so that the server can process images together

const state = {
  model: null,
  items: [], // {name, blob, thumbnail, width, height, detections}
  current: null, // an item
  bitmap: null, // the image of `current`; null if the browser cannot decode it
  threshold: null, // null: that of each class
  hidden: new Set(), // names of classes
  selected: null, // a detection
  hovered: null,
  camera: null,
  pending: 0,
};

const classOf = (detection) => state.model.classes.find((entry) => entry.name === detection.name);
const colorOf = (detection) => classOf(detection).color;

function isAboveThreshold(detection) {
  return detection.score >= (state.threshold ?? classOf(detection).threshold);
}

function shown() {
  return (state.current?.detections ?? []).filter((d) => isAboveThreshold(d) && !state.hidden.has(d.name));
}

// ---- Requests

async function add(files) {
  stopCamera();
  const queue = [...files];
  if (!queue.length) return;
  hideError();
  state.pending += queue.length;
  render();
  let isFirst = true; // the first result is opened, the others are added
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
        showError(`${file.name || "Image"}: ${error.message}`);
      }
      state.pending -= 1;
      render();
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
}

async function detectFile(file) {
  if (file.size > state.model.limits.bytes) {
    throw new RequestError(413, `is larger than ${(state.model.limits.bytes / 1e6).toFixed(0)} MB, the limit of this server.`);
  }
  const [bitmap, result] = await Promise.all([decode(file), withToken(() => detect(file))]);
  const entry = { name: file.name || "image", blob: file, ...result };
  entry.thumbnail = thumbnail(entry, bitmap);
  return [entry, bitmap];
}

/** Return an image, or null if the browser cannot decode the format. Only that of the current item is kept. */
function decode(blob) {
  return createImageBitmap(blob).catch(() => null);
}

/** Call a function; if the server wants a token, ask for it and try again. */
async function withToken(call) {
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

async function toggleCamera() {
  if (state.camera) return stopCamera();
  hideError();
  try {
    state.camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch {
    showError("The camera cannot be used: it is missing or not permitted. Browsers permit it on https and on localhost.");
    return;
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

function stopCamera() {
  state.camera?.getTracks().forEach((track) => track.stop());
  state.camera = null;
  $("video").srcObject = null;
  render();
}

// ---- State

function show(entry, bitmap) {
  Object.assign(state, { current: entry, bitmap, selected: null, hovered: null });
  if (!bitmap && entry.blob) showError(`${entry.name}: this browser cannot display the format; see the boxes and the table.`);
  render();
}

async function open(entry) {
  state.current = entry; // the last one that was opened wins
  const bitmap = entry.blob && (await decode(entry.blob));
  if (state.current === entry) show(entry, bitmap);
}

function select(detection, { focus = false } = {}) {
  state.selected = detection;
  render();
  const row = $("rows").querySelector('[aria-selected="true"]');
  row?.scrollIntoView({ block: "nearest" });
  if (focus) row?.focus({ preventScroll: true });
}

function move(step, options) {
  const detections = shown();
  if (!detections.length) return;
  const index = detections.indexOf(state.selected);
  const next = index < 0 ? (step > 0 ? 0 : detections.length - 1) : (index + step + detections.length) % detections.length;
  select(detections[next], options);
}

function showError(text) {
  $("error-text").textContent = text;
  $("error").hidden = false;
}

function hideError() {
  $("error").hidden = true;
}

// ---- Output

function element(name, { text, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

function dot(color) {
  const node = element("span", { className: "dot" });
  node.style.background = color;
  return node;
}

function render() {
  $("empty").hidden = Boolean(state.current) || state.pending > 0;
  $("view").hidden = !$("empty").hidden;
  $("busy").hidden = !state.pending;
  $("camera").setAttribute("aria-pressed", String(Boolean(state.camera)));
  $("camera").textContent = state.camera ? "Stop camera" : "Camera";
  $("value").textContent = state.threshold === null ? "per class" : state.threshold.toFixed(2);
  $("default").disabled = state.threshold === null;
  for (const id of ["save-json", "save-image"]) $(id).disabled = !state.current;
  if (!shown().includes(state.selected)) state.selected = null;
  renderCanvas();
  renderClasses();
  renderRows();
  renderStrip();
}

function renderCanvas() {
  const canvas = $("canvas");
  const { current, bitmap } = state;
  canvas.hidden = !current;
  if (!current) return;
  const view = $("view"), isNarrow = matchMedia("(max-width: 860px)").matches;
  const room = { width: view.clientWidth, height: isNarrow ? innerHeight * 0.62 : view.clientHeight };
  const fit = Math.min(room.width / current.width, room.height / current.height, 4);
  const unit = devicePixelRatio || 1;
  const focused = state.hovered ?? state.selected;
  paint(canvas, { ...current, bitmap }, shown(), { ...style(), scale: fit * unit, unit, focused });
  canvas.style.width = `${canvas.width / unit}px`;
  canvas.style.height = `${canvas.height / unit}px`;
  canvas.setAttribute("aria-label", `${current.name}: ${summary()}`);
}

function style() {
  return { colorOf, labels: $("labels").checked, skeleton: state.model.skeleton };
}

function summary() {
  const count = shown().length;
  return count ? `${count} detection${count === 1 ? "" : "s"}` : "No detections";
}

function renderClasses() {
  const counts = new Map();
  for (const detection of (state.current?.detections ?? []).filter(isAboveThreshold)) {
    counts.set(detection.name, (counts.get(detection.name) ?? 0) + 1);
  }
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a.localeCompare(b));
  const focused = document.activeElement?.dataset?.name;
  $("classes").replaceChildren(...names.map((name) => {
    const button = element("button", { type: "button", title: `Show or hide ${name}` },
      dot(colorOf({ name })), element("span", { text: name }), element("span", { text: counts.get(name) }));
    button.dataset.name = name;
    button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      render();
    });
    return button;
  }));
  if (focused) [...$("classes").children].find((button) => button.dataset.name === focused)?.focus();
}

function renderRows() {
  $("count").textContent = state.current ? summary() : "No image";
  const hadFocus = $("rows").contains(document.activeElement);
  $("rows").replaceChildren(...shown().map((detection, index) => {
    const [x1, y1, x2, y2] = detection.box;
    const score = element("td", { text: detection.score.toFixed(2) }, element("meter", { max: 1, value: detection.score }));
    const row = element("tr", {},
      element("td", {}, element("div", {}, dot(colorOf(detection)), element("span", { className: "name", text: detection.name, title: detection.name }))),
      score,
      element("td", { className: "number", text: `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}` }));
    const isSelected = detection === state.selected;
    row.tabIndex = isSelected || (!state.selected && index === 0) ? 0 : -1;
    row.setAttribute("aria-selected", String(isSelected));
    row.addEventListener("click", () => select(isSelected ? null : detection, { focus: true }));
    row.addEventListener("mouseenter", () => hover(detection));
    row.addEventListener("mouseleave", () => hover(null));
    return row;
  }));
  if (hadFocus) $("rows").querySelector('[tabindex="0"]')?.focus({ preventScroll: true });
}

function hover(detection) {
  if (state.hovered === detection) return;
  state.hovered = detection;
  renderCanvas();
}

function renderStrip() {
  $("strip").hidden = state.items.length < 2;
  $("strip").replaceChildren(...state.items.map((entry) => {
    const button = element("button", { type: "button", title: entry.name });
    button.setAttribute("aria-label", entry.name);
    button.setAttribute("aria-current", String(entry === state.current));
    button.append(entry.thumbnail ?? entry.name);
    button.addEventListener("click", () => {
      stopCamera();
      open(entry);
    });
    return element("li", {}, button);
  }));
}

function thumbnail(size, bitmap) {
  if (!bitmap) return null;
  const canvas = element("canvas", { width: 168, height: 120 });
  const scale = Math.max(canvas.width / size.width, canvas.height / size.height);
  const [width, height] = [size.width * scale, size.height * scale];
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  return canvas;
}

function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveJson() {
  const { name, width, height } = state.current;
  const content = { model: state.model.name, file: name, width, height, detections: shown() };
  download(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }), `${stem(name)}.json`);
}

async function saveImage() {
  const canvas = document.createElement("canvas");
  const { current, bitmap } = state;
  const unit = Math.max(1, Math.sqrt(current.width * current.height) / 900);
  paint(canvas, { ...current, bitmap }, shown(), { ...style(), scale: 1, unit, focused: null });
  canvas.toBlob((blob) => blob && download(blob, `${stem(current.name)}_detections.png`), "image/png");
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "") || "image";
}

// ---- Input

function detectionAt(event) {
  const frame = $("canvas").getBoundingClientRect();
  const x = ((event.clientX - frame.left) / frame.width) * state.current.width;
  const y = ((event.clientY - frame.top) / frame.height) * state.current.height;
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const hit = shown().filter(({ box: [x1, y1, x2, y2] }) => x >= x1 && x <= x2 && y >= y1 && y <= y2);
  return hit.sort((a, b) => area(a.box) - area(b.box))[0] ?? null;
}

function onKey(event) {
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  if (event.key in steps) move(steps[event.key], { focus: event.currentTarget === $("table") });
  else if (event.key === "Escape") select(null);
  else if ((event.key === "Enter" || event.key === " ") && event.target.click && event.target.matches("tr")) event.target.click();
  else return;
  event.preventDefault();
}

function listen() {
  $("choose").addEventListener("click", () => $("files").click());
  $("empty").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
  $("camera").addEventListener("click", toggleCamera);
  $("dismiss").addEventListener("click", hideError);
  $("threshold").addEventListener("input", (event) => {
    state.threshold = event.target.valueAsNumber;
    render();
  });
  $("default").addEventListener("click", () => {
    state.threshold = null;
    render();
  });
  $("labels").addEventListener("change", renderCanvas);
  $("canvas").addEventListener("mousemove", (event) => hover(detectionAt(event)));
  $("canvas").addEventListener("mouseleave", () => hover(null));
  $("canvas").addEventListener("click", (event) => select(detectionAt(event)));
  $("canvas").addEventListener("keydown", onKey);
  $("table").addEventListener("keydown", onKey);
  $("save-json").addEventListener("click", saveJson);
  $("save-image").addEventListener("click", saveImage);
  addEventListener("resize", render);
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    add(event.dataTransfer.files);
  });
}

try {
  state.model = await withToken(getModel);
  const { name, classes } = state.model;
  document.title = `${name} - fcos`;
  $("title").textContent = name;
  const some = classes.slice(0, 6).map((entry) => entry.name).join(", ");
  $("subtitle").textContent = classes.length > 6 ? `${classes.length} classes: ${some}, …` : some;
  const mean = classes.reduce((sum, entry) => sum + entry.threshold, 0) / classes.length;
  $("threshold").value = mean;
  listen();
  render();
} catch (error) {
  showError(error.message);
}
