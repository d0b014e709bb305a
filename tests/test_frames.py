"""Tables of pandas and polars in place of arrays: everywhere, with any index, and with words where they don't do."""

from __future__ import annotations

import decimal
import importlib
import re
from typing import Any

import numpy as np
import pytest

import lamella as lm
import lamella_onnx
from lamella_layers import Concatenate, Dense, Embedding, Flatten, Normalization, Reshape

N = 40
RNG = np.random.default_rng(0)
COLUMNS: dict[str, np.ndarray] = {
    "age": RNG.integers(18, 80, N),
    "annual income": RNG.normal(size=N),
    "member": RNG.random(N) > 0.5,
}
X = np.stack([column.astype("float64") for column in COLUMNS.values()], axis=1)
LABELS = RNG.integers(0, 3, N)
TASK: dict[str, Any] = {"loss": "softmax_cross_entropy", "metrics": "accuracy"}


@pytest.fixture(params=["pandas", "polars"])
def library(request):
    """pandas or polars."""
    return pytest.importorskip(request.param, reason="needs lamella[test]")


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas", reason="needs lamella[test]")


@pytest.fixture
def polars():
    return pytest.importorskip("polars", reason="needs lamella[test]")


@pytest.fixture
def frame(library):
    return library.DataFrame(COLUMNS)


def classifier(seed: int = 0) -> lm.Sequential:
    return lm.Sequential([Dense(3)], input_shape=3, seed=seed)


def named() -> lm.Model:
    """A model whose inputs are called like columns."""
    nodes = [lm.Input(1, name=name) for name in COLUMNS]
    return lm.Model(nodes, Dense(3)(Concatenate()(*nodes)))


def test_tables_of_bools_and_numbers_are_arrays_everywhere(library, frame):
    labels = library.Series("label", LABELS) if library.__name__ == "polars" else library.Series(LABELS)
    weights = frame["age"]
    of_tables, of_arrays = classifier(), classifier()
    histories = [
        model.fit(
            x, y, **TASK, optimizer="sgd", epochs=2, sample_weight=w, validation_data=(x, y, w), class_weight={0: 2.0}
        ).history
        for model, x, y, w in (
            (of_tables, frame, labels, weights),
            (of_arrays, X, LABELS, COLUMNS["age"]),
        )
    ]
    assert histories[0] == histories[1]
    np.testing.assert_array_equal(of_tables.predict(frame), of_arrays.predict(X))
    np.testing.assert_array_equal(of_tables.predict(frame, batch_size=7), of_arrays.predict(X, batch_size=7))
    assert of_tables.evaluate(frame, labels, **TASK) == of_arrays.evaluate(X, LABELS, **TASK)
    pairs = [
        model.gradients(x, y, loss="softmax_cross_entropy")
        for model, x, y in ((of_tables, frame, labels), (of_arrays, X, LABELS))
    ]
    assert pairs[0][0] == pairs[1][0]
    np.testing.assert_array_equal(pairs[0][2], pairs[1][2])
    assert of_tables.train_on_batch(frame, labels, loss=TASK["loss"], optimizer="sgd") == of_arrays.train_on_batch(
        X, LABELS, loss=TASK["loss"], optimizer="sgd"
    )


def test_batches_may_be_tables(library, frame):
    batches = [(frame[start : start + 10], LABELS[start : start + 10]) for start in range(0, N, 10)]
    of_tables, of_arrays = classifier(), classifier()
    of_tables.fit(batches, **TASK, optimizer="sgd", validation_data=batches)
    of_arrays.fit([(X[start : start + 10], y) for start, (_, y) in zip(range(0, N, 10), batches, strict=True)], **TASK,
                  optimizer="sgd", validation_data=(X, LABELS))  # fmt: skip
    np.testing.assert_array_equal(of_tables.predict(X), of_arrays.predict(X))


def test_a_table_of_targets(library):
    targets = RNG.normal(size=(N, 2))
    frame = library.DataFrame({"size": targets[:, 0], "price": targets[:, 1]})
    model = lm.Sequential([Dense(2)], input_shape=3)
    given = [model.evaluate(X, y, loss="mean_squared_error", metrics="mean_absolute_error") for y in (frame, targets)]
    assert given[0] == given[1]


