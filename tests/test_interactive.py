"""What editors, IPython and help() find: names, keys, signatures."""

from __future__ import annotations

import inspect
import pydoc
import re
import types

import pytest

import lamella as lm
import lamella_layers
import lamella_onnx
from lamella_layers import Dense

MODULES = [lm, lamella_layers, lamella_onnx] + [
    getattr(lm, name) for name in lm.__all__ if isinstance(getattr(lm, name), types.ModuleType)
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_completion_finds_the_public_names_of_a_module_and_nothing_else(module):
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_completion_finds_names_of_arrays_and_of_what_was_measured():
    model = lm.Sequential([Dense(3)], input_shape=2)
    history = model.fit([[1, 2]], [[1, 2, 3]], loss="mean_squared_error", optimizer="sgd")
    assert model.parameters._ipython_key_completions_() == ["dense_1.kernel", "dense_1.bias"]
    assert history._ipython_key_completions_() == ["loss"]


def test_ipython_completes_names_of_arrays():
    completer = pytest.importorskip("IPython.core.completer")
    model = lm.Sequential([Dense(3)], input_shape=2)
    history = model.fit([[1, 2]], [[1, 2, 3]], loss="mean_squared_error", optimizer="sgd")
    shell = completer.IPCompleter(namespace={"model": model, "arrays": model.parameters, "history": history})

    def found(text):
        with completer.provisionalcompleter():
            return {one.text for one in shell.completions(text, len(text))}

    assert found('arrays["') == {"dense_1.kernel", "dense_1.bias"}
    assert found('history["') == {"loss"}
    shell.evaluation = "unsafe"  # as `%config Completer.evaluation = "unsafe"` does
    assert found('model.parameters["') == {"dense_1.kernel", "dense_1.bias"}


def test_completion_finds_what_a_model_can():
    found = {name for name in dir(lm.Sequential([Dense(3)], input_shape=2)) if not name.startswith("_")}
    assert {"fit", "evaluate", "predict", "parameters", "summary", "save", "freeze", "to", "history"} < found
    assert not {"assign", "graph", "values", "infer", "prepared_steps"} & found  # the engine's


def test_the_package_itself_holds_no_other_names_without_an_underscore():
    """Editors that do not call ``dir`` offer all that a module imports. Parts of the package they offer anyway."""
    modules = {name for name, value in vars(lm).items() if isinstance(value, types.ModuleType)}
    assert {name for name in vars(lm) if not name.startswith("_")} - modules == set(lm.__all__) - modules - {
        "__version__"
    }


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lm.losses, "as_column"),
        (lm.losses, "as_predictions"),
        (lm.losses, "spec_of"),
        (lm.schedules, "number_or_schedule"),
        (lm.initializers, "INITIALIZERS"),
    ],
)
def test_what_the_engine_needs_is_not_offered(module, name):
    assert name not in module.__all__


def test_classes_have_the_signature_of_their_constructor():
    for cls in [*lm.layers().values(), lm.optimizers.Adam, lm.losses.Huber, lm.schedules.Cosine, lm.metrics.Accuracy]:
        own = cls.__init__ is not object.__init__
        expected = list(inspect.signature(cls.__init__).parameters.values())[1:] if own else []
        assert list(inspect.signature(cls).parameters.values()) == expected
    told = re.sub(r"[\s|]+", "", pydoc.plain(pydoc.render_doc(Dense)))  # from Python 3.13 on in several lines
    assert "Dense(units:'int',*,use_bias:'bool'=True," in told


def test_a_layer_has_the_signature_of_a_call_on_nodes():
    assert str(inspect.signature(Dense(3))).startswith("(*nodes: 'Node', name: 'str | None' = None)")


def test_methods_of_a_model_have_the_arguments_that_they_take():
    assert list(inspect.signature(lm.Sequential([Dense(3)], input_shape=2).fit).parameters)[:4] == [
        "x",
        "y",
        "loss",
        "optimizer",
    ]


def test_primitives_are_called_with_ctx():
    assert str(inspect.signature(lm.primitives.softmax)) == "(ctx: 'Any', x: 'Any', *, axis: 'int' = -1) -> 'Any'"
    assert list(inspect.signature(lm.primitive(lambda xp, a, b: a)).parameters) == ["ctx", "a", "b"]


def test_a_plugin_whose_dir_leaves_hooks_out_is_understood():
    from lamella.registry import hooks

    module = types.ModuleType("with_own_dir")
    module.__dir__ = lambda: ["Dense"]  # type: ignore[method-assign]
    module.lamella_layers = lm.hookimpl(lambda: {"own": Dense})  # type: ignore[attr-defined]
    assert hooks(module) == ["lamella_layers"]
