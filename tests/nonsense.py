"""Every public call with an example of valid arguments, values that are nonsense there, and what may come of them."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import inspect
import io
import math
import os
import random
import re
import signal
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lamella as lm
import lamella.activations
import lamella.datasets
import lamella.initializers
import lamella_layers as ll
import lamella_onnx
from lamella.registry import snake_case
from lamella.testing import Specimen

SECONDS = 5.0  # that a call may take
ROOT = str(Path(__file__).parents[1]) + os.sep
MODULES = {
    "": lm,
    "backends.": lm.backends,
    "callbacks.": lm.callbacks,
    "losses.": lm.losses,
    "metrics.": lm.metrics,
    "optimizers.": lm.optimizers,
    "primitives.": lm.primitives,
    "regularization.": lm.regularization,
    "schedules.": lm.schedules,
    "testing.": lm.testing,
    "initializers.": lm.initializers,
    "activations.": lamella.activations,
    "datasets.": lamella.datasets,
    "lamella_layers.": ll,
    "lamella_onnx.": lamella_onnx,
}

# Values


class Frame:
    """What stands in for a data frame: it has rows and columns, and becomes an array."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.values.astype(dtype or self.values.dtype)


class Hostile:
    """It can be neither shown nor compared."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


def locked(array: Any) -> Any:
    array.flags.writeable = False
    return array


VALUES: dict[str, Any] = {
    "None": None,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "'x'": "x",
    "''": "",
    "'False'": "False",
    "[]": [],
    "()": (),
    "{}": {},
    "nan": math.nan,
    "inf": math.inf,
    "2**63": 2**63,
    "10**30": 10**30,
    "b'x'": b"x",
    "True": True,
    "[None]": [None],
    "{'x': 1}": {"x": 1},
    "ragged": [[1.0], [1.0, 2.0]],
    "int": int,
    "an object": object(),
    "a function": lambda *arguments: None,
    "hostile": Hostile(),
    "rank 5": np.ones((1, 2, 1, 2, 1)),
    "no axes": np.array(1.0),
    "objects": np.array([None, "x"], object),
    "complex": np.array([1.0 + 2.0j, 1.0]),
    "dates": np.array(["2020-02-02", "NaT"], "datetime64[D]"),
    "read-only": locked(np.ones(3)),
    "frame": Frame([[1.0, 2.0], [3.0, 4.0]]),
}
MORE: dict[str, Any] = {
    "1": 1,
    "-1.5": -1.5,
    "-inf": -math.inf,
    "1e308": 1e308,
    "1e-320": 1e-320,
    "False": False,
    "10**5000": 10**5000,
    "-2**63": -(2**63),
    "Ellipsis": ...,
    "a slice": slice(None),
    "'x\\0'": "x\0",
    "'\\ud800'": "\ud800",
    "a long word": "x" * 300,
    "{1}": {1},
    "range": range(3),
    "a generator": (one for one in ()),
    "bytearray": bytearray(b"x"),
    "1j": 1j,
    "float16": np.float16(1.0),
    "a model's class": lm.Model,
    "an error": ValueError("x"),
    "(2**63, 2**63)": (2**63, 2**63),
    "(1, 'x')": (1, "x"),
    "[-1, 0]": [-1, 0],
    "nested": [[[[[]]]]],
    "words": np.array(["a", "b"]),
    "empty array": np.ones((0, 4)),
    "structured": np.zeros(2, [("a", "i4")]),
    "masked": np.ma.array([1.0, 2.0], mask=[True, False]),
}


def values_for(valid: Any, more: bool = False) -> Iterator[tuple[str, Any]]:
    """Labels and values: those for any argument, and those that resemble a valid one."""
    yield from VALUES.items()
    if more:
        yield from MORE.items()
    if isinstance(valid, np.ndarray):
        yield "a rank more", valid[..., None]
        yield "a rank less", valid[0]
        yield "as objects", valid.astype(object)
        yield "as complex", valid.astype(complex)
        yield "as dates", valid.astype("int64").astype("datetime64[s]")
        yield "as words", valid.astype("U8")
        yield "as lists", valid.tolist()
        yield "as frame", Frame(valid)
        yield "locked", locked(valid.copy())
        yield "no rows", valid[:0]
        yield "a row less", valid[1:]
        if valid.dtype.kind == "f":
            yield "with nan", np.where(np.arange(valid.size).reshape(valid.shape) == 0, math.nan, valid)
    elif not isinstance(valid, type) and type(valid).__module__.partition(".")[0] in ("lamella", "lamella_layers"):
        yield "its class", type(valid)
        yield "its base class", type(valid).__mro__[1]


LARGEST = float(np.finfo("float32").max)

# Calls


@dataclasses.dataclass
class Example:
    """A public call with valid arguments.

    Attributes:
        call: what is called, or the property that is set.
        valid: arguments by name; an argument with a default may be left out.
        model: the model that has to stay as it was after a failure.
        use: what is done with the result, since some nonsense can only be found there.
    """

    call: Callable[..., Any]
    valid: dict[str, Any]
    model: Any = None
    use: Callable[[Any], Any] = lambda result: None

    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.call).parameters)

    def run(self, changes: Mapping[str, Any]) -> Any:
        given, several = {**self.valid, **changes}, ()
        for name, parameter in self.parameters().items():
            if name not in given:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                several = (given.pop(name),)
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                several = (*several, given.pop(name))
            elif parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name)
        if several and any(one.kind is one.VAR_POSITIONAL for one in self.parameters().values()):
            plain = [
                given.pop(name) for name, one in self.parameters().items()
                if one.kind is one.POSITIONAL_OR_KEYWORD and name in given
            ]  # fmt: skip
            several = (*plain, *several)
        result = self.call(*several, **given)
        self.use(result)
        return result


def model() -> Any:
    """A small model that has learned a step."""
    small = lm.Sequential([ll.Dense(3, activation="tanh"), ll.Dense(2).named("head")], input_shape=4)
    small.train_on_batch(X, Y, loss="huber", optimizer="adam")
    return small


def state_of(model: Any) -> Any:
    """Everything about a model that a failure has to leave as it was."""
    optimizer = model.optimizer_state
    kept = None if optimizer is None else (repr(optimizer.optimizer), optimizer.t, optimizer.scale, optimizer.began)
    slots = {} if optimizer is None else {name: slot.tobytes() for name, slot in optimizer.slots.items()}
    arrays = {name: array.tobytes() for name, array in {**model.parameters, **model.state}.items()}
    return arrays, kept, slots, model.step, model.seed, model.frozen_layers, model.backend, model.dtype, model.config()


X, Y = np.linspace(-1.0, 1.0, 24, dtype="float32").reshape(6, 4), np.linspace(0.0, 1.0, 12).reshape(6, 2)


def stored(inputs: Iterable[lm.ArraySpec]) -> list[Any]:
    """Arrays that fit specs: two rows, three places along axes of unknown size."""
    arrays = []
    for spec in inputs:
        shape = [2 if size == "N" else 3 if isinstance(size, str) else size for size in spec.shape]
        low = spec.low if spec.low is not None else 0 if spec.high is None else min(0, spec.high - 1)
        arrays.append(np.full(shape, low, spec.dtype))
    return arrays


def runs(inputs: tuple[lm.ArraySpec, ...]) -> Callable[[Any], None]:
    """Use a layer: in a model that predicts."""

    def use(layer: Any) -> None:
        nodes = [lm.Input(spec.shape[1:], spec.dtype, low=spec.low, high=spec.high) for spec in inputs]
        outputs = layer(*nodes)
        arrays = stored(inputs)
        lm.Model(nodes, outputs).predict(tuple(arrays) if len(arrays) > 1 else arrays[0])

    return use


def measures(inputs: tuple[lm.ArraySpec, ...]) -> Callable[[Any], None]:
    """Use a loss or a metric: on predictions and targets."""

    def use(measure: Any) -> None:
        arrays = stored(inputs)
        _ = measure.update(*arrays) if isinstance(measure, lm.metrics.Metric) else measure(*arrays)

    return use


def steps(optimizer: Any) -> None:
    with np.errstate(all="ignore"):
        model().train_on_batch(X, Y, loss="huber", optimizer=optimizer)


def rates(schedule: Any) -> None:
    for step in (1, 2, 1000):
        lm.schedules.learning_rate_at(schedule, step)


def listens(callback: Any) -> None:
    fit_with(callbacks=[callback], epochs=2, validation_data=(X, Y))


def bounds(rule: Any) -> None:
    what = "penalties" if isinstance(rule, lm.regularization.Penalty) else "constraints"
    fit_with(**{what: {"*.kernel": rule}})


def fit_with(**options: Any) -> None:
    model().fit(X, Y, loss="huber", optimizer="sgd", progress=False, **options)


def of_method(make: Callable[[], Any], name: str, valid: dict[str, Any], use: Any = None) -> Callable[[], Example]:
    """The method of an object that is made anew; of a model, it must stay as it was after a failure."""

    def example() -> Example:
        own = make()
        return Example(
            getattr(own, name), valid, own if isinstance(own, lm.Model) else None, use or (lambda result: None)
        )

    return example


def of_property(make: Callable[[], Any], name: str, valid: Any) -> Callable[[], Example]:
    def example() -> Example:
        own = make()

        def set_property(value: Any) -> None:
            setattr(own, name, value)

        return Example(set_property, {"value": valid}, own)

    return example


def of(call: Callable[..., Any], use: Any = None, **valid: Any) -> Callable[[], Example]:
    return lambda: Example(call, valid, None, use or (lambda result: None))


TASK = {"loss": "huber", "optimizer": "sgd"}
LABELS = lm.ArraySpec(("N",), "int64", low=0, high=2)


AROUND = ("ExponentialMovingAverage", "GradientAccumulation", "LearningRateMultipliers")


class _Stop(lm.Callback):
    """Ends training after some steps, however many are asked for."""

    def on_train_begin(self, *arguments: Any) -> None:
        self.steps = 0

    def on_batch_end(self, *arguments: Any) -> None:
        self.steps += 1
        if self.steps == 4:
            raise lm.StopTraining


def _fit(small: Any) -> Callable[..., Any]:
    """`fit`, with an end."""

    def fit(*args: Any, callbacks: Any = (), **options: Any) -> Any:
        if isinstance(callbacks, list | tuple):
            callbacks = [*callbacks, _Stop()]
        return small.fit(*args, callbacks=callbacks, **options)

    fit.__signature__ = inspect.signature(small.fit)  # type: ignore[attr-defined]
    fit.__annotations__ = typing.get_type_hints(small.fit)
    return fit


def _file() -> str:
    path = Path("valid.lamella")
    if not path.exists():
        model().save(path)
    return str(path)


def _exported() -> str:
    path = Path("valid.onnx")
    if not path.exists():
        lamella_onnx.export(model(), path)
    return str(path)


def _step() -> str:
    path = Path("valid.step")
    if not path.exists():
        lamella_onnx.export_training_step(model(), path, **TASK)
    return str(path)


def _session() -> Any:
    return lamella_onnx.TrainingSession(_step(), threads=1)


def _history() -> Any:
    history = lm.History()
    history.add({"loss": 0.5, "val_loss": 0.7})
    return history


def _specimens() -> Iterator[tuple[str, Callable[[], Example]]]:
    """Constructors of what has specimens, with the arguments that stand there."""
    names = {getattr(module, name): f"{prefix}{name}" for prefix, module in MODULES.items() for name in module.__all__
             if isinstance(getattr(module, name), type)}  # fmt: skip
    found: set[str] = set()
    for specimen in lm.registry.specimens():
        name = names.get(type(specimen.subject))
        if (
            name is None
            or name in found
            or not isinstance(specimen.subject, lm.Layer | lm.losses.Loss | lm.metrics.Metric)
        ):
            continue
        found.add(name)
        use = runs(specimen.inputs) if isinstance(specimen.subject, lm.Layer) else measures(specimen.inputs)
        yield name, of(type(specimen.subject), use, **specimen.subject.config())


def examples() -> dict[str, Callable[[], Example]]:
    """A maker of an example for each public call, by name; arguments left out have defaults."""
    rows, spec = lm.ArraySpec(("N", 4)), lm.ArraySpec(("N", 2))
    predicted = np.array([[0.25, 0.75], [0.5, 0.5]], "float32")
    found: dict[str, Callable[[], Example]] = dict(_specimens())
    for name in lm.optimizers.__all__:
        if name == "Optimizer":
            continue
        valid = {"optimizer": "sgd"} if name in AROUND else {}
        valid |= {"steps": 2} if name == "GradientAccumulation" else {}
        valid |= {"multipliers": {"head.*": 0.5}} if name == "LearningRateMultipliers" else {}
        kind = getattr(lm.optimizers, name)
        found[f"optimizers.{name}"] = of(kind, steps, **valid)
        found[f"optimizers.{name}.with_learning_rate"] = of_method(
            lambda kind=kind, valid=valid: kind(**valid), "with_learning_rate", {"learning_rate": 0.1}, steps
        )
    for name in lm.metrics.__all__:
        if name == "Metric":
            continue
        of_classes = name not in ("BinaryAccuracy", "R2") and "Error" not in name
        labelled = measures((spec, LABELS if of_classes else spec))
        options = {"k": 2} if name == "TopKAccuracy" else {}
        found.setdefault(f"metrics.{name}", of(getattr(lm.metrics, name), labelled, **options))
        target = np.array([0, 1]) if of_classes else predicted
        found[f"metrics.{name}.update"] = of_method(
            lambda name=name, options=options: getattr(lm.metrics, name)(**options),
            "update",
            {"prediction": predicted, "target": target},
        )
    for name in lm.losses.__all__:
        kind = getattr(lm.losses, name)
        if isinstance(kind, type) and name != "Loss":
            make = (lambda: lm.losses.Weighted("huber", 0.5)) if name == "Weighted" else kind
            target = np.array([0, 1]) if "Cross" in name and "Binary" not in name else predicted
            target = target > 0.5 if name == "Hinge" else target
            found[f"losses.{name}.__call__"] = of_method(make, "__call__", {"prediction": predicted, "target": target})
    rules = lm.regularization
    for kind in (rules.L1, rules.L2, rules.MaxNorm):
        found[f"regularization.{kind.__name__}"] = of(kind, bounds)
    schedules = {
        "Constant": {"learning_rate": 0.1},
        "StepDecay": {"learning_rate": 0.1, "every": 10},
        "Exponential": {"learning_rate": 0.1, "every": 10},
        "Cosine": {"learning_rate": 0.1, "steps": 10},
        "WarmUp": {"schedule": 0.1, "steps": 10},
        "OneCycle": {"learning_rate": 0.1, "steps": 10},
        "CosineRestarts": {"learning_rate": 0.1, "steps": 10},
        "InverseTime": {"learning_rate": 0.1, "every": 10.0},
        "PiecewiseConstant": {"boundaries": (10,), "values": (0.1, 0.01)},
        "Polynomial": {"learning_rate": 0.1, "steps": 10},
    }
    for name, valid in schedules.items():
        kind = getattr(lm.schedules, name)
        found[f"schedules.{name}"] = of(kind, rates, **valid)
        found[f"schedules.{name}.at"] = of_method(lambda kind=kind, valid=valid: kind(**valid), "at", {"step": 3})
    for name in lm.callbacks.__all__:
        kind = getattr(lm.callbacks, name)
        if isinstance(kind, type) and issubclass(kind, lm.Callback) and name != "Callback":
            valid = {"path": "out"} if name in ("CSVLogger", "Checkpoint") else {}
            valid = {"folder": "logs"} if name == "TensorBoardLogger" else valid
            valid = {"on_epoch_end": lambda model, epoch, logs: None} if name == "Lambda" else valid
            found[f"callbacks.{name}"] = of(kind, listens, **valid)
    for name in lamella.initializers.__all__:
        function = getattr(lamella.initializers, name)
        drawn = {"rng": np.random.default_rng(0), "shape": (3, 4)}
        if name == "Initializer":
            continue
        if isinstance(function, type):
            found[f"initializers.{name}"] = of(function, lambda made: made(np.random.default_rng(0), (3, 4)))
            found[f"initializers.{name}.__call__"] = of_method(function, "__call__", drawn)
        elif callable(function) and name != "initializer_of":
            found[f"initializers.{name}"] = of(function, **drawn)
    trained = {"x": X, "y": Y, **TASK}
    for name, valid in {
        "fit": {**trained, "progress": False},
        "train_on_batch": trained,
        "evaluate": {"x": X, "y": Y, "loss": "huber"},
        "gradients": {"x": X, "y": Y, "loss": "huber"},
        "apply_gradients": {"gradients": model().gradients(X, Y, loss="huber")[1], "optimizer": "sgd"},
        "find_learning_rate": {**trained, "steps": 3},
        "until": {"name": "head"},
        "predict": {"x": X},
        "freeze": {"pattern": "head"},
        "unfreeze": {"pattern": "head"},
        "to": {"backend": "numpy"},
        "copy": {},
        "appended": {"append": ll.Activation("tanh")},
        "copy_values": {"other": model()},
        "differing": {"other": model()},
        "save": {"path": "saved.lamella"},
        "assign": {"arrays": dict(model().parameters)},
        "load_weights": {"path": _file()},
        "__call__": {"nodes": lm.Input(4)},
    }.items():
        found[f"Model.{name}"] = of_method(model, name, valid)

    def fit() -> Example:
        small = model()
        return Example(_fit(small), {**trained, "progress": False}, small)

    def streaming() -> Example:
        small = model()
        return Example(_fit(small), {"x": [(X, Y)], **TASK, "progress": False}, small)

    def several() -> Example:
        a, b = lm.Input(4, name="a"), lm.Input(4, name="b")
        small = lm.Model((a, b), (ll.Dense(2).named("c")(a), ll.Dense(2).named("d")(b)))
        return Example(_fit(small), {"x": (X, X), "y": (Y, Y), **TASK, "progress": False}, small)

    found["Model.fit"], found["Model.fit, streams"], found["Model.fit, several"] = fit, streaming, several
    found["Model.step="] = of_property(model, "step", 3)
    found["Model.optimizer_state="] = of_property(model, "optimizer_state", model().optimizer_state)

    def item(what: str, value: Any) -> Callable[[], Example]:
        def example() -> Example:
            small = model()
            mapping = getattr(small, what)

            def set_item(name: Any, value: Any) -> None:
                mapping[name] = value

            def get_item(name: Any) -> Any:
                return mapping[name]

            valid = {"name": "head.kernel" if what != "layers" else "head"}
            return Example(get_item, valid, small) if value is None else Example(
                set_item, valid | {"value": value}, small
            )  # fmt: skip

        return example

    found["Model.parameters[]"] = item("parameters", None)
    found["Model.parameters[]="] = item("parameters", np.ones((3, 2), "float32"))
    found["Model.layers[]"] = item("layers", None)

    x = lm.Input(4)
    y = ll.Dense(2)(x)
    found |= {
        "ActivationFunction": of(
            lm.ActivationFunction, runs_activation, forward=lambda xp, x: x, backward=lambda xp, x, y, dy: dy
        ),
        "ArraySpec": of(lm.ArraySpec, shape=("N", 4)),
        "ArraySpec.replace": lambda: Example(
            lambda shape, dtype="float32", low=None, high=None: rows.replace(
                shape=shape, dtype=dtype, low=low, high=high
            ),
            {"shape": ("N", 3)},
        ),
        "Declare": of(lm.Declare),
        "Declare.parameter": of_method(
            lm.Declare, "parameter", {"name": "kernel", "shape": (3, 4), "initializer": "zeros"}
        ),
        "Declare.features": of_method(lm.Declare, "features", {"axis": -1, "fix": "GlobalMaxPooling1D"}),
        "Declare.warn": of_method(lm.Declare, "warn", {"text": "softmax over one value"}),
        "Declare.state": of_method(lm.Declare, "state", {"name": "mean", "shape": (3,), "initializer": "zeros"}),
        "History.add": of_method(lm.History, "add", {"logs": {"loss": 1.0}}),
        "History.plot": of_method(_history, "plot", {}),
        "History.__getitem__": of_method(_history, "__getitem__", {"name": "loss"}),
        "Input": of(lm.Input, shape=(4,)),
        "Model": of(lm.Model, inputs=x, outputs=y),
        "Sequential": of(lm.Sequential, layers=[ll.Dense(2)], input_shape=4),
        "Layer.named": of_method(lambda: ll.Dense(2), "named", {"name": "head"}),
        "Layer.__call__": of_method(lambda: ll.Dense(2), "__call__", {"nodes": x}),
        "Configured.replace": lambda: Example(lambda units: ll.Dense(2).replace(units=units), {"units": 3}),
        "from_config": of(lm.from_config, config=model().config()),
        "layer": lambda: Example(lambda name, units: lm.layer(name, units=units), {"name": "dense", "units": 3}),
        "load": of(lm.load, path=_file()),
        "inspect": of(lm.inspect, path=_file()),
        "register": of(lm.register, name="mine"),
        "primitive": of(lm.primitive, lambda made: made.kernel("numpy"), reference=lambda xp, x: x),
        "primitives.Primitive": of(lm.primitives.Primitive, reference=lambda xp, x: x),
        "primitives.Primitive.kernel": of_method(lambda: lm.primitive(lambda xp, x: x), "kernel", {"backend": "numpy"}),
        "set_threads": of(lm.set_threads, lambda result: lm.set_threads(None), count=1),
        "backends.get_backend": of(lm.backends.get_backend, name="numpy"),
        "callbacks.larger_is_better": of(lm.callbacks.larger_is_better, name="loss"),
        "losses.Weighted": of(lm.losses.Weighted, measures((spec, spec)), loss="huber", weight=0.5),
        "losses.class_targets": of(lm.losses.class_targets, where="here", prediction=spec, target=np.array([0, 1])),
        "losses.value_targets": of(lm.losses.value_targets, where="here", prediction=spec, target=predicted),
        "schedules.learning_rate_at": of(lm.schedules.learning_rate_at, learning_rate=0.1, step=3),
        "testing.Specimen": of(lm.testing.Specimen, subject=ll.Dense(2), inputs=(rows,)),
        "testing.check_activation": of(
            lm.testing.check_activation, activation=lm.registry.find("activations", "relu"), x=rows
        ),
        "testing.check_layer": of(lm.testing.check_layer, layer=ll.Flatten(), input_specs=rows),
        "testing.check_loss": of(lm.testing.check_loss, loss=lm.losses.Huber(), prediction=spec, target=spec),
        "testing.check_metric": of(
            lm.testing.check_metric, metric=lm.metrics.BinaryAccuracy(), prediction=spec, target=shares()
        ),
        "lamella_layers.Normalization.adapted": of_method(ll.Normalization, "adapted", {"data": X}),
        "testing.check_optimizer": of(lm.testing.check_optimizer, optimizer=lm.optimizers.SGD()),
        "testing.check_specimen": of(lm.testing.check_specimen, specimen=Specimen(ll.Flatten(), (rows,))),
        "lamella_onnx.export": of(lamella_onnx.export, model=model(), path="out.onnx"),
        "lamella_onnx.verify": of(lamella_onnx.verify, path=_exported()),
        "lamella_onnx.export_training_step": of(
            lamella_onnx.export_training_step, model=model(), path="out.step", samples=(X, Y), **TASK
        ),
        "lamella_onnx.TrainingSession": of(lamella_onnx.TrainingSession, path=_step()),
    }  # fmt: skip
    for name, valid in {
        "step": {"x": X, "y": Y},
        "predict": {"x": X},
        "evaluate": {"x": X, "y": Y},
        "save_state": {"path": "saved.state"},
        "load_state": {"path": f"{_step()}/state.safetensors"},
        "into": {"model": model()},
        "export": {"path": "trained.onnx", "options": {}},
    }.items():
        found[f"lamella_onnx.TrainingSession.{name}"] = of_method(_session, name, valid)
    return found


def shares() -> lm.ArraySpec:
    return lm.ArraySpec(("N", 2), low=0.0, high=1.0)


def runs_activation(function: Any) -> None:
    runs((lm.ArraySpec(("N", 4)),))(ll.Activation(function))


ENGINE = {
    "Context": "the engine makes it, and layers call it: the engine's errors name the layer and hold its words",
    "Node": "lm.Input and layers make it",
    "Task": "a dict, of which `fit` and `evaluate` say what is wrong",
    "Configured": "a base class without arguments",
    "Layer": "a base class without arguments",
    "hookimpl": "pluggy's",
    "backends.Backend": "plugins define it and the engine calls it",
    "backends.Namespace": "plugins' backends make it",
    "Callback": "`fit` calls it",
    "initializers.Initializer": "a base class without arguments",
    "initializers.initializer_of": "the engine calls it",
    "losses.Loss": "a base class without arguments",
    "schedules.Schedule": "a base class without arguments",
    "metrics.Metric": "a base class without arguments",
    "regularization.Constraint": "a base class without arguments",
    "regularization.Penalty": "a base class without arguments",
    "optimizers.Optimizer": "a base class without arguments",
    "testing.ConformanceReport": "check_layer and its kin make it",
    "primitives.Primitive.__call__": "passes call it, with arrays of the backend",
    "lamella_onnx.ParityReport": "export and verify make it",
}
"""Public names that are no calls of users, and why."""

METHODS = {
    "backward", "backward_pass", "build", "config", "counted", "examine", "expand", "forward", "forward_pass", "infer",
    "merge", "migrate", "bound", "draw", "load_state_dict", "on_batch_end", "on_epoch_begin", "on_epoch_end",
    "on_train_begin", "on_train_end", "per_sample", "prepare", "result", "rule_of", "score",
    "unsaid",
}  # fmt: skip
"""Methods that classes define and the engine calls."""
PARTS = {"bias_of_z", "merge", "pool", "pool_dx", "split", "step", "step_dx"}
"""Methods of families of layers, which their passes call."""
ARRAY_CODE = {"update", "value", "gradient", "apply"}  # of optimizers and rules: arrays of the backend


def public_calls() -> Iterator[tuple[str, Any]]:
    """Every public call by its name: functions, constructors, methods and properties that can be set."""
    seen: set[int] = set()
    for prefix, module in MODULES.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, types.ModuleType | lm.primitives.Primitive) or not callable(thing):
                continue
            if isinstance(thing, type) and issubclass(thing, BaseException):
                continue
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            full = f"{prefix}{name}"
            yield full, thing
            if isinstance(thing, type) and full not in ENGINE and not inspect.isabstract(thing):
                yield from ((f"{full}.{method}", own) for method, own in methods(thing))


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods of a class that users call with arguments, and what they set."""
    for name in dir(cls):
        own = inspect.getattr_static(cls, name)
        if isinstance(own, property):
            if own.fset is not None:
                yield f"{name}=", own.fset
            continue
        if name.startswith("_") and name not in ("__call__", "__getitem__", "__setitem__"):
            continue
        function = getattr(cls, name)
        if not callable(function) or name in METHODS | PARTS or isinstance(function, type):
            continue
        if name in ARRAY_CODE and not issubclass(cls, lm.metrics.Metric):
            continue
        if [one for one in inspect.signature(function).parameters if one != "self"]:
            yield name, function


