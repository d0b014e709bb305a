"""Estimators of scikit-learn: its own checks, what they learn, and pipelines as proven ONNX files."""

from __future__ import annotations

import inspect
import json
import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
import onnx
import onnxruntime
import pandas
import skl2onnx
from nonsense import VALUES
from onnx import numpy_helper
from scipy.sparse import csr_array
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, StackingClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import lamella as lm
import lamella_onnx
import lamella_sklearn
from lamella_layers import LSTM, BatchNormalization, Conv2D, Dense, Dropout, Flatten, Reshape
from lamella_sklearn import LamellaClassifier, LamellaRegressor, to_onnx

WINE, WINES = load_wine(return_X_y=True)
SCALED = StandardScaler().fit_transform(WINE)
SMALL = {"hidden_layer_sizes": (10,), "epochs": 20, "learning_rate": 0.01, "random_state": 0}


pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # few epochs are quick


def classifier(**settings):
    return LamellaClassifier(**SMALL | settings)


def regressor(**settings):
    return LamellaRegressor(**SMALL | settings)


def normalized(features):
    return [Dense(2 * features), BatchNormalization(), Dropout(0.1)]


# scikit-learn's own checks


def expected_failures(estimator):
    if not estimator.early_stopping:
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": "which rows are held out depends on how many there are"}


@parametrize_with_checks(
    [
        LamellaClassifier(),
        LamellaRegressor(),
        LamellaClassifier(
            layers=[Dense(20), BatchNormalization()], optimizer="rmsprop", early_stopping=True, validation_fraction=0.3
        ),
        LamellaRegressor((20, 20), activation="tanh", loss="huber", alpha=1e-4, early_stopping=True),
    ],
    expected_failed_checks=expected_failures,
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


# What they learn


def test_they_learn():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, random_state=0)
    assert LamellaClassifier(random_state=0, epochs=30, batch_size=32).fit(X, y).score(X_test, y_test) > 0.96
    X, y = load_diabetes(return_X_y=True)
    scaled = TransformedTargetRegressor(LamellaRegressor(random_state=0, epochs=30), transformer=StandardScaler())
    assert make_pipeline(StandardScaler(), scaled).fit(X[:350], y[:350]).score(X[350:], y[350:]) > 0.4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_is_that_of_a_model(dtype):
    X, weights = SCALED.astype(dtype), np.linspace(0.0, 2.0, len(SCALED))
    own = classifier(batch_size=50, alpha=0.02, class_weight={0: 3.0}).fit(X, WINES, sample_weight=weights)
    seed = np.random.RandomState(0).randint(2**31 - 1)
    layers = [Dense(10, activation="relu"), Dense(3)]
    model = lm.Sequential(layers, input_shape=13, dtype=dtype, seed=seed)
    history = model.fit(
        *(X, WINES),
        loss="softmax_cross_entropy",
        optimizer=lm.optimizers.Adam(0.01),
        penalties={"*.kernel": lm.regularization.L2(0.01)},
        sample_weight=weights * np.where(WINES == 0, 3.0, 1.0),
        epochs=20,
        batch_size=50,
    )
    assert own.model_.dtype == dtype
    assert own.loss_curve_ == history["loss"]
    assert own.n_iter_ == 20
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(own.model_.parameters[name], array)
    logits = model.predict(X)
    np.testing.assert_allclose(own.predict_proba(X), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(own.predict(X), logits.argmax(1))
    assert own.predict_proba(X).dtype == dtype


def test_classes_and_labels():
    names = np.array(["Barolo", "Grignolino", "Barbera"])
    own = classifier().fit(SCALED, names[WINES])
    assert own.classes_.tolist() == sorted(names)
    assert (own.predict(SCALED) == names[WINES]).mean() > 0.9
    both = np.stack([WINES == 0, WINES != 2], axis=1).astype(int)
    own = classifier().fit(SCALED, both)
    assert own.classes_.tolist() == [0, 1]
    probabilities = own.predict_proba(SCALED)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-own.model_.predict(SCALED))))
    np.testing.assert_array_equal(own.predict(SCALED), (probabilities > 0.5).astype(int))
    assert own.score(SCALED, both) > 0.8
    with pytest.raises(ValueError, match=r"LamellaClassifier: y: expected a class for each row.*MultiOutputClassifier"):
        classifier().fit(SCALED, np.stack([WINES, WINES], axis=1))
    with pytest.raises(ValueError, match="LamellaClassifier: y: expected two classes or more, got rows of one class"):
        classifier().fit(SCALED, np.zeros(178))
    with pytest.raises(ValueError, match="rows of one class"):
        classifier().fit(SCALED, WINES, sample_weight=WINES == 1)


