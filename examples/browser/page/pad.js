/** A pad to draw a digit on, and how the drawing becomes an image like those that the network learns from. */

const CELLS = 8; // of the image, in both directions
const BLOCK = 4; // dots in a cell, in both directions: its value counts the inked ones, 0 to 16
const GRID = CELLS * BLOCK;
const PEN = 6.5; // in dots: the images are about 30 % ink
const WIDEST = 26; // dots that a digit is wide at most; it is always GRID high
const KEY_STEP = 1 / 20; // of the pad

/**
 * Let someone draw on a canvas by pointer or by keys.
 *
 * @param {HTMLCanvasElement} canvas square, and focusable for the keys.
 * @param changed called with the image after each stroke: 64 numbers from 0 to 16; with null once the pad is empty.
 */
export function drawingPad(canvas, changed) {
  const context = canvas.getContext("2d");
  const strokes = []; // lists of points [x, y], from 0 to 1
  let pointer = null; // the id of the one that draws
  let pen = null; // where the keys have moved the pen: {x, y, down}

  function draw() {
    const [ink, accent] = ["--ink", "--accent"].map((name) => getComputedStyle(canvas).getPropertyValue(name));
    context.clearRect(0, 0, canvas.width, canvas.height);
    line(context, strokes, ([x, y]) => [x * canvas.width, y * canvas.height], canvas.width / 14, ink);
    if (pen) {
      context.beginPath();
      context.arc(pen.x * canvas.width, pen.y * canvas.height, canvas.width / 28, 0, 2 * Math.PI);
      context.lineWidth = canvas.width / 90;
      context.strokeStyle = context.fillStyle = accent;
      if (pen.down) context.fill();
      context.stroke();
    }
  }

  function tell() {
    draw();
    changed(strokes.length ? imageOf(strokes) : null);
  }

  function clear() {
    strokes.length = 0;
    pointer = null;
    if (pen) pen.down = false;
    tell();
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer); // a stroke may leave the pad and come back
    pen = null;
    strokes.push([place(event)]);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const one of passed.length ? passed : [event]) strokes.at(-1).push(place(one));
    draw();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      tell();
    });
  }

  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") clear();
    else if (event.key === " ") {
      pen = { x: 0.5, y: 0.2, ...pen, down: !pen?.down };
      if (pen.down) strokes.push([[pen.x, pen.y]]);
      tell();
    } else if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const inside = (value) => Math.min(0.95, Math.max(0.05, value));
      pen ??= { x: 0.5, y: 0.2, down: false };
      pen = { ...pen, x: inside(pen.x + dx * KEY_STEP), y: inside(pen.y + dy * KEY_STEP) };
      if (pen.down) strokes.at(-1).push([pen.x, pen.y]);
      tell();
    } else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => {
    pen = null;
    draw();
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  return { clear };
}

/** Draw an image of 64 numbers on a canvas of 8 by 8 pixels. */
export function showImage(canvas, image) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(CELLS, CELLS);
  image.forEach((value, k) =>
    pixels.data.set([255 - (value / 16) * 230, 255 - (value / 16) * 225, 255 - (value / 16) * 215, 255], 4 * k),
  );
  context.putImageData(pixels, 0, 0);
}

/**
 * The image of strokes, made as those of the data set were: the digit fills a grid of 32 by 32 dots in height, stands
 * in its middle, and each of 8 by 8 numbers counts the inked dots of a block. The pen is as wide for small digits as
 * for large ones.
 */
function imageOf(strokes) {
  const [xs, ys] = [0, 1].map((axis) => strokes.flatMap((points) => points.map((point) => point[axis])));
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const tall = (GRID - PEN) / Math.max(bottom - top, 0.1); // a dot stays one
  const wide = Math.min(tall, (WIDEST - PEN) / Math.max(right - left, 0.001));
  const onGrid = ([x, y]) => [GRID / 2 + (x - (left + right) / 2) * wide, GRID / 2 + (y - (top + bottom) / 2) * tall];

  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = GRID;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  line(context, strokes, onGrid, PEN, "black");
  const { data } = context.getImageData(0, 0, GRID, GRID);
  const image = new Float32Array(CELLS * CELLS);
  for (let dot = 0; dot < GRID * GRID; dot++) {
    const [row, column] = [Math.floor(dot / GRID / BLOCK), Math.floor((dot % GRID) / BLOCK)];
    image[row * CELLS + column] += data[4 * dot + 3] / 255;
  }
  return image.map(Math.round);
}

function line(context, strokes, place, width, color) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = color;
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(...place(points[0]));
    for (const point of points) context.lineTo(...place(point)); // a line to where it begins is a dot
    context.stroke();
  }
}
