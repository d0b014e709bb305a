/**
 * Trains and runs a model in the browser, from a folder that `lamella_onnx.export_training_step` wrote.
 *
 * The folder holds `train.onnx`, one whole training step as a graph, `predict.onnx`, `state.safetensors`, what the
 * first step starts from, and `training.json`, the manifest that names every input and output with its role. Serve it,
 * this file and onnxruntime-web, and train:
 *
 *     import * as ort from "./ort/ort.wasm.bundle.min.mjs";
 *     import { TrainingSession, download } from "./runner.js";
 *
 *     ort.env.wasm.numThreads = 1; // more threads need two headers of the server
 *     const session = await TrainingSession.open("./step/", ort);
 *     for (const [images, labels] of batches) console.log(await session.step(images, labels));
 *     const { data, dims } = await session.predict(images);
 *     download(session.save(), "weights.safetensors");
 *
 * In Python, `TrainingSession.load_state` reads what `save` gives. The file has no dependency: onnxruntime-web is handed
 * to `open`. It follows no schedule of learning rates: where the optimizer has one, give each step its own
 * `learningRate`. A step computes on the thread that calls it; let the browser draw between steps.
 */

const MANIFEST = "training.json";
const FILES = ["train.onnx", "predict.onnx", "state.safetensors"];
const KEPT = ["seed", "step", "t", "parameter", "slot", "state"]; // roles of what a step reads of the one before
const ARGUMENTS = { input: "x", target: "y", sample_weight: "sampleWeight" }; // what takes an input of these roles
const OPTIONS = ["learningRate", "sampleWeight"];
const OF_STEP = "lamella.training"; // in the metadata of a state file: the hash of the graph that it belongs to

/** What is wrong with a file or an argument, in words for the person who sees the page. */
export class RunnerError extends Error {
  name = "RunnerError";
}

/** A training, or what was trained: weights, slots of the optimizer, statistics and counters, and two graphs. */
export class TrainingSession {
  #ort;
  #graphs; // {train, predict}: sessions of onnxruntime
  #initial; // the content of state.safetensors
  #values = {}; // tensors by the names of the inputs that take them
  #last = Promise.resolve(); // what computes or loads waits for what was asked before

  /**
   * Open the folder at an address.
   *
   * @param {string | URL} folder its address, relative to the page.
   * @param ort the module of onnxruntime-web.
   * @throws {RunnerError} a file that is missing or damaged, or graphs that onnxruntime-web can't load.
   */
  static async open(folder, ort) {
    const base = new URL(`${folder}`.replace(/\/?$/, "/"), globalThis.location.href);
    const manifest = readManifest(await fetched(new URL(MANIFEST, base)));
    const contents = await Promise.all(FILES.map((name) => fetched(new URL(name, base))));
    const files = Object.fromEntries(FILES.map((name, k) => [name, contents[k]]));
    for (const name of FILES) {
      if (globalThis.crypto.subtle && (await sha256(files[name])) !== manifest.files[name]) {
        throw new RunnerError(
          `${name} is damaged, or of another training step: it has not the hash that ${MANIFEST} says.`,
        );
      }
    }
    const graphs = {};
    for (const graph of ["train", "predict"]) {
      const name = `${graph}.onnx`;
      const { inputs, outputs } = manifest[graph];
      const loaded = await loadGraph(ort, name, files[name]);
      const names = [...loaded.inputNames, ...loaded.outputNames];
      if (`${[...inputs, ...outputs].map((entry) => entry.name)}` !== `${names}`) {
        throw new RunnerError(`${name} has other inputs or outputs than ${MANIFEST} says.`);
      }
      graphs[graph] = loaded;
    }
    const session = new TrainingSession(manifest, ort, graphs, files["state.safetensors"]);
    await session.reset();
    return session;
  }

  constructor(manifest, ort, graphs, initial) {
    this.manifest = manifest;
    this.#ort = ort;
    this.#graphs = graphs;
    this.#initial = initial;
  }

