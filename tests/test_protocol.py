"""What a layer object is: frozen configuration, compared by value, shared by identity."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest

import lamella as lm
from lamella_layers import Conv2D, Dense, Dropout


class Scale(lm.Layer):
    def __init__(self, factor, *, offsets=(0.0,)):
        self.factor = factor
        self.offsets = offsets

    def forward_pass(self, ctx, x):
        return x * self.factor

    def backward_pass(self, ctx, dy):
        return dy * self.factor


def test_configuration_is_the_bound_arguments():
    layer = Scale(np.float32(2.0), offsets=[1, np.array([2.0, 3.0])])
    assert layer.config() == {"factor": 2.0, "offsets": (1, (2.0, 3.0))}
    assert type(layer.factor) is float
    assert repr(layer) == "Scale(2.0, offsets=(1, (2.0, 3.0)))"
    assert repr(Scale(3)) == "Scale(3)"


def test_layers_are_frozen_and_compare_by_configuration():
    layer = Dense(10)
    assert layer == Dense(10, use_bias=True)
    assert layer != Dense(11)
    assert layer != layer.frozen()
    assert layer != layer.named("head")
    assert len({layer, Dense(10)}) == 1
    with pytest.raises(AttributeError, match=r"Dense.units can't be set: the object is configuration"):
        layer.units = 3
    with pytest.raises(AttributeError, match="can't be deleted"):
        del layer.units


def test_named_and_frozen_return_copies():
    layer = Dense(10)
    head = layer.named("head").frozen()
    assert (layer.name, layer.trainable) == (None, True)
    assert (head.name, head.trainable) == ("head", False)
    assert repr(head) == "Dense(10).named('head').frozen()"
    assert head.replace(units=3).units == 3
    with pytest.raises(lm.ArgumentError, match="letters, digits"):
        layer.named("a/b")


@pytest.mark.parametrize("layer", [Dense(3, activation="relu").named("a"), Conv2D(4, (3, 1)), Dropout(0.5).frozen()])
def test_copy_and_pickle_keep_everything(layer):
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin == layer
        assert twin is not layer


def test_copy_keeps_sharing():
    shared = Dense(4)
    first, second = copy.deepcopy([shared, shared])
    assert first is second
    first, second = pickle.loads(pickle.dumps([shared, shared]))
    assert first is second


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Dense(), TypeError, "missing a required argument: 'units'"),
        (lambda: Dense(units=3, use_bais=True), TypeError, "Did you mean 'use_bias'"),
        (lambda: Dense(3, name="a"), TypeError, r"A name is given by .named"),
        (lambda: lm.Dense, AttributeError, "no attribute 'Dense'; from lamella_layers import Dense"),
        (lambda: Dense(3, activation="ReLU"), lm.RegistryError, "Did you mean 'relu'"),
        (lambda: Dense(-1), lm.ArgumentError, "Dense: units: expected a positive int, got -1"),
        (lambda: Dense(2.5), lm.ArgumentError, "Dense: units: expected a positive int, got 2.5"),
        (lambda: Dropout(1.0), lm.ArgumentError, r"Dropout: rate: expected a fraction in \[0, 1\), got 1.0"),
        (lambda: Conv2D(3, "x"), lm.ArgumentError, "Conv2D: kernel_size: expected an int or two ints"),
        (lambda: lm.ArraySpec(("N", -1)), lm.ArgumentError, r"shape\[1\] is -1"),
        (lambda: lm.ArraySpec(("N",), "float23"), lm.ArgumentError, "Did you mean 'float32'"),
    ],
)
def test_bad_arguments_say_where_expected_and_got(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_constructors_that_cannot_be_saved_are_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"takes \*sizes"):

        class Many(lm.Layer):
            def __init__(self, *sizes):
                self.sizes = sizes

    with pytest.raises(TypeError, match="takes a by position only"):

        class Position(lm.Layer):
            def __init__(self, a, /):
                self.a = a

    with pytest.raises(TypeError, match="takes 'expand', which would hide"):

        class Hides(lm.Layer):
            def __init__(self, expand):
                self.factor = expand

    with pytest.raises(TypeError, match=r"takes 'name'.*named"):

        class Named(lm.Layer):
            def __init__(self, name):
                self.label = name


def test_memory_order_changes_nothing_that_a_layer_sees():
    class Kernel(lm.Layer):
        def __init__(self, memory):
            self.memory = memory

        def build(self, declare, x):
            declare.parameter("kernel", (2, 3, 4), "glorot_uniform", fan_in=3, fan_out=4, memory=self.memory)
            return x

        def forward_pass(self, ctx, x):
            strides.append(ctx.params.kernel.strides)
            assert ctx.params.kernel.shape == (2, 3, 4)
            assert not ctx.params.kernel.flags.writeable
            return x

    strides = []
    models = [lm.Sequential([Kernel(memory)], input_shape=(1,)) for memory in (None, (2, 0, 1))]
    for model in models:
        model.predict(np.zeros((1, 1)))
    assert strides == [(48, 16, 4), (12, 4, 24)]
    np.testing.assert_array_equal(*(model.parameters["kernel_1.kernel"] for model in models))


def test_signatures_are_those_of_constructors():
    assert list(inspect.signature(Dense).parameters)[:3] == ["units", "use_bias", "activation"]

    @dataclasses.dataclass(eq=False, repr=False)
    class Shift(lm.Layer):
        by: float = 1.0

        def forward_pass(self, ctx, x):
            return x + self.by

    assert Shift(2.0).config() == {"by": 2.0}
    assert Shift(by=3.0) != Shift()


@pytest.mark.parametrize("wrong", [{"unit_axis": 2}, {"unit_axis": 1, "groups": 3}])
def test_unit_axis_and_groups_must_fit_the_shape(wrong):
    with pytest.raises(lm.GraphError, match=r"shape \(4, 3\); expected unit_axis="):
        lm.Declare().parameter("kernel", (4, 3), "zeros", **wrong)


@pytest.mark.parametrize("wrong", [{"unit_axis": -1}, {"unit_axis": "x"}, {"groups": 0}, {"groups": "x"}])
def test_unit_axis_and_groups_are_whole_numbers(wrong):
    with pytest.raises(lm.ArgumentError, match=next(iter(wrong))):
        lm.Declare().parameter("kernel", (4, 3), "zeros", **wrong)