def test_several_outputs():
    targets = SCALED[:, :2]
    own = regressor(epochs=100).fit(SCALED, targets)
    assert own.predict(SCALED).shape == (178, 2)
    assert own.n_outputs_ == 2
    assert own.score(SCALED, targets) > 0.9
    assert regressor().fit(SCALED, targets[:, 0]).predict(SCALED).shape == (178,)


def test_early_stopping_returns_to_the_best_epoch():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    own = classifier(epochs=500, early_stopping=True, n_iter_no_change=5, tol=0.0).fit(X, y)
    held = own.model_.history["val_loss"]
    assert own.n_iter_ == len(held) < 500
    assert min(held) == held[-6]
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)
    _, held_out = train_test_split(np.arange(len(X)), test_size=0.1, random_state=rng, stratify=y)
    assert log_loss(y[held_out], own.predict_proba(X[held_out])) == pytest.approx(min(held))


def test_training_ends_where_nothing_improves():
    own = classifier(epochs=500, n_iter_no_change=3, tol=0.01).fit(SCALED, WINES)
    assert own.n_iter_ < 500
    assert own.model_.history.stopped == "loss has not improved for 3 epochs"


@pytest.mark.filterwarnings("error")
def test_a_training_that_has_not_converged_warns_as_that_of_scikit_learn():
    with pytest.warns(ConvergenceWarning, match=r"LamellaClassifier: .* epochs=3, before loss .* tol=0.0001") as found:
        classifier(epochs=3).fit(SCALED, WINES)
    assert found[0].filename == __file__
    with pytest.warns(ConvergenceWarning, match=r"LamellaRegressor: .* before val_loss .* more epochs"):
        regressor(epochs=3, early_stopping=True).fit(SCALED, WINES)
    assert classifier(epochs=400).fit(SCALED, WINES).n_iter_ < 400
    classifier(epochs=3, learning_rate=lm.schedules.Cosine(0.01, steps=3)).fit(SCALED, WINES)
    classifier(epochs=3).partial_fit(SCALED, WINES, classes=[0, 1, 2])


def test_words_of_scikit_learn_get_those_of_lamella():
    known = set(MLPClassifier().get_params()) | set(MLPRegressor().get_params())
    ours = set(LamellaClassifier().get_params())
    for word in known - ours - {"max_fun"}:  # of lbfgs, which is not there
        with pytest.raises(TypeError, match=f"LamellaClassifier: .*'{word}'.*(is called|stands in|takes|are shuffled)"):
            LamellaClassifier(**{word: 1})
    with pytest.raises(TypeError, match="Did you mean 'epochs'"):
        LamellaRegressor(epoch=3)
    with pytest.raises(lm.ArgumentError, match="layers: .*sizes go to hidden_layer_sizes"):
        LamellaClassifier(layers=(16, 16)).fit(SCALED, WINES)
    assert next(iter(inspect.signature(LamellaRegressor).parameters)) == "hidden_layer_sizes"


def test_partial_fit():
    own = classifier(epochs=1000)
    with pytest.raises(ValueError, match="LamellaClassifier: classes: the first call of partial_fit needs all"):
        own.partial_fit(SCALED, WINES)
    for _ in range(30):
        for rows in np.split(np.random.default_rng(0).permutation(178)[:170], 5):
            own.partial_fit(SCALED[rows], WINES[rows], classes=[0, 1, 2])
    assert own.n_iter_ == own.model_.step == 150
    assert own.score(SCALED, WINES) > 0.95
    own.partial_fit(SCALED[WINES == 1], WINES[WINES == 1])  # of one class
    with pytest.raises(ValueError, match=r"LamellaClassifier: y: expected classes \[0, 1, 2\], got 3$"):
        own.partial_fit(SCALED, WINES + 1)
    with pytest.raises(
        ValueError, match=r"classes: expected those of the first call, \[0, 1, 2\], or None, got \[0, 1\]"
    ):
        own.partial_fit(SCALED, WINES, classes=[0, 1])
    with pytest.raises(ValueError, match="'balanced' needs all rows at once"):
        clone(own).set_params(class_weight="balanced").partial_fit(SCALED, WINES, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="expected classes or labels as in the training before"):
        own.partial_fit(SCALED, np.stack([WINES == 0, WINES == 1], axis=1))
    numbers = regressor().partial_fit(SCALED, SCALED[:, 0])
    assert numbers.n_iter_ == 1
    with pytest.raises(ValueError, match="LamellaRegressor: y: expected 1 numbers for each row, got 2"):
        numbers.partial_fit(SCALED, SCALED[:, :2])


