"""The laws: every specimen obeys them, and each planted fault is caught by the law that it breaks."""

import re
import threading

import numpy as np
import pytest

import lamella as lm
from lamella import registry
from lamella.testing import ConformanceError, Specimen, check_layer, check_loss, check_specimen
from lamella.testing.case import Case
from lamella_layers import Activation, Dense, Dropout

SPECIMENS = registry.specimens()


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda s: repr(s.subject))
def test_every_specimen_obeys_every_law(specimen):
    report = check_specimen(specimen)
    assert [v.law for v in report.verdicts] == ["gradient", "purity", "slicing", "backends", "onnx"]
    examined = {v.law for v in report.verdicts if v.outcome == "holds"}
    if specimen.gradient == "exact" and any(spec.is_float for spec in specimen.inputs):
        assert "gradient" in examined
    assert {"purity", "slicing", "backends", "onnx"} <= examined


@pytest.mark.parametrize(
    ("specimen", "specs", "words"),
    [(s, specs, words) for s in SPECIMENS for specs, words in s.refuses],
    ids=lambda value: repr(value.subject) if isinstance(value, Specimen) else "",
)
def test_specimens_refuse_what_they_say_in_the_words_they_say(specimen, specs, words):
    if isinstance(specimen.subject, lm.losses.Loss):
        target = np.zeros([2 if n == "N" else n for n in specs[1].shape], specs[1].dtype)
        with pytest.raises(lm.DataError) as caught:
            specimen.subject.prepare(specs[0], target)
    else:
        nodes = [lm.Input(spec.shape[1:], None if spec.is_float else spec.dtype) for spec in specs]
        with pytest.raises((lm.GraphError, lm.ArgumentError)) as caught:
            specimen.subject(*nodes)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["layers", "losses", "activations"])
def test_everything_registered_has_a_specimen(kind):
    shown = {type(s.subject) for s in SPECIMENS}
    named = {s.subject.config()["function"] for s in SPECIMENS if isinstance(s.subject, Activation)}
    for entry in registry.entries(kind):
        assert entry.object in shown if kind != "activations" else entry.name in named, entry.qualified
    assert all(s.docs.startswith("https://") for s in SPECIMENS)


