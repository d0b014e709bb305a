"""The laws: every specimen obeys them, and so does whatever is right in an unusual way."""

import contextlib

import numpy as np
import pytest

import lamella as lm
from lamella import registry
from lamella.testing import ConformanceError, Specimen, check_layer, check_loss, check_specimen
from lamella.testing.case import Case
from lamella_layers import Activation, Dense, Dropout

SPECIMENS = [one for one in registry.specimens() if not isinstance(one.subject, lm.optimizers.Optimizer)]
LAWS = ["gradient", "purity", "finite", "slicing", "backends", "onnx", "round trip", "shapes"]


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda s: repr(s.subject))
def test_every_specimen_obeys_every_law(specimen):
    report = check_specimen(specimen)
    assert [v.law for v in report.verdicts] == LAWS
    examined = {v.law for v in report.verdicts if v.outcome == "holds"}
    if specimen.gradient == "exact" and any(spec.is_float for spec in specimen.inputs):
        assert "gradient" in examined
    assert set(LAWS) - {"gradient"} <= examined


ONE_OF_EACH = {type(s.subject): s for s in SPECIMENS if type(s.subject).__module__.startswith("lamella_layers.")}
ANYTHING = (
    "x", "", b"x", 1.5, -1, 0, 1, True, None, 1e300, float("nan"), 2**70, 1j, object(), np.int64(2), np.float32(0.5),
    np.array([1, 2]), (), (1, 2), (1.5, 2), ("a", "b"), (None, None), ((1,), 2), ((1, 2), (3, 4)), [1, 2], {}, {"a": 1},
)  # fmt: skip


@pytest.mark.parametrize("specimen", ONE_OF_EACH.values(), ids=[cls.__name__ for cls in ONE_OF_EACH])
def test_whatever_an_argument_is_there_is_a_layer_or_one_clear_error(specimen):
    for name, right in specimen.subject.config().items():
        for value in ANYTHING:
            with contextlib.suppress(lm.LamellaError):
                layer = specimen.subject.replace(**{name: value})
                assert not isinstance(right, bool) or isinstance(value, bool), f"{name} is a flag, not {value!r}"
                nodes = [lm.Input(x.shape[1:], x.dtype, low=x.low, high=x.high) for x in specimen.inputs]
                lm.Model(nodes, layer(*nodes))
        if type(right) is int:
            assert specimen.subject.replace(**{name: np.int32(right)}) == specimen.subject


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("specimen", ONE_OF_EACH.values(), ids=[cls.__name__ for cls in ONE_OF_EACH])
def test_a_batch_without_rows_is_predicted_and_not_learnt_from(specimen, dtype):
    case = Case(specimen)
    model, x = case.model(dtype), case.cast(dtype, case.draw(2))
    some, none = (model.predict(tuple(a[:rows] for a in x)) for rows in (2, 0))
    some, none = (y if isinstance(y, tuple) else (y,) for y in (some, none))
    assert [(0, *y.shape[1:]) for y in some] == [y.shape for y in none]
    assert [y.dtype for y in some] == [y.dtype for y in none] == [spec.dtype for spec in model.output_specs]
    with pytest.raises(lm.DataError, match="there are no rows"):
        model.gradients(tuple(a[:0] for a in x), none, loss="mean_squared_error")


@pytest.mark.parametrize("kind", ["layers", "losses", "activations"])
def test_everything_registered_has_a_specimen(kind):
    shown = {type(s.subject) for s in SPECIMENS}
    functions = [s.subject.function for s in SPECIMENS if isinstance(s.subject, Activation)]
    for entry in registry.entries(kind):
        if entry.plugin.distribution == registry.SCRIPT:  # of an example in a docstring
            continue
        assert entry.object in (functions if kind == "activations" else shown), entry.qualified
    assert all(s.docs.startswith("https://") for s in SPECIMENS)