# What may come of a call


class Hang(BaseException):
    """A call that takes too long."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def stop(*arguments: Any) -> None:
        raise Hang(f"took more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


WORDS = {  # by which a message may name an argument
    "data": ("x",),
    "input_shape": ("Input: shape", "called with"),
    "input_dtype": ("Input: dtype", "called with"),
    "input_specs": ("Specimen: inputs",),
    "metrics": ("metric",),
    "name": ("layer", "array", "parameters"),
    "pattern": ("layer",),
    "prediction": ("Specimen: inputs",),
    "samples": ("input",),
    "target": ("labels", "Specimen: inputs"),
    "x": ("input", "Specimen: inputs"),
    "value": ("rate",),
    "y": ("target", "labels", "input"),
    **dict.fromkeys(
        ("alpha_initializer", "depthwise_initializer", "pointwise_initializer", "kernel_initializer"), ("initializer",)
    ),
}


def on_purpose(error: BaseException) -> bool:
    """Whether a statement ``raise`` of lamella's own raised an error."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    own = code.co_filename.startswith(tuple(ROOT + folder for folder in ("core", "plugins", "exporters")))
    return own and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def fault_of(error: BaseException, name: str, argument: str, value: Any) -> str | None:
    """What is wrong with an error for a value that an argument cannot take, or None."""
    if isinstance(error, ImportError) and not isinstance(error, lm.LamellaError):
        return None if on_purpose(error) else "raw"  # what an extra brings is not installed
    if isinstance(error, OSError) and not isinstance(error, lm.LamellaError):
        named = isinstance(value, str | os.PathLike) and value != ""
        return None if named and (error.filename is not None or os.fspath(value) in str(error)) else "raw"
    allowed = (lm.LamellaError, TypeError, ValueError, *([KeyError] if "[]" in name or "getitem" in name else []))
    cause = error.__cause__
    if name.startswith("Model.fit") and argument in ("x", "validation_data") and isinstance(value, type):
        return None  # it is called, and fails as it likes
    told = isinstance(value, types.FunctionType | type)  # somebody's own function may fail with any words
    if (
        not isinstance(error, allowed)
        or not on_purpose(error)
        or (isinstance(error, lm.LayerError) and not told and (cause is None or not on_purpose(cause)))
    ):
        return "raw"
    told = told or name == "from_config"  # which says what was expected in place of it
    if cause is not None and not told and not isinstance(cause, lm.LamellaError) and not on_purpose(cause):
        return "NumPy's words, or Python's"
    try:
        words = str(error)
    except Exception as odd:
        return f"words that cannot be shown: {odd}"
    parts = [
        argument,
        *WORDS.get(argument, ()),
        *re.split(r"\W+", name.removeprefix("lamella_layers.").removeprefix("lamella_onnx.")),
    ]
    known = {word for part in parts if part for word in (part, snake_case(part))}
    if name.startswith("lamella_layers."):
        known |= set(ll.__all__)  # a composite's inner layer
    if not any(re.search(rf"(?<![a-z]){re.escape(word)}", words, re.IGNORECASE) for word in known):
        return "names neither argument nor function"
    return None