class Affine(lm.Layer):
    """y = x * scale + shift over the last axis, right unless a fault is named."""

    def __init__(self, fault=""):
        self.fault = fault

    def build(self, declare, x):
        declare.parameter("scale", x.shape[1:], "ones")
        declare.parameter("shift", x.shape[1:], "zeros")
        declare.state("mean", x.shape[1:], "zeros")
        return x

    def forward_pass(self, ctx, x):
        xp, fault = ctx.xp, self.fault
        scale, shift = ctx.params.scale, ctx.params.shift
        if fault == "input modified":
            x *= 1.0
            x += 1e-3
        if fault == "input modified through a view" and xp.backend == "numpy":
            flat = xp.reshape(x, (-1,))
            flat += 1e-3
        if fault == "input modified in inference" and not ctx.training and xp.backend == "numpy":
            x += 1e-3
        if fault == "no gradient of a tiny output":
            return 1e-7 * (x * scale + shift)
        if fault == "gradient hidden by an offset":
            ctx.save(x)
            return x * scale + shift + 1e8
        if fault == "gradient without its upper limit":
            x = xp.minimum(x, 6.0)
        if fault == "keeps state on the side":
            CALLS.append(1)
            shift = shift + 1e-3 * len(CALLS)
        if fault == "global random state":
            shift = shift + 1e-3 * np.random.default_rng().random()
        if fault == "not safe in threads":
            mine = BOX["x"] = x
            threading.Event().wait(0.02 if threading.current_thread() is not threading.main_thread() else 0.0)
            x = BOX["x"] if BOX["x"].shape == mine.shape else mine
        if fault == "later calls change results":
            out = BOX.setdefault((x.shape, x.dtype), np.empty_like(x))
            out[...] = x * scale + shift
            ctx.save(x)
            return out
        if fault == "float64 creeps in":
            scale = scale * np.float64(1.0)
        if fault == "numpy behind the back" and xp.backend == "strict":
            x = np.asarray(x)
        if fault == "method of arrays":
            ctx.save(x)
            return (x * scale + shift).reshape(x.shape)
        if fault == "samples mix":
            x = x - xp.mean(x, axis=0, keepdims=True)
        if fault == "samples mix in inference" and not ctx.training:
            x = x - xp.mean(x, axis=0, keepdims=True)
        if fault == "divides by rows of the slice":
            ctx.save(x)
            return (x * scale + shift) / x.shape[0]
        if fault == "update from a slice" and ctx.training:
            ctx.update(mean=xp.sum(x, axis=0))
        if fault == "cancellation":
            x = (x + 1e4) - 1e4
        if fault == "overflow":
            x = xp.log(xp.exp(x))
        if fault == "branch on values" and xp.sum(x) > 1e9:
            return x
        if fault == "batch size in the trace":
            x = x * (1.0 + 0.0 * int(x.shape[0]))
        ctx.save(x)
        return x * scale + shift

    def backward_pass(self, ctx, dy):
        xp, fault = ctx.xp, self.fault
        if fault == "no gradient of a tiny output":
            ctx.grad(scale=0.0 * dy[0], shift=0.0 * dy[0])
            return 0.0 * dy
        (x,) = ctx.saved
        scale = xp.sum(dy * x, axis=0)
        shift = xp.sum(dy, axis=0)
        dx = dy * ctx.params.scale
        if fault == "gradient of a parameter":
            scale = 1.001 * scale
        if fault == "float64 creeps back" and xp.backend == "numpy":
            scale = scale * np.float64(1.0)
        if fault == "averaged over the batch":
            shift = shift / float(dy.shape[0])
        if fault == "gradient of the input":
            dx = dy
        if fault == "wrong unless contiguous" and getattr(x, "flags", None) is not None and not x.flags.c_contiguous:
            scale = 2.0 * scale
        if fault == "wrong if contiguous" and getattr(x, "flags", None) is not None and x.flags.c_contiguous:
            scale = 2.0 * scale
        if fault == "wrong for many rows" and xp.backend == "numpy" and dy.shape[0] >= 8:
            dx = 2.0 * dx
        if fault == "wrong while frozen" and not ctx.trainable:
            dx = dy
        if fault == "gradient hidden by an offset":
            dx = 0.9 * dx
        if fault == "wrong without wants_dx" and not ctx.wants_dx[0]:
            shift = 0.0 * shift
        if fault == "incoming gradient modified" and ctx.xp.backend == "numpy":
            dy *= 2.0
        if fault == "wrong in training" and ctx.training:
            dx = 0.5 * dx
        if fault == "traced backward differs" and ctx.xp.backend == "onnx":
            dx = 1.5 * dx
        if fault == "divides by rows of the slice":
            n = dy.shape[0]
            scale, shift, dx = scale / n, shift / n, dx / n
        if fault == "samples mix":
            dx = dx - xp.mean(dx, axis=0, keepdims=True)
        ctx.grad(scale=scale, shift=shift)
        return dx


CALLS, BOX = [], {}


@pytest.mark.parametrize(
    ("fault", "law", "words"),
    [
        ("gradient of a parameter", "gradient", "gradient of 'scale'.*factor of 1.001"),
        ("averaged over the batch", "gradient", "gradient of 'shift' .* batch of 9.* factor of 0.1111"),
        ("gradient of the input", "gradient", "dx of input 0"),
        ("wrong unless contiguous", "gradient", "gradient of 'scale'"),
        ("wrong without wants_dx", "gradient", r"with ctx.wants_dx = \(True,\) and \(False,\)"),
        ("wrong while frozen", "gradient", "dx of input 0 in training mode while frozen"),
        ("wrong for many rows", "gradient", "dx of input 0 in training mode, batch of 9.* factor of 2"),
        ("no gradient of a tiny output", "gradient", "dx of input 0 .* gives 0 along .*, a factor of 0"),
        ("gradient hidden by an offset", "gradient", r"dx of input 0 .* a factor of 0\.(89|90)"),
        ("gradient without its upper limit", "gradient", "dx of input 0 in inference mode"),
        ("wrong in training", "gradient", "dx of input 0 in training mode"),
        ("input modified", "purity", "was written to"),
        ("input modified through a view", "purity", "was written to, with inputs contiguous"),
        ("input modified in inference", "purity", "was written to"),
        ("incoming gradient modified", "purity", "was written to"),
        ("wrong if contiguous", "purity", "gradient of 'scale': .* inputs scattered .* and with inputs contiguous"),
        ("keeps state on the side", "purity", "results of two equal calls"),
        ("global random state", "purity", "results of two equal calls"),
        ("not safe in threads", "purity", "among four threads"),
        ("later calls change results", "purity", "before and after a later call"),
        ("float64 creeps in", "purity", "float64.* write scalars as Python floats"),
        ("float64 creeps back", "purity", "scale.*float64"),
        ("cancellation", "purity", "float32 is off by .* cancellation"),
        ("overflow", "purity", "float32 is off by inf"),
        ("samples mix", "slicing", "output 0: whole batch of 9 and slices"),
        ("samples mix in inference", "slicing", "in inference: batch and single rows"),
        ("divides by rows of the slice", "slicing", "whole batch of 9 and slices"),
        ("update from a slice", "slicing", "ctx.update got different values in different slices"),
        ("numpy behind the back", "backends", ""),
        ("method of arrays", "backends", "no attribute 'reshape'"),
        ("branch on values", "onnx", "affine_1|value"),
        ("batch size in the trace", "onnx", "batch size|not known"),
        ("traced backward differs", "onnx", "dx"),
    ],
)
def test_planted_faults_are_caught_by_their_law(fault, law, words):
    CALLS.clear()
    BOX.clear()
    with pytest.raises(ConformanceError, match=r"Affine\(fault=.* breaks") as caught:
        check_layer(Affine(fault), lm.ArraySpec(("N", 4)))
    broken = {v.law: v.detail for v in caught.value.report.verdicts if v.outcome == "broken"}
    assert law in broken, caught.value
    assert re.search(words, broken[law], re.DOTALL), broken[law]


