/** The form of a request: for each input an editor as a picture, as fields, or as text. */

import { make } from "./elements.js";
import { layoutOf, pictureEditor } from "./picture.js";
import { Mistake, count, place, written } from "./tensors.js";

const FIELDS = 32; // values that get a field each

/**
 * The part of the form for one input: {element, show(tensor), read()}.
 *
 * @param spec the input, as the server tells it.
 * @param changed called when a person has changed something; its argument is whether that was a picture.
 */
export function inputForm(spec, example, changed) {
  const layout = layoutOf(spec);
  const edited = () => changed(false);
  const editors = {};
  if (layout && example.shape[0] === 1) editors.Picture = pictureEditor(spec, layout, () => changed(true));
  else if (hasFields(spec, example)) editors.Fields = fieldsEditor(spec, edited);
  editors.Text = textEditor(spec, edited);

  const names = Object.keys(editors);
  const modes = names.map((name) => make("input", { type: "radio", name: `mode of ${spec.name}`, value: name }));
  const body = make("div");
  const problem = make("p.bad", { role: "alert", hidden: true });
  let current = null;

  function use(name, tensor) {
    editors[name].show(tensor);
    current = name;
    body.replaceChildren(editors[name].element);
    for (const mode of modes) mode.checked = mode.value === name;
    problem.hidden = true;
  }

  for (const mode of modes) {
    mode.addEventListener("change", () => {
      try {
        use(mode.value, editors[current].read());
      } catch (error) {
        if (!(error instanceof Mistake)) throw error;
        modes[names.indexOf(current)].checked = true;
        problem.textContent = error.message;
        problem.hidden = false;
      }
    });
  }
  const switches = names.map((name, k) => make("label", {}, modes[k], name));
  const element = make(
    "fieldset",
    {},
    make("legend", {}, make("span.name", { textContent: spec.name }), ` ${spec.datatype}, ${written(spec.axes)}`),
    ...(names.length > 1 ? [make("div.switch", { role: "group", "aria-label": "Edit as" }, ...switches)] : []),
    problem,
    body,
  );
  const show = (tensor) => use(names[0], tensor);
  show(example);
  return { element, show, read: () => editors[current].read() };
}

/** Whether a row has a few values, and always as many. */
function hasFields({ axes, shape }, example) {
  return axes !== null && shape.slice(1).every((size) => size >= 0) && example.data.length <= FIELDS;
}

/** A field for each value. */
function fieldsEditor(spec, changed) {
  const element = make("div.fields");
  let shape = [];
  let fields = [];

  function field(text, k, texts) {
    const label = { "aria-label": texts.length > 1 ? `${spec.name}, value ${place(k, shape)}` : spec.name };
    let made;
    if (spec.datatype === "BOOL") {
      made = make("select", label, new Option("true"), new Option("false"));
    } else if (spec.datatype === "BYTES") {
      made = make("textarea", { ...label, rows: 1, spellcheck: false });
    } else {
      made = make("input", { ...label, type: "text", autocomplete: "off", spellcheck: false });
    }
    made.value = text;
    return made;
  }

  /** Spread a pasted row of numbers, such as one of a spreadsheet, over the fields. */
  function paste(event) {
    const texts = event.clipboardData
      .getData("text")
      .trim()
      .split(/[\s,;]+/);
    const start = fields.indexOf(event.target);
    if (spec.datatype === "BYTES" || texts.length < 2) return;
    event.preventDefault();
    texts.slice(0, fields.length - start).forEach((text, k) => (fields[start + k].value = text));
    changed();
  }

  element.addEventListener("change", changed);
  element.addEventListener("paste", paste);
  return {
    element,
    show(tensor) {
      if (tensor.data.length > FIELDS) {
        throw new Mistake(`${spec.name}: ${tensor.data.length} values are too many for fields.`);
      }
      shape = tensor.shape;
      fields = tensor.data.map(field);
      element.classList.toggle("texts", spec.datatype === "BYTES");
      element.replaceChildren(
        ...fields.map((one, k) => {
          const index = make("span.soft", { textContent: place(k, shape), "aria-hidden": "true" });
          return make("div", {}, ...(fields.length > 1 ? [index] : []), one);
        }),
      );
    },
    read: () => ({ shape, data: fields.map((one) => one.value) }),
  };
}

/** All values in a text: numbers between spaces, commas or brackets, strings one a line. */
function textEditor(spec, changed) {
  const strings = spec.datatype === "BYTES";
  const free = spec.axes === null ? Infinity : spec.shape.filter((size) => size < 0).length;
  const what = strings ? "One string a line." : "Spaces, commas, brackets or new lines between numbers.";
  const rows = free === 1 ? " The shape follows from how many there are." : "";
  const area = make("textarea", { rows: 8, spellcheck: false, "aria-label": `${spec.name}: all values` });
  const sizes = make("input", { type: "text", autocomplete: "off", spellcheck: false });
  const element = make("div.text", {}, area, make("p.soft", { textContent: what + rows }));
  if (free > 1) element.append(make("label", {}, "Shape ", sizes));
  element.addEventListener("change", changed);

  return {
    element,
    show(tensor) {
      sizes.value = tensor.shape.join(" × ");
      area.value = strings ? tensor.data.join("\n") : lines(tensor);
    },
    read() {
      const data = strings ? area.value.split("\n") : area.value.split(/[\s,;[\]()]+/).filter(Boolean);
      const found = free > 1 ? typed(spec, sizes.value) : fitted(spec, data.length);
      if (count(found) !== data.length) {
        throw new Mistake(
          `${spec.name}: the shape ${written(found)} takes ${count(found)} values, got ${data.length}.`,
        );
      }
      return { shape: found, data };
    },
  };
}

/** Numbers as text, one row of the last axis a line. */
function lines({ shape, data }) {
  const width = shape.at(-1) > 1 ? shape.at(-1) : data.length || 1;
  const rows = Array.from({ length: Math.ceil(data.length / width) }, (_, k) => data.slice(k * width, (k + 1) * width));
  return rows.map((row) => row.join(", ")).join("\n");
}

/** The shape of so many values, where one axis at most has any size. */
function fitted(spec, values) {
  const fixed = count(spec.shape.filter((size) => size >= 0));
  const rows = fixed ? values / fixed : 0;
  if (spec.shape.some((size) => size < 0) && !Number.isInteger(rows)) {
    throw new Mistake(`${spec.name}: ${written(spec.axes)} takes a multiple of ${fixed} values, got ${values}.`);
  }
  return spec.shape.map((size) => (size < 0 ? rows : size));
}

/** A shape that a person typed. */
function typed({ name, shape, axes }, text) {
  const sizes = text.split(/[\s,×x[\]()]+/).filter(Boolean);
  const fits =
    axes === null || (sizes.length === shape.length && sizes.every((size, k) => [-1, +size].includes(shape[k])));
  if (!fits || !sizes.every((size) => /^\d+$/.test(size))) {
    throw new Mistake(`${name}: expected ${written(axes)} with a number for each axis, got the shape "${text}".`);
  }
  return sizes.map(Number);
}
