"""Networks as estimators of scikit-learn: what they learn is a `lamella.Model`, in ``model_``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

import lamella as lm
from lamella.arguments import answer, flag, number, positive
from lamella.errors import shown
from lamella.losses import LOSSES
from lamella.optimizers import OPTIMIZERS
from lamella.schedules import number_or_schedule
from lamella_layers import Dense

__all__ = ["LamellaClassifier", "LamellaRegressor"]

_OF_CLASSES = lm.losses.SoftmaxCrossEntropy, lm.losses.SoftmaxFocalCrossEntropy
_OF_LABELS = lm.losses.BinaryCrossEntropy, lm.losses.BinaryFocalCrossEntropy, lm.losses.Hinge

_OF_OPTIMIZERS = "It stands in the optimizer: optimizer=lm.optimizers.SGD(0.01, momentum=0.9)"
_ELSEWHERE = {  # arguments of MLPClassifier, and what stands for them
    "beta_1": _OF_OPTIMIZERS,
    "beta_2": _OF_OPTIMIZERS,
    "epsilon": _OF_OPTIMIZERS,
    "learning_rate_init": "It is called learning_rate",
    "max_iter": "It is called epochs",
    "momentum": _OF_OPTIMIZERS,
    "nesterovs_momentum": _OF_OPTIMIZERS,
    "power_t": "learning_rate takes a schedule, such as lm.schedules.InverseTime(0.01, 1000)",
    "shuffle": "Rows are shuffled in every epoch, as random_state decides",
    "solver": "It is called optimizer",
}

Array = np.ndarray[Any, Any]
Layers = Sequence[lm.Layer | lm.Model]


class _Task(NamedTuple):
    """What the network shall learn, and what follows from that."""

    targets: Array  # (N, outputs), or labels (N,)
    weights: Array | None
    outputs: int  # units of the last layer
    loss: Any
    labels: Array | None = None  # whose shares a validation part keeps
    learned: Mapping[str, Any] = {}  # attributes of the estimator after training


class _Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the classifier and the regressor share: arguments, checks of data, and training."""

    model_: lm.Model
    loss_curve_: list[float]
    _y_is_numeric: bool

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int],
        *,
        activation: str | lm.ActivationFunction,
        layers: Layers | Callable[[int], Layers] | None,
        loss: Any,
        optimizer: Any,
        learning_rate: Any,
        alpha: float,
        epochs: int,
        batch_size: int,
        early_stopping: bool,
        validation_fraction: float,
        n_iter_no_change: int,
        tol: float,
        warm_start: bool,
        random_state: Any,
        verbose: bool | int,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.layers = layers
        self.loss = loss
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    if not TYPE_CHECKING:  # checkers and editors go by __init__

        def __init_subclass__(cls, **settings: Any) -> None:
            super().__init_subclass__(**settings)
            signature = inspect.signature(cls.__init__)  # else that of __new__ would be shown
            arguments = [*signature.parameters.values()][1:]
            cls.__signature__ = signature.replace(parameters=arguments, return_annotation=signature.empty)

        def __new__(cls, *args: Any, **settings: Any) -> Self:
            known = cls._get_param_names()
            if unknown := [name for name in settings if name not in known]:
                hint = answer(unknown[0], known, _ELSEWHERE)
                raise TypeError(f"{cls.__name__}: got an unexpected keyword argument {unknown[0]!r}.{hint}")
            return super().__new__(cls)

    def _train(self, X: Any, y: Any, sample_weight: Any, *, partial: bool = False, classes: Any = None) -> Self:
        """Learn from rows, by the network that is there or by a new one; ``partial``: from each row once."""
        goes_on = (flag(self.warm_start, self._of("warm_start")) or partial) and hasattr(self, "model_")
        early_stopping = flag(self.early_stopping, self._of("early_stopping")) and not partial
        X, y = self._checked(X, y, reset=not goes_on)
        task = self._task(y, self._weights(y, sample_weight), goes_on=goes_on, partial=partial, classes=classes)
        rng = check_random_state(self.random_state)
        model = self.model_ if goes_on else self._network(X, task.outputs, rng.randint(2**31 - 1))
        optimizer = self._optimizer()
        settings = {"loss": task.loss, "batch_size": positive(self.batch_size, self._of("batch_size"))}
        settings |= {"optimizer": optimizer, "penalties": self._penalties(), "progress": self._progress()}
        rows = X, task.targets, task.weights
        if not partial:
            model.optimizer_state = None
            settings |= {"epochs": positive(self.epochs, self._of("epochs")), "callbacks": [self._stop(early_stopping)]}
        if early_stopping:
            rows, settings["validation_data"] = self._split(rows, task.labels, rng)
        x, targets, weights = rows
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fit: y of .* has no row of", lm.MistakeWarning)  # others may have them
            history = model.fit(x, targets, sample_weight=weights, **settings)
        planned = isinstance(optimizer.learning_rate, lm.schedules.Schedule)  # to the last epoch
        if not partial and not planned and history.stopped is None:
            warnings.warn(
                f"{type(self).__name__}: training ended after epochs={self.epochs}, before "
                f"{'val_loss' if early_stopping else 'loss'} stopped falling by tol={self.tol:g}. Likely fix: more "
                "epochs, or a larger learning_rate",
                ConvergenceWarning,
                stacklevel=3,
            )
        before = self.loss_curve_ if goes_on else []
        self.model_, self.loss_curve_ = model, [*before, *history.history.get("loss", [])]
        self.n_iter_ = len(self.loss_curve_)
        for name, value in task.learned.items():
            setattr(self, name, value)
        return self

    def _task(self, y: Array, weights: Array | None, *, goes_on: bool, partial: bool, classes: Any) -> _Task:
        raise NotImplementedError

    def _checked(self, X: Any, y: Any = None, *, reset: bool) -> Any:
        """Rows as arrays; X keeps float32 and float64, unless there is a network already."""
        if issparse(X):
            raise TypeError(
                f"{type(self).__name__}: X: expected dense data, got sparse. Likely fix: "
                "OneHotEncoder(sparse_output=False), ColumnTransformer(..., sparse_threshold=0), or X.toarray()"
            )
        if issparse(y):
            raise TypeError(f"{type(self).__name__}: y: expected dense targets, got sparse. Likely fix: y.toarray()")
        options: dict[str, Any] = {"dtype": ["float64", "float32"] if reset else self.model_.dtype, "reset": reset}
        if y is None and not reset:
            return validate_data(self, X, **options)
        return validate_data(self, X, y, multi_output=True, y_numeric=self._y_is_numeric, **options)

    def _weights(self, y: Array, sample_weight: Any) -> Array | None:
        if sample_weight is None:
            return None
        weights: Array = check_array(sample_weight, ensure_2d=False, dtype="float64", input_name="sample_weight")
        if weights.shape != (len(y),):
            raise lm.DataError(f"{self._of('sample_weight')}: expected shape ({len(y)},), got {weights.shape}")
        if (weights < 0.0).any():
            raise lm.DataError(f"{self._of('sample_weight')}: expected numbers of at least 0, got {weights.min():g}")
        if not weights.any():
            raise lm.DataError(f"{self._of('sample_weight')}: every weight is zero, so there is nothing to learn from")
        return weights

    def _network(self, X: Array, outputs: int, seed: int) -> lm.Model:
        features = X.shape[1]
        layers = self.layers(features) if callable(self.layers) else self.layers
        if layers is None:
            given: Any = self.hidden_layer_sizes
            several = isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.ndim == 1)
            sizes = [positive(size, self._of("hidden_layer_sizes")) for size in (given if several else [given])]
            try:
                layers = [Dense(size, activation=self.activation) for size in sizes]
            except lm.ArgumentError as error:
                raise lm.ArgumentError(f"{self._of('activation')}: {error}") from None
        if isinstance(layers, int) or (
            isinstance(layers, list | tuple) and any(isinstance(one, int) for one in layers)
        ):
            raise lm.ArgumentError(
                f"{self._of('layers')}: expected a list of layers, got {shown(layers)}. Likely fix: sizes go to "
                "hidden_layer_sizes"
            )
        if not isinstance(layers, list | tuple):
            raise lm.ArgumentError(
                f"{self._of('layers')}: expected a list of layers, or a function of the number of features that makes "
                f"one, got {shown(layers)}"
            )
        if not callable(self.layers) and len({id(layer) for layer in layers}) < len(layers):
            raise lm.ArgumentError(
                f"{self._of('layers')}: one layer stands in the list twice, and copies that scikit-learn makes would "
                "not share its weights. Likely fix: a function that makes the list"
            )
        model = lm.Sequential([*layers, Dense(outputs)], input_shape=features, dtype=X.dtype.name, seed=seed)
        (spec,) = model.output_specs
        if spec.shape != ("N", outputs):
            raise lm.GraphError(
                f"{self._of('layers')}: expected the last one to give (N, features), got an output {spec}. Likely fix: "
                "Flatten() at the end"
            )
        return model

    def _optimizer(self) -> Any:
        optimizer = OPTIMIZERS.resolve(self.optimizer)
        if self.learning_rate is None:
            return optimizer
        return optimizer.with_learning_rate(number_or_schedule(self.learning_rate, self._of("learning_rate")))

    def _penalties(self) -> dict[str, Any] | None:
        alpha = number(self.alpha, self._of("alpha"), minimum=0.0)
        return {"*kernel": lm.regularization.L2(alpha / 2)} if alpha else None

    def _progress(self) -> bool:
        if isinstance(self.verbose, bool):
            return self.verbose
        return positive(self.verbose, self._of("verbose"), minimum=0) > 0

    def _stop(self, early: bool) -> lm.callbacks.EarlyStopping:
        return lm.callbacks.EarlyStopping(
            "val_loss" if early else "loss",
            patience=positive(self.n_iter_no_change, self._of("n_iter_no_change")),
            min_delta=number(self.tol, self._of("tol"), minimum=0.0),
            restore_best=early,
        )

    def _split(self, rows: Any, labels: Array | None, rng: Any) -> Any:
        """Rows to learn from, and others to hold out."""
        share = number(self.validation_fraction, self._of("validation_fraction"), above=0.0)
        if share >= 1.0:
            raise lm.ArgumentError(f"{self._of('validation_fraction')}: expected a number below 1, got {shown(share)}")
        learn, check = train_test_split(np.arange(len(rows[0])), test_size=share, random_state=rng, stratify=labels)
        held_out = tuple(array[check] for array in rows if array is not None)
        return tuple(None if array is None else array[learn] for array in rows), held_out

    def _raw(self, X: Any) -> Array:
        """The outputs of the network."""
        check_is_fitted(self, "model_")
        outputs: Array = self.model_.predict(self._checked(X, reset=False))
        return outputs

    def _of(self, argument: str) -> str:
        return f"{type(self).__name__}: {argument}"


class LamellaClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A network that tells classes apart, as an estimator of scikit-learn.

    It minimises the mean of -log p(class), where p = softmax(network(x)). Where a row may have several labels, each has
    a yes or no of its own, p = sigmoid(network(x)).

    Arguments:
        hidden_layer_sizes: units of each hidden layer; () for a linear model.
        activation: of the hidden layers, by name or as a function.
        layers: layers in place of these, in front of the output layer, which is added: a list, or a function that
            makes one for a number of features. The network takes rows (N, features): images begin with ``Reshape``.
        loss: a loss on logits; "auto" is "softmax_cross_entropy", or "binary_cross_entropy" for several labels.
        optimizer: a registered name or an optimizer.
        learning_rate: a number or schedule in place of the optimizer's own.
        alpha: adds ``alpha / 2 * sum(kernel^2)`` of every layer to the loss.
        epochs: how often to pass over the rows, at most.
        batch_size: rows for each step.
        early_stopping: whether to hold out ``validation_fraction`` of the rows, to end training by the loss on these,
            and to return to the epoch with the lowest. Else the loss of training decides.
        validation_fraction: the share that is held out.
        n_iter_no_change: after how many epochs in a row without improvement by ``tol`` training ends.
        tol: the least improvement that counts.
        class_weight: how much classes count, as a dict or "balanced".
        warm_start: whether `fit` begins with the weights of the last one.
        random_state: decides initial weights, the order of rows, dropout, and which rows are held out.
        verbose: whether to print a line for each epoch.

    Attributes:
        model_: the network, a `lamella.Model` that gives logits.
        classes_: the classes, in the order of columns of `predict_proba`; 0, 1, ... for several labels.
        loss_curve_: the loss of training after each epoch, over all calls since the network was made.
        n_iter_: how many epochs these are.
        n_outputs_: how many outputs the network has.
        n_features_in_, feature_names_in_: what `fit` saw.

    Raises:
        ValueError: data or arguments that do not fit; `lamella.DataError` and `lamella.ArgumentError` are such.
        lamella.NonFiniteError: the loss became NaN or infinite.

    Where ``epochs`` are over before training ends by ``tol``, `fit` gives scikit-learn's ``ConvergenceWarning``, but
    not where a schedule plans the epochs.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.neural_network.MLPClassifier.html

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> network = LamellaClassifier((16,), learning_rate=0.03, tol=0.001, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), network)
    >>> pipeline.fit(X, y).score(X, y) > 0.95
    True
    """

    _y_is_numeric = False

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        activation: str | lm.ActivationFunction = "relu",
        layers: Layers | Callable[[int], Layers] | None = None,
        loss: Any = "auto",
        optimizer: Any = "adam",
        learning_rate: Any = None,
        alpha: float = 0.0,
        epochs: int = 200,
        batch_size: int = 200,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        class_weight: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool | int = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation=activation,
            layers=layers,
            loss=loss,
            optimizer=optimizer,
            learning_rate=learning_rate,
            alpha=alpha,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from rows ``X`` (N, features) and classes ``y``: (N,), or 0 and 1 of (N, labels)."""
        return self._train(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from each of some rows once. The first call needs all ``classes`` that will come."""
        return self._train(X, y, sample_weight, partial=True, classes=classes)

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each row; for several labels, 1 where the probability is above 0.5."""
        outputs = self._raw(X)
        if self.multilabel_:
            return (outputs > 0).astype(int)
        classes: Array = self.classes_[outputs.argmax(axis=1)]
        return classes

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, or of each label, (N, classes)."""
        outputs = self._raw(X)
        probabilities: Array = expit(outputs) if self.multilabel_ else softmax(outputs, axis=1)
        return probabilities

    def _task(self, y: Array, weights: Array | None, *, goes_on: bool, partial: bool, classes: Any) -> _Task:
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise lm.DataError(
                f"{self._of('y')}: expected a class for each row, or 0 and 1 of (N, labels), got other values of "
                f"{y.shape}. Likely fix: sklearn.multioutput.MultiOutputClassifier around this estimator"
            )
        multilabel = kind == "multilabel-indicator"
        if goes_on and (multilabel != self.multilabel_ or (multilabel and y.shape[1] != self.n_outputs_)):
            raise lm.DataError(f"{self._of('y')}: expected classes or labels as in the training before, got {y.shape}")
        if partial and not goes_on and classes is None:
            raise lm.ArgumentError(f"{self._of('classes')}: the first call of partial_fit needs all that will come")
        if self.class_weight is not None:
            if partial and self.class_weight == "balanced":
                raise lm.ArgumentError(
                    f"{self._of('class_weight')}: 'balanced' needs all rows at once, and partial_fit has some. Likely "
                    "fix: a dict, such as {0: 1.0, 1: 5.0}"
                )
            factors = compute_sample_weight(self.class_weight, y)
            weights = factors if weights is None else weights * factors
        if multilabel:
            known, targets, outputs, labels = np.arange(y.shape[1]), y, y.shape[1], None
        else:
            y = column_or_1d(y, warn=True)
            known = self.classes_ if goes_on else unique_labels(classes if partial else y)
            if goes_on and classes is not None and not np.array_equal(unique_labels(classes), known):
                raise lm.ArgumentError(
                    f"{self._of('classes')}: expected those of the first call, {shown(known.tolist())}, or None, got "
                    f"{shown(classes)}"
                )
            targets = labels = self._places(y, known)
            outputs = len(known)
            if not partial and len(np.unique(labels if weights is None else labels[weights > 0])) < 2:
                raise lm.DataError(f"{self._of('y')}: expected two classes or more, got rows of one class")
        learned = {"classes_": known, "n_outputs_": outputs, "multilabel_": multilabel}
        return _Task(targets, weights, outputs, self._loss(multilabel), labels, learned)

    def _places(self, y: Array, classes: Array) -> Array:
        """The place of each row's class among the classes."""
        if len(unknown := np.setdiff1d(y, classes)):
            raise lm.DataError(
                f"{self._of('y')}: expected classes {shown(classes.tolist())}, got {shown(unknown.tolist()[0])}"
            )
        return np.searchsorted(classes, y)

    def _loss(self, multilabel: bool) -> Any:
        if isinstance(self.loss, str) and self.loss == "auto":
            return "binary_cross_entropy" if multilabel else "softmax_cross_entropy"
        loss = LOSSES.resolve(self.loss)
        if loss.on_logits is False:
            raise lm.ArgumentError(
                f"{self._of('loss')}: expected one on logits, such as 'softmax_cross_entropy', got {shown(self.loss)}"
            )
        within = loss
        while isinstance(within, lm.losses.Weighted):
            within = within.loss
        if isinstance(within, _OF_CLASSES if multilabel else _OF_LABELS):
            fit, data = ("binary", "several labels") if multilabel else ("softmax", "classes")
            raise lm.ArgumentError(
                f"{self._of('loss')}: expected one for {data}, such as '{fit}_cross_entropy', got {shown(self.loss)}"
            )
        return loss

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class LamellaRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A network that predicts numbers, as an estimator of scikit-learn.

    It minimises the mean of (network(x) - y)^2, or another loss. Numbers far from 0 are learned slowly: scale them, as
    ``TransformedTargetRegressor(LamellaRegressor(), transformer=StandardScaler())`` does.

    Arguments:
        loss: a loss that compares predictions with targets, such as "mean_absolute_error" or "huber".

    The others are those of `LamellaClassifier`.

    Attributes:
        model_: the network, a `lamella.Model`.
        loss_curve_, n_iter_, n_outputs_, n_features_in_, feature_names_in_: as of `LamellaClassifier`.

    Raises:
        ValueError: data or arguments that do not fit; `lamella.DataError` and `lamella.ArgumentError` are such.
        lamella.NonFiniteError: the loss became NaN or infinite.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.neural_network.MLPRegressor.html

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 200)[:, None]
    >>> regressor = LamellaRegressor((32, 32), learning_rate=0.01, random_state=0)
    >>> regressor.fit(x, np.sin(3 * x[:, 0])).score(x, np.sin(3 * x[:, 0])) > 0.99
    True
    """

    _y_is_numeric = True

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        activation: str | lm.ActivationFunction = "relu",
        layers: Layers | Callable[[int], Layers] | None = None,
        loss: Any = "mean_squared_error",
        optimizer: Any = "adam",
        learning_rate: Any = None,
        alpha: float = 0.0,
        epochs: int = 200,
        batch_size: int = 200,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool | int = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation=activation,
            layers=layers,
            loss=loss,
            optimizer=optimizer,
            learning_rate=learning_rate,
            alpha=alpha,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from rows ``X`` (N, features) and numbers ``y``: (N,) or (N, outputs)."""
        return self._train(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from each of some rows once."""
        return self._train(X, y, sample_weight, partial=True)

    def predict(self, X: Any) -> Array:
        """Return the numbers for each row, (N,), or (N, outputs) for several."""
        outputs = self._raw(X)
        return outputs[:, 0] if self.n_outputs_ == 1 else outputs

    def _task(self, y: Array, weights: Array | None, *, goes_on: bool, partial: bool, classes: Any) -> _Task:
        targets = y.reshape(len(y), -1)
        outputs = targets.shape[1]
        if goes_on and outputs != self.n_outputs_:
            raise lm.DataError(f"{self._of('y')}: expected {self.n_outputs_} numbers for each row, got {outputs}")
        loss = LOSSES.resolve(self.loss)
        if loss.on_logits:
            raise lm.ArgumentError(
                f"{self._of('loss')}: expected one that compares predictions with targets, such as "
                f"'mean_squared_error', got {shown(self.loss)}, which is for classes"
            )
        return _Task(targets, weights, outputs, loss, learned={"n_outputs_": outputs})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