def test_the_sound_layer_passes_and_the_report_is_readable():
    report = check_layer(Affine(), lm.ArraySpec(("N", 4)))
    check_layer(Affine().frozen(), lm.ArraySpec(("N", 4)))
    text = str(report)
    assert "holds    gradient" in text
    assert "largest relative error" in text


def test_wrong_kernels_are_caught():
    @lm.primitive
    def double(xp, x):
        return x * 2.0

    class Double(lm.Layer):
        def forward_pass(self, ctx, x):
            return double(ctx, x)

        def backward_pass(self, ctx, dy):
            return dy * 2.0

    check_layer(Double(), lm.ArraySpec(("N", 3)))
    double.kernel("numpy")(lambda xp, x: np.where(x > 0, 2.0 * x, 1.9 * x))
    with pytest.raises(ConformanceError, match="backends: output 0: NumPy and strict, for values about 1, differ"):
        check_layer(Double(), lm.ArraySpec(("N", 3)))
    del double.kernels["numpy"]
    double.kernel("onnx")(lambda xp, x: xp.node("Abs", x * 2.0, shape=x.shape, dtype=x.dtype))
    with pytest.raises(ConformanceError, match="onnx: "):
        check_layer(Double(), lm.ArraySpec(("N", 3)))
    del double.kernels["onnx"]
    double.kernel("numpy")(lambda xp, x: 2.0 * np.minimum(x, 6.0))
    with pytest.raises(ConformanceError, match="backends: output 0: NumPy and strict, for values about 30, differ"):
        check_layer(Double(), lm.ArraySpec(("N", 3)))


def test_wrong_losses_are_caught():
    class Wrong(lm.losses.MeanSquaredError):
        def backward(self, ctx, d):
            return 2.0 * super().backward(ctx, d)

    with pytest.raises(ConformanceError, match=r"dx of input 0 .* a factor of 2"):
        check_loss(Wrong(), lm.ArraySpec(("N", 3)), lm.ArraySpec(("N", 3)))


@pytest.mark.parametrize(("j", "words"), [(0, r"\(False, True\) in .* gradient of input 1"), (1, r"\(True, False\)")])
def test_every_input_may_be_the_only_one_that_wants_a_gradient(j, words):
    class Add(lm.Layer):
        def build(self, declare, a, b):
            return a

        def forward_pass(self, ctx, a, b):
            return a + b

        def backward_pass(self, ctx, dy):
            return (dy, dy) if ctx.wants_dx[j] else (None, None)

    with pytest.raises(ConformanceError, match=f"gradient: with ctx.wants_dx = {words}"):
        check_layer(Add(), lm.ArraySpec(("N", 4)), lm.ArraySpec(("N", 4)))


class Function(lm.Layer):
    """A function of each number by name, with its slope."""

    def __init__(self, function):
        self.function = function

    def forward_pass(self, ctx, x):
        ctx.save(x)
        return FUNCTIONS[self.function][0](ctx.xp, x)

    def backward_pass(self, ctx, dy):
        return dy * FUNCTIONS[self.function][1](ctx.xp, ctx.saved[0])