def test_warm_start_goes_on_from_the_weights():
    own = classifier(warm_start=True).fit(SCALED, WINES)
    first, state = own.loss_curve_, own.model_.optimizer_state
    own.fit(SCALED, WINES)
    assert len(own.loss_curve_) == own.n_iter_ == 40
    assert own.loss_curve_[:20] == first
    assert own.loss_curve_[20] < 1.1 * first[-1] < 0.5 * first[0]
    assert own.model_.optimizer_state.t == state.t == 20  # the optimizer began anew
    assert len(own.set_params(warm_start=False).fit(SCALED, WINES).loss_curve_) == 20


def test_a_fit_that_fails_leaves_what_was_learned():
    own = classifier().fit(SCALED, WINES)
    before = own.predict_proba(SCALED)
    with pytest.raises(lm.NonFiniteError):
        own.set_params(learning_rate=1e30, optimizer="sgd").fit(SCALED, ["b" if one else "a" for one in WINES])
    np.testing.assert_array_equal(own.predict_proba(SCALED), before)
    assert own.classes_.tolist() == [0, 1, 2]


# Arguments


def test_layers():
    X, y = load_digits(return_X_y=True)
    images = [Reshape((1, 8, 8)), Conv2D(8, 3, activation="relu"), Flatten()]
    own = LamellaClassifier(layers=images, epochs=5, batch_size=64, random_state=0).fit(X / 16, y)
    assert list(own.model_.layers) == ["reshape_1", "conv2d_1", "flatten_1", "dense_1"]
    assert own.score(X / 16, y) > 0.85
    again = clone(own).fit(X / 16, y)
    np.testing.assert_array_equal(again.predict_proba(X / 16), own.predict_proba(X / 16))
    assert classifier(layers=normalized).fit(SCALED, WINES).model_.parameters["dense_1.kernel"].shape == (13, 26)
    assert list(classifier(hidden_layer_sizes=()).fit(SCALED, WINES).model_.layers) == ["dense_1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.MistakeWarning)  # Dense along the width
        with pytest.raises(ValueError, match=r"LamellaClassifier: layers: expected the last one to give .*Flatten\(\)"):
            classifier(layers=images[:2]).fit(X, y)
    twice = Dense(64)
    with pytest.raises(ValueError, match=r"layers: one layer stands in the list twice.*a function that makes the list"):
        classifier(layers=[twice, twice]).fit(X, y)


@pytest.mark.parametrize("loss", ["mean_squared_error", lm.losses.MeanAbsoluteError()])
def test_a_classifier_takes_losses_on_logits(loss):
    with pytest.raises(ValueError, match="LamellaClassifier: loss: expected one on logits"):
        classifier(loss=loss).fit(SCALED, WINES)
    weighted = lm.losses.Weighted("softmax_cross_entropy", 0.5)
    assert classifier(loss=weighted).fit(SCALED, WINES).score(SCALED, WINES) > 0.9
    with pytest.raises(ValueError, match="LamellaRegressor: loss: expected one that compares predictions with targets"):
        regressor(loss="binary_cross_entropy").fit(SCALED, SCALED[:, 0])


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", lm.losses.Weighted("softmax_focal_cross_entropy", 0.5)])
def test_several_labels_are_no_classes(loss):
    with pytest.raises(ValueError, match="loss: expected one for several labels, such as 'binary_cross_entropy', got"):
        classifier(loss=loss).fit(SCALED, np.eye(3, dtype=int)[WINES] | [1, 0, 0])
    for binary in ("binary_cross_entropy", "binary_focal_cross_entropy", "hinge"):
        with pytest.raises(ValueError, match="loss: expected one for classes, such as 'softmax_cross_entropy', got"):
            classifier(loss=binary).fit(SCALED, WINES)


@pytest.mark.parametrize(
    "optimizer",
    [
        lm.optimizers.GradientAccumulation("adam", 2),
        lm.optimizers.ExponentialMovingAverage(lm.optimizers.Nadam()),
        lm.optimizers.LearningRateMultipliers("sgd", {"dense_1.*": 0.5}),
    ],
)
def test_learning_rates_of_optimizers_around_another(optimizer):
    fitted = classifier(optimizer=optimizer, learning_rate=0.125).fit(SCALED, WINES)
    assert fitted.model_.optimizer_state.learning_rate(1) == 0.125
    with pytest.raises(ValueError, match="LamellaClassifier: learning_rate: expected a finite number or a Schedule"):
        fitted.set_params(learning_rate="adaptive").fit(SCALED, WINES)


def test_weights_below_zero_are_refused():
    for estimator in (classifier(), regressor()):
        with pytest.raises(ValueError, match="sample_weight: expected numbers of at least 0, got -1"):
            estimator.fit(SCALED, WINES, sample_weight=np.where(WINES == 1, -1.0, 0.0))


TAKEN = {
    "activation": {"None"},
    "alpha": {"0", "1.5", "2**63", "10**30"},
    "early_stopping": {"True"},
    "hidden_layer_sizes": {"[]", "()"},
    "layers": {"None", "[]", "()"},
    "learning_rate": {"None", "0", "1.5", "2**63", "10**30"},
    "tol": {"0", "1.5", "2**63", "10**30"},
    "verbose": {"0", "True"},
    "warm_start": {"True"},
}
OTHERS = {"class_weight", "random_state"}  # which scikit-learn examines


@pytest.mark.parametrize("name", sorted(set(LamellaClassifier().get_params()) - OTHERS))
def test_nonsense_is_one_clear_error(name, capsys):
    taken = set()
    for label, value in VALUES.items():
        if name == "layers" and label == "a function":  # of the number of features
            continue
        own = LamellaClassifier(**SMALL | {"epochs": 1, "early_stopping": True, name: value})
        try:
            own.fit(SCALED[:100], WINES[:100])
            taken.add(label)
        except lm.LamellaError as error:
            where = str(error)
            assert name in where or (name in ("loss", "optimizer") and where.startswith(f"{name[:4]}")), label
    assert taken == TAKEN.get(name, set())


def test_sparse_rows_are_refused_with_words():
    with pytest.raises(TypeError, match=r"LamellaClassifier: X: expected dense data, got sparse.*sparse_output=False"):
        classifier().fit(csr_array(SCALED), WINES)
    with pytest.raises(TypeError, match="expected dense data, got sparse"):
        classifier().fit(SCALED, WINES).predict(csr_array(SCALED))
    words = pandas.DataFrame({"word": [f"word {n % 20}" for n in range(178)]})
    with pytest.raises(TypeError, match="expected dense data, got sparse"):
        make_pipeline(OneHotEncoder(), classifier()).fit(words, WINES)
    with pytest.raises(TypeError, match=r"y: expected dense targets, got sparse. Likely fix: y.toarray\(\)"):
        classifier().fit(SCALED, csr_array(np.eye(3, dtype=int)[WINES]))


# Within scikit-learn


def test_a_search_in_processes():
    pipeline = make_pipeline(StandardScaler(), classifier())
    grid = {"lamellaclassifier__layers": [None, [Dense(5, activation="tanh")]], "lamellaclassifier__alpha": [0.0, 0.1]}
    lm.set_threads(1)
    alone, apart = (GridSearchCV(pipeline, grid, cv=3, n_jobs=jobs).fit(WINE, WINES) for jobs in (1, 2))
    lm.set_threads(None)
    np.testing.assert_allclose(alone.cv_results_["mean_test_score"], apart.cv_results_["mean_test_score"], atol=0.02)
    assert apart.score(WINE, WINES) > 0.9
    assert cross_val_score(pipeline, WINE, WINES, scoring="roc_auc_ovr", cv=3).min() > 0.95


def test_copies_and_files(tmp_path):
    own = classifier(layers=normalized).fit(SCALED, WINES)
    joblib.dump(own, tmp_path / "own.joblib")
    for again in (pickle.loads(pickle.dumps(own)), joblib.load(tmp_path / "own.joblib")):
        np.testing.assert_array_equal(again.predict_proba(SCALED), own.predict_proba(SCALED))
        assert again.loss_curve_ == own.loss_curve_
    assert not hasattr(clone(own), "model_")


def test_columns_of_frames_have_names():
    frame = pandas.DataFrame(SCALED, columns=[f"column {n}" for n in range(13)])
    own = classifier().fit(frame, pandas.Series(WINES))
    assert own.feature_names_in_.tolist() == list(frame)
    np.testing.assert_array_equal(own.predict(frame), classifier().fit(SCALED, WINES).predict(SCALED))
    with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
        own.predict(frame[frame.columns[::-1]])


def test_weights_go_through_pipelines():
    weights = np.where(WINES == 2, 0.0, 1.0)
    pipeline = make_pipeline(StandardScaler(), classifier())
    pipeline.fit(WINE, WINES, lamellaclassifier__sample_weight=weights)
    assert 2 not in pipeline.predict(WINE)


def test_progress_is_printed_where_asked_for(capsys):
    classifier(epochs=2, verbose=1).fit(SCALED, WINES)
    assert capsys.readouterr().out.count("epoch ") == 2
    classifier(epochs=2).fit(SCALED, WINES)
    assert capsys.readouterr().out == ""


# Pipelines as ONNX files


def mixed():
    """A table of every kind of column, and a frame of it with missing numbers."""
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "alcohol (%)": WINE[:, 0],
            "label": rng.integers(0, 5, 178),  # as an output is called
            "sold": rng.random(178) < 0.5,
            "city": rng.choice(["Rom", "Bern", "Z\u00fcrich, ZH"], 178),
            "proline": np.where(rng.random(178) < 0.1, np.nan, WINE[:, 12]),
            "bottled": pandas.date_range("2020-01-01", periods=178),  # which nothing uses
        }
    )


