"""Train from the folder of an exported training step with onnxruntime and NumPy alone; lamella is not needed.

python examples/train_without_lamella.py FOLDER DATA.npz [STATE]

DATA.npz has an array for each input of the model, by its name, and for each output that is trained on, as
``<output>.target``. Prints the loss of each epoch, and writes STATE, in safetensors format: what a further training and
TrainingSession.load_state go on from. model.load_weights(STATE) takes its weights; with a frozen body, whose arrays are
not in the file, model.load_weights(STATE, {"body.*": None}).
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime

EPOCHS, ROWS = 5, 32


def read_state(path):
    """Read a file of safetensors format: the header's size in 8 bytes, the header in JSON, then the bytes of arrays."""
    content = pathlib.Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    dtypes = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U32": "<u4"}
    state = {}
    for name, held in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in held["data_offsets"])
            state[name] = np.frombuffer(content[first:last], dtypes[held["dtype"]]).reshape(held["shape"])
    return state


def write_state(path, state):
    """Write such a file."""
    dtypes = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}
    header, parts, offset = {}, [], 0
    for name, array in state.items():
        parts.append(np.ascontiguousarray(array).tobytes())
        offsets = [offset, offset := offset + len(parts[-1])]
        header[name] = {"dtype": dtypes[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def main(folder, data, state_file="trained.safetensors"):
    folder, arrays = pathlib.Path(folder), np.load(data)
    manifest = json.loads((folder / "training.json").read_text())
    session = onnxruntime.InferenceSession(folder / "train.onnx", providers=["CPUExecutionProvider"])
    state = read_state(folder / "state.safetensors")  # seed, step, t, parameters, slots and state of layers
    inputs, outputs = manifest["train"]["inputs"], manifest["train"]["outputs"]
    given = [one["name"] for one in inputs if one["role"] in ("input", "target")]
    if missing := [name for name in given if name not in arrays]:
        sys.exit(f"{data}: there is no array {missing[0]!r}; expected {', '.join(given)}")
    data = {
        one["name"]: arrays[one["name"]].astype(one["dtype"]) for one in inputs if one["role"] in ("input", "target")
    }
    rate = np.array(manifest["learning_rate"], next(one["dtype"] for one in inputs if one["role"] == "learning_rate"))
    count, generator = len(next(iter(data.values()))), np.random.default_rng(0)
    for epoch in range(EPOCHS):
        total, order = 0.0, generator.permutation(count)
        for start in range(0, count, ROWS):
            rows = order[start : start + ROWS]
            feeds = dict(state)
            for one in inputs:
                if one["role"] in ("input", "target"):
                    feeds[one["name"]] = data[one["name"]][rows]
                elif one["role"] == "sample_weight":  # 1 for each row
                    feeds[one["name"]] = np.ones(len(rows), one["dtype"])
                elif one["role"] == "learning_rate":
                    feeds[one["name"]] = rate
            got = dict(zip([one["name"] for one in outputs], session.run(None, feeds), strict=True))
            if not got["training.finite"]:
                sys.exit(f"the loss is {got['training.loss']}; nothing of this step is kept")
            for one in outputs:
                if one["role"] == "new":  # takes the place of the input that it is of
                    state[one["of"]] = got[one["name"]]
            total += got["training.loss"] * len(rows)
        print(f"epoch {epoch + 1}: loss {total / count:.4f}")
    write_state(state_file, state)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