  /** How many steps the model has taken, before the export too. */
  get steps() {
    return Number(this.#value("step").data[0]);
  }

  /** The learning rate of a step for which none is given. */
  get learningRate() {
    return this.manifest.learning_rate;
  }

  /**
   * Take one training step, and return the loss before it.
   *
   * @param x the inputs: a flat array of numbers for all rows of the batch, or an `ort.Tensor`; where there are several
   *     inputs, an object that holds one for each name.
   * @param y the targets, likewise, by the names of the outputs.
   * @param options `learningRate`, of this step; `sampleWeight`, a number for each row, likewise; ones if left out.
   * @throws {RunnerError} arrays or options that do not fit, or results that are not finite: nothing is kept.
   */
  step(x, y, options = {}) {
    return this.#inTurn(async () => {
      const { learningRate = this.learningRate, sampleWeight } = checkedOptions(options);
      const { inputs, outputs } = this.manifest.train;
      const feeds = this.#feeds(inputs, { input: x, target: y, sample_weight: sampleWeight });
      const rate = inputs.find((entry) => entry.role === "learning_rate");
      feeds[rate.name] = new this.#ort.Tensor(rate.dtype, DTYPES[rate.dtype][1].of(learningRate), []);
      const loss = outputs.find((entry) => entry.role === "loss" && !entry.of).name;
      const finite = outputs.find((entry) => entry.role === "finite").name;
      const renewed = outputs.filter((entry) => entry.role === "new");
      const results = await this.#run("train", feeds, [loss, finite, ...renewed.map((entry) => entry.name)]);
      const told = Number(results[loss].data[0]);
      if (!results[finite].data[0]) {
        throw new RunnerError(
          `Step ${this.steps}: the loss is ${told}, and it, a gradient or a new value is not finite. Nothing of this ` +
            "step was kept. Likely fix: reset, and a lower learning rate.",
        );
      }
      for (const entry of renewed) this.#values[entry.of] = results[entry.name];
      return told;
    });
  }

  /** Return the output for inputs as `step` takes them, an `ort.Tensor`; of several outputs, an object by name. */
  predict(x) {
    return this.#inTurn(async () => {
      const results = await this.#run("predict", this.#feeds(this.manifest.predict.inputs, { input: x }));
      const tensors = Object.values(results);
      return tensors.length === 1 ? tensors[0] : results;
    });
  }

  /** Return what training goes on from as the bytes of a safetensors file, which lamella's `load_state` reads. */
  save() {
    const arrays = {};
    for (const { name, dtype, shape } of kept(this.manifest)) {
      arrays[name] = { dtype, shape, data: this.#values[name].data };
    }
    return writeSafetensors(arrays, { [OF_STEP]: this.manifest.files["train.onnx"] });
  }

  /**
   * Go on from the bytes of a file that `save` gave, or `TrainingSession.save_state` in Python.
   *
   * @throws {RunnerError} a file of another training step, or one that is damaged; then nothing changes.
   */
  load(bytes) {
    return this.#inTurn(async () => {
      const { arrays, metadata } = readSafetensors(bytes);
      const other = "It is the state of another model.";
      if (OF_STEP in metadata && metadata[OF_STEP] !== this.manifest.files["train.onnx"]) {
        throw new RunnerError("The file is the state of another training step: it was saved beside another graph.");
      }
      const entries = kept(this.manifest);
      const extra = Object.keys(arrays).find((name) => !entries.some((entry) => entry.name === name));
      if (extra !== undefined) {
        throw new RunnerError(`The file has an array "${extra}", which this model has not. ${other}`);
      }
      const values = {};
      for (const { name, dtype, shape } of entries) {
        const array = arrays[name];
        if (!array) throw new RunnerError(`The file has no array "${name}". ${other}`);
        if (array.dtype !== dtype || `${array.shape}` !== `${shape}`) {
          throw new RunnerError(
            `"${name}" is ${array.dtype} [${array.shape}] in the file; expected ${dtype} [${shape}]. ${other}`,
          );
        }
        if (dtype.startsWith("float") && !array.data.every(Number.isFinite)) {
          throw new RunnerError(`"${name}" has values in the file that are not finite.`);
        }
        values[name] = new this.#ort.Tensor(dtype, array.data, shape);
      }
      this.#values = values;
    });
  }

  /** Go back to the state that the folder holds. */
  reset() {
    return this.load(this.#initial);
  }

  /** The weights that are trained: typed arrays by name. */
  get parameters() {
    const entries = kept(this.manifest).filter((entry) => entry.role === "parameter");
    return Object.fromEntries(entries.map(({ name }) => [name, this.#values[name].data]));
  }

  #value(role) {
    return this.#values[this.manifest.train.inputs.find((entry) => entry.role === role).name];
  }

  #inTurn(work) {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }

  async #run(graph, feeds, outputs) {
    try {
      return await this.#graphs[graph].run(feeds, outputs);
    } catch (error) {
      throw new RunnerError(`onnxruntime can't run ${graph}.onnx with these arrays: ${inShort(error)}`);
    }
  }

  /** The tensors for the inputs of a graph: arguments by the roles that they have, and what the session holds. */
  #feeds(inputs, given) {
    const feeds = {};
    const first = inputs.find((entry) => entry.role === "input");
    for (const entry of inputs) {
      const rows = feeds[first.name]?.dims[0];
      if (entry.role === "sample_weight" && (given.sample_weight ?? null) === null) {
        feeds[entry.name] = new this.#ort.Tensor(entry.dtype, new DTYPES[entry.dtype][1](rows).fill(1), [rows]);
      } else if (entry.role in given) {
        const tensor = this.#tensor(entry, given[entry.role]);
        if (entry !== first && tensor.dims[0] !== rows) {
          throw new RunnerError(
            `${called(entry)}: expected as many rows as ${called(first)} has, ${rows}; got ${tensor.dims[0]} of the ` +
              `shape [${entry.shape}]. Likely fix: a row of inputs, targets and weights for each sample.`,
          );
        }
        feeds[entry.name] = tensor;
      } else feeds[entry.name] = this.#values[entry.name];
    }
    return feeds;
  }

  /** The tensor for an input of a graph, from a tensor, an array, or an object with one of them under its name. */
  #tensor(entry, given) {
    const isValue = (one) => isArray(one) || one instanceof this.#ort.Tensor;
    const alone = this.manifest.train.inputs.filter((one) => one.role === entry.role).length === 1;
    const name = entry.of ?? entry.name;
    const where = called(entry);
    const value = isValue(given) && alone ? given : given?.[name];
    if (!isValue(value)) {
      const expected = `${alone ? "an array, or " : ""}an object with an array as "${name}"`;
      throw new RunnerError(`${where}: expected ${expected}; got ${shown(given)}.`);
    }
    const dims = value instanceof this.#ort.Tensor ? tensorDims(where, entry, value) : arrayDims(where, entry, value);
    const values = value instanceof this.#ort.Tensor ? value.data : value;
    const width = values.length / dims[0];
    const data = numbers(where, values, entry.dtype, width);
    if (entry.role === "target") this.#checkLabels(where, entry, data, width);
    if (entry.role === "sample_weight") checkWeights(where, data);
    return new this.#ort.Tensor(entry.dtype, data, dims);
  }

  /** Integer targets without the prediction's last axis are labels, and classes stand along that axis. */
  #checkLabels(where, { of, shape, dtype }, data, width) {
    const prediction = this.manifest.train.outputs.find((entry) => entry.role === "prediction" && entry.name === of);
    if (!dtype.includes("int") || shape.length !== prediction.shape.length - 1) return;
    const classes = prediction.shape.at(-1);
    const wrong = data.findIndex((label) => label < 0 || label >= classes);
    if (wrong < 0) return;
    throw new RunnerError(
      `${where}: expected labels from 0 to ${classes - 1}, since the output has ${classes} classes; got ` +
        `${data[wrong]} in row ${Math.floor(wrong / width)}. Likely fix: labels that count from 0, or a last layer ` +
        "with more units.",
    );
  }
}

