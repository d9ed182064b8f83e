// SPDX-License-Identifier: Apache-2.0
// The demo page: a picture in, boxes, experts and milliseconds out. Nothing leaves the browser.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { detections, experts } from "./detections.js";
import { prepare } from "./pixels.js";

const LARGEST = 1600; // pixels a side; more are not needed for a network that sees 320
const COLORS = { Platelets: "#b45309", RBC: "#047857", WBC: "#1d4ed8" };
const NAMES = { Platelets: ["platelet", "platelets"], RBC: ["red blood cell", "red blood cells"], WBC: ["white blood cell", "white blood cells"] };

const page = document.querySelector(".demo");
const part = (name) => page.querySelector(`.demo-${name}`);
const here = (name) => new URL(name, import.meta.url).href;

ort.env.wasm.numThreads = 1; // more take headers that static hosts do not send
const loaded = load();
let turn = 0;

async function load() {
  const model = await (await fetch(here("cells.json"))).json();
  const session = await ort.InferenceSession.create(here("cells.onnx"), { executionProviders: ["wasm"] });
  return { model, session };
}

// Detects on a picture (a Blob); a later call makes an earlier one void.
async function detect(blob) {
  const mine = ++turn;
  page.dataset.state = "busy";
  say("Reading the picture and the network …");
  try {
    const picture = await pixels(blob);
    const { model, session } = await loaded;
    if (mine !== turn) return;
    say("Detecting …");
    await new Promise(requestAnimationFrame); // lets the line above be seen
    const found = await run(picture, model, session);
    if (mine === turn) show(picture, model, found);
  } catch (error) {
    if (mine !== turn) return;
    page.dataset.state = "failed";
    say(`This did not work: ${error.message ?? error}`);
  }
}

async function run(picture, model, session) {
  const side = model.image_size;
  const times = [performance.now()];
  const images = new ort.Tensor("float32", prepare(picture, side, model.letterbox), [1, 3, side, side]);
  times.push(performance.now());
  const outputs = await session.run({ images });
  times.push(performance.now());
  const cells = detections(outputs.boxes.data, outputs.scores.data, model, picture.width, picture.height);
  times.push(performance.now());
  const blocks = session.outputNames
    .filter((name) => name.startsWith("routing."))
    .map((name) => ({ name: name.split(".").slice(2).join("."), experts: experts(outputs[name].data, model.top_k) }));
  const [prepared, ran, selected] = times.slice(1).map((time, index) => time - times[index]);
  return { cells, blocks, prepared, ran, selected };
}

async function pixels(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error("the browser can't read this file as a picture");
  }
  const scale = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function show(picture, model, found) {
  draw(picture, model, found.cells);
  const counts = model.class_names.map((name, label) => [name, found.cells.filter((cell) => cell.label === label).length]);
  const texts = counts.map(([name, count]) => `${count} ${(NAMES[name] ?? [name, name])[count === 1 ? 0 : 1]}`);
  part("counts").replaceChildren(...texts.map((text, label) => counted(text, color(model, label))));
  part("blocks").replaceChildren(...found.blocks.map((block) => row(block, model.kernel_sizes)));
  part("result").hidden = false;
  say(`${ms(found.ran)} in the network, ${ms(found.prepared)} to fit the picture, ${ms(found.selected)} to select boxes.`);
  page.found = found; // for whoever looks from the console
  page.dataset.state = "done";
}

function draw(picture, model, cells) {
  const canvas = part("picture");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.putImageData(picture, 0, 0);
  const unit = Math.max(picture.width, picture.height) / 320;
  context.lineWidth = 1.2 * unit;
  context.font = `${6.5 * unit}px sans-serif`;
  for (const { box, score, label } of cells) {
    const [left, top, right, bottom] = box;
    const text = `${model.class_names[label]} ${score.toFixed(2)}`;
    const baseline = Math.max(top, 8 * unit);
    context.strokeStyle = context.fillStyle = color(model, label);
    context.strokeRect(left, top, right - left, bottom - top);
    context.fillRect(left, baseline - 8 * unit, context.measureText(text).width + 2 * unit, 8 * unit);
    context.fillStyle = "white";
    context.fillText(text, left + unit, baseline - 2 * unit);
  }
}

function counted(text, color) {
  const item = document.createElement("span");
  item.textContent = text;
  item.style.setProperty("--demo-color", color);
  return item;
}

// One row of the table: the block, and its experts with their probabilities.
function row(block, kernelSizes) {
  const line = document.createElement("tr");
  const title = document.createElement("th");
  title.textContent = block.name.replace(/^backbone\./, "").replace(/\.moe$/, "");
  line.append(title);
  block.experts.forEach(({ probability, selected }, index) => {
    const cell = document.createElement("td");
    cell.className = selected ? "demo-selected" : "";
    cell.textContent = `${kernelSizes[index]}×${kernelSizes[index]}${selected ? " ✓" : ""}`;
    const share = document.createElement("small");
    share.textContent = `${(100 * probability).toFixed(1)} %`;
    cell.append(share);
    line.append(cell);
  });
  return line;
}

function color(model, label) {
  return COLORS[model.class_names[label]];
}

function ms(value) {
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
}

function say(text) {
  part("status").textContent = text;
}

for (const button of page.querySelectorAll(".demo-samples button")) {
  button.addEventListener("click", async () => detect(await (await fetch(button.querySelector("img").src)).blob()));
}
part("file").addEventListener("change", (event) => event.target.files.length && detect(event.target.files[0]));
page.querySelector(".demo-samples button").click();