def test_wrong_losses_are_caught():
    class Wrong(lm.losses.MeanSquaredError):
        def backward(self, ctx, d):
            return 2.0 * super().backward(ctx, d)

    with pytest.raises(ConformanceError, match=r"dx of input 0 .* a factor of 2"):
        check_loss(Wrong(), lm.ArraySpec(("N", 3)), lm.ArraySpec(("N", 3)))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("writes into the target", "purity: input 1 was written to"),
        ("writes into the prediction", "purity: input 0 was written to"),
        ("changes what it saved", "purity: saved array 0 was changed after ctx.save, by backward_pass"),
        ("divides by the target", "finite: output 0 for zeros in input 1, in training mode: (nan|inf) at"),
        ("is the root of a square", "finite: dx of input 0 for equal inputs, in training mode: nan at"),
    ],
)
def test_losses_that_write_or_divide_by_0_are_caught(fault, words):
    class Careless(lm.losses.Loss):
        def forward(self, ctx, prediction, target):
            if fault == "writes into the target":
                target -= 0.5
            if fault == "writes into the prediction":
                prediction *= 0.5
            r = prediction - target
            r = r / target if fault == "divides by the target" else r
            n = ctx.xp.sqrt(ctx.xp.sum(r * r, axis=1))
            ctx.save(r, n, target)
            return n if fault == "is the root of a square" else ctx.xp.sum(r * r, axis=1)

        def backward(self, ctx, d):
            r, n, target = ctx.saved
            if fault == "changes what it saved":
                r *= 2.0
                return r * d[:, None]
            r = r / target if fault == "divides by the target" else r
            return (r / n[:, None] if fault == "is the root of a square" else 2.0 * r) * d[:, None]

    with pytest.raises(ConformanceError, match=words):
        check_loss(Careless(), lm.ArraySpec(("N", 3)), lm.ArraySpec(("N", 3)))


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
    "rectifier": (lambda xp, x: xp.maximum(x, 0.0), lambda xp, x: xp.where(x > 0.0, xp.ones_like(x), 0.0 * x)),
    "fast": (lambda xp, x: xp.sin(804.0 * x), lambda xp, x: 804.0 * xp.cos(804.0 * x)),
    "tiny": (lambda xp, x: 1e-9 * xp.tanh(x), lambda xp, x: 1e-9 * (1.0 - xp.tanh(x) ** 2)),
    "one": (lambda xp, x: xp.exp(x) / xp.exp(x), lambda xp, x: 0.0 * x),
    "reciprocal": (lambda xp, x: 1.0 / x, lambda xp, x: -1.0 / (x * x)),
    "wrong": (lambda xp, x: xp.sin(x), lambda xp, x: 1.05 * xp.cos(x)),
}


def test_a_gradient_that_is_wrong_everywhere_is_never_called_right_in_one_mode():
    for seed in range(6):
        with pytest.raises(ConformanceError, match="gradient: dx of input 0 in training mode, batch of") as error:
            check_layer(Function("wrong"), lm.ArraySpec(("N", 3)), seed=seed)
        assert "right in" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        *(("exp", {}), ("x**16", {}), ("floor", {}), ("offset", {}), ("tiny", {}), ("one", {"low": -80, "high": 80})),
        *(("log", {"low": 1, "high": 3}), ("log", {"low": 0.5}), ("log", {"low": 0.001, "high": 255})),
        *(("rectifier", {"low": -1e-6, "high": 1e-6}), ("fast", {"low": -1, "high": 1})),
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
    with pytest.raises(lm.ArgumentError, match=r"expected a layer, got the class Dense; did you mean Dense\(\)\?"):
        check_layer(Dense, lm.ArraySpec(("N", 3)))
    with pytest.raises(lm.ArgumentError, match="check_loss: expected a loss"):
        check_loss(Dense(3), *[lm.ArraySpec(("N", 3))] * 2)
    with pytest.raises(lm.ArgumentError, match="gradient='surrogate' needs a reason"):
        Specimen(Dense(3), lm.ArraySpec(("N", 3)), gradient="surrogate")
    skipped = check_specimen(Specimen(Dense(3), lm.ArraySpec(("N", 3)), gradient="surrogate", reason="for show"))
    assert (skipped.verdicts[0].law, skipped.verdicts[0].outcome) == ("gradient", "skipped")
    assert "for show" in str(skipped)


def test_results_that_are_not_finite_are_declared_or_kept_out_of_the_range():
    with pytest.raises(ConformanceError, match="breaks 1 of 8 laws\n  finite: output 0 for zeros"):
        check_layer(Function("reciprocal"), lm.ArraySpec(("N", 3)))
    check_layer(Function("reciprocal"), lm.ArraySpec(("N", 3), low=0.01, high=9.0))
    why = "1 / 0 is infinite"
    report = check_specimen(Specimen(Function("reciprocal"), lm.ArraySpec(("N", 3)), not_finite=why))
    verdicts = {verdict.law: verdict for verdict in report.verdicts}
    assert (verdicts["finite"].outcome, verdicts["finite"].detail) == ("skipped", f"declared not finite: {why}")
    assert [verdict.law for verdict in report.verdicts if verdict.outcome != "holds"] == ["finite"]
    with pytest.raises(lm.ArgumentError, match="Specimen: not_finite: expected words, got True"):
        Specimen(Function("reciprocal"), lm.ArraySpec(("N", 3)), not_finite=True)


def test_an_error_in_build_says_that_build_failed():
    class Unfinished(lm.Layer):
        def build(self, declare, x):
            return x.shpe if len(x.shape) == 2 else x.replace(shape=("N", int("three")))

        def forward_pass(self, ctx, x):
            return x

    words = r"Unfinished\(\) on \(N, 3\) float32: build failed: AttributeError: .*shpe"
    with pytest.raises(lm.GraphError, match=words):
        check_layer(Unfinished(), lm.ArraySpec(("N", 3)))
    with pytest.raises(lm.GraphError, match="build failed: ValueError: invalid literal"):
        check_layer(Unfinished(), lm.ArraySpec(("N", 3, 2)))