def test_columns_are_inputs_and_targets_by_name(library, frame, tmp_path):
    x = lm.Input(3, name="x")
    model = lm.Model(x, [Reshape(()).named(name)(Dense(1)(x)) for name in ("size", "price")])
    y = library.DataFrame({"price": np.ones(N), "size": np.zeros(N)})
    spread = {name: np.full(N, value) for name, value in (("size", 0.0), ("price", 1.0))}
    assert model.evaluate(X, y[["size", "price"]], loss="mean_squared_error") == model.evaluate(
        X, spread, loss="mean_squared_error"
    )

    model = named()
    expected = model.predict(tuple(X[:, k : k + 1] for k in range(3)))
    for table in (frame, frame[["member", "age", "annual income"]], {name: frame[name] for name in COLUMNS}):
        np.testing.assert_array_equal(model.predict(table), expected)
    model.fit(frame, LABELS, **TASK, optimizer="sgd")

    model.save(tmp_path / "model.lamella")
    np.testing.assert_array_equal(lm.load(tmp_path / "model.lamella").predict(frame), model.predict(frame))
    lamella_onnx.export(model, tmp_path / "model.onnx", samples=frame)
    assert lamella_onnx.verify(tmp_path / "model.onnx", model=model).agrees
    lamella_onnx.export_training_step(model, tmp_path / "step", loss=TASK["loss"], optimizer="sgd")
    assert lamella_onnx.TrainingSession(tmp_path / "step").step(frame, LABELS) > 0.0


def test_columns_go_into_an_embedding_and_a_normalization(library, frame):
    codes = library.DataFrame({"city": LABELS})["city"]
    numbers, city = lm.Input(2, name="numbers"), lm.Input(1, "int64", name="city", low=0, high=3)
    some = frame[["age", "annual income"]]
    joined = Concatenate()(Normalization().adapted(some)(numbers), Flatten()(Embedding(3, 2)(city)))
    model = lm.Model([numbers, city], Dense(3)(joined))
    given = [{"numbers": some, "city": codes}, {"numbers": X[:, :2], "city": LABELS[:, None]}]
    np.testing.assert_array_equal(model.predict(given[0]), model.predict(given[1]))
    assert Normalization().adapted(frame["age"]) == Normalization().adapted(X[:, :1])


def test_a_column_is_one_number_for_each_sample(library, frame):
    column, expected = frame["age"], X[:, :1]
    for model in (
        lm.Sequential([Dense(2)], input_shape=1),
        lm.Sequential([Reshape((1,)), Dense(2)], input_shape=()),
    ):
        given = expected if model.input_specs[0].shape == ("N", 1) else expected[:, 0]
        np.testing.assert_array_equal(model.predict(column), model.predict(given))


def test_the_index_does_not_matter(pandas):
    frame = pandas.DataFrame(COLUMNS, index=np.arange(N)[::-1])
    y = pandas.Series(LABELS, index=[f"row {k}" for k in range(N)])
    assert classifier().evaluate(frame, y, **TASK) == classifier().evaluate(X, LABELS, **TASK)


def test_the_same_index_in_different_orders_is_told(pandas):
    frame, labels = pandas.DataFrame(COLUMNS), pandas.Series(LABELS)
    shuffled = frame.sample(frac=1.0, random_state=0)
    task = {"loss": "softmax_cross_entropy"}
    words = (
        r"x and y have the same index in different orders, and rows go by position. Likely fix: y.loc\[x.index\], or"
    )
    for call in (
        lambda: classifier().fit(shuffled, labels, **task, optimizer="sgd"),
        lambda: classifier().evaluate(shuffled, labels, **task),
        lambda: classifier().fit(frame, labels, **task, optimizer="sgd", validation_data=(shuffled, labels)),
        lambda: named().evaluate({name: shuffled[name] for name in COLUMNS}, labels, **task),
    ):
        with pytest.warns(lm.MistakeWarning, match=words) as caught:
            call()
        assert [one.filename for one in caught] == [__file__]
    with pytest.warns(lm.MistakeWarning, match=r"x and sample_weight have .* fix: sample_weight.loc\[x.index\], or"):
        classifier().evaluate(frame, LABELS, **task, sample_weight=pandas.Series(np.ones(N), shuffled.index))
    aligned = classifier().evaluate(shuffled, labels.loc[shuffled.index], **task)
    assert aligned == pytest.approx(classifier().evaluate(frame, labels, **task))
    for other in (labels.to_numpy(), labels.set_axis(np.arange(N) + N), labels.set_axis([0] * N)):
        classifier().evaluate(shuffled, other, **task)