def columns(*others):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    words = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    chosen = [("numbers", numbers, ["alcohol (%)", "proline"]), ("words", words, ["city", "sold", "label"])]
    return make_pipeline(ColumnTransformer([*chosen, *others]), classifier())


def with_gaps(X):
    return np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)


PIPELINES = {
    "alone": (classifier(), SCALED),
    "in float32": (make_pipeline(StandardScaler(), classifier()), WINE.astype("float32")),
    "of integers": (make_pipeline(StandardScaler(), classifier()), WINE.astype(int)),
    "of seconds": (make_pipeline(StandardScaler(), classifier()), (1.7e9 + WINE).astype(int)),
    "scaled": (make_pipeline(MinMaxScaler(), classifier()), WINE),
    "imputed": (make_pipeline(SimpleImputer(), StandardScaler(), classifier()), with_gaps(WINE)),
    "decomposed": (make_pipeline(StandardScaler(), PCA(4), classifier()), WINE),
    "rounded": (make_pipeline(PowerTransformer(), classifier()), WINE[:, 1:4]),
    "united": (make_pipeline(FeatureUnion([("one", StandardScaler()), ("two", SelectKBest(k=3))]), classifier()), WINE),
    "of a list": (make_pipeline(PolynomialFeatures(), StandardScaler(), classifier()), WINE[:, :3].tolist()),
    "a frame": (columns(), mixed()),
    "a frame of categories": (columns(), mixed().assign(city=mixed().city.astype("category"))),
    "a frame of pandas' own": (columns(), mixed().assign(sold=mixed().sold.astype("boolean"))),
    "a frame of numbers": (
        make_pipeline(SimpleImputer(), PCA(2), StandardScaler(), classifier()),
        mixed().iloc[:, [0, 4, 2]],
    ),
    "a frame, passed on": (columns(("rest", OrdinalEncoder(), ["label"])), mixed()),
    "a frame of integers beside floats": (
        make_pipeline(
            ColumnTransformer(
                [
                    ("numbers", SimpleImputer(), ["alcohol (%)", "proline", "label"]),
                    ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["city"]),
                ]
            ),
            StandardScaler(),
            classifier(),
        ),
        mixed(),
    ),
    "a frame of imputed text and integers": (
        make_pipeline(
            ColumnTransformer(
                [
                    ("label", SimpleImputer(strategy="mean"), ["label"]),
                    (
                        "words",
                        make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(sparse_output=False)),
                        ["city", "vessel"],
                    ),
                ]
            ),
            StandardScaler(),
            classifier(),
        ),
        mixed().assign(vessel=np.where(WINES == 1, "cask", "")),
    ),
    "of steps left out": (
        make_pipeline("passthrough", Pipeline([("none", None), ("scaled", StandardScaler())]), classifier()),
        WINE,
    ),
    "united, passed on": (
        make_pipeline(
            FeatureUnion([("one", "passthrough"), ("two", PCA(2)), ("none", "drop")], transformer_weights={"one": 0.5}),
            StandardScaler(),
            classifier(),
        ),
        WINE,
    ),
    "searched": (
        GridSearchCV(make_pipeline(StandardScaler(), classifier()), {"lamellaclassifier__alpha": [0, 1]}),
        WINE,
    ),
    "bagged": (make_pipeline(StandardScaler(), BaggingClassifier(classifier(), 3, random_state=0)), WINE),
    "stacked": (
        StackingClassifier(
            [
                ("network", make_pipeline(StandardScaler(), classifier())),
                ("trees", RandomForestClassifier(5, random_state=0)),
            ],
            LogisticRegression(),
        ),
        WINE.astype("float32"),
    ),
    "calibrated": (CalibratedClassifierCV(make_pipeline(StandardScaler(), classifier()), cv=2), WINE),
    "convolved": (classifier(layers=[Reshape((1, 13, 1)), Conv2D(4, (3, 1)), Flatten()]), SCALED),
    "recurrent": (classifier(layers=[Reshape((13, 1)), LSTM(6, return_sequences=False)]), SCALED),
    "normalized": (make_pipeline(StandardScaler(), classifier(layers=normalized)), WINE),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_are_one_file_that_agrees(name, tmp_path):
    pipeline, X = PIPELINES[name]
    pipeline = clone(pipeline).fit(X, WINES)
    report = to_onnx(pipeline, tmp_path / "pipeline.onnx", X)
    assert report.agrees
    assert {row.data for row in report.agreements} == {"batch of 1", "batch of 2", "batch of 7", "178 samples"}
    assert lamella_onnx.verify(tmp_path / "pipeline.onnx").agrees
    session = onnxruntime.InferenceSession(tmp_path / "pipeline.onnx")
    label, probabilities = session.run(None, fed(session, X))
    expected = pipeline.predict_proba(X)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4 if name == "rounded" else 1e-5)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(label, pipeline.predict(X))


