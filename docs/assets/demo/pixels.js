// SPDX-License-Identifier: Apache-2.0
// Pictures as the network takes them: what moe_vision/runtime/letterbox.py does, and Pillow's bilinear resize.

// Where a picture lies in a square of the given side, centred.
export function letterbox(width, height, side) {
  const scale = side / Math.max(width, height);
  const newWidth = Math.max(1, roundHalfEven(width * scale));
  const newHeight = Math.max(1, roundHalfEven(height * scale));
  return {
    width: newWidth,
    height: newHeight,
    left: Math.floor((side - newWidth) / 2),
    top: Math.floor((side - newHeight) / 2),
  };
}

// The values (3, side, side) in [0, 1] of a picture, an ImageData, in the square with a border of grey.
export function prepare(picture, side, grey) {
  const place = letterbox(picture.width, picture.height, side);
  const rows = resizeRows(picture.data, picture.width, picture.height, place.width);
  const resized = transposed(resizeRows(transposed(rows, place.width, picture.height), picture.height, place.width, place.height), place.height, place.width);
  const values = new Float32Array(3 * side * side).fill(grey / 255);
  for (let y = 0; y < place.height; y++) {
    for (let x = 0; x < place.width; x++) {
      const cell = (place.top + y) * side + place.left + x;
      for (let c = 0; c < 3; c++) values[c * side * side + cell] = resized[4 * (y * place.width + x) + c] / 255;
    }
  }
  return values;
}

// Pixels (height, width, 4) with each row resized: a triangle around each new pixel, as wide as what it covers.
function resizeRows(pixels, width, height, newWidth) {
  const scale = width / newWidth;
  const radius = Math.max(scale, 1);
  const resized = new Uint8ClampedArray(4 * newWidth * height);
  for (let x = 0; x < newWidth; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - radius + 0.5));
    const end = Math.min(width, Math.floor(centre + radius + 0.5));
    const weights = [];
    for (let i = first; i < end; i++) weights.push(Math.max(0, 1 - Math.abs(i + 0.5 - centre) / radius));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let i = first; i < end; i++) sum += weights[i - first] * pixels[4 * (y * width + i) + c];
        resized[4 * (y * newWidth + x) + c] = Math.floor(sum / total + 0.5);
      }
    }
  }
  return resized;
}

function transposed(pixels, width, height) {
  const from = new Uint32Array(pixels.buffer);
  const to = new Uint32Array(from.length);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) to[x * height + y] = from[y * width + x];
  return new Uint8ClampedArray(to.buffer);
}

// As Python rounds.
function roundHalfEven(value) {
  const rounded = Math.round(value);
  return value % 1 === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded;
}
