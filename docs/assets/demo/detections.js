// SPDX-License-Identifier: Apache-2.0
// From the outputs of the network to cells and experts: what moe_vision/runtime/suppression.py does.

import { letterbox } from "./pixels.js";

// The objects found, best first: {box: [left, top, right, bottom] in pixels of the picture, score, label}.
export function detections(boxes, scores, model, width, height) {
  const classes = model.class_names.length;
  const candidates = [];
  for (let i = 0; i < scores.length; i++) {
    if (scores[i] <= model.score) continue;
    const point = Math.floor(i / classes);
    candidates.push({ box: boxes.slice(4 * point, 4 * point + 4), score: scores[i], label: i % classes });
  }
  candidates.sort((a, b) => b.score - a.score);
  const kept = [];
  for (const one of candidates) {
    if (!kept.some((better) => better.label === one.label && repeats(one.box, better.box, model.iou))) kept.push(one);
  }
  return kept
    .map((one) => ({ ...one, box: inPicture(one.box, width, height, model.image_size) }))
    .filter(({ box }) => box[2] > box[0] && box[3] > box[1]);
}

// The experts of one block: {probability, selected} of each. A softmax of the logits, of which the largest are selected.
export function experts(logits, topK) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  const order = exponentials.map((_, index) => index).sort((a, b) => logits[b] - logits[a] || a - b);
  const selected = new Set(order.slice(0, topK));
  return exponentials.map((value, index) => ({ probability: value / total, selected: selected.has(index) }));
}

function repeats(box, better, iou) {
  const width = Math.min(box[2], better[2]) - Math.max(box[0], better[0]);
  const height = Math.min(box[3], better[3]) - Math.max(box[1], better[1]);
  const common = Math.max(0, width) * Math.max(0, height);
  return common > iou * (area(box) + area(better) - common);
}

function area(box) {
  return (box[2] - box[0]) * (box[3] - box[1]);
}

function inPicture(box, width, height, side) {
  const place = letterbox(width, height, side);
  const x = (value) => clip(((value - place.left) * width) / place.width, width);
  const y = (value) => clip(((value - place.top) * height) / place.height, height);
  return [x(box[0]), y(box[1]), x(box[2]), y(box[3])];
}

function clip(value, limit) {
  return Math.min(Math.max(value, 0), limit);
}
