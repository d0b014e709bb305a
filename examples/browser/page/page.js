/**
 * The page: it trains on the shipped digits, reads what one draws, and keeps the weights.
 *
 * `window.lamella` is for tests and for the console. It holds `session`, the training; `digits`, the arrays of
 * digits.safetensors; and `ready`, a promise that is kept when the page can be used, and broken when it can't.
 */

import { curve } from "./curve.js";
import { drawingPad, showImage } from "./pad.js";
import { RunnerError, TrainingSession, download, fetched, readSafetensors } from "./runner.js";

const BATCH = 32; // digits in a step
const OWN = 4; // of them, if there are digits of the person's own
const PASSES = 20; // over all digits, until training pauses by itself
const PIXELS = 64;
const BURST = 12; // milliseconds of steps before the browser may draw
const TEST_EVERY = 300; // milliseconds
const TOO_HIGH = 3; // a loss above that of guessing, 2.3

const at = (id) => document.getElementById(id);
const shortly = (loss) => (loss < 1000 ? loss.toFixed(3) : loss.toExponential(0));
const percent = (share) => `${(100 * share).toFixed(1)} %`;

let session, images, labels, tests;
let running = false;
let training = Promise.resolve(); // ends when a training has paused
let drawn = null; // what stands on the pad, as the network sees it
const own = []; // {image, label}
const losses = curve(at("curve"));

const pad = drawingPad(at("pad"), (image) => {
  drawn = image;
  at("add").disabled = !session || !image;
  at("clear").disabled = !image;
  showImage(at("seen"), image ?? new Float32Array(PIXELS));
  attempt(read);
});

// Loading

async function open() {
  let ort;
  try {
    ort = await import("./ort/ort.wasm.bundle.min.mjs");
  } catch {
    throw new RunnerError(
      "ort/ort.wasm.bundle.min.mjs is missing or damaged: onnxruntime-web can't start. Build the folder again.",
    );
  }
  ort.env.wasm.numThreads = 1; // steps this small gain nothing from more
  ort.env.logLevel = "error";
  // before onnxruntime looks for it, which would not tell what is missing
  ort.env.wasm.wasmBinary = (await fetched(new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url))).buffer;
  const { arrays } = readSafetensors(await fetched(new URL("./digits.safetensors", import.meta.url)));
  session = await TrainingSession.open("step", ort);
  images = Float32Array.from(arrays["train.images"].data);
  labels = arrays["train.labels"].data;
  tests = { images: Float32Array.from(arrays["test.images"].data), labels: arrays["test.labels"].data };
  window.lamella.session = session;
  window.lamella.digits = arrays;
  at("train-count").textContent = labels.length;
  at("test-count").textContent = tests.labels.length;
  at("rate").value = session.learningRate;
  for (const id of ["start", "reset", "rate", "label", "save", "load"]) at(id).disabled = false;
  await begin();
  say("Ready. Press Start.");
}

/** Show the accuracy of what training begins with, and an empty curve. */
async function begin() {
  losses.clear();
  at("loss").textContent = at("speed").textContent = "–";
  at("steps").textContent = session.steps;
  at("before").textContent = await test();
  await read();
}

// Training

/** Train until the passes are done or someone pauses; the browser draws between bursts of steps. */
async function train() {
  running = true;
  at("start").textContent = "Pause";
  at("answer").ariaLive = "off"; // it changes with each test
  say("Training …");
  hideError();
  const source = batches();
  let left = PASSES * Math.floor(labels.length / BATCH);
  let [tested, counted, burst] = [performance.now(), 0, performance.now()];
  let end = "Stopped";
  try {
    while (running && left > 0) {
      const batch = source.next().value;
      losses.add(await session.step(batch.images, batch.labels, { learningRate: rate() }));
      left -= 1;
      counted += 1;
      if (performance.now() - burst < BURST) continue;
      at("loss").textContent = shortly(losses.mean());
      at("steps").textContent = session.steps;
      await nextTask();
      const passed = performance.now() - tested;
      if (passed > TEST_EVERY) {
        at("speed").textContent = Math.round((1000 * counted) / passed);
        await test();
        await read();
        [tested, counted] = [performance.now(), 0];
      }
      burst = performance.now();
    }
    end = left ? "Paused" : `${PASSES} passes over the digits are done`;
  } finally {
    running = false;
    at("start").textContent = "Start";
    at("steps").textContent = session.steps;
    const now = await test();
    await read();
    at("answer").ariaLive = "polite";
    const hint = losses.mean() > TOO_HIGH ? " The loss has grown: lower the learning rate, and press Reset." : "";
    say(`${end}: ${now} right.${hint}`);
  }
}

function pause() {
  running = false;
  return training;
}

