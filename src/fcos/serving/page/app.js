// The page: events of the user, and the start.

import { getModel } from "./api.js";
import { add, open, startCamera, stopCamera, withToken } from "./images.js";
import { shown, state } from "./state.js";
import { $, annotatedImage, element, focusRow, hideError, render, renderCanvas, showError } from "./view.js";

// ---- Selection of detections

function select(detection, { focus = false } = {}) {
  state.selected = detection;
  render();
  $("rows").querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  if (focus) focusRow();
}

function move(step, options) {
  const detections = shown();
  if (!detections.length) return;
  const index = detections.indexOf(state.selected);
  const next = index < 0 ? (step > 0 ? 0 : detections.length - 1) : (index + step + detections.length) % detections.length;
  select(detections[next], options);
}

function hover(detection) {
  if (state.hovered === detection) return;
  state.hovered = detection;
  renderCanvas();
}

/** Return the smallest detection at the place of the pointer on the canvas, or null. */
function detectionAt(event) {
  const frame = $("canvas").getBoundingClientRect();
  const x = ((event.clientX - frame.left) / frame.width) * state.current.width;
  const y = ((event.clientY - frame.top) / frame.height) * state.current.height;
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const hit = shown().filter(({ box: [x1, y1, x2, y2] }) => x >= x1 && x <= x2 && y >= y1 && y <= y2);
  return hit.sort((a, b) => area(a.box) - area(b.box))[0] ?? null;
}

/** Return the detection of the table row of an event, or null. */
function detectionOfRow(event) {
  const row = event.target.closest("tbody tr");
  return row && shown()[row.sectionRowIndex];
}

function toggle(detection) {
  if (detection) select(detection === state.selected ? null : detection, { focus: true });
}

function onKey(event) {
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  if (event.key in steps) move(steps[event.key], { focus: event.currentTarget === $("table") });
  else if (event.key === "Escape") select(null);
  else if (event.key === "Enter" || event.key === " ") toggle(detectionOfRow(event));
  else return;
  event.preventDefault();
}

// ---- Downloads

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

function saveImage() {
  const { name } = state.current;
  annotatedImage().toBlob((blob) => blob && download(blob, `${stem(name)}_detections.png`), "image/png");
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "") || "image";
}

// ---- Events

function listen() {
  $("choose").addEventListener("click", () => $("files").click());
  $("empty").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
  $("camera").addEventListener("click", () => (state.camera ? stopCamera() : startCamera()));
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
  $("classes").addEventListener("click", (event) => {
    const name = event.target.closest("button")?.dataset.name;
    if (name === undefined) return;
    if (!state.hidden.delete(name)) state.hidden.add(name);
    render();
  });
  $("strip").addEventListener("click", (event) => {
    const index = [...$("strip").children].indexOf(event.target.closest("li"));
    if (index < 0) return;
    const entry = state.items[index];
    stopCamera();
    open(entry);
  });
  $("canvas").addEventListener("mousemove", (event) => hover(detectionAt(event)));
  $("canvas").addEventListener("mouseleave", () => hover(null));
  $("canvas").addEventListener("click", (event) => select(detectionAt(event)));
  $("canvas").addEventListener("keydown", onKey);
  $("rows").addEventListener("mouseover", (event) => hover(detectionOfRow(event)));
  $("rows").addEventListener("mouseleave", () => hover(null));
  $("rows").addEventListener("click", (event) => toggle(detectionOfRow(event)));
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

// ---- Start

try {
  state.model = await withToken(getModel);
  const { name, classes } = state.model;
  document.title = `${name} - fcos`;
  $("title").textContent = name;
  const some = classes.slice(0, 6).map((entry) => entry.name).join(", ");
  $("subtitle").textContent = classes.length > 6 ? `${classes.length} classes: ${some}, …` : some;
  $("threshold").value = classes.reduce((sum, entry) => sum + entry.threshold, 0) / classes.length;
  listen();
  render();
} catch (error) {
  showError(error.message);
}
