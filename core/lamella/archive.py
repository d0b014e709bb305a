"""Models as plain data: their structure as a dict, and files that hold structure and arrays and no code.

A file is in safetensors format: tensors, and a JSON header that names registered layers and their constructor's
arguments. Loading looks names up among installed plugins; it imports and runs nothing that the file names.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import registry
from lamella.activations import ActivationFunction
from lamella.configuration import Configured
from lamella.errors import DataError, did_you_mean
from lamella.graph import Call, Input, Node
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.protocol import Layer

if TYPE_CHECKING:
    from lamella.model import Model

__all__ = ["from_config", "load", "load_weights", "model_config", "save"]

FORMAT = 1
_KINDS = {"layers": Layer, "losses": Loss, "optimizers": Optimizer, "metrics": Metric}


def model_config(model: Model) -> dict[str, Any]:
    """Return a model's structure as plain data, each layer once however often it is used."""
    from lamella.model import Sequential  # a model knows its archive

    program = model.program
    position: dict[int, tuple[int, int]] = {}  # node -> (call, output); inputs count as call 0
    for k, node in enumerate(model.input_nodes):
        position[id(node)] = (0, k)
    layers: dict[int, int] = {}
    described: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for number, (this, name) in enumerate(zip(program.calls, program.call_names, strict=True), start=1):
        if id(this.layer) not in layers:
            layers[id(this.layer)] = len(described)
            described.append(_encode(this.layer))
        position.update((id(node), (number, k)) for k, node in enumerate(this.outputs))
        calls.append({"layer": layers[id(this.layer)], "inputs": [_place(position, this, n) for n in this.inputs]})
        if this.name is not None:
            calls[-1]["name"] = name
    inputs = []
    for node, spec in zip(model.input_nodes, model.input_specs, strict=True):
        given: dict[str, Any] = {"shape": list(spec.shape[1:]), "dtype": None if spec.is_float else spec.dtype}
        options = {"name": node.name, "low": spec.low, "high": spec.high}
        inputs.append(given | {option: value for option, value in options.items() if value is not None})
    return {
        "class": "Sequential" if isinstance(model, Sequential) else "Model",
        "dtype": model.dtype,
        "seed": model.seed,
        "inputs": inputs,
        "layers": described,
        "calls": calls,
        "outputs": [list(position[id(node)]) for node in model.output_nodes],
        "frozen": sorted(model.frozen_layers),
    }


def _place(position: Mapping[int, tuple[int, int]], this: Call, node: Node) -> list[int]:
    return list(position[id(node)])


def from_config(config: Mapping[str, Any], *, backend: str = "numpy") -> Model:
    """Make a model from what ``model.config()`` returned, with fresh initial values.

    Raises:
        RegistryError: a layer that no installed plugin gives.
        DataError: something that is no configuration of a model.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,))
    >>> lm.from_config(model.config())
    <Sequential (N, 4) float32 -> (N, 3) float32, 15 parameters>
    """
    from lamella.model import Model, Sequential  # a model knows its archive

    try:
        kind = {"Model": Model, "Sequential": Sequential}[config["class"]]
        inputs = [Input(**given) for given in config["inputs"]]
        layers = [_decode(described) for described in config["layers"]]
        nodes: list[tuple[Node, ...]] = [tuple(inputs)]
        for entry in config["calls"]:
            given = tuple(nodes[number][k] for number, k in entry["inputs"])
            result = layers[entry["layer"]](*given, name=entry.get("name"))
            nodes.append(result if isinstance(result, tuple) else (result,))
        outputs = [nodes[number][k] for number, k in config["outputs"]]
        dtype, seed, frozen = config["dtype"], config["seed"], frozenset(config["frozen"])
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"from_config: this is no configuration of a model ({type(error).__name__}: {error}); expected what "
            "model.config() returns"
        ) from error
    model: Model = object.__new__(kind)
    Model.__init__(model, inputs, outputs, dtype=dtype, seed=seed, backend=backend)
    model._frozen = frozen
    return model