def fed(session, X):
    """Rows as a client would send them."""
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(string)": "object"}
    if not isinstance(X, pandas.DataFrame):
        return {"X": np.asarray(X).astype(kinds[session.get_inputs()[0].type])}
    return {one.name: X[[one.name]].to_numpy().astype(kinds[one.type]) for one in session.get_inputs()}


def test_the_file_has_the_columns_that_are_used(tmp_path):
    X = mixed()
    to_onnx(columns().fit(X, WINES), tmp_path / "wine.onnx", X, metadata={"owner": "cellar"})
    session = onnxruntime.InferenceSession(tmp_path / "wine.onnx")
    assert {one.name: (one.type, one.shape) for one in session.get_inputs()} == {
        "alcohol (%)": ("tensor(float)", ["N", 1]),
        "label": ("tensor(int64)", ["N", 1]),
        "sold": ("tensor(bool)", ["N", 1]),
        "city": ("tensor(string)", ["N", 1]),
        "proline": ("tensor(float)", ["N", 1]),
    }
    assert {one.name: (one.type, one.shape) for one in session.get_outputs()} == {
        "label_": ("tensor(int64)", ["N"]),  # since a column has its name
        "probabilities": ("tensor(float)", ["N", 3]),
    }
    proto = onnx.load(tmp_path / "wine.onnx")
    assert {one.domain: one.version for one in proto.opset_import} == {"": 21, "ai.onnx.ml": 1}
    assert {one.key: one.value for one in proto.metadata_props}["owner"] == "cellar"
    assert "dense_1.kernel" in "".join(one.name for one in proto.graph.initializer)


