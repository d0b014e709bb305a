"""Training in onnxruntime, from the folder that `export_training_step` wrote."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import save as to_bytes

from lamella import ArgumentError, DataError, MistakeWarning, Model, NonFiniteError, RegistryError
from lamella.arguments import file_path, number, positive
from lamella.engine.threads import thread_count
from lamella.engine.values import OptimizerState
from lamella.errors import did_you_mean, shown
from lamella.files import archive
from lamella.files.structure import Reader, refusing
from lamella.files.writing import write_atomically
from lamella.losses import Loss
from lamella.model import made_of
from lamella.network import Appended
from lamella.optimizers import Optimizer
from lamella.protocol.inputs import as_inputs, unwritable
from lamella.protocol.spec import shape_in_words
from lamella.schedules import Schedule
from lamella.training.data import Data, batches_of
from lamella.training.diagnosis import explain_data
from lamella.training.evaluation import EVALUATE_ROWS, measure
from lamella.training.meter import Measured, Meter
from lamella.training.task import Metrics
from lamella_onnx.exporter import export
from lamella_onnx.external import external_arrays
from lamella_onnx.files import as_path
from lamella_onnx.parity import ParityReport
from lamella_onnx.proof import need_model
from lamella_onnx.runtime import ParityError, refusal, session
from lamella_onnx.training.manifest import PREDICT, STATE, TRAIN, Entry, read_folder
from lamella_onnx.training.trace import FINITE, LEARNING_RATE, LOSS, SEED, STEP, T, feeds_of
from lamella_onnx.validity import in_one_line

__all__ = ["TrainingSession"]

_MOST_STEPS = 2**62  # their count is an int64
_OF_STEP = "lamella.training"  # in the metadata of a state file: the hash of the graph that it belongs to

Array = np.ndarray[Any, Any]


class TrainingSession:
    """A training that stock onnxruntime runs, from a folder of `export_training_step`.

    Weights stay where onnxruntime has them: each step reads one set of buffers and writes the other, and both change
    places if all that was computed is finite. A step that fails has changed nothing. One thread trains at a time;
    others wait.

    Arguments:
        path: the folder.
        layers: classes and functions by the names in the manifest, as for `lamella.load`.
        threads: how many threads onnxruntime uses; None for as many as `lamella.set_threads` says.

    Raises:
        DataError: the folder is none of `export_training_step`, or is damaged.
        RegistryError: a layer, loss or optimizer that no installed plugin gives.
        ParityError: onnxruntime can't load the graphs.
        FileNotFoundError: there is no such folder.

    >>> import lamella as lm
    >>> import numpy as np
    >>> import lamella_onnx
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,))
    >>> _ = lamella_onnx.export_training_step(model, "step", loss="mean_squared_error", optimizer="sgd")
    >>> session = TrainingSession("step")
    >>> x, y = np.ones((2, 4)), np.zeros((2, 3))
    >>> losses = [session.step(x, y) for _ in range(5)]
    >>> losses[-1] < losses[0]
    True
    >>> session.into(model)
    >>> bool(np.allclose(model.predict(x), session.predict(x), atol=1e-6)), model.step
    (True, 5)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layers: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> None:
        where = "TrainingSession"
        folder = as_path(path, where)
        if layers is not None and not isinstance(layers, Mapping):
            raise ArgumentError(f"{where}: layers: expected a dict of names to classes, got {shown(layers)}")
        count = thread_count() if threads is None else positive(threads, f"{where}: threads")
        try:
            manifest, files = read_folder(folder)
        except DataError as error:
            raise DataError(f"{where} {folder}: {in_one_line(error)}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where}: {error}") from None
        self._where, self._manifest, self._lock = f"{where} {folder}", manifest, threading.Lock()
        with _naming_session(), refusing(self._where, "what export_training_step writes"):
            reader = Reader(manifest.model, layers or {}, drawn=False)
            self._model = made_of(reader.graph, "numpy", drawn=False)
            self._losses = tuple(None if one is None else reader.configured(one, Loss) for one in manifest.losses)
            self._optimizer: Optimizer = reader.configured(manifest.optimizer, Optimizer)
            trained = [n for n, one in zip(self._model.output_names, self._losses, strict=True) if one is not None]
            if [entry.of for entry in manifest.train_inputs if entry.role == "target"] != trained:
                raise DataError(f"losses: they are not those of the targets of {TRAIN}")
        reader.note_versions(self._where)
        self._hash = hashlib.sha256(files[TRAIN]).hexdigest()
        self._train, _ = _loaded(f"{self._where}: {TRAIN}", files[TRAIN], count)
        self._predict, predict = _loaded(f"{self._where}: {PREDICT}", files[PREDICT], count)
        _check_graph(f"{self._where}: {TRAIN}", self._train, manifest.train_inputs, manifest.train_outputs)
        _check_graph(f"{self._where}: {PREDICT}", self._predict, manifest.predict_inputs, manifest.predict_outputs)
        self._fill_constants(predict)
        self._seed = np.zeros(2, "int64")
        self._steps, self._t = 0, 0
        self._moving = [entry for entry in manifest.kept if entry.role not in ("seed", "step", "t")]
        where = f"{self._where}: {STATE}"
        values = self._checked(where, archive.parsed(where, files[STATE]))  # before anything is allocated
        self._front, self._back = (self._buffers() for _ in range(2))
        self._bindings: list[Any] = []
        self._take(values)
        state = self._optimizer_state()
        if isinstance(self._optimizer.learning_rate, Schedule) and state.is_at_rest:
            warnings.warn(
                f"{self._where}: the learning rate is 0 from step {state.t} on: the schedule of {self._optimizer!r} is "
                "at its end, so steps move nothing; give step(..., learning_rate=), or export with another schedule",
                MistakeWarning,
                stacklevel=2,
            )

    # Training

    def step(self, x: Any, y: Any, sample_weight: Any = None, *, learning_rate: float | None = None) -> float:
        """Take one training step on all rows given, and return the loss before it, penalties included.

        Arguments:
            x, y, sample_weight: as for ``model.train_on_batch``.
            learning_rate: of this step, in place of the optimizer's own.

        Raises:
            DataError: arrays that do not fit the model or the loss.
            NonFiniteError: a loss or gradient that is not finite; nothing of the step is kept.
        """
        rate = None if learning_rate is None else number(learning_rate, "learning_rate", minimum=0.0)
        batch = Data(self._model, x, y, self._losses, sample_weight).whole().batch
        self._check_form(batch.targets)
        with self._lock:
            return self._step(batch, self.learning_rate if rate is None else rate)

    def _check_form(self, targets: Any) -> None:
        """Raise unless targets have the form of those that the graph was traced with: labels, or one-hot rows."""
        given = dict(zip(self._model.output_names, targets, strict=True))
        for entry in self._manifest.train_inputs:
            if entry.role == "target":
                y = given[str(entry.of)]
                if y.ndim != len(entry.shape) or y.dtype != entry.dtype:
                    raise DataError(
                        f"y of {entry.of!r}: the step was exported for targets of {entry.dtype} "
                        f"{shape_in_words(entry.shape)}, got {y.dtype} {y.shape}. Likely fix: targets of that form, or "
                        "export_training_step(..., samples=(x, y)) with such as these"
                    )

    def _step(self, batch: Any, rate: float) -> float:
        feeds = feeds_of(self._model, batch.inputs, batch.targets, batch.weights)
        feeds |= {LEARNING_RATE: np.array(rate, self._model.dtype), **self._counters()}
        binding = self._bound()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array).reshape(array.shape))
        with _running(self._where):
            self._train.run_with_iobinding(binding)
        results = dict(zip((LOSS, FINITE), binding.get_outputs(), strict=False))
        loss = float(results[LOSS].numpy())
        if not results[FINITE].numpy():
            fix = "Likely fix: a lower learning rate, or clip_norm when the step is exported"
            raise NonFiniteError(
                f"step {self._steps}: the loss is {loss}, and it or a gradient is not finite; nothing of this step was "
                f"kept. {explain_data(self._model, batch.inputs, batch.targets) or fix}"
            )
        self._front, self._back = self._back, self._front
        self._bindings.reverse()
        self._steps, self._t = self._steps + 1, self._t + 1
        return loss

    def _counters(self) -> dict[str, Array]:
        return {SEED: self._seed, STEP: np.array(self._steps, "int64"), T: np.array(self._t, "int64")}

    def _bound(self) -> Any:
        """The binding that reads the front buffers and writes the back ones."""
        if not self._bindings:
            for source, target in ((self._front, self._back), (self._back, self._front)):
                binding = self._train.io_binding()
                for name in (LOSS, FINITE):
                    binding.bind_output(name)
                for entry in self._moving:
                    binding.bind_ortvalue_input(entry.name, source[entry.name])
                    binding.bind_ortvalue_output(f"{entry.name}.new", target[entry.name])
                self._bindings.append(binding)
        return self._bindings[0]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step: the optimizer's, or what its schedule says."""
        return self._optimizer_state().learning_rate(self._t + 1)

    def _optimizer_state(self) -> OptimizerState:
        """Where the optimizer stands, without its slots."""
        began, scale = self._manifest.began, self._manifest.scale
        return OptimizerState(self._optimizer, self._model.device, {}, t=self._t, began=began, scale=scale)

    @property
    def steps(self) -> int:
        """How many steps the model has taken, before the export too."""
        return self._steps

    # What the model gives

    def predict(
        self, x: Any, batch_size: int | None = None, *, append: Appended | Mapping[str, Appended] | None = None
    ) -> Any:
        """Return the outputs for inputs of any number of rows: a NumPy array, or a tuple for several outputs.

        ``append`` has layers run after the outputs, as in ``model.predict``; the engine computes all of it then.
        """
        if append is not None:
            return self._filled().predict(x, batch_size, append=append)
        arrays = as_inputs(self._model.input_names, self._model.input_specs, x)
        rows = len(arrays[0])
        size = max(rows, 1) if batch_size is None else positive(batch_size, "batch_size")
        if not rows:
            return self._model.predict(x)
        with self._lock:
            parts = [
                self._infer(tuple(array[start : start + size] for array in arrays)) for start in range(0, rows, size)
            ]
        outputs = parts[0] if len(parts) == 1 else tuple(np.concatenate(part) for part in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def _infer(self, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        specs = zip(self._model.input_names, inputs, self._model.input_specs, strict=True)
        feeds = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x, spec.dtype))
            for name, x, spec in specs
        }
        arrays = (entry.name for entry in self._manifest.predict_inputs if entry.role != "input")
        feeds |= {name: self._front[name] for name in arrays}
        names = [entry.name for entry in self._manifest.predict_outputs]
        with _running(self._where):
            return tuple(value.numpy() for value in self._predict.run_with_ort_values(names, feeds))

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        *,
        metrics: Metrics = (),
        sample_weight: Any = None,
        batch_size: int = EVALUATE_ROWS,
    ) -> dict[str, Any]:
        """Return the weighted mean loss and the metrics, by name, in inference mode; data as for ``model.evaluate``."""
        size = positive(batch_size, "batch_size")
        data = batches_of(self._model, x, y, self._losses, size=size, sample_weight=sample_weight)
        meter = Meter(self._model, metrics, self._losses)
        with self._lock:
            measure(self._infer, self._losses, data, meter)
        return Measured(meter.logs())

    # What it holds

    @property
    def parameters(self) -> dict[str, Array]:
        """Copies of the parameters that are trained, by name."""
        return self._copies("parameter")

    @property
    def state(self) -> dict[str, Array]:
        """Copies of the state of layers that training changes, by name."""
        return self._copies("state")

    def _copies(self, role: str) -> dict[str, Array]:
        with self._lock:
            return {
                entry.name: unwritable(np.array(self._front[entry.name].numpy()))
                for entry in self._moving
                if entry.role == role
            }

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write what training goes on from: parameters, slots, state of layers and counters, in safetensors format.

        `load_state` takes the file up. ``model.load_weights(path)`` takes the weights alone; where layers were frozen,
        these are not in the file: ``model.load_weights(path, {"body.*": None})`` leaves them as they are.
        """
        path = file_path(path, "save_state: path")
        with self._lock:
            held = {entry.name: np.array(self._front[entry.name].numpy()) for entry in self._moving}
            held |= self._counters()
        write_atomically(path, to_bytes(held, metadata={_OF_STEP: self._hash}))

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save_state` wrote, or any runner of the same folder.

        Raises:
            DataError: a file of another training step, or one that is damaged.
            FileNotFoundError: there is no such file.
        """
        path = file_path(path, "load_state: path")
        where = f"load_state {path}"
        try:
            held = archive.opened(where, path)
        except FileNotFoundError:
            raise FileNotFoundError(f"load_state: there is no file {path}") from None
        values = self._checked(where, held)
        with self._lock:
            self._take(values)

    def _checked(self, where: str, held: archive.File) -> dict[str, Array]:
        """All values that a state file must have."""
        if held.metadata.get(_OF_STEP, self._hash) != self._hash:
            raise DataError(f"{where}: the state of another training step: it was saved beside another {TRAIN}")
        kept = {entry.name: entry for entry in self._manifest.kept}
        for name in held.names:
            if name not in kept:
                raise DataError(
                    f"{where}: the state of another model: this one has no {name!r}.{did_you_mean(name, kept)}"
                )
        if missing := [name for name in kept if name not in held.names]:
            raise DataError(f"{where}: the state of another model: {', '.join(missing[:5])} is missing")
        values: dict[str, Array] = {}
        for name, entry in kept.items():
            try:
                value = held.tensor(name)
            except LookupError:
                raise DataError(f"{where}: {name!r} is of dtype {held.dtype(name)}; expected {entry.dtype}") from None
            if value.shape != entry.shape or value.dtype != entry.dtype:
                raise DataError(
                    f"{where}: {name!r} is {value.dtype} {value.shape}; expected {entry.dtype} {entry.shape}: the "
                    "state of another model"
                )
            if entry.role != "slot" and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise DataError(f"{where}: {name!r} has values that are not finite")
            values[name] = value
        for name in (STEP, T):
            if not 0 <= int(values[name]) < _MOST_STEPS:
                raise DataError(f"{where}: {name!r} is {int(values[name])}; expected a number of steps below 2**62")
        if not all(0 <= int(word) < 2**32 for word in values[SEED]):
            raise DataError(f"{where}: {SEED!r} is {values[SEED].tolist()}; expected two words of 32 bits")
        return values

    def _take(self, values: Mapping[str, Array]) -> None:
        """Go on from the values of a state file."""
        for entry in self._moving:
            self._front[entry.name].update_inplace(np.array(values[entry.name], order="C"))
        self._seed, self._steps, self._t = np.array(values[SEED]), int(values[STEP]), int(values[T])

    def into(self, model: Model) -> None:
        """Give a model of the same layers what was trained: arrays, the optimizer's slots, and the step.

        What the folder holds as constant, such as frozen layers, stays as it is in the model. Where it is not what the
        folder holds, a `MistakeWarning` says so.

        Raises:
            ArgumentError: this is no model.
            DataError: its arrays have other names or shapes, or another dtype.
        """
        need_model(model, "into")
        with self._lock:
            held = {entry.name: np.array(self._front[entry.name].numpy()) for entry in self._moving}
            steps, t = self._steps, self._t
        for entry in self._moving:
            if entry.role == "slot":
                continue
            declared = model.graph.arrays.get(entry.name)
            if declared is None or declared.shape != entry.shape or model.dtype != entry.dtype:
                got = "none" if declared is None else f"{model.dtype} {declared.shape}"
                raise DataError(
                    f"into: expected a model with {entry.name!r} of {entry.dtype} {entry.shape}, got {got}; it must "
                    "have the layers of the one that was exported"
                )
        if (name := self._differing(model)) is not None:
            warnings.warn(
                f"into: {name!r}, which is frozen in the folder, has other values in the model, so its predictions "
                "will not be those of the session. Likely fix: the model that was exported, or a copy of it",
                MistakeWarning,
                stacklevel=2,
            )
        learned = [entry.name for entry in self._moving if entry.role == "parameter"]
        with model.reading() as values:
            before = values.going_on(self._optimizer)
            _, counters, flat = before.as_numpy()
            layout = values.parameters.layout
            for slot, whole in flat.items():
                for name in learned:
                    layout.part(whole, name)[...] = held[f"{name}.{slot}"]
            missed = {name: t - (before.t - before.missed.get(name, 0)) for name in layout.declarations}
            missed |= {name: self._manifest.missed.get(name, 0) for name in learned}
            counters |= {"t": t, "began": self._manifest.began, "scale": self._manifest.scale}
            counters["missed"] = {name: count for name, count in missed.items() if count > 0}
            state = OptimizerState.from_numpy(values.parameters, self._optimizer, counters, flat)
        model.assign({entry.name: held[entry.name] for entry in self._moving if entry.role != "slot"}, steps)
        model.optimizer_state = state

    def _differing(self, model: Model) -> str | None:
        """The first array that no step changes and that is another one in a model."""
        own = self._model.values
        with model.reading() as values:
            for name in self._constants:
                if name not in model.graph.arrays or not np.array_equal(values.numpy(name), own.numpy(name)):
                    return name
        return None

    def export(self, path: str | os.PathLike[str], **options: Any) -> ParityReport:
        """Write the trained model as an ONNX file for inference, proven as `lamella_onnx.export` does.

        ``options`` are those of `lamella_onnx.export`.
        """
        return export(self._filled(), path, **options)

    def _filled(self) -> Model:
        """The model, with what was trained."""
        self.into(self._model)
        return self._model

    def _fill_constants(self, predict: onnx.ModelProto) -> None:
        """Give the model the arrays that no step changes, from the graph that carries them."""
        arrays = {array.name: array for array in predict.graph.initializer if array.name in self._model.graph.arrays}
        self._constants: tuple[str, ...] = tuple(arrays)
        self._model.assign({name: onnx.numpy_helper.to_array(array) for name, array in arrays.items()})

    def _buffers(self) -> dict[str, Any]:
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        return {entry.name: make(np.zeros(entry.sizes, entry.dtype)) for entry in self._moving}

    def __repr__(self) -> str:
        return f"<{self._where}: {self._model.graph.signature}, {self._steps} steps, {self._optimizer!r}>"


