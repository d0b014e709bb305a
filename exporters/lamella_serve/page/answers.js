/** The outputs of an answer: bars for scores, and the values as a table. */

import { make } from "./elements.js";
import { count, isFloat, place, shown, written } from "./tensors.js";

const CLASSES = 20; // as many bars stand in the classes' order; of more, the best are shown
const BEST = 10;
const VALUES = 500; // in a table

/**
 * Show an output.
 *
 * @param {{name, datatype, shape, data}} output of the protocol's JSON.
 * @param {string[]|null} labels of the classes.
 */
export function outputView(output, labels) {
  const shape = output.shape.map(Number);
  const values = output.data.flat(Infinity);
  const names = labels?.length === shape.at(-1) ? labels : null;
  const title = make("h4", {}, make("span.name", { textContent: output.name }));
  title.append(make("span.soft", { textContent: ` ${output.datatype}, ${written(shape)}` }));
  const table = valueTable(values, shape, output.datatype, names);
  const parts = hasBars(values, shape, output.datatype, names)
    ? [scores(values.map(Number), shape, names), folded("All values", table)]
    : [table];
  return make("section.output", {}, title, ...parts);
}

/** Whether a row holds scores of classes, or a few numbers that bars can compare. */
function hasBars(values, shape, datatype, labels) {
  if (shape.length !== 2 || shape[1] < 2 || !values.length || !isFloat(datatype)) return false;
  return Boolean(labels) || shape[1] <= CLASSES || areShares(values.slice(0, shape[1]).map(Number));
}

/** Whether these are probabilities of which one holds. */
function areShares(scores) {
  return scores.every((score) => score >= 0 && score <= 1) && Math.abs(sum(scores) - 1) < 0.01;
}

function folded(title, inside) {
  return make("details", {}, make("summary", { textContent: title }), inside);
}

// Scores of classes

/** Bars of one row; a row is chosen if there are several. */
function scores(values, [rows, classes], labels) {
  const box = make("div");
  const show = (row) => box.replaceChildren(...bars(values.slice(row * classes, (row + 1) * classes), labels));
  show(0);
  if (rows === 1) return box;
  const choice = make("select", {}, ...Array.from({ length: rows }, (_, row) => new Option(row, row)));
  choice.addEventListener("change", () => show(Number(choice.value)));
  return make("div", {}, make("label.soft", {}, "Row ", choice), box);
}

function bars(scores, labels) {
  const order = scores.map((_, k) => k).sort((a, b) => scores[b] - scores[a]);
  const best = order[0];
  const label = (k) => labels?.[k] ?? `${k}`;
  const shares = areShares(scores);
  const text = (score) => (shares ? `${(100 * score).toFixed(1)}\u00a0%` : `${Number(score.toPrecision(4))}`);
  const [low, high] = shares ? [0, 1] : [Math.min(0, ...finite(scores)), Math.max(0, ...finite(scores))];
  const part = (score) => (Number.isFinite(score) && high > low ? (score - low) / (high - low) : 0);
  const zero = part(0);

  const many = scores.length > CLASSES;
  const rows = (many ? order.slice(0, BEST) : scores.map((_, k) => k)).map((k) => {
    const bar = make("span.bar", { "aria-hidden": "true" }, make("span"));
    const end = part(scores[k]);
    bar.firstChild.style.left = `${100 * Math.min(zero, end)}%`;
    bar.firstChild.style.width = `${100 * Math.abs(end - zero)}%`;
    const name = make("span.label", { textContent: label(k), title: label(k) });
    return make(k === best ? "li.best" : "li", {}, name, bar, make("span.value", {}, text(scores[k])));
  });
  const result = [];
  if (shares || labels) {
    result.push(make("p.result", {}, make("strong.name", { textContent: label(best) }), ` ${text(scores[best])}`));
  }
  const list = make("ol.bars", { "aria-label": shares ? "Probabilities" : "Scores" }, ...rows);
  const more = make("p.soft", { textContent: `The best ${BEST} of ${scores.length.toLocaleString("en")}.` });
  return many ? [...result, list, more] : [...result, list];
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const finite = (numbers) => numbers.filter(Number.isFinite);

// Values

function valueTable(values, shape, datatype, labels) {
  if (!values.length) return make("p.soft", { textContent: "It holds no values." });
  if (values.length === 1) return make("p.result", { textContent: shown(values[0], datatype) });
  const rows = values.slice(0, VALUES).map((value, k) => {
    const index = make("th", { scope: "row", textContent: place(k, shape) });
    const label = labels ? [make("td", { textContent: labels[k % labels.length] })] : [];
    return make("tr", {}, index, ...label, make("td.number", { textContent: shown(value, datatype) }));
  });
  const headings = ["Index", ...(labels ? ["Label"] : []), "Value"].map((text) =>
    make(text === "Value" ? "th.number" : "th", { scope: "col", textContent: text }),
  );
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...headings)), make("tbody", {}, ...rows));
  const box = make("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Values" }, table);
  if (count(shape) <= VALUES) return box;
  let more = `The first ${VALUES} of ${count(shape).toLocaleString("en")} values.`;
  if (isFloat(datatype)) {
    const ends = [Math.min, Math.max].map((end) => values.reduce((a, b) => end(a, b), Number(values[0])));
    more += ` They go from ${ends.map((value) => shown(value, datatype)).join(" to ")}.`;
  }
  return make("div", {}, box, make("p.soft", { textContent: more }));
}
