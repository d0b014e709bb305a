/** The page of the models: what each one is, and a form to try a request. */

import { outputView } from "./answers.js";
import { at, make } from "./elements.js";
import { inputForm } from "./inputs.js";
import { ServerError, call, hasToken } from "./server.js";
import { curl, inferPath, isLong, python } from "./snippets.js";
import { Mistake, rangeOf, read, request, written } from "./tensors.js";

const LONGEST = 400; // characters of a metadata value that are shown

const number = (value, digits = 3) => Number(value).toLocaleString("en", { maximumSignificantDigits: digits });
const whole = (value) => Number(value).toLocaleString("en");

const models = new Map(); // by name: {ready, reason}
let about = null; // of the model that is shown
let forms = []; // of its inputs: {spec, tensor, form}, where tensor is the example
let body = ""; // the request that the programs send
let latest = 0; // counts what the server was asked: what comes late is dropped

// The models

async function open(mine) {
  const { answer } = await call("v2/repository/index", "{}");
  for (const { name, state, reason } of answer) {
    const model = models.get(name) ?? { ready: false, reason: "" };
    if (state === "READY") model.ready = true;
    else model.reason ||= reason ?? "";
    models.set(name, model);
  }
  if (!models.size) return say("This server has no models.");
  at("models").hidden = models.size === 1;
  at("models").firstElementChild.replaceChildren(
    ...Array.from(models, ([name, { ready }]) => {
      const link = make("a", { href: `#${encodeURIComponent(name)}` }, make("span.name", { textContent: name }));
      if (!ready) link.append(make("span.state", { textContent: "not ready" }));
      return make("li", {}, link);
    }),
  );
  await showChosen(mine);
}