def test_labels_of_columns_may_be_anything(pandas):
    table = pandas.DataFrame(X, columns=pandas.MultiIndex.from_tuples([("a", 1), ("a", 2), (None, 3)]))
    table = table.astype({("a", 1): "float32"})
    np.testing.assert_array_equal(classifier().predict(table), classifier().predict(X))
    assert "('a', 2)" in said(lm.Sequential([Dense(1)], input_shape=2).predict, table)
    twice = pandas.DataFrame(COLUMNS).set_axis(["a", "a", "b"], axis=1)
    np.testing.assert_array_equal(classifier().predict(twice), classifier().predict(X))


PANDAS = ["Int64", "Int8", "Float64", "Float32", "boolean", "uint8", "float16", "Sparse[float64]"]
ARROW: list[Any] = ["int64[pyarrow]", "double[pyarrow]", "bool[pyarrow]", "decimal"]
POLARS = ["Int8", "UInt64", "Float32", "Decimal", "Boolean"]


@pytest.mark.parametrize("dtype", PANDAS + ARROW)
def test_dtypes_of_pandas(pandas, dtype):
    if dtype in ARROW:
        pyarrow = pytest.importorskip("pyarrow", reason="these dtypes of pandas are those of pyarrow")
        dtype = pandas.ArrowDtype(pyarrow.decimal128(9, 1)) if dtype == "decimal" else dtype
    column = pandas.Series([0, 1, 1]).astype("float64").astype(dtype)
    for table in (pandas.DataFrame({"a": column}), pandas.DataFrame({"a": column, "b": column})):
        model = lm.Sequential([Dense(2)], input_shape=table.shape[1])
        np.testing.assert_array_equal(model.predict(table), model.predict(np.array([[0, 1, 1]] * table.shape[1]).T))


@pytest.mark.parametrize("dtype", POLARS)
def test_dtypes_of_polars(polars, dtype):
    values = [False, True, True] if dtype == "Boolean" else [0, 1, 1]
    values = [decimal.Decimal(value) for value in values] if dtype == "Decimal" else values
    column = polars.Series("a", values, dtype=getattr(polars, dtype)(9, 2) if dtype == "Decimal" else None)
    column = column if dtype in ("Decimal", "Boolean") else column.cast(getattr(polars, dtype))
    for table in (polars.DataFrame({"a": column}), polars.DataFrame({"a": column, "b": column})):
        model = lm.Sequential([Dense(2)], input_shape=table.shape[1])
        np.testing.assert_array_equal(model.predict(table), model.predict(np.array([[0, 1, 1]] * table.shape[1]).T))


def test_a_table_of_one_dtype_is_not_copied_column_by_column(pandas, monkeypatch):
    frames = importlib.import_module("lamella.protocol.frames")
    monkeypatch.setattr(frames, "_numbers", None)
    table = pandas.DataFrame(X)
    assert np.shares_memory(frames.array_of(table, "x"), table.to_numpy())


def said(call, *args, **options) -> str:
    with pytest.raises(lm.DataError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_missing_values_are_told_with_their_column(library, frame):
    gap = [None if k in (3, 7) else value for k, value in enumerate(COLUMNS["annual income"].tolist())]
    table = library.DataFrame({**COLUMNS, "annual income": gap})
    fill = "fillna" if library.__name__ == "pandas" else "fill_null"
    told = (
        "got a DataFrame whose column 'annual income' has 2 missing values, the first in row 3. Likely fix: "
        f"frame['annual income'].{fill}(...), or leave such rows out of all data"
    )
    assert said(classifier().predict, table) == f"input 'input_1': expected (N, 3) float32, {told}"
    assert "'annual income' that has 2 missing" in said(named().predict, table)
    assert said(classifier().fit, frame, LABELS, **TASK, optimizer="sgd", validation_data=(table, LABELS)) == (
        f"validation_data: input 'input_1': expected (N, 3) float32, {told}"
    )
    assert "'annual income' that has 2 missing" in said(
        classifier().evaluate, frame, LABELS, **TASK, sample_weight=table["annual income"]
    )
    alone = table[["annual income"]]
    assert "has 2 missing values" in said(lm.Sequential([Dense(1)], input_shape=1).predict, alone)


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "Float64", "int64[pyarrow]"])
def test_missing_values_of_pandas_own_dtypes(pandas, dtype):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow", reason="these dtypes of pandas are those of pyarrow")
    table = pandas.DataFrame({"a": pandas.Series([1, None, 0]).astype(dtype)})
    assert "column 'a' has 1 missing value, the first in row 1" in said(
        lm.Sequential([Dense(1)], input_shape=1).predict, table
    )