/** Let the browser save bytes as a file. */
export function download(bytes, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Return what stands at an address, as bytes; a RunnerError says what is missing. */
export async function fetched(url) {
  let response;
  try {
    response = await fetch(url, { cache: "no-cache" }); // files that belong together, not some of yesterday
  } catch {
    throw new RunnerError(`${url} can't be fetched: the server does not answer.`);
  }
  if (!response.ok) throw new RunnerError(`${url} is missing: the server answers ${response.status}.`);
  return new Uint8Array(await response.arrayBuffer());
}

// The manifest

function readManifest(bytes) {
  let held;
  try {
    held = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new RunnerError(`${MANIFEST} is no JSON: ${error.message}.`);
  }
  if (held?.format !== "lamella.training") throw new RunnerError(`${MANIFEST} is not the manifest of a training step.`);
  if (held.version !== 1) throw new RunnerError(`${MANIFEST} has version ${held.version}; this page reads version 1.`);
  const sides = [held.train?.inputs, held.train?.outputs, held.predict?.inputs, held.predict?.outputs];
  const whole = (entry) =>
    [entry?.name, entry?.role, entry?.dtype].every((word) => typeof word === "string") && Array.isArray(entry.shape);
  if (!sides.every((side) => Array.isArray(side) && side.every(whole)) || typeof held.files !== "object") {
    throw new RunnerError(`${MANIFEST} is damaged: its lists of inputs, outputs or files are not whole.`);
  }
  for (const entry of sides.flat()) {
    if (!(entry.dtype in DTYPES)) throw new RunnerError(`${entry.name} is ${entry.dtype}; this page can't compute it.`);
  }
  return held;
}

function kept(manifest) {
  return manifest.train.inputs.filter((entry) => KEPT.includes(entry.role));
}

async function loadGraph(ort, name, content) {
  try {
    return await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  } catch (error) {
    const starts = !`${error?.message}`.includes("no available backend");
    throw new RunnerError(
      `onnxruntime-web can't ${starts ? `load ${name}` : "start in this browser"}: ${inShort(error)}`,
    );
  }
}

/** What onnxruntime says, in one line: its own words stand behind the names of its functions. */
function inShort(error) {
  const [line] = `${error?.message ?? error}`.replace(/^.*(Status Message|ERROR_MESSAGE): /s, "").split("\n");
  return line.length > 200 ? `${line.slice(0, 200)} …` : line;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await globalThis.crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Arguments

/** What the caller knows an input of a graph as. */
function called(entry) {
  return `${ARGUMENTS[entry.role]} of "${entry.of ?? entry.name}"`;
}

function shown(value) {
  if (isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object" && value !== null) return `an object with [${Object.keys(value)}]`;
  return typeof value === "string" ? `the text ${JSON.stringify(value.slice(0, 40))}` : String(value);
}

function checkedOptions(options) {
  if (typeof options !== "object" || options === null) {
    throw new RunnerError(`options: expected an object such as {learningRate: 0.1}; got ${shown(options)}.`);
  }
  const odd = Object.keys(options).find((name) => !OPTIONS.includes(name));
  if (odd !== undefined) throw new RunnerError(`options: "${odd}" is unknown; known are ${OPTIONS.join(" and ")}.`);
  const { learningRate = 0 } = options;
  if (!(Number.isFinite(learningRate) && learningRate >= 0)) {
    throw new RunnerError(`learningRate: expected a finite number of at least 0; got ${shown(learningRate)}.`);
  }
  return options;
}

function tensorDims(where, { dtype, shape }, { type, dims }) {
  const fits = (size, axis) => (typeof size === "string" ? dims[axis] > 0 : dims[axis] === size);
  if (type === dtype && dims.length === shape.length && shape.every(fits)) return dims;
  throw new RunnerError(`${where}: expected a tensor of ${dtype} [${shape}]; got ${type} [${dims}].`);
}

/** The shape of a flat array, which has one axis of any size at most. */
function arrayDims(where, { shape }, values) {
  if (Array.isArray(values) && values.some(isArray)) {
    throw new RunnerError(
      `${where}: arrays are flat: one typed array or list for the whole batch; got a list of arrays. Likely fix: ` +
        "rows.flatMap((row) => [...row]), once for each level.",
    );
  }
  const known = shape.reduce((product, size) => (typeof size === "string" ? product : product * size), 1);
  const unknown = shape.filter((size) => typeof size === "string").length;
  const size = values.length / known;
  if (unknown > 1) throw new RunnerError(`${where}: an array does not tell its shape; give an ort.Tensor.`);
  if (!Number.isInteger(size) || size < 1 || (unknown === 0 && size !== 1)) {
    throw new RunnerError(
      `${where}: expected the shape [${shape}], so ${unknown ? "a multiple of " : ""}${known} values; got ` +
        `${values.length}. Likely fix: whole rows, one after another.`,
    );
  }
  return shape.map((one) => (typeof one === "string" ? size : one));
}

/** Numbers in the kind of array that a tensor holds; `width` of them are a row. */
function numbers(where, values, dtype, width) {
  const [, kind] = DTYPES[dtype];
  const isFloat = dtype.startsWith("float");
  if (values instanceof kind && (!isFloat || values.every(Number.isFinite))) return values;
  const converted = dtype.endsWith("int64") ? BigInt : Number;
  const cell = new kind(1);
  const fits = (value) => {
    if (!["number", "bigint", "boolean"].includes(typeof value)) return false;
    if (!isFloat && !Number.isInteger(Number(value))) return false;
    cell[0] = converted(value);
    return isFloat ? Number.isFinite(cell[0]) : cell[0] == value; // no ===: of a number and a BigInt
  };
  const wrong = values.findIndex((value) => !fits(value));
  if (wrong >= 0) {
    const fix = isFloat ? "no missing values, no division by 0, no text" : "whole numbers";
    throw new RunnerError(
      `${where}: expected ${isFloat ? "finite numbers" : "integers"} in the range of ${dtype}; got ` +
        `${shown(values[wrong])} in row ${Math.floor(wrong / width)}. Likely fix: ${fix} in the data.`,
    );
  }
  return kind.from(values, converted);
}

function checkWeights(where, data) {
  const negative = data.find((weight) => weight < 0);
  if (negative !== undefined) throw new RunnerError(`${where}: expected weights of at least 0; got ${negative}.`);
  if (data.every((weight) => weight === 0)) {
    throw new RunnerError(`${where}: every row weighs 0, so there is nothing to learn from; expected one above 0.`);
  }
}

// Arrays and safetensors files

// the code of each dtype in safetensors files, and its kind of array
const DTYPES = {
  float32: ["F32", Float32Array],
  float64: ["F64", Float64Array],
  bool: ["BOOL", Uint8Array],
  int8: ["I8", Int8Array],
  int16: ["I16", Int16Array],
  int32: ["I32", Int32Array],
  int64: ["I64", BigInt64Array],
  uint8: ["U8", Uint8Array],
  uint16: ["U16", Uint16Array],
  uint32: ["U32", Uint32Array],
  uint64: ["U64", BigUint64Array],
};

function isArray(value) {
  return Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView));
}

/**
 * Read a safetensors file: `{arrays: {name: {dtype, shape, data}}, metadata}`.
 *
 * @throws {RunnerError} the bytes are no such file, or a damaged one.
 */
export function readSafetensors(bytes) {
  if (!(bytes instanceof Uint8Array)) {
    throw new RunnerError(`Expected a Uint8Array; got ${shown(bytes)}. Likely fix: new Uint8Array(buffer).`);
  }
  const names = Object.fromEntries(Object.entries(DTYPES).map(([dtype, [code]]) => [code, dtype]));
  let header, start;
  try {
    start = 8 + Number(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(0, true));
    if (start > bytes.length) throw new RangeError("it is cut off");
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, start)));
  } catch (error) {
    throw new RunnerError(`This is no safetensors file, or a damaged one: ${error.message}.`);
  }
  const { __metadata__: metadata = {}, ...entries } = header ?? {};
  const arrays = {};
  for (const [name, entry] of Object.entries(entries)) {
    const dtype = names[entry?.dtype];
    if (!dtype) throw new RunnerError(`"${name}" is ${entry?.dtype}, which this page can't read.`);
    const [from, to] = entry.data_offsets ?? [];
    const count = entry.shape?.reduce((product, size) => product * size, 1);
    const [, kind] = DTYPES[dtype];
    const part = bytes.slice(start + from, start + to); // a copy begins where typed arrays may begin
    if (part.length !== to - from || part.length !== count * kind.BYTES_PER_ELEMENT) {
      throw new RunnerError(`The safetensors file is damaged: "${name}" is not as long as its shape says.`);
    }
    arrays[name] = { dtype, shape: entry.shape, data: new kind(part.buffer) };
  }
  return { arrays, metadata };
}

/** Return the bytes of a safetensors file with arrays as `readSafetensors` gives them. */
export function writeSafetensors(arrays, metadata = {}) {
  const header = { __metadata__: metadata };
  let end = 0;
  const size = ([, array]) => array.data.BYTES_PER_ELEMENT;
  const sorted = Object.entries(arrays).sort((a, b) => size(b) - size(a)); // the widest first: each begins aligned
  for (const [name, { dtype, shape, data }] of sorted) {
    header[name] = { dtype: DTYPES[dtype][0], shape, data_offsets: [end, (end += data.byteLength)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const start = 8 + Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(start + end).fill(0x20, 8, start); // spaces fill the header up
  new DataView(bytes.buffer).setBigUint64(0, BigInt(start - 8), true);
  bytes.set(text, 8);
  for (const [name, { data }] of sorted) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start + header[name].data_offsets[0]);
  }
  return bytes;
}