def hints_of(example: Example, public: Any) -> dict[str, Any]:
    """What annotations say of each argument."""
    for thing in (example.call, public, getattr(example.call, "__init__", None), getattr(public, "__init__", None)):
        with contextlib.suppress(Exception):
            if isinstance(thing, type):
                thing = thing.__init__  # type: ignore[misc]
            found = typing.get_type_hints(thing)
            if found:
                return found
    return {}


def fits(value: Any, hint: Any) -> bool | None:
    """Whether an annotation allows a value; None where it says nothing."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty or isinstance(hint, typing.TypeVar):
        return None
    if origin in (typing.Union, types.UnionType):
        answers = [fits(value, part) for part in parts]
        return True if True in answers else None if None in answers else False
    if hint is None or hint is type(None):
        return value is None
    if hint is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if hint is float:
        real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        plain = value if isinstance(value, int) or not real else float(value)
        return real and -LARGEST <= plain <= LARGEST
    if hint is str:
        return isinstance(value, str) and value != ""
    if origin is tuple and isinstance(value, tuple | list):
        if len(parts) == 2 and parts[1] is ...:
            return all(fits(one, parts[0]) is not False for one in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, parts[0]) is not False and fits(own, parts[1]) is not False for key, own in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Callable):
        if not isinstance(value, origin) or isinstance(value, str | bytes | np.ndarray | Mapping):
            return False
        return all(fits(one, parts[0]) is not False for one in value)
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return callable(value)
    return isinstance(value, hint) if isinstance(hint, type) else None


def numeric(value: Any, shape: tuple[Any, ...] | None = None) -> bool:
    """Whether a value becomes an array of numbers, of a shape but for its rows."""
    try:
        array = np.asarray(value)
    except Exception:
        return False
    return array.dtype.kind in "fiub" and (shape is None or (array.ndim == len(shape) and array.shape[1:] == shape[1:]))


RIGHT: dict[str, Callable[[Any], bool]] = {
    "ArraySpec dtype": lambda value: value is int,  # NumPy knows it
    "ArraySpec.replace": lambda value: True,  # as the constructor
    "Declare.features fix": lambda value: value == "",  # the default
    "Configured.replace": lambda value: True,  # as the constructor
    "Declare.parameter initializer": lambda value: callable(value) or isinstance(value, str),  # looked up later
    "Declare.state initializer": lambda value: callable(value) or isinstance(value, str),
    "Input dtype": lambda value: value is int,
    "Layer.named name": lambda value: isinstance(value, str) and value == "",  # the outer layer's name, in `expand`
    "Model.optimizer_state= value": lambda value: value is None,
    "lamella_layers.Normalization mean": numeric,
    "lamella_layers.Normalization variance": numeric,
    "lamella_layers.Reshape shape": lambda value: isinstance(value, int) and value == -1,
    "lamella_layers.BatchNormalization axis": numeric,  # an array without axes is a number
    "lamella_layers.GroupNormalization axis": numeric,
    "layer": lambda value: True,  # as the constructor
    "losses.class_targets where": lambda value: True,  # text of the loss's own
    "losses.value_targets where": lambda value: True,
    "testing.Specimen": lambda value: isinstance(value, str) and value == "",
    "Model.step= value": lambda value: type(value) is int and value >= 0,
    "metrics": lambda value: isinstance(value, Iterator) or (isinstance(value, list | tuple | dict) and not value),
    "sample_weight": lambda value: value is None,
    "samples": lambda value: value is None,
    "validation_data": lambda value: value is None,
    "weight": lambda value: value is None or numeric(value),
    "Model.fit, streams y": lambda value: value is None,
    **dict.fromkeys(("x", "y", "data", "prediction", "target", "Model.parameters[]= value"), numeric),
}
"""Values that an argument takes though its annotation does not say so: by call, call and argument, or argument."""

GIVEN = {
    "losses.class_targets prediction": "a loss gives it, as `prepare` got it from the engine",
    "losses.class_targets where": "text of the loss's own",
    "losses.value_targets prediction": "a loss gives it, as `prepare` got it from the engine",
    "losses.value_targets where": "text of the loss's own",
    "lamella_onnx.verify path": "a gap, until `verify` checks it",
    "lamella_onnx.TrainingSession.export options": "those of `export`, by name",
}
"""Arguments that are left out, and why."""


def is_right(name: str, argument: str, value: Any, hint: Any, configured: bool) -> bool:
    """Whether a value that a call took has a meaning there."""
    if configured and isinstance(value, np.ndarray):
        value = value.tolist()  # as configurations do
    answer = fits(value, hint)
    if answer:
        return True
    short = name.partition(",")[0]
    keys = (f"{name} {argument}", f"{short} {argument}", short, argument)
    return any(key in RIGHT and RIGHT[key](value) for key in keys)


@dataclasses.dataclass
class Count:
    """What came of calls."""

    calls: int = 0
    refused: int = 0
    taken: int = 0


def faults(
    name: str,
    make: Callable[[], Example],
    public: Any,
    values: Callable[[Any], Iterable[tuple[str, Any]]],
    count: Count,
) -> Iterator[str]:
    """Give each argument in turn each value that is nonsense there; yield a line for whatever should not come of it."""
    example = make()
    hints = hints_of(example, public)
    for argument in arguments_of(name, example):
        for label, value in values(example.valid.get(argument)):
            fault, used = outcome(name, example, hints, {argument: value}, count)
            if used:
                example = make()
            if fault is not None:
                yield f"{name}({argument}={label}) {fault}"


def arguments_of(name: str, example: Example) -> list[str]:
    """The arguments that are given nonsense."""
    return [argument for argument in example.parameters() if f"{name} {argument}" not in GIVEN]


def outcome(
    name: str, example: Example, hints: dict[str, Any], changes: dict[str, Any], count: Count
) -> tuple[str | None, bool]:
    """What is wrong with what comes of nonsense for some arguments, and whether the example is used up."""
    count.calls += 1
    configured = isinstance(example.call, type(lm.Configured))
    before = None if example.model is None else state_of(example.model)
    try:
        run_strictly(example, changes)
    except Exception as error:
        count.refused += 1
        found = [fault_of(error, name, argument, value) for argument, value in changes.items()]
        fault = None if None in found else f"{found[0]}: {told(error)}"
        if before is None or state_of(example.model) == before:
            return fault, False
        late = changes.get("validation_data")  # a function or an iterator is asked once an epoch is trained
        if name.startswith("Model.fit") and (callable(late) or isinstance(late, Iterator)):
            return fault, True
        return f"the model is another one after {told(error)}", True
    except Hang as error:
        return f"hangs: {error}", True
    count.taken += 1
    wrong = [
        argument
        for argument, value in changes.items()
        if not is_right(name, argument, value, hints.get(argument, Any), configured)
    ]
    return f"{' and '.join(wrong)} taken" if wrong else None, True


def random_faults(seed: int, calls: int, count: Count) -> Iterator[str]:
    """Make random calls with several arguments of nonsense at once; tell of whatever should not come of it."""
    draw, public, known = random.Random(seed), dict(public_calls()), examples()
    for _ in range(calls):
        name = draw.choice(list(known))
        example = known[name]()
        arguments = arguments_of(name, example)
        if not arguments:
            continue
        labels, changes = [], {}
        for argument in draw.sample(arguments, min(len(arguments), draw.randint(1, 3))):
            label, changes[argument] = draw.choice(list(values_for(example.valid.get(argument), more=True)))
            labels.append(f"{argument}={label}")
        fault, _ = outcome(name, example, hints_of(example, public.get(name)), changes, count)
        if fault is not None:
            yield f"{name}({', '.join(labels)}) {fault}"


def run_strictly(example: Example, changes: Mapping[str, Any]) -> None:
    """Make a call in time; what NumPy or Python would warn of is an error."""
    with warnings.catch_warnings(), in_time(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", lm.MistakeWarning)
        example.run(changes)


def told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {str(error)[:200]}"
    except Exception:
        return f"{type(error).__name__} without words"
