/**
 * Tensors as people see and type them: {shape, data}, where data holds a text for each element, row by row.
 *
 * Texts keep what JavaScript's numbers would lose: integers beyond 2^53, NaN and infinity. A spec is what the server
 * tells of a tensor: {name, datatype, shape, axes}. In shape, -1 is any size; axes has names there, and is null if there
 * may be any number of axes.
 */

/** What a person typed can't be sent; the message says why. */
export class Mistake extends Error {}

const BITS = { INT8: 8, INT16: 16, INT32: 32, INT64: 64, UINT8: 8, UINT16: 16, UINT32: 32, UINT64: 64 };
const DIGITS = { BF16: 4, FP16: 5, FP32: 9, FP64: 17 }; // decimal digits that tell two neighbours apart

export const isFloat = (datatype) => datatype in DIGITS;
export const isInteger = (datatype) => datatype in BITS;
export const count = (shape) => shape.reduce((product, size) => product * size, 1);

/** The shape of a tensor, or the axes of a spec, as people write them: "N × 3 × 224 × ?". */
export function written(axes) {
  if (axes === null) return "any shape";
  if (!axes.length) return "scalar";
  return axes.map((axis, k) => (axis === "" ? (k ? "?" : "N") : axis)).join(" × ");
}

/** The smallest and the largest value of an integer type, as BigInt. */
export function limits(datatype) {
  const size = BigInt(BITS[datatype]);
  return datatype.startsWith("U") ? [0n, 2n ** size - 1n] : [-(2n ** (size - 1n)), 2n ** (size - 1n) - 1n];
}

/** The lowest and the highest value that the file names for an input, or null. */
export function rangeOf({ datatype, low, high }) {
  if (typeof low !== "number" || typeof high !== "number" || low >= high) return null;
  return [low, isInteger(datatype) ? Math.ceil(high) - 1 : high]; // values are below what the file says
}

/** The index of an element: "2, 5". A first axis of one row is left out. */
export function place(k, shape) {
  const index = [];
  for (const size of shape.toReversed()) {
    index.unshift(k % size);
    k = Math.floor(k / size);
  }
  return (shape.length > 1 && shape[0] === 1 ? index.slice(1) : index).join(", ");
}

// From the server

/** Parse JSON; integers beyond 2^53, NaN and infinity, which JSON does not know but servers send, come as texts. */
export function parse(text) {
  const token = /"(?:[^"\\]|\\.)*"|NaN|-?Infinity|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
  const exact = (found) => /^"/.test(found) || Number.isSafeInteger(Number(found)) || /^-?\d+[.eE]/.test(found);
  return JSON.parse(text.replace(token, (found) => (exact(found) ? found : `"${found}"`)));
}

/** A tensor of the protocol's JSON, as texts. Without data it holds the lowest values. */
export function read({ shape, data }, spec) {
  const sizes = shape.map(Number);
  if (data) return { shape: sizes, data: data.flat(Infinity).map((value) => shown(value, spec.datatype)) };
  const lowest = { BOOL: "false", BYTES: "" }[spec.datatype] ?? String(spec.low ?? 0);
  return { shape: sizes, data: new Array(count(sizes)).fill(lowest) };
}

/** A value in as few digits as give the same value in its type. */
export function shown(value, datatype) {
  if (!isFloat(datatype) || typeof value !== "number") return String(value);
  if (datatype !== "FP32") return String(Number(value.toPrecision(DIGITS[datatype])));
  for (let digits = 1; digits < DIGITS.FP32; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return String(short);
  }
  return String(Number(value.toPrecision(DIGITS.FP32)));
}

// To the server

/** What stands for an element in JSON. */
export function token(text, { name, datatype }) {
  if (datatype === "BYTES") return JSON.stringify(text);
  const trimmed = text.trim();
  const wrong = (expected) =>
    new Mistake(`${name}: expected ${expected}, got ${trimmed ? `"${trimmed}"` : "nothing"}.`);
  if (datatype === "BOOL") {
    if (/^(true|1)$/i.test(trimmed)) return "true";
    if (/^(false|0)$/i.test(trimmed)) return "false";
    throw wrong("true or false");
  }
  if (isInteger(datatype)) {
    const [low, high] = limits(datatype);
    if (!/^[-+]?\d+$/.test(trimmed)) throw wrong("an integer");
    const value = BigInt(trimmed.replace("+", ""));
    if (value < low || value > high) throw wrong(`an integer from ${low} to ${high}`);
    return String(value);
  }
  const [, sign, special] = /^([-+]?)(nan|inf|infinity)$/i.exec(trimmed) ?? [];
  if (special) return /nan/i.test(special) ? "NaN" : `${sign.replace("+", "")}Infinity`;
  if (!trimmed || !Number.isFinite(Number(trimmed))) throw wrong("a number");
  return String(Number(trimmed));
}

/** A request as JSON; inputs is a list of {spec, tensor}. */
export function request(inputs) {
  const texts = inputs.map(({ spec, tensor }) => {
    const { name, datatype } = spec;
    const data = tensor.data.map((text) => token(text, spec)).join(", ");
    const head = `"name": ${JSON.stringify(name)}, "datatype": ${JSON.stringify(datatype)}`;
    return `{${head}, "shape": [${tensor.shape.join(", ")}], "data": [${data}]}`;
  });
  return `{"inputs": [${texts.join(", ")}]}`;
}
