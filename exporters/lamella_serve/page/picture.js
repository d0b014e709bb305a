/** An input that is an image: one draws it, or chooses a file, and it is scaled to the input's size and range. */

import { make } from "./elements.js";
import { Mistake, isFloat, isInteger, limits, rangeOf } from "./tensors.js";

const PAD = 560; // pixels of the pad's longer side
const PEN = 0.09; // of the shorter side
const KEY_STEP = 1 / 20; // of the pad
const LARGEST = 4096; // pixels in a direction
const RANGES = { "0 to 1": [0, 1], "0 to 255": [0, 255], "−1 to 1": [-1, 1] };

const short = (value) => Number(value.toPrecision(3));

let pads = 0;

/** How a tensor holds one image, as {channels, height, width}, the two latter axes; null if it does not look so. */
export function layoutOf({ shape, datatype }) {
  if (shape.length !== 4 || shape[0] > 1 || !(isFloat(datatype) || isInteger(datatype))) return null;
  const [channelsOf, large] = [(size) => size === 1 || size === 3, (size) => size < 0 || size >= 4];
  if (channelsOf(shape[1]) && large(shape[2]) && large(shape[3])) return { channels: shape[1], height: 2, width: 3 };
  if (channelsOf(shape[3]) && large(shape[1]) && large(shape[2])) return { channels: shape[3], height: 1, width: 2 };
  return null;
}

/**
 * An editor for an input with such a layout: {element, show(tensor), read()}.
 *
 * @param changed called when a stroke has ended, a file was chosen, or a setting was changed.
 */