/** Batches in a new random order in each pass, without end; some rows are the person's own digits. */
function* batches() {
  const order = Array.from(labels.keys());
  for (;;) {
    for (let k = order.length - 1; k > 0; k--) {
      const other = Math.floor(Math.random() * (k + 1));
      [order[k], order[other]] = [order[other], order[k]];
    }
    for (let start = 0; start + BATCH <= order.length; start += BATCH) {
      const batch = { images: new Float32Array(BATCH * PIXELS), labels: new Array(BATCH) };
      for (let row = 0; row < BATCH; row++) {
        const digit = order[start + row];
        const mine = own.length && row < OWN ? own[Math.floor(Math.random() * own.length)] : null;
        batch.images.set(mine ? mine.image : images.subarray(digit * PIXELS, (digit + 1) * PIXELS), row * PIXELS);
        batch.labels[row] = mine ? mine.label : labels[digit];
      }
      yield batch;
    }
  }
}

/** The learning rate that stands in the field. */
function rate() {
  const { valueAsNumber: value, max } = at("rate");
  if (value >= 0 && value <= Number(max)) return value;
  throw new RunnerError(
    `The learning rate must be a number from 0 to ${max}. ${session.learningRate} is a good one to begin with.`,
  );
}

/** Let the browser draw and answer, without the pause that setTimeout makes. */
function nextTask() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

/** Test on the digits that it does not learn from; show and return the share that it reads right. */
async function test() {
  const { data } = await session.predict(tests.images);
  const right = tests.labels.reduce(
    (sum, label, row) => sum + (best(data.subarray(10 * row, 10 * row + 10)) === label),
    0,
  );
  return (at("now").textContent = percent(right / tests.labels.length));
}

function best(values) {
  return values.indexOf(Math.max(...values));
}

// Reading what is drawn

async function read() {
  if (!session) return;
  if (!drawn) {
    at("answer").textContent = "Nothing is drawn yet.";
    showBars(new Array(10).fill(0), -1);
    return;
  }
  const { data } = await session.predict(drawn);
  const top = Math.max(...data);
  const powers = Array.from(data, (value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b);
  const shares = powers.map((power) => power / sum);
  const digit = best(shares);
  const text =
    digit < 0 ? "Its weights are not finite; press Reset." : `It reads ${digit}, at ${percent(shares[digit])}.`;
  if (at("answer").textContent !== text) at("answer").textContent = text;
  showBars(shares, digit);
}

for (let digit = 0; digit < 10; digit++) {
  const row = document.createElement("li");
  const bar = '<span class="bar" aria-hidden="true"><span></span></span>';
  row.innerHTML = `<span>${digit}</span>${bar}<span class="value"></span>`;
  at("bars").append(row);
  at("label").append(new Option(digit, digit));
}

function showBars(shares, winner) {
  shares.forEach((share, digit) => {
    const row = at("bars").children[digit];
    row.classList.toggle("best", digit === winner);
    row.querySelector(".bar span").style.transform = `scaleX(${share})`;
    row.querySelector(".value").textContent = winner < 0 ? "–" : `${Math.round(100 * share)} %`;
  });
}

function showOwn() {
  at("own").replaceChildren(
    ...own.map(({ image, label }) => {
      const [box, canvas] = [document.createElement("div"), document.createElement("canvas")];
      [canvas.width, canvas.height] = [8, 8];
      showImage(canvas, image);
      box.append(canvas, String(label));
      return box;
    }),
  );
  at("own").setAttribute("aria-label", `Your digits: ${own.map(({ label }) => label).join(", ") || "none"}`);
  at("forget").disabled = !own.length;
}

// What is told

function say(text) {
  at("status").textContent = text;
}

function tell(error) {
  at("error-text").textContent =
    error instanceof RunnerError ? error.message : `Something unexpected went wrong: ${error?.message ?? error}`;
  at("error").hidden = false;
}

function hideError() {
  at("error").hidden = true;
}

/** Run what may fail, and tell the person what went wrong. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    tell(error);
  }
}

// Controls

at("start").addEventListener("click", () => {
  if (running) running = false;
  else training = attempt(train);
});

at("reset").addEventListener("click", () =>
  attempt(async () => {
    await pause();
    hideError();
    await session.reset();
    at("rate").value = session.learningRate;
    await begin();
    say("Weights and learning rate are back where training began.");
  }),
);

at("clear").addEventListener("click", () => pad.clear());
at("error-close").addEventListener("click", hideError);

at("teach").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!drawn) return;
  own.push({ image: drawn, label: Number(at("label").value) });
  showOwn();
  pad.clear();
  say(`Added a ${own.at(-1).label}. Press Start, and the network learns your hand.`);
});

at("forget").addEventListener("click", () => {
  own.length = 0;
  showOwn();
  say("Your digits are out of the training. What was learned from them stays until Reset.");
});

at("save").addEventListener("click", () => attempt(async () => download(session.save(), "lamella-digits.safetensors")));

at("load").addEventListener("change", () =>
  attempt(async () => {
    const [file] = at("load").files;
    if (!file) return;
    at("load").value = ""; // so that the same file can be chosen again
    await pause();
    hideError();
    await session.load(new Uint8Array(await file.arrayBuffer()));
    await begin();
    say(`Loaded ${file.name}: ${session.steps} steps.`);
  }),
);

window.lamella = {};
window.lamella.ready = open();
window.lamella.ready.catch((error) => {
  say("The page can't train.");
  tell(error);
});
at("late").remove();