@contextlib.contextmanager
def _naming_session() -> Iterator[None]:
    """Let errors of names that are not registered say how a session takes what they stand for."""
    try:
        yield
    except RegistryError as error:
        raise RegistryError(str(error).replace("lm.load(path,", "TrainingSession(path,")) from error.__cause__


def _loaded(where: str, content: bytes, threads: int) -> tuple[onnxruntime.InferenceSession, onnx.ModelProto]:
    """Load a graph that opens no other files; also return what stands in it."""
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # the parser's exception belongs to protobuf
        raise DataError(f"{where}: this is no ONNX file ({in_one_line(error)})") from error
    for array in external_arrays(proto):
        raise DataError(f"{where}: array {array.name!r} stands in another file; export_training_step writes none")
    try:
        return session(content, threads), proto
    except ParityError as error:
        raise ParityError(f"{where}: {error}") from error


@contextlib.contextmanager
def _running(where: str) -> Iterator[None]:
    """Let errors of onnxruntime say where they arose."""
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise ParityError(f"{where}: {refusal('the graph', error)}") from error


def _check_graph(
    where: str,
    loaded: onnxruntime.InferenceSession,
    inputs: tuple[Entry, ...],
    outputs: tuple[Entry, ...],
) -> None:
    """Raise unless a graph has the inputs and outputs that the manifest names."""
    for kind, known, given in (("input", inputs, loaded.get_inputs()), ("output", outputs, loaded.get_outputs())):
        names, there = [entry.name for entry in known], [value.name for value in given]
        if names != there:
            odd = next(iter(set(names) ^ set(there)), "the order")
            raise DataError(f"{where}: the manifest and the graph differ in {kind}s: {odd}")