def test_polars_frames(tmp_path):
    polars = pytest.importorskip("polars")
    X = polars.DataFrame({name: column.to_numpy() for name, column in mixed().drop(columns="bottled").items()})
    assert to_onnx(columns().fit(X, WINES), tmp_path / "wine.onnx", X).agrees
    X = X.with_columns(polars.col("city").cast(polars.Categorical))
    assert to_onnx(columns().fit(X, WINES), tmp_path / "wine.onnx", X).agrees


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (["a", "b", "\u00e9"], np.str_),
        ([-3, 0, 7], np.int64),
        ([0.0, 1.0, 2.0], np.int64),
        ([False, True, True], np.int64),
    ],
)
def test_classes_of_every_kind(classes, dtype, tmp_path):
    pipeline = make_pipeline(StandardScaler(), classifier()).fit(WINE, np.array(classes)[WINES])
    to_onnx(pipeline, tmp_path / "wine.onnx", WINE)
    assert lamella_onnx.verify(tmp_path / "wine.onnx").agrees
    session = onnxruntime.InferenceSession(tmp_path / "wine.onnx")
    label, _ = session.run(None, fed(session, WINE))
    np.testing.assert_array_equal(label.astype(dtype), pipeline.predict(WINE).astype(dtype))


def test_several_labels(tmp_path):
    both = np.stack([WINES == 0, WINES != 2], axis=1).astype(int)
    pipeline = make_pipeline(StandardScaler(), classifier()).fit(WINE, both)
    assert to_onnx(pipeline, tmp_path / "wine.onnx", WINE).agrees
    session = onnxruntime.InferenceSession(tmp_path / "wine.onnx")
    label, probabilities = session.run(None, fed(session, WINE))
    np.testing.assert_array_equal(label, pipeline.predict(WINE))
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(WINE), atol=1e-6)


