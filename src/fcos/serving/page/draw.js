// Drawing of an image with its detections on a canvas.

const INK = "#111", PAPER = "#fff";
const HIDDEN = 0.25; // largest part of a box that a label may hide, summed over all boxes
const MASK_SIDE = 1600; // pixels; masks of larger images are drawn at this longer side

/** Decode COCO's compressed run lengths: numbers in base 64 with 5 bits each, most of them as differences. */
export function runLengths(text) {
  const runs = [];
  for (let i = 0; i < text.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** Call `paint(x, y1, y2)` for every vertical line of a mask. */
function forEachLine({ size: [height], counts }, paint) {
  let position = 0, isInside = false;
  for (const length of runLengths(counts)) {
    for (let start = position; isInside && start < position + length; ) {
      const x = Math.floor(start / height), end = Math.min(position + length, (x + 1) * height);
      paint(x, start - x * height, end - x * height);
      start = end;
    }
    position += length;
    isInside = !isInside;
  }
}

/** Return a canvas with the masks of detections; the first one is on top. */
function maskLayer(detections, width, height, colorOf) {
  const scale = Math.min(1, MASK_SIDE / Math.max(width, height));
  const layer = new OffscreenCanvas(Math.ceil(width * scale), Math.ceil(height * scale));
  const context = layer.getContext("2d");
  const image = context.createImageData(layer.width, layer.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (const detection of [...detections].reverse()) {
    const [red, green, blue] = channels(colorOf(detection));
    const value = (112 << 24) | (blue << 16) | (green << 8) | red;
    forEachLine(detection.segmentation, (x, y1, y2) => {
      const column = Math.floor(x * scale);
      for (let y = Math.floor(y1 * scale); y < y2 * scale; y++) pixels[y * layer.width + column] = value;
    });
  }
  context.putImageData(image, 0, 0);
  return layer;
}

export function channels(color) {
  return [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
}

/**
 * Draw an image with detections, in a canvas that shows `width` x `height` image pixels.
 *
 * options: scale (canvas pixels per image pixel), unit (canvas pixels per pixel of the screen), colorOf, labels,
 * focused (a detection or null), skeleton.
 */
export function paint(canvas, item, detections, { scale, unit, colorOf, labels, focused, skeleton }) {
  const context = canvas.getContext("2d");
  canvas.width = Math.max(1, Math.round(item.width * scale));
  canvas.height = Math.max(1, Math.round(item.height * scale));
  if (item.bitmap) {
    context.imageSmoothingEnabled = scale < 3; // shows the pixels of small images
    context.drawImage(item.bitmap, 0, 0, canvas.width, canvas.height);
  } else {
    context.fillStyle = "#808890";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  const withMasks = detections.filter((detection) => detection.segmentation && (!focused || detection === focused));
  if (withMasks.length) {
    context.drawImage(maskLayer(withMasks, item.width, item.height, colorOf), 0, 0, canvas.width, canvas.height);
  }
  const ordered = [...detections].reverse().sort((a, b) => (a === focused) - (b === focused));
  for (const detection of ordered) {
    context.globalAlpha = focused && detection !== focused ? 0.35 : 1;
    drawBox(context, detection.box.map((value) => value * scale), colorOf(detection), (detection === focused ? 3.5 : 2) * unit);
    if (detection.keypoints) drawKeypoints(context, detection.keypoints, colorOf(detection), { scale, unit, skeleton });
  }
  context.globalAlpha = 1;
  if (!labels) return;
  const placed = [], boxes = focused ? [] : detections.map(({ box }) => box.map((value) => value * scale));
  for (const detection of focused ? [focused] : detections) { // best first
    drawLabel(context, detection, colorOf(detection), { scale, unit, placed, boxes });
  }
}

function drawBox(context, [x1, y1, x2, y2], color, line) {
  for (const [style, width] of [["rgb(0 0 0 / 45%)", line * 2], [color, line]]) { // a rim, for light backgrounds
    context.strokeStyle = style;
    context.lineWidth = width;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

function drawKeypoints(context, values, color, { scale, unit, skeleton }) {
  const points = []; // null for points without score
  for (let i = 0; i < values.length; i += 3) {
    points.push(values[i + 2] > 0 ? [values[i] * scale, values[i + 1] * scale] : null);
  }
  const lines = skeleton.filter(([a, b]) => points[a] && points[b]);
  for (const [style, width] of [["rgb(0 0 0 / 45%)", 4 * unit], [color, 2 * unit]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    for (const [a, b] of lines) {
      context.beginPath();
      context.moveTo(...points[a]);
      context.lineTo(...points[b]);
      context.stroke();
    }
  }
  for (const [x, y] of points.filter(Boolean)) {
    context.beginPath();
    context.arc(x, y, 3 * unit, 0, 2 * Math.PI);
    context.fillStyle = color;
    context.fill();
    context.strokeStyle = INK;
    context.lineWidth = unit;
    context.stroke();
  }
}

/**
 * Draw a label above, below or inside its box, where it covers no label in `placed` and hides little of `boxes`; or none
 * if there is no place.
 */
function drawLabel(context, detection, color, { scale, unit, placed, boxes }) {
  const text = `${detection.name}  ${detection.score.toFixed(2)}`;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 10 * unit, height = 19 * unit;
  const [x1, y1, x2, y2] = detection.box.map((value) => value * scale);
  const inside = (value, room) => Math.max(0, Math.min(value, room));
  const corners = [[x1, y1 - height], [x1, y2], [x2 - width, y1 - height], [x2 - width, y2], [x1, y1], [x2 - width, y2 - height]];
  const places = corners.map(([left, top]) => [
    inside(left, context.canvas.width - width), inside(top, context.canvas.height - height), width, height,
  ]);
  const place = places.find((a) => !placed.some((b) => overlap(a, b)) && hiddenParts(a, boxes) <= HIDDEN);
  if (!place) return;
  placed.push(place);
  const [x, y] = place;
  const [red, green, blue] = channels(color);
  context.fillStyle = color;
  context.beginPath();
  context.roundRect(x, y, width, height, 3 * unit);
  context.fill();
  context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 110 ? INK : PAPER;
  context.textBaseline = "middle";
  context.fillText(text, x + 5 * unit, y + height / 2 + unit / 2);
}

/** Return the part of each box that a label hides, summed over all boxes. */
function hiddenParts([x, y, width, height], boxes) {
  let sum = 0;
  for (const [x1, y1, x2, y2] of boxes) {
    const [w, h] = [Math.min(x + width, x2) - Math.max(x, x1), Math.min(y + height, y2) - Math.max(y, y1)];
    if (w > 0 && h > 0) sum += (w * h) / ((x2 - x1) * (y2 - y1));
  }
  return sum;
}

function overlap([x1, y1, width1, height1], [x2, y2, width2, height2]) {
  return x1 < x2 + width2 && x2 < x1 + width1 && y1 < y2 + height2 && y2 < y1 + height1;
}