FUNCTIONS = {
    "exp": (lambda xp, x: xp.exp(x), lambda xp, x: xp.exp(x)),
    "x**16": (lambda xp, x: x**16, lambda xp, x: 16.0 * x**15),
    "log": (lambda xp, x: xp.log(x), lambda xp, x: 1.0 / x),
    "floor": (lambda xp, x: xp.floor(x), lambda xp, x: 0.0 * x),
    "offset": (lambda xp, x: 1e8 + x, lambda xp, x: xp.ones_like(x)),
    "tiny": (lambda xp, x: 1e-9 * xp.tanh(x), lambda xp, x: 1e-9 * (1.0 - xp.tanh(x) ** 2)),
    "one": (lambda xp, x: xp.exp(x) / xp.exp(x), lambda xp, x: 0.0 * x),
}


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        *(("exp", {}), ("x**16", {}), ("floor", {}), ("offset", {}), ("tiny", {}), ("one", {"low": -80, "high": 80})),
        *(("log", {"low": 1, "high": 3}), ("log", {"low": 0.5}), ("log", {"low": 0.001, "high": 255})),
    ],
)
def test_sound_functions_with_limits_zero_slopes_and_steep_ones_pass(name, limits):
    check_layer(Function(name), lm.ArraySpec(("N", 4), **limits))


def test_draws_lie_within_limits():
    for limits in ({"low": 2.0, "high": 3.0}, {"low": 2.0}, {"high": -1.0}, {"high": 1.0}):
        case = Case(Specimen(Function("exp"), lm.ArraySpec(("N", 50), **limits)))
        for x in (*case.draw(20, scale=300.0), *case.constant(2, 0.0), *case.constant(2, 1.0)):
            assert limits.get("low", -np.inf) <= x.min()
            assert x.max() < limits.get("high", np.inf)


def test_outputs_of_integers_have_no_gradient_to_check():
    class Argmax(lm.Layer):
        def build(self, declare, x):
            return x.replace(shape=("N",), dtype="int64")

        def forward_pass(self, ctx, x):
            return ctx.xp.argmax(x, axis=1)

    class WithBackward(Argmax):
        def backward_pass(self, ctx, dy):
            return None

    class Top(Argmax):
        def build(self, declare, x):
            return x, super().build(declare, x)

        def forward_pass(self, ctx, x):
            return 2.0 * x, super().forward_pass(ctx, x)

        def backward_pass(self, ctx, dy, _):
            return 2.0 * dy

    for layer in (Argmax(), WithBackward()):
        verdicts = {v.law: v for v in check_layer(layer, lm.ArraySpec(("N", 4))).verdicts}
        assert (verdicts["gradient"].outcome, verdicts["purity"].outcome) == ("skipped", "holds")
        assert "no output is of floats" in verdicts["gradient"].detail
    check_layer(Top(), lm.ArraySpec(("N", 4)))


def test_layers_of_several_inputs_with_yields_and_composites_pass():
    class Blend(lm.Layer):
        """Mixes two inputs by a gate, minus the batch mean."""

        def build(self, declare, a, b):
            declare.parameter("gate", a.shape[1:], "ones")
            return a

        def forward_pass(self, ctx, a, b):
            y = a * ctx.params.gate + b * (1.0 - ctx.params.gate)
            if not ctx.training:
                return y
            n, total = yield y.shape[0], ctx.xp.sum(y, axis=0)
            ctx.save(a, b, n)
            return y - total / n

        def backward_pass(self, ctx, dy):
            xp = ctx.xp
            if not ctx.training:
                raise AssertionError("saved nothing")
            a, b, n = ctx.saved
            (total,) = yield (xp.sum(dy, axis=0),)
            d = dy - total / n
            ctx.grad(gate=xp.sum(d * (a - b), axis=0))
            return d * ctx.params.gate, d * (1.0 - ctx.params.gate)

    class Block(lm.Layer):
        def expand(self, x):
            return Dropout(0.25)(Dense(3, activation="tanh")(x))

    specs = lm.ArraySpec(("N", 4)), lm.ArraySpec(("N", 4))
    with pytest.raises(ConformanceError, match="saved nothing"):  # inference mode has a gradient too
        check_layer(Blend(), *specs)
    check_layer(Block(), specs[0])


def test_only_layers_and_losses_are_examined():
    with pytest.raises(lm.ArgumentError, match="check_layer: expected a layer, got 'dense'"):
        check_layer("dense")
    with pytest.raises(lm.ArgumentError, match="check_loss: expected a loss"):
        check_loss(Dense(3), *[lm.ArraySpec(("N", 3))] * 2)
    with pytest.raises(lm.ArgumentError, match="gradient='surrogate' needs a reason"):
        Specimen(Dense(3), lm.ArraySpec(("N", 3)), gradient="surrogate")
    skipped = check_specimen(Specimen(Dense(3), lm.ArraySpec(("N", 3)), gradient="surrogate", reason="for show"))
    assert str(skipped).splitlines()[1].split()[:2] == ["skipped", "gradient"]
