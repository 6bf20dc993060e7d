// What the page knows: the model, the images with their detections, and what the user has selected.

export const state = {
  model: null, // the answer of GET /v1/model
  items: [], // {name, blob, thumbnail, width, height, detections}
  current: null, // an item
  bitmap: null, // the image of `current`; null if the browser cannot decode it
  threshold: null, // null: that of each class
  hidden: new Set(), // names of classes
  selected: null, // a detection
  hovered: null, // a detection
  camera: null, // a MediaStream
  pending: 0, // number of images without an answer
};

const classOf = (detection) => state.model.classes.find((entry) => entry.name === detection.name);

export const colorOf = (detection) => classOf(detection).color;

/** Return the detections of the current image above the threshold, including those of hidden classes. */
export function aboveThreshold() {
  return (state.current?.detections ?? []).filter((d) => d.score >= (state.threshold ?? classOf(d).threshold));
}

/** Return the detections that the canvas and the table show, best first. */
export function shown() {
  return aboveThreshold().filter((detection) => !state.hidden.has(detection.name));
}
