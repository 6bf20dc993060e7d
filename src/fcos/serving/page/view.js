// Display of the state. The parts have no listeners of their own, see app.js.

import { paint } from "./draw.js";
import { aboveThreshold, colorOf, shown, state } from "./state.js";

export const $ = (id) => document.getElementById(id);

export function render() {
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

export function renderCanvas() {
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

/** Return the current image with its detections in its own size, as a canvas. */
export function annotatedImage() {
  const canvas = document.createElement("canvas");
  const { current, bitmap } = state;
  const unit = Math.max(1, Math.sqrt(current.width * current.height) / 900);
  paint(canvas, { ...current, bitmap }, shown(), { ...style(), scale: 1, unit, focused: null });
  return canvas;
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
  for (const { name } of aboveThreshold()) counts.set(name, (counts.get(name) ?? 0) + 1);
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a.localeCompare(b));
  const focused = document.activeElement?.dataset?.name;
  $("classes").replaceChildren(...names.map((name) => {
    const button = element("button", { type: "button", title: `Show or hide ${name}` },
      dot(colorOf({ name })), element("span", { text: name }), element("span", { text: counts.get(name) }));
    button.dataset.name = name;
    button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    return button;
  }));
  if (focused) [...$("classes").children].find((button) => button.dataset.name === focused)?.focus();
}

function renderRows() {
  $("count").textContent = state.current ? summary() : "No image";
  const hadFocus = $("rows").contains(document.activeElement);
  $("rows").replaceChildren(...shown().map((detection, index) => {
    const { name, score, box: [x1, y1, x2, y2] } = detection;
    const row = element("tr", {},
      element("td", {}, element("div", {}, dot(colorOf(detection)), element("span", { className: "name", text: name, title: name }))),
      element("td", { text: score.toFixed(2) }, element("meter", { max: 1, value: score })),
      element("td", { className: "number", text: `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}` }));
    const isSelected = detection === state.selected;
    row.tabIndex = isSelected || (!state.selected && index === 0) ? 0 : -1;
    row.setAttribute("aria-selected", String(isSelected));
    return row;
  }));
  if (hadFocus) focusRow();
}

/** Move the focus to the selected row, or to the first one. */
export function focusRow() {
  $("rows").querySelector('[tabindex="0"]')?.focus({ preventScroll: true });
}

function renderStrip() {
  $("strip").hidden = state.items.length < 2;
  $("strip").replaceChildren(...state.items.map((entry) => {
    const button = element("button", { type: "button", title: entry.name });
    button.setAttribute("aria-label", entry.name);
    button.setAttribute("aria-current", String(entry === state.current));
    button.append(entry.thumbnail ?? entry.name);
    return element("li", {}, button);
  }));
}

export function showError(text) {
  $("error-text").textContent = text;
  $("error").hidden = false;
}

export function hideError() {
  $("error").hidden = true;
}

export function element(name, { text, ...properties } = {}, ...children) {
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