def test_what_polars_holds_for_no_number_is_told(polars):
    model = lm.Sequential([Dense(1)], input_shape=1)
    told = said(model.predict, polars.DataFrame({"a": [0.0, float("nan")]}))
    assert "column 'a' has 1 NaN value, the first in row 1. Likely fix: frame['a'].fill_nan(...)" in told
    assert "column 'a' has 2 missing values" in said(model.predict, polars.DataFrame({"a": [None, None]}))
    assert "got a LazyFrame, which has no rows yet. Likely fix: frame.collect()" in said(
        model.predict, polars.LazyFrame({"a": [1.0]})
    )


@pytest.mark.parametrize(
    ("values", "dtype", "told"),
    [
        (["a", "b"], "category", "holds categories. Likely fix: pd.get_dummies(frame.astype({'a'"),
        (["a", "b"], "str", "holds text. Likely fix: pd.get_dummies"),
        (["a", "b"], "object", "holds text. Likely fix: pd.get_dummies"),
        (["a", "b"], "string", "an Embedding, frame['a'].astype(pd.CategoricalDtype(kinds)).cat.codes"),
        (["2020-01-01"] * 2, "datetime64[ns]", "holds dates. Likely fix: numbers made of them, such as frame['a'].dt."),
        (["2020-01-01"] * 2, "datetime64[ns, UTC]", "holds dates"),
        ([1, 2], "timedelta64[ns]", "holds durations. Likely fix: frame['a'].dt.total_seconds()"),
        ([1, 2], "object", "holds values of dtype object. Likely fix: pd.to_numeric(frame['a'])"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_what_to_do(pandas, values, dtype, told):
    table = pandas.DataFrame({"a": pandas.Series(values).astype(dtype), "b": [1.0, 2.0]})
    assert re.search(re.escape(told), said(lm.Sequential([Dense(1)], input_shape=2).predict, table))


def test_what_is_no_number_in_polars_is_refused_with_what_to_do(polars):
    text = polars.Series("a", ["a", "b"])
    model = lm.Sequential([Dense(1)], input_shape=1)
    for column, told in (
        (text, "holds text. Likely fix: frame.with_columns((pl.col('a') == kind)"),
        (text.cast(polars.Categorical), "holds categories. Likely fix: frame.with_columns("),
        (text.cast(polars.Enum(["a", "b"])), "frame['a'].cast(pl.Enum(kinds)).to_physical()"),
        (polars.Series("a", [1, 2]).cast(polars.Date), "holds dates. Likely fix: numbers made of them, such as"),
        (polars.Series("a", [1, 2]).cast(polars.Duration), "frame['a'].dt.total_seconds()"),
        (polars.Series("a", [[1, 2], [3, 4]]), "holds values of dtype List(Int64). Likely fix: numbers made of them"),
        (polars.Series("a", [{"b": 1}]), "holds values of dtype Struct"),
    ):
        assert told in said(model.predict, polars.DataFrame({"a": column}))


KINDS = re.compile(r"where kinds = (.*?) of the training data, for new rows too")


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # of pandas 3, for a category that is unknown
@pytest.mark.parametrize("fix", ["columns", "codes", "series"])
def test_what_errors_say_to_do_does_so_for_one_new_row_too(library, fix):
    """The fixes for categories, run as the errors write them; a new row has the codes of training, not its own."""
    pd = pl = library  # as the fixes call them
    frame = library.DataFrame({"city": ["Rome", "Oslo", "Bern", "Rome"], "age": [1.0, 2.0, 3.0, 4.0]})
    row = library.DataFrame({"city": ["Oslo"], "age": [5.0]})
    series, new = frame["city"], {"frame": row, "series": row["city"]}
    if fix == "series":
        told = said(lm.Sequential([Dense(1)], input_shape=1).predict, series)
        code = re.search(r"Embedding: (.*), where kinds", told)[1]
    else:
        told = said(lm.Sequential([Dense(1)], input_shape=2).predict, frame)
        code = re.search(r"Likely fix: (.*), where" if fix == "columns" else "an Embedding, (.*)", told)[1]
    names = {**locals(), "kinds": eval(KINDS.search(told)[1])}
    learned, one = eval(code, {**names}), eval(code, {**names, **new})
    if fix == "columns":
        model = lm.Sequential([Dense(2)], input_shape=4)
        assert model.predict(learned).shape == (4, 2)
        assert list(one.columns) == list(learned.columns)
        assert [one[f"city_{kind}"][0] for kind in ("Rome", "Oslo", "Bern")] == [False, True, False]
        return
    assert one[0] == learned[1] == names["kinds"].index("Oslo")
    model = lm.Sequential([Embedding(3, 3), Flatten()], input_shape=(1,), input_dtype="int64")
    np.testing.assert_array_equal(model.predict(one), model.predict(learned)[1:2])
    assert lm.Sequential([Dense(3)], input_shape=1).evaluate(frame["age"], learned, **TASK)["loss"] > 0.0
    if library.__name__ == "pandas":  # polars raises itself
        unknown = eval(code, {**names, "frame": row.assign(city="Ulm"), "series": library.Series(["Ulm"])})
        with pytest.raises(lm.LayerError, match="expected indices from 0 to 2, got -1 to -1"):
            model.predict(unknown)
        bounded = lm.Input(1, "int64", low=0, high=3)
        with pytest.raises(lm.DataError, match=r"with values in \[0, 2\], got values from -1 to -1"):
            lm.Model(bounded, Embedding(3, 3)(bounded)).predict(unknown)


def test_labels_as_text_are_refused_with_what_to_do(library, frame):
    city = library.DataFrame({"city": ["Rome", "Oslo"] * (N // 2)})["city"]
    of_pandas = library.__name__ == "pandas"
    codes = "astype(pd.CategoricalDtype(kinds)).cat.codes" if of_pandas else "cast(pl.Enum(kinds)).to_physical()"
    assert said(classifier().fit, frame, city, **TASK, optimizer="sgd") == (
        "y of 'dense_1': expected an array, got a Series 'city' that holds text. Likely fix: integers for it, as "
        f"labels or for an Embedding: series.{codes}, where kinds = list(series.unique()) of the training data, for "
        "new rows too"
    )


def test_hints_are_for_the_array_of_a_column(library, frame):
    told = said(classifier().fit, frame, frame["annual income"].round(), **TASK, optimizer="sgd")
    assert told.endswith("Use y.astype('int64'). There y stands for y.to_numpy().")
    told = said(classifier().fit, frame, COLUMNS["annual income"].round(), **TASK, optimizer="sgd")
    assert told.endswith("Use y.astype('int64').")
    images = library.DataFrame({str(k): np.zeros(2) for k in range(4)})
    assert said(lm.Sequential([Flatten()], input_shape=(1, 2, 2)).predict, images).endswith(
        "got (2, 4) float64 with columns '0', '1', '2', '3'. Likely fix: x.to_numpy().reshape(-1, 1, 2, 2)."
    )


def test_columns_that_do_not_fit_are_named(library, frame):
    more = library.DataFrame({**COLUMNS, "target": LABELS})
    assert "got (40, 4) float64 with columns 'age', 'annual income', 'member', 'target'." in said(
        classifier().predict, more
    )
    assert said(named().predict, more) == (
        "x: nothing takes the columns 'target'. Likely fix: frame[['age', 'annual income', 'member']]"
    )
    wrong = library.DataFrame({**{name: COLUMNS[name] for name in ("age", "member")}, "annual_income": X[:, 1]})
    told = said(named().predict, wrong)
    assert "x: column 'annual income' is not there; expected one each for age, annual income, member." in told
    assert "Did you mean 'annual_income'?" in told
    assert "{'annual income': frame[...], ...}" in told


def test_a_column_that_is_there_twice(pandas):
    table = pandas.DataFrame(X).set_axis(["age", "age", "member"], axis=1)
    assert "x: column 'age' is there twice" in said(named().predict, table)


def test_tables_without_targets_are_no_batches(library, frame):
    told = "expected batches, as an iterable of (x, y) or a function that makes one, got DataFrame; arrays need y"
    assert told in said(classifier().fit, frame, **TASK, optimizer="sgd")
    with pytest.raises(lm.ArgumentError, match="validation_data: expected .* got DataFrame"):
        classifier().fit(frame, LABELS, **TASK, optimizer="sgd", validation_data=frame)


def test_no_rows(frame):
    assert classifier().predict(frame[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["annual income", "a b-c d_1"])
def test_inputs_have_names_of_words(name):
    assert lm.Sequential([Dense(1)], input_shape=1).predict({"input_1": [[1.0]]}).shape == (1, 1)
    x = lm.Input(1, name=name)
    assert lm.Model(x, Dense(1)(x)).predict({name: [[1.0]]}).shape == (1, 1)


@pytest.mark.parametrize("name", [" a", "a ", "a  b", "a\tb", "a/b", ""])
def test_inputs_have_no_other_names(name):
    with pytest.raises(lm.ArgumentError, match="and spaces between words, got"):
        lm.Input(1, name=name)