/** Show the model that the address names, or else the first one that is ready. */
async function showChosen(mine) {
  let chosen;
  try {
    chosen = decodeURIComponent(location.hash.slice(1));
  } catch {
    chosen = "";
  }
  const ready = [...models].find(([, model]) => model.ready)?.[0];
  const name = models.has(chosen) ? chosen : (ready ?? models.keys().next().value);
  for (const link of at("models").querySelectorAll("a")) {
    const current = link.getAttribute("href") === `#${encodeURIComponent(name)}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = name;
  at("error").hidden = true;
  at("model").hidden = true;
  const { ready: isReady, reason } = models.get(name);
  if (!isReady) return fail(`${name} is not ready. ${reason}`);
  say("Loading …");
  const { answer } = await call(`about/${encodeURIComponent(name)}`);
  if (mine !== latest) return;
  about = answer;
  showModel();
  say("");
}

function showModel() {
  at("name").textContent = about.name;
  at("description").textContent = about.description;
  at("description").hidden = !about.description;
  const others = about.versions.filter((version) => version !== about.version);
  const facts = {
    Version: others.length ? `${about.version} (also ${others.join(", ")})` : about.version,
    Producer: about.producer || "unknown",
    Size: bytes(about.size),
    "ONNX opset": about.opset,
    "IR version": about.ir_version,
  };
  if (about.milliseconds_per_row !== null) facts["Time per row"] = duration(about.milliseconds_per_row);
  at("facts").replaceChildren(...Object.entries(facts).map(([term, value]) => fact(term, value)));
  at("input-list").replaceChildren(...about.inputs.map(tensorRow));
  at("output-list").replaceChildren(...about.outputs.map(tensorRow));
  const { joined, max_batch_size: largest, reason } = about.batching;
  at("batching").textContent = joined
    ? `Requests that come together are joined into batches of up to ${whole(largest)} rows.`
    : "Each request is run by itself.";
  at("reason").textContent = `${reason[0].toUpperCase()}${reason.slice(1)}.`;
  at("parity").replaceChildren(...parityView(about.parity, about.changed));
  const metadata = Object.entries(about.metadata).filter(([key]) => key !== "labels"); // they stand at the output
  at("metadata").replaceChildren(...metadata.map(([key, value]) => fact(key, cut(value))));
  at("metadata-card").hidden = !metadata.length;

  forms = about.inputs.map((spec) => {
    const example = about.example?.inputs.find((tensor) => tensor.name === spec.name);
    const tensor = read(example ?? { shape: spec.shape.map(Math.abs) }, spec); // one of any size
    return { spec, tensor, form: inputForm(spec, tensor, changed) };
  });
  at("inputs").replaceChildren(...forms.map(({ form }) => form.element));
  forget();
  prepare();
  at("model").hidden = false;
}

const fact = (term, value) => make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: value }));

const cut = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST)} … (${whole(text.length)} characters)` : text);

function duration(milliseconds) {
  if (milliseconds < 0.1) return `${number(1e3 * milliseconds, 2)} µs`;
  return milliseconds < 1e3 ? `${number(milliseconds, 2)} ms` : `${number(milliseconds / 1e3, 3)} s`;
}

function bytes(size) {
  if (size < 1000) return `${size} bytes`;
  return size < 1e6 ? `${number(size / 1e3)} kB` : `${number(size / 1e6)} MB`;
}

function tensorRow(spec) {
  const { name, datatype, axes, labels } = spec;
  const words = [datatype, written(axes)];
  if (rangeOf(spec)) words.push(`from ${rangeOf(spec).join(" to ")}`);
  const row = make("li", {}, make("span.name", { textContent: name }), make("span", { textContent: words.join(", ") }));
  if (labels?.length) {
    const list = make("ol", { start: 0 }, ...labels.map((label) => make("li", { textContent: label })));
    row.append(make("details", {}, make("summary", { textContent: `${whole(labels.length)} labels` }), list));
  }
  return row;
}

/** The report that the export stored in the file, as a table. */
function parityView(report, changed) {
  if (changed) {
    const told = "The file was changed after its export, as by a quantizer. Its report is of the model that it was then.";
    return [make("p.bad", { textContent: told })];
  }
  if (report === null) {
    return [make("p.soft", { textContent: "The file holds no report. Files that lamella exports hold one." })];
  }
  const rows = report.agreements;
  const isList = Array.isArray(rows) && rows.length > 0;
  if (!isList || !rows.every((row) => typeof row?.error === "number" && typeof row.allowed === "number")) {
    return [make("p.soft", { textContent: "The report in the file can't be read." })];
  }
  const several = (key) => new Set(rows.map((row) => row[key])).size > 1;
  const largest = Math.max(...rows.map(({ error }) => error)).toExponential(1);
  const columns = [
    ["Output", ({ output }) => output, several("output")],
    ["Input", ({ data }) => data, true],
    ["Values", ({ values }) => whole(values), true, "number"],
    ["Error", ({ error }) => error.toExponential(1), true, "number"],
    ["Allowed", ({ allowed }) => allowed.toExponential(1), true, "number"],
    ["Limit", ({ rule }) => rule, several("rule")],
  ].filter(([, , wanted]) => wanted);
  const agree = rows.every(({ error, allowed }) => error <= allowed);
  const summary = agree
    ? `When the file was exported, onnxruntime gave what the engine gives; the largest error was ${largest}.`
    : "The report in the file says that onnxruntime and the engine differ.";
  const heading = (title, kind) => make(kind ? `th.${kind}` : "th", { scope: "col", textContent: title });
  const head = make("tr", {}, ...columns.map(([title, , , kind]) => heading(title, kind)), heading("Result"));
  const body = rows.map((row) => {
    const cells = columns.map(([title, text, , kind]) =>
      make(kind ? `td.${kind}` : "td", { textContent: text(row), "data-title": title }),
    );
    const mark = row.error <= row.allowed ? make("span.good", {}, "✓ agrees") : make("span.bad", {}, "✗ differs");
    return make("tr", {}, ...cells, make("td", { "data-title": "Result" }, mark));
  });
  const versions = Object.entries(report.versions ?? {}).map(([name, version]) => `${name} ${version}`);
  const notes = [
    ...(several("rule") ? [] : [`Allowed: ${rows[0].rule}.`]),
    versions.length ? `${versions.join(", ")}.` : "",
  ];
  return [
    make("p", { textContent: summary }),
    make("table.stacked", {}, make("thead", {}, head), make("tbody", {}, ...body)),
    make("p.soft", { textContent: notes.join(" ") }),
  ];
}

// A request

/** After a change of the form: send it if it is a picture, and all that the model takes; else show the programs. */
function changed(picture) {
  if (picture && forms.length === 1) return send();
  try {
    prepare();
  } catch (error) {
    if (!(error instanceof Mistake)) throw error; // one is told when the form is sent
  }
}

/** Make the request from the form, and the programs that send it. */
function prepare() {
  const inputs = forms.map(({ spec, form }) => ({ spec, tensor: form.read() }));
  body = request(inputs);
  at("curl").textContent = curl(about.name, body, hasToken());
  at("python").textContent = python(about.name, inputs, about.outputs, body, hasToken());
  at("file").hidden = !isLong(body);
}

async function send() {
  const mine = (latest += 1);
  at("refused").hidden = true;
  at("answer").ariaBusy = "true";
  try {
    prepare();
    const { answer, milliseconds } = await call(inferPath(about.name), body);
    if (mine === latest) showAnswer(answer.outputs, milliseconds);
  } catch (error) {
    if (mine === latest) refuse(words(error));
  } finally {
    if (mine === latest) at("answer").ariaBusy = "false";
  }
}

function showAnswer(outputs, milliseconds) {
  at("told").textContent = `Answered in ${duration(milliseconds)}, network included.`;
  const labels = Object.fromEntries(about.outputs.map((output) => [output.name, output.labels]));
  at("outputs").replaceChildren(...outputs.map((output) => outputView(output, labels[output.name])));
}

/** Forget the answer, and one that is on its way. */
function forget() {
  latest += 1;
  at("answer").ariaBusy = "false";
  refuse("");
  at("told").textContent = about.example
    ? "Send the example, or change it first."
    : "The server found no example that the model answers. Fill in values of your own.";
}

/** Show why there is no answer; an empty text takes that away. */
function refuse(text) {
  at("outputs").replaceChildren();
  at("told").textContent = "";
  at("refused").textContent = text;
  at("refused").hidden = !text;
}

// What is told

function say(text) {
  at("status").textContent = text;
  at("status").hidden = !text;
}

function fail(text) {
  say("");
  at("error-text").textContent = text;
  at("error").hidden = false;
}

/** What a person is told of an error. */
function words(error) {
  const known = error instanceof ServerError || error instanceof Mistake;
  return known ? error.message : `Something unexpected went wrong: ${error.message}`;
}

/** Run what shows a model, and tell the person what went wrong. */
async function attempt(work) {
  const mine = (latest += 1);
  try {
    await work(mine);
  } catch (error) {
    if (mine === latest) fail(words(error));
  }
}

// Controls

at("request").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

at("reset").addEventListener("click", () => {
  for (const { form, tensor } of forms) form.show(tensor);
  forget();
  prepare();
});

for (const name of ["curl", "python"]) {
  const button = at(`copy-${name}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(at(name).textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(at(name)); // browsers give no clipboard without HTTPS, but on localhost
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

at("download").addEventListener("click", () => {
  const address = URL.createObjectURL(new Blob([body], { type: "application/json" }));
  make("a", { href: address, download: "request.json" }).click();
  URL.revokeObjectURL(address);
});

at("again").addEventListener("click", () => location.reload());

for (const name of ["dragover", "drop"]) {
  window.addEventListener(name, (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault(); // else a missed drop leaves the page
  });
}

window.addEventListener("hashchange", () => attempt(showChosen));

attempt(open);