@pytest.mark.parametrize(
    "targets",
    [
        {"transformer": StandardScaler()},
        {"transformer": MinMaxScaler()},
        {"func": np.log, "inverse_func": np.exp},
        {"func": np.log1p, "inverse_func": np.expm1},
        {},
    ],
)
def test_targets_that_are_transformed(targets, tmp_path):
    X, y = load_diabetes(return_X_y=True)
    pipeline = TransformedTargetRegressor(make_pipeline(StandardScaler(), regressor()), **targets).fit(X, y)
    assert to_onnx(pipeline, tmp_path / "diabetes.onnx", X).agrees
    session = onnxruntime.InferenceSession(tmp_path / "diabetes.onnx")
    (numbers,) = session.run(None, fed(session, X))
    np.testing.assert_allclose(numbers[:, 0], pipeline.predict(X), rtol=1e-4)


def test_several_numbers(tmp_path):
    scaled = TransformedTargetRegressor(regressor(), transformer=StandardScaler())
    pipeline = make_pipeline(StandardScaler(), scaled).fit(WINE, WINE[:, [0, 12]])
    assert to_onnx(pipeline, tmp_path / "wine.onnx", WINE).agrees
    session = onnxruntime.InferenceSession(tmp_path / "wine.onnx")
    np.testing.assert_allclose(session.run(["variable"], fed(session, WINE))[0], pipeline.predict(WINE), rtol=1e-4)


# What is refused


