/** A request as a command for curl and as Python with tritonclient. */

import { token } from "./tensors.js";

const LONGEST = 2000; // characters of a request that stand in the text; a longer one is read from request.json
const NUMPY = { BOOL: "bool", BYTES: "object", FP16: "float16", FP32: "float32", FP64: "float64", BF16: "float32" };

export const isLong = (body) => body.length > LONGEST;

/** The address of the server's API from outside. */
const server = () => new URL(".", document.baseURI);

/** The path of a model's infer, relative to the page. */
export const inferPath = (model) => `v2/models/${encodeURIComponent(model)}/infer`;

export function curl(model, body, withToken) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl ${quoted(new URL(inferPath(model), server()).href)}`];
  if (withToken) lines.push('-H "Authorization: Bearer $TOKEN"');
  lines.push(`-d ${isLong(body) ? "@request.json" : quoted(body)}`);
  return lines.join(" \\\n  ");
}

export function python(model, inputs, outputs, body, withToken) {
  const { host, pathname, protocol } = server();
  const address = `${host}${pathname.replace(/\/$/, "")}`;
  const secure = protocol === "https:" ? ", ssl=True" : "";
  const headers = withToken ? ', headers={"Authorization": f"Bearer {os.environ[\'TOKEN\']}"}' : "";
  const long = isLong(body);
  const imports = [...(long ? ["import json"] : []), ...(withToken ? ["import os"] : []), ""];
  return [
    ...(imports.length > 1 ? imports : []),
    "import numpy as np",
    "import tritonclient.http as http",
    "",
    `client = http.InferenceServerClient(${JSON.stringify(address)}${secure})`,
    ...(long ? fromFile(inputs) : inline(inputs)),
    `result = client.infer(${JSON.stringify(model)}, inputs${headers})`,
    ...outputs.map(({ name }) => `print(result.as_numpy(${JSON.stringify(name)}))`),
  ].join("\n");
}

const dtype = ({ datatype }) => JSON.stringify(NUMPY[datatype] ?? datatype.toLowerCase());

function inline(inputs) {
  const lines = ["inputs = []"];
  for (const { spec, tensor } of inputs) {
    const values = tensor.data.map((text) => literal(token(text, spec))).join(", ");
    const { name, datatype } = spec;
    const shape = `[${tensor.shape.join(", ")}]`;
    lines.push(
      `inputs.append(http.InferInput(${JSON.stringify(name)}, ${shape}, ${JSON.stringify(datatype)}))`,
      `inputs[-1].set_data_from_numpy(np.array([${values}], ${dtype(spec)}).reshape(${shape}))`,
    );
  }
  return lines;
}

/** A token of JSON in Python; strings are the same in both. */
function literal(token) {
  const words = { true: "True", false: "False", NaN: "np.nan", Infinity: "np.inf", "-Infinity": "-np.inf" };
  return words[token] ?? token;
}

function fromFile(inputs) {
  const dtypes = inputs.map(({ spec }) => dtype(spec)).join(", ");
  return [
    "inputs = []",
    'with open("request.json") as file:',
    '    tensors = json.load(file)["inputs"]',
    `for tensor, dtype in zip(tensors, [${dtypes}]):`,
    '    inputs.append(http.InferInput(tensor["name"], tensor["shape"], tensor["datatype"]))',
    '    values = np.array(tensor["data"], dtype).reshape(tensor["shape"])',
    "    inputs[-1].set_data_from_numpy(values)",
  ];
}