export function pictureEditor(spec, layout, changed) {
  const drawable = layout.channels === 1;
  const small = make("canvas", { role: "img", "aria-label": "What the model sees" }); // of the input's size
  const pixels = small.getContext("2d", { willReadFrequently: true });
  let tensor = null;
  let picture = null; // of a file
  let strokes = []; // lists of points [x, y], from 0 to 1
  let blank = false; // whether every value is the lowest

  const size = () => [small.height, small.width];

  // Settings

  const settings = make("div.row.settings");
  const invert = make("input", { type: "checkbox" });
  settings.append(make("label", {}, invert, " Invert"));
  let range = () => limitsOf(spec);
  if (!range()) {
    const choice = make("select", {}, ...Object.keys(RANGES).map((text) => new Option(text)));
    settings.append(make("label", {}, "Pixels from ", choice));
    range = () => RANGES[choice.value];
  }
  const free = ["height", "width"].filter((side) => spec.shape[layout[side]] < 0);
  const sides = free.map(() => make("input", { type: "number", min: 1, max: LARGEST, step: 1, required: true }));
  const titles = { height: "Height ", width: "Width " };
  if (free.length) {
    settings.append(make("div.row", {}, ...free.map((side, k) => make("label", {}, titles[side], sides[k]))));
  }
  settings.addEventListener("change", () => {
    if (!sides.every((field) => field.checkValidity())) return;
    if (!picture && !strokes.length) picture = middle(small, small.width / small.height); // the example
    free.forEach((side, k) => (small[side] = sides[k].valueAsNumber));
    fit();
    see();
    changed();
  });

  // The pad

  const help = drawable
    ? "Draw with mouse, pen or finger, or drop an image file here. Keys: arrows move, the space bar lowers and lifts " +
      "the pen, Escape clears."
    : "Drop an image file here, or choose one.";
  const hint = make("p.soft", { id: `pad-help-${(pads += 1)}`, textContent: help });
  const pad = make("canvas.pad", { role: "img", "aria-label": `${spec.name}: the picture` });
  const context = pad.getContext("2d");
  if (drawable) {
    pad.tabIndex = 0;
    pad.classList.add("drawable");
    pad.setAttribute("role", "application");
    pad.setAttribute("aria-label", `${spec.name}: drawing pad`);
    pad.setAttribute("aria-describedby", hint.id);
    letDraw();
  }

  const file = make("input", { type: "file", accept: "image/*" });
  file.addEventListener("change", () => take(file.files[0]));
  const clear = make("button.small", { type: "button", textContent: "Clear" });
  clear.addEventListener("click", () => {
    empty();
    changed();
  });
  const problem = make("p.bad", { role: "alert", hidden: true });
  const sizes = make("span");
  const seen = make("div.seen.soft", {}, small, make("span", {}, "What the model sees:", make("br"), sizes));
  const buttons = make("div.row", {}, make("label.file.small", {}, "Choose an image", file));
  if (drawable) buttons.append(clear);
  const element = make("div.picture", {}, pad, make("div", {}, hint, problem, buttons, settings, seen));

  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", (event) => {
    if (!element.contains(event.relatedTarget)) element.classList.remove("over");
  });
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });

  async function take(chosen) {
    file.value = ""; // so that the same file can be chosen again
    if (!chosen) return;
    let made;
    try {
      made = await createImageBitmap(chosen);
    } catch {
      problem.textContent = `${chosen.name} is no image that this browser can read.`;
      problem.hidden = false;
      return;
    }
    problem.hidden = true;
    [picture, strokes] = [made, []];
    see();
    changed();
  }

  // From the picture to the tensor, and back

  /** Draw the picture or the strokes on a canvas of any size. */
  function paint(target, [ground, ink]) {
    const { width, height } = target.canvas;
    target.fillStyle = picture ? "white" : ground; // behind the transparent parts of a file
    target.fillRect(0, 0, width, height);
    if (picture) {
      target.imageSmoothingQuality = "high";
      target.drawImage(middle(picture, width / height), 0, 0, width, height);
    }
    target.lineWidth = Math.max(1, PEN * Math.min(width, height));
    target.lineCap = target.lineJoin = "round";
    target.strokeStyle = ink;
    for (const points of strokes) {
      target.beginPath();
      target.moveTo(points[0][0] * width, points[0][1] * height);
      for (const [x, y] of points) target.lineTo(x * width, y * height); // a line to where it begins is a dot
      target.stroke();
    }
  }

  /** Make the tensor from the picture. */
  function see() {
    paint(pixels, ["black", "white"]);
    const [height, width] = size();
    const image = pixels.getImageData(0, 0, width, height);
    const [low, high] = range();
    const data = new Array(layout.channels * height * width);
    for (let pixel = 0; pixel < height * width; pixel++) {
      let values = image.data.subarray(4 * pixel, 4 * pixel + 3);
      if (drawable) values = [0.299 * values[0] + 0.587 * values[1] + 0.114 * values[2]];
      for (let channel = 0; channel < layout.channels; channel++) {
        const share = (invert.checked ? 255 - values[channel] : values[channel]) / 255;
        const value = low + (high - low) * share;
        const text = isFloat(spec.datatype) ? Number(value.toPrecision(7)) : Math.round(value);
        data[position(pixel, channel)] = String(text);
      }
    }
    tensor = { shape: spec.shape.map((given, axis) => sizeOf(axis) ?? Math.abs(given)), data };
    mirror();
  }

  function sizeOf(axis) {
    return { [layout.height]: small.height, [layout.width]: small.width }[axis];
  }

  /** Where a value of a pixel stands in the tensor. */
  function position(pixel, channel) {
    return layout.height === 1 ? pixel * layout.channels + channel : channel * small.width * small.height + pixel;
  }

  /** Show the tensor as it is in the small canvas, and the picture, or that too, on the pad. */
  function mirror() {
    const [height, width] = size();
    const image = pixels.createImageData(width, height);
    const values = tensor.data.map(Number);
    const [least, most] = [Math.min, Math.max].map((end) => values.reduce((a, b) => end(a, b)));
    const [low, high] = [Math.min(least, range()[0]), Math.max(most, range()[1])];
    for (let pixel = 0; pixel < height * width; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        const value = values[position(pixel, channel % layout.channels)];
        image.data[4 * pixel + channel] = (255 * (value - low)) / (high - low);
      }
      image.data[4 * pixel + 3] = 255;
    }
    pixels.putImageData(image, 0, 0);
    blank = most === low;
    sizes.textContent = `${width} × ${height}, values from ${short(least)} to ${short(most)}`;
    draw();
  }

  function draw() {
    const style = getComputedStyle(document.body); // the pad may not be in the page yet
    if (picture || strokes.length || blank) {
      paint(
        context,
        ["--paper", "--ink"].map((name) => style.getPropertyValue(name)),
      );
    } else {
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, pad.width, pad.height);
    }
  }

  /** Give the canvases the proportions of the input. */
  function fit() {
    const [height, width] = size();
    const scale = PAD / Math.max(height, width);
    [pad.width, pad.height] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    pad.style.width = `min(100%, calc(var(--pad) * ${pad.width / Math.max(pad.width, pad.height)}))`;
    small.style.aspectRatio = pad.style.aspectRatio = `${width} / ${height}`;
  }

  function empty() {
    [picture, strokes] = [null, []];
    see();
  }

  /** Show a tensor that was neither drawn nor chosen here. */
  function show(given) {
    if (given.shape[0] !== 1) throw new Mistake(`${spec.name}: a picture is one row, and these are ${given.shape[0]}.`);
    [picture, strokes, tensor] = [null, [], given];
    for (const side of ["height", "width"]) small[side] = given.shape[layout[side]];
    free.forEach((side, k) => (sides[k].value = small[side]));
    fit();
    mirror();
  }

  // Drawing

  function letDraw() {
    let pointer = null; // the id of the one that draws
    let pen = null; // where the keys have moved the pen: {x, y, down}

    const begin = (point) => {
      picture = null;
      strokes.push([point]);
    };
    const spot = (event) => {
      const box = pad.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    const showPen = () => {
      if (!pen) return;
      context.beginPath();
      context.arc(pen.x * pad.width, pen.y * pad.height, (PEN / 2) * Math.min(pad.width, pad.height), 0, 2 * Math.PI);
      context.lineWidth = 6;
      context.strokeStyle = context.fillStyle = getComputedStyle(pad).getPropertyValue("--accent");
      if (pen.down) context.fill();
      context.stroke();
    };

    pad.addEventListener("pointerdown", (event) => {
      if (pointer !== null || event.button !== 0) return;
      pointer = event.pointerId;
      pad.setPointerCapture(pointer); // a stroke may leave the pad and come back
      pen = null;
      begin(spot(event));
      draw();
    });
    pad.addEventListener("pointermove", (event) => {
      if (event.pointerId !== pointer) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      strokes.at(-1).push(...(passed.length ? passed : [event]).map(spot));
      draw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      pad.addEventListener(name, (event) => {
        if (event.pointerId !== pointer) return;
        pointer = null;
        see();
        changed();
      });
    }

    pad.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key === "Escape") {
        pointer = pen = null;
        empty();
        changed();
      } else if (event.key === " ") {
        pen = { x: 0.5, y: 0.2, ...pen, down: !pen?.down };
        if (pen.down) begin([pen.x, pen.y]);
        see();
        if (!pen.down) changed();
      } else if (event.key in moves) {
        const [dx, dy] = moves[event.key];
        const inside = (value) => Math.min(0.95, Math.max(0.05, value));
        pen ??= { x: 0.5, y: 0.2, down: false };
        pen = { ...pen, x: inside(pen.x + dx * KEY_STEP), y: inside(pen.y + dy * KEY_STEP) };
        if (pen.down) strokes.at(-1).push([pen.x, pen.y]);
        if (pen.down) see();
        else draw();
      } else return;
      event.preventDefault();
      showPen();
    });
    pad.addEventListener("blur", () => {
      pen = null;
      if (tensor) draw();
    });
  }

  return { element, show, read: () => tensor };
}

/** The largest part in the middle of a picture that has these proportions, as a canvas. */
function middle(picture, proportions) {
  const width = Math.max(1, Math.round(Math.min(picture.width, picture.height * proportions)));
  const height = Math.max(1, Math.round(Math.min(picture.height, picture.width / proportions)));
  const part = make("canvas", { width, height });
  const [left, top] = [(picture.width - width) / 2, (picture.height - height) / 2].map(Math.floor);
  part.getContext("2d").drawImage(picture, -left, -top);
  return part;
}

/** The range of the pixels, if it is known. */
function limitsOf(spec) {
  if (rangeOf(spec)) return rangeOf(spec);
  if (spec.datatype === "INT8") return limits("INT8").map(Number);
  return isFloat(spec.datatype) ? null : [0, 255];
}