def _encode(value: Any) -> Any:
    """A configured object as plain data; an unregistered class stands for itself, and can't be saved to a file."""
    if isinstance(value, Configured):
        kind = next(kind for kind, base in _KINDS.items() if isinstance(value, base))
        entry = registry.name_of(kind, type(value))
        described: dict[str, Any] = {
            "kind": kind,
            "type": type(value) if entry is None else entry.qualified,
            "version": None if entry is None else entry.plugin.version,
            "config": {name: _encode(item) for name, item in value.config().items()},
        }
        if isinstance(value, Layer):
            described |= {"name": value.name, "trainable": value.trainable}
        return described
    if isinstance(value, ActivationFunction):
        return next((entry.qualified for entry in registry.entries("activations") if entry.object is value), value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {name: _encode(item) for name, item in value.items()}}
    from lamella.model import Model  # a model knows its archive

    return {"model": model_config(value)} if isinstance(value, Model) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if "model" in value:
        return from_config(value["model"])
    if "dict" in value:
        return {name: _decode(item) for name, item in value["dict"].items()}
    kind, name = value["kind"], value["type"]
    made = name if isinstance(name, type) else registry.find(kind, name)
    made = made(**{argument: _decode(item) for argument, item in value["config"].items()})
    if isinstance(made, Layer):
        made = made._copy(name=value["name"], trainable=value["trainable"])
    return made


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to one file: structure, arrays, optimizer slots, step and seed.

    The file appears whole or not at all.

    Raises:
        DataError: a layer that no installed plugin gives, so that no other program could load it.
    """
    from safetensors.numpy import save as to_bytes

    config = model.config()
    tensors = {f"parameters/{name}": value for name, value in model.parameters.items()}
    tensors |= {f"state/{name}": value for name, value in model.state.items()}
    header: dict[str, Any] = {"format": FORMAT, "model": config, "step": model.step}
    state = model.optimizer_state
    if state is not None:
        header["optimizer"] = {"object": _encode(state.optimizer), "t": state.t}
        tensors |= {f"slots/{name}": np.array(model.device.asnumpy(slot)) for name, slot in state.slots.items()}
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"save: {error}; every layer, optimizer and argument in a file must be plain data or registered by an "
            "installed plugin (entry point group 'lamella')"
        ) from None
    write_atomically(path, to_bytes(tensors, metadata={"lamella": text}))


def load(path: str | os.PathLike[str], *, backend: str = "numpy") -> Model:
    """Read a model that `save` wrote. Imports and runs nothing but installed plugins.

    Raises:
        DataError: a file that is no model, is damaged, or holds arrays of other sizes than its layers have.
        RegistryError: a layer that no installed plugin gives; the message says which distribution to install.
    """
    from lamella.training import OptimizerState

    header, tensors = _read(path)
    model = from_config(header["model"], backend=backend)
    for kind, arrays in (("parameters", model.parameters), ("state", model.state)):
        given = {name.removeprefix(f"{kind}/"): v for name, v in tensors.items() if name.startswith(f"{kind}/")}
        if set(given) != set(arrays):
            odd = ", ".join(sorted(set(given) ^ set(arrays)))
            raise DataError(f"load {path}: the {kind} in the file and those of its layers differ: {odd}")
        for name, value in given.items():
            arrays[name] = value
    model.step = int(header["step"])
    if "optimizer" in header:
        state = OptimizerState(_decode(header["optimizer"]["object"]), model)
        state.t = int(header["optimizer"]["t"])
        for name, slot in state.slots.items():
            value = tensors.get(f"slots/{name}")
            if value is None or value.shape != slot.shape:
                raise DataError(f"load {path}: slot {name!r} of the optimizer is missing or of another size")
            slot[...] = model.device.storable(model.device.asarray(value))
        model.optimizer_state = state
    return model


def load_weights(model: Model, path: str | os.PathLike[str], mapping: Mapping[str, str] | None = None) -> None:
    """Take parameters and state from a file of `save`, or any safetensors file.

    ``mapping`` says, for names of the model, what they are called in the file; names that are not in it go by
    themselves. Everything is checked before anything changes.

    Raises:
        DataError: an array that is missing, or of another shape.
    """
    _, tensors = _read(path, any_file=True)
    own = {name.removeprefix("parameters/").removeprefix("state/"): value for name, value in tensors.items()}
    for name in mapping or {}:
        if name not in model.parameters and name not in model.state:
            hint = did_you_mean(name, [*model.parameters, *model.state])
            raise DataError(f"load_weights: mapping names {name!r}, which the model does not have.{hint}")
    found = {}
    for name in (*model.parameters, *model.state):
        source = (mapping or {}).get(name, name)
        if source not in own:
            raise DataError(f"load_weights {path}: no array {source!r} for {name!r}.{did_you_mean(source, own)}")
        shape = model.program.arrays[name].shape
        if own[source].shape != shape:
            raise DataError(f"load_weights {path}: {source!r} has shape {own[source].shape}; {name!r} needs {shape}")
        found[name] = own[source]
    for name, value in found.items():
        (model.parameters if name in model.parameters else model.state)[name] = value


def _read(path: str | os.PathLike[str], *, any_file: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise DataError(f"load {path}: this is no lamella model, or it is damaged ({error})") from error
    try:
        header = json.loads(metadata["lamella"])
    except (KeyError, ValueError):
        if any_file:
            return {}, tensors
        raise DataError(f"load {path}: a safetensors file, but not one that lamella wrote") from None
    if header.get("format") != FORMAT:
        raise DataError(f"load {path}: format {header.get('format')!r}; this version reads format {FORMAT}")
    return header, tensors


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then rename."""
    import tempfile  # it and pathlib cost a quarter of `import lamella`

    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", folder)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", os.fspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
