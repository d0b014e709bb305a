"""What a training step can hold, found by exporting it: the tables of docs/training-step.md.

python tests/training_table.py writes them anew.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import lamella as lm
from lamella import losses, optimizers, registry
from lamella.cli.reference import operators
from lamella.testing import Specimen
from lamella_layers import Dense
from lamella_onnx import export, export_training_step
from lamella_onnx.runtime import installed

PAGE = Path(__file__).parents[1] / "docs" / "training-step.md"
OPSETS = {"18": 18, "21": 21, "23": 23, "newest": min(installed().opset, onnx.defs.onnx_opset_version())}
ROWS = 7
OPTIMIZERS = {
    "sgd": [optimizers.SGD(), optimizers.SGD(momentum=0.9), optimizers.SGD(momentum=0.9, nesterov=True)],
    "rmsprop": [optimizers.RMSprop(), optimizers.RMSprop(momentum=0.9), optimizers.RMSprop(centered=True)],
    "adam": [optimizers.Adam(), optimizers.Adam(amsgrad=True)],
    "adamw": [optimizers.AdamW(), optimizers.AdamW(amsgrad=True, exclude_from_weight_decay="*.bias")],
    "gradient_accumulation": [optimizers.GradientAccumulation("adam", 2), optimizers.GradientAccumulation("sgd", 3)],
    "exponential_moving_average": [optimizers.ExponentialMovingAverage("adam")],
    "learning_rate_multipliers": [optimizers.LearningRateMultipliers("sgd", {"*.bias": 2.0})],
}
"""Optimizers that are shown with other arguments than their defaults too."""


class Gain(lm.Layer):
    """y = gain x with one gain for all: what learns beside a layer that has no parameters."""

    def build(self, declare: Any, x: lm.ArraySpec) -> lm.ArraySpec:
        declare.parameter("gain", (1,), "ones")
        return x

    def forward_pass(self, ctx: Any, x: Any) -> Any:
        ctx.save(x)
        return x * ctx.params.gain

    def backward_pass(self, ctx: Any, dy: Any) -> Any:
        (x,) = ctx.saved
        ctx.grad(gain=ctx.xp.reshape(ctx.xp.sum(x * dy), (1,)))
        return dy * ctx.params.gain


def subjects(kind: str) -> dict[str, list[Any]]:
    """The examples of each registered class of lamella by its name: specimens of layers and losses, and optimizers."""
    own = sorted(one.object.__name__ for one in registry.entries(kind) if one.plugin.distribution == "lamella")
    if kind == "optimizers":
        classes = {one.name: one.object for one in registry.entries(kind) if one.plugin.distribution == "lamella"}
        forms = {cls.__name__: OPTIMIZERS.get(name) or [cls()] for name, cls in classes.items()}
        return {name: forms[name] for name in own}
    found: dict[str, list[Any]] = {name: [] for name in own}
    for specimen in registry.specimens():
        if type(specimen.subject).__name__ in found:
            found[type(specimen.subject).__name__].append(specimen)
    return found


def model_of(specimen: Specimen) -> lm.Model:
    """A layer between inputs and outputs, with a gain before it, or after it where integers go in."""
    nodes = [lm.Input(x.shape[1:], x.dtype, low=x.low, high=x.high) for x in specimen.inputs]
    outputs = specimen.subject(*(Gain()(node) if node.spec.is_float else node for node in nodes))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not any(node.spec.is_float for node in nodes):
        outputs = tuple(Gain()(node) if node.spec.is_float else node for node in outputs)
    return lm.Model(nodes, outputs if len(outputs) > 1 else outputs[0], seed=1)


def drawn(spec: lm.ArraySpec, rng: np.random.Generator) -> Any:
    shape = [ROWS if size == "N" else 3 if isinstance(size, str) else size for size in spec.shape]
    low, high = (-1.0 if spec.low is None else spec.low), (1.0 if spec.high is None else spec.high)
    return rng.uniform(low, high, shape) if spec.is_float else rng.integers(int(low), int(high), shape)


def takes_a_step(subject: Any, opset: int, folder: Path) -> str:
    """Why a step with a layer, loss or optimizer is not exported; nothing if it is."""
    loss: Any = "mean_squared_error"
    optimizer: Any = "adam"
    samples = None
    if isinstance(subject, optimizers.Optimizer):
        model, optimizer = lm.Sequential([Dense(3, activation="tanh"), Dense(2)], input_shape=4, seed=1), subject
    elif isinstance(subject.subject, losses.Loss):
        x, y = subject.inputs
        node = lm.Input(x.shape[1:], x.dtype, low=x.low, high=x.high)
        model, loss = lm.Model(node, Gain()(node), seed=1), subject.subject
        rng = np.random.default_rng(0)
        samples = drawn(x, rng), drawn(y, rng)
    else:
        model = model_of(subject)
        if not model.parameters:
            return "integers only, which have no gradient"
        loss = tuple("mean_squared_error" if spec.is_float else None for spec in model.output_specs)
        loss = loss if len(loss) > 1 else loss[0]
    export_training_step(model, folder / "step", loss=loss, optimizer=optimizer, opset=opset, samples=samples)
    return ""


def is_exported(specimen: Specimen, opset: int, folder: Path) -> str:
    """Nothing, if a layer is exported for inference."""
    nodes = [lm.Input(x.shape[1:], x.dtype, low=x.low, high=x.high) for x in specimen.inputs]
    export(lm.Model(nodes, specimen.subject(*nodes), seed=1), folder / "model.onnx", opset=opset)
    return ""


def counted(reasons: Iterable[str]) -> str:
    """How many examples pass, and why others do not."""
    reasons = list(reasons)
    odd = [reason for reason in reasons if reason]
    if not odd:
        return "all"
    return f"{len(reasons) - len(odd)} of {len(reasons)}: {'; '.join(dict.fromkeys(odd))}"


def row(kind: str, name: str, specimens: Sequence[Any]) -> tuple[str, ...]:
    """The cells of a layer, loss or optimizer: all examples in the default opset, the first in each of the others."""
    lm.register("table_gain")(Gain)
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.MistakeWarning)
        folder = Path(made)
        cells = [f"`{name}`", str(len(specimens))]
        if kind == "layers":
            native = operators(specimens)
            cells.append("array code" if native is None else ", ".join(native) or "none needed")
            cells.append(counted(is_exported(one, OPSETS["21"], folder) for one in specimens))
        trained = [takes_a_step(one, OPSETS["21"], folder) for one in specimens]
        surrogate = sorted({one.reason for one in specimens if getattr(one, "gradient", "") == "surrogate"})
        cells.append("; ".join([counted(trained), *surrogate]))
        first = next((one for one, reason in zip(specimens, trained, strict=True) if not reason), None)
        for opset in (OPSETS[title] for title in ("18", "23", "newest")):
            cells.append("none" if first is None else takes_a_step(first, opset, folder) or "yes")
    return tuple(cells)


OTHERS = ("opset 18", "opset 23", "newest opset")
HEADINGS = {
    "layers": ("layer", "examples", "operators in inference", "inference", "training step", *OTHERS),
    "losses": ("loss", "examples", "training step", *OTHERS),
    "optimizers": ("optimizer", "examples", "training step", *OTHERS),
}


def between(kind: str) -> tuple[str, str]:
    return f"<!-- {kind}: python tests/training_table.py -->\n", "<!-- end -->\n"


def rows_of(page: str, kind: str) -> dict[str, str]:
    """The rows of a table on the page, by the name in their first cell."""
    begin, end = between(kind)
    table = page.partition(begin)[2].partition(end)[0]
    return {found[1]: line for line in table.splitlines() if (found := re.match(r"\| `(\w+)` \|", line))}


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for kind, heading in HEADINGS.items():
        begin, end = between(kind)
        lines = [line(heading), line(["---"] * len(heading))]
        lines += [line(row(kind, name, specimens)) for name, specimens in subjects(kind).items()]
        before, _, rest = page.partition(begin)
        page = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write())