class Doubled(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """A step whose converter, below, is wrong."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return X * 2


def doubled_shapes(operator):
    operator.outputs[0].type = FloatTensorType(operator.inputs[0].type.shape)


def tripled(scope, operator, container):
    container.initializers.append(numpy_helper.from_array(np.array(3.0, "float32"), "three"))
    container.add_node("Mul", [operator.inputs[0].full_name, "three"], [operator.outputs[0].full_name], name="tripled")


def test_nothing_is_written_where_onnxruntime_differs(tmp_path):
    skl2onnx.update_registered_converter(Doubled, "TestsDoubled", doubled_shapes, tripled)
    pipeline = make_pipeline(StandardScaler(), Doubled(), classifier()).fit(WINE, WINES)
    path = tmp_path / "wine.onnx"
    wrong = (
        "wine.onnx is not written: output 'probabilities' of onnxruntime differs from what the estimator predicts on "
        r"the batch of 1 by .* where 1e-05 is allowed. The first step to differ is 'doubled', Doubled\(\): by"
    )
    with pytest.raises(lamella_onnx.ParityError, match=wrong):
        to_onnx(pipeline, path, WINE)
    assert list(tmp_path.iterdir()) == []
    path.write_text("what was there")
    with pytest.raises(lamella_onnx.ParityError, match="is not written"):
        to_onnx(pipeline, path, WINE)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["what was there"]


def test_what_float32_can_not_hold_is_refused(tmp_path):
    seconds = 1.7e9 + 100 * SCALED
    pipeline = make_pipeline(StandardScaler(), classifier()).fit(seconds, WINES)
    with pytest.raises(
        lamella_onnx.ParityError, match=r"float32, in which the file takes numbers, changes the estimator"
    ):
        to_onnx(pipeline, tmp_path / "wine.onnx", seconds)


@pytest.mark.parametrize(
    ("pipeline", "X", "error", "words"),
    [
        (
            make_pipeline(SplineTransformer(), classifier()),
            WINE,
            lamella_onnx.TraceError,
            "skl2onnx .* can't write the estimator down: it has no converter for SplineTransformer",
        ),
        (
            TransformedTargetRegressor(regressor(), transformer=QuantileTransformer(n_quantiles=9)),
            WINE,
            lamella_onnx.TraceError,
            "what undoes QuantileTransformer.* is no exp, no expm1, and no factor with an offset",
        ),
        (
            LinearSVC(),
            SCALED,
            lm.ArgumentError,
            r"expected a classifier with predict_proba, or a regressor, got Linear",
        ),
        (StandardScaler(), WINE, lm.ArgumentError, "expected a fitted classifier or regressor"),
        (
            columns(),
            mixed().assign(city=None),
            lm.DataError,
            "'city': expected numbers, bools or strings, got values of",
        ),
    ],
)
def test_what_can_not_be_exported(pipeline, X, error, words, tmp_path):
    fitted = clone(pipeline).fit(mixed() if isinstance(X, pandas.DataFrame) else X, WINES)
    with pytest.raises(error, match=words):
        to_onnx(fitted, tmp_path / "wine.onnx", X)
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_to_onnx(tmp_path):
    path, pipeline = tmp_path / "wine.onnx", classifier().fit(SCALED, WINES)
    with pytest.raises(NotFittedError):
        to_onnx(classifier(), path, SCALED)
    with pytest.raises(lm.ArgumentError, match="estimator: expected a fitted classifier or regressor"):
        to_onnx(LamellaClassifier, path, SCALED)
    with pytest.raises(lm.ArgumentError, match=r"got <Sequential .*>. Likely fix: lamella_onnx.export\(model, path\)"):
        to_onnx(pipeline.model_, path, SCALED)
    with pytest.raises(TypeError, match=r"to_onnx: samples: expected dense data, got sparse"):
        to_onnx(pipeline, path, csr_array(SCALED))
    for samples in (SCALED[0], SCALED[:0], [[1.0], [1.0, 2.0]], None):
        with pytest.raises(lm.DataError, match=r"to_onnx: samples: expected rows \(N, features\)"):
            to_onnx(pipeline, path, samples)
    with pytest.raises(ValueError, match="X has 12 features, but LamellaClassifier is expecting 13"):
        to_onnx(pipeline, path, SCALED[:, :12])
    with pytest.raises(lm.ArgumentError, match=r"to_onnx: opset=2\d: the installed skl2onnx writes opsets up to"):
        to_onnx(pipeline, path, SCALED, opset=skl2onnx.__max_supported_opset__ + 1)
    with pytest.raises(lm.DataError, match="columns of different names, got 'a' twice"):
        to_onnx(pipeline, path, pandas.DataFrame(SCALED, columns=["a"] * 13))
    both = MultiOutputClassifier(classifier()).fit(SCALED, np.stack([WINES, WINES], axis=1))
    with pytest.raises(lm.DataError, match="expected one array of probabilities"):
        to_onnx(both, path, SCALED)
    with pytest.raises(lm.ArgumentError, match=r"skl2onnx.to_onnx: networks of lamella are written by lamella_sklearn"):
        skl2onnx.to_onnx(pipeline, SCALED.astype("float32"))
    assert to_onnx(pipeline, path, SCALED, opset=18).opset == 18
    assert to_onnx(pipeline, path, SCALED, target="onnxruntime==1.16").opset == 19


def test_verify_finds_every_change(tmp_path):
    X, path = mixed(), tmp_path / "wine.onnx"
    names = np.array(["Barolo", "Grignolino", "Barbera"])
    to_onnx(columns().fit(X, names[WINES]), path, X)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Barolo", b"Barola"))
    with pytest.raises(lamella_onnx.ParityError, match="the file was changed after the export"):
        lamella_onnx.verify(path)
    proto = onnx.load_model_from_string(content)
    proof = next(one for one in proto.metadata_props if one.key == "lamella.proof")
    said = json.loads(proof.value)
    assert {row["name"]: row["dtype"] for row in said["inputs"]}["city"] == "string"
    assert set(said["inputs"][3]["values"]) == set(X.city)
    said.pop("seal")
    long = ["x" * 10**6, *["y"] * 200]  # as an array of NumPy, 800 MB
    for wrong, words in (([1, 2], "values of input 'city'"), ([], "values"), (None, "'city'"), (long, "inputs of 8")):
        said["inputs"][3]["values"] = wrong
        proof.value = json.dumps(said)
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(lm.DataError, match=f"the proof is damaged.*{words}"):
            lamella_onnx.verify(path)


def test_rounding_may_decide_between_equal_probabilities():
    from lamella_sklearn.export import _Batch

    probabilities = np.array([[0.5, 0.499995, 0.000005], [0.2, 0.3, 0.5]])
    batch = _Batch("", (), (np.array(["a", "c"]), probabilities), ())
    assert batch.settled(np.array(["b", "b"])).tolist() == ["a", "b"]
    batch = _Batch("", (), (np.array([[1, 0], [0, 1]]), np.array([[0.500005, 0.2], [0.4, 0.6]])), ())
    assert batch.settled(np.array([[0, 0], [1, 1]])).tolist() == [[1, 0], [1, 1]]


def test_words_where_something_is_missing(monkeypatch):
    import sys

    for module in ("lamella_sklearn.export", "lamella_sklearn.conversion"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r"to_onnx needs skl2onnx: pip install 'lamella\[sklearn\]'"):
        lamella_sklearn.to_onnx  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'to_onxx'. Did you mean 'to_onnx'\?"):
        lamella_sklearn.to_onxx  # noqa: B018
