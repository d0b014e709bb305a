"""From data to the batches of an epoch: arrays that are cut up, or iterables that bring batches of their own."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lamella.arguments import number, positive
from lamella.backends import get_backend
from lamella.engine.passes import Batch
from lamella.errors import ArgumentError, DataError, counted, shown
from lamella.losses import Loss
from lamella.losses.loss import as_column
from lamella.network import Network, warn_of_mistakes
from lamella.protocol.frames import in_other_order, is_column, is_frame
from lamella.protocol.inputs import (
    LARGE,
    as_array,
    as_inputs,
    as_weights,
    converted,
    for_each,
    pieces,
    row_count,
    unwritable,
)

__all__ = ["ArrayBatches", "Data", "Rows", "StreamBatches", "batches_of", "held_out", "weight_that_counts"]


_WIDEST = 8  # bytes of an entry of any target
GATHER_BYTES = 1 << 18  # of inputs that are put into the order of a shuffle at a time


_NO_BATCHES = (np.ndarray, Mapping, set, frozenset, range, str, bytes, bytearray)


class Rows(NamedTuple):
    """Some rows of the data: as the engine takes them, and what metrics want."""

    batch: Batch
    prepared: tuple[Any, ...]  # targets as the losses take them, as NumPy
    targets: tuple[Any, ...]  # as the user gave them
    weights: tuple[Any, ...]  # of each output's rows, None where all weigh 1
    sums: tuple[float, ...]  # the weight of what counts of the rows, for each output
    size: int


class Gathered(NamedTuple):
    """Rows of all arrays, in the order in which batches take them."""

    inputs: tuple[Any, ...]  # on the backend
    brought: tuple[Any, ...]  # targets as the losses take them, on the backend
    prepared: tuple[Any, ...]
    targets: tuple[Any, ...]
    weights: tuple[Any, ...]


class Data:
    """Inputs, targets and weights of one call, checked."""

    def __init__(
        self,
        model: Network,
        x: Any,
        y: Any,
        losses: tuple[Loss | None, ...],
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> None:
        self.model = model
        self.inputs = as_inputs(model.input_names, model.input_specs, x, large_as_given=True)
        self._dtypes = [np.dtype(spec.dtype) for spec in model.input_specs]
        self.rows = row_count(self.inputs, "x")
        given = for_each("y", y, model.output_names)
        self._from_tables = [is_frame(one) or is_column(one) for one in given]
        _warn_of_orders(x, y, sample_weight)
        # as the user gave them, for metrics, but for a last axis of size 1 that predictions have
        self.targets = tuple(
            None if one is None else unwritable(as_array(one, f"y of {name!r}: expected an array"))
            for one, name in zip(given, model.output_names, strict=True)
        )
        self._later: dict[int, Callable[[Any], Any]] = {}  # prepares targets of an output, batch by batch
        self.prepared = tuple(map(self._prepare, losses, self.targets, range(len(losses))))
        self.targets = tuple(
            None if one is None else as_column(one, spec.shape)
            for one, spec in zip(self.targets, model.output_specs, strict=True)
        )
        rows = [len(target) for target in self.prepared if target is not None]
        if any(count != self.rows for count in rows):
            raise DataError(f"x has {counted(self.rows, 'row')} and y has {rows[0]}; expected equally many")
        self.weighted: dict[int, dict[int, float]] = {}  # the labels that class_weight names, by output
        self.weights = self._given_weights = as_weights(model.output_names, self.rows, sample_weight)
        if class_weight is not None:
            self.weights = self._with_class_weights(class_weight)
        self._losses = losses
        self._is_weighted = any(own is not None for own in self.weights) or any(map(_leaves_out, losses))
        self._equal: dict[int, tuple[tuple[float, ...], tuple[Any, ...]]] = {}  # of the last size

    def split(self, share: float) -> tuple[Data, Data]:
        """Return the first rows, and the last ones as a share of all, which weigh as given, whatever their classes."""
        count = math.floor(round(self.rows * (1.0 - share), 6))  # 1.0 - 0.8 is a little less than 0.2
        if not 0 < count < self.rows:
            raise DataError(
                f"validation_split={share:g}: expected rows on both sides, got {count} to learn from and "
                f"{self.rows - count} held out of {counted(self.rows, 'row')}"
            )
        first, last = copy.copy(self), copy.copy(self)
        last.weights = self._given_weights
        for part, rows in ((first, slice(0, count)), (last, slice(count, None))):
            for name in ("inputs", "targets", "prepared", "weights"):
                arrays = getattr(part, name)
                setattr(part, name, tuple(None if array is None else array[rows] for array in arrays))
            part.rows, part._equal = len(part.inputs[0]), {}
        return first, last

    @property
    def width(self) -> int:
        """Bytes of a row of the inputs, as the model takes them."""
        return sum(array[:1].size * dtype.itemsize for array, dtype in zip(self.inputs, self._dtypes, strict=True))

    def _prepare(self, loss: Loss | None, target: Any, k: int) -> Any:
        """A target as the loss takes it, held against the size that the prediction will have.

        A large one that has to be converted is held against it piece by piece, and stays as it is until `gather`.
        """
        if loss is None:
            return None
        name, spec = self.model.output_names[k], self.model.output_specs[k]
        if target is None:
            raise DataError(f"y of {name!r}: nothing for {loss!r}; give loss=None for outputs that are not trained on")
        sizes: dict[int | str, int] = {}
        for own, array in zip(self.model.input_specs, self.inputs, strict=True):
            sizes.update({n: m for n, m in zip(own.shape[1:], array.shape[1:], strict=True) if isinstance(n, str)})
        try:
            if sizes:
                spec = spec.replace(shape=tuple(sizes.get(n, n) for n in spec.shape))
            if target.size * _WIDEST <= LARGE:
                return unwritable(np.asarray(loss.prepare(spec, target)))
            return self._prepare_large(k, partial(loss.prepare, spec), target)
        except DataError as error:
            if self._from_tables[k] and "Use y" in str(error):
                error = DataError(f"{error} There y stands for y.to_numpy().")
            if len(self.model.output_names) == 1:
                raise error from None
            raise DataError(f"y of {name!r}: {error}") from None

    def _prepare_large(self, k: int, prepare: Callable[[Any], Any], target: Any) -> Any:
        for rows in pieces(target, _WIDEST):
            try:
                part = np.asarray(prepare(target[rows]))
            except DataError as error:
                raise DataError(f"rows {rows.start} to {rows.stop - 1} of {len(target)}: {error}") from None
            if np.may_share_memory(part, target):  # nothing to convert
                return unwritable(np.asarray(prepare(target)))
        self._later[k] = prepare
        return target

    def _with_class_weights(self, class_weight: Any) -> tuple[Any, ...]:
        """The rows' weights, each times that of the row's class."""
        names = self.model.output_names
        if not isinstance(class_weight, Mapping):
            raise ArgumentError(f"class_weight: expected a dict such as {{0: 1.0, 1: 5.0}}, got {shown(class_weight)}")
        of_outputs = class_weight if set(class_weight) & set(names) else dict.fromkeys(names, class_weight)
        if unknown := [name for name in of_outputs if name not in names]:
            raise ArgumentError(f"class_weight: unknown output {shown(unknown[0])}; expected {', '.join(names)}")
        weights = list(self.weights)
        for k, name in enumerate(names):
            target, of_labels = self.targets[k], of_outputs.get(name)
            if target is None or of_labels is None:
                continue
            if not isinstance(of_labels, Mapping):
                raise ArgumentError(
                    f"class_weight: of {name!r}: expected a dict such as {{0: 1.0, 1: 5.0}}, got {shown(of_labels)}"
                )
            labels = _labels(name, target)
            classes = self.model.output_specs[k].shape[-1]
            factors = np.ones(self.rows)
            for label, weight in of_labels.items():
                own = positive(label, "class_weight: label", minimum=0)
                if isinstance(classes, int) and own >= classes > 1:
                    raise ArgumentError(
                        f"class_weight: label {own}: expected 0 to {classes - 1}, the classes of {name!r}"
                    )
                factors[labels == own] = number(weight, f"class_weight: weight of {label}", minimum=0.0)
            self.weighted[k] = {int(label): float(weight) for label, weight in of_labels.items()}
            given = weights[k]
            with np.errstate(over="ignore"):
                own_weights = factors if given is None else given * factors
                total = own_weights.sum()
            if not math.isfinite(total):
                raise DataError(
                    f"class_weight: with sample_weight, the sum of weights is more than float64 holds for {name!r}; "
                    "scale them down"
                )
            weights[k] = own_weights
        return tuple(weights)

    def rows_of_classes(self, k: int) -> np.ndarray[Any, Any] | None:
        """How many rows each class of an output has, those that weigh 0 left out; None where targets are no classes."""
        target, weights, spec = self.prepared[k], self.weights[k], self.model.output_specs[k]
        classes = spec.shape[-1]
        if target is None or k in self._later or len(spec.shape) != 2 or not isinstance(classes, int):
            return None
        rows = target if weights is None else target[weights > 0.0]
        if rows.ndim == 1 and rows.dtype.kind == "i" and rows.size and 0 <= rows.min() <= rows.max() < classes:
            return np.bincount(rows, minlength=classes)
        is_one_hot = rows.ndim == 2 and np.all((rows == 0) | (rows == 1)) and np.all(rows.sum(axis=1) == 1)
        return np.count_nonzero(rows, axis=0) if is_one_hot else None

    def ignored(self, k: int) -> int | None:
        """The label of an output that does not count."""
        loss = self._losses[k]
        return None if loss is None else loss.ignore_class

    def gather(self, rows: Any) -> Gathered:
        """Some of the rows, to take batches from."""
        bring = self.model.device.asarray
        prepared = [None if target is None else target[rows] for target in self.prepared]
        for k, prepare in self._later.items():
            prepared[k] = unwritable(np.asarray(prepare(prepared[k])))
        pairs = zip(self.inputs, self._dtypes, strict=True)
        return Gathered(
            inputs=tuple([bring(converted(array[rows], dtype)) for array, dtype in pairs]),
            brought=tuple([None if target is None else bring(target) for target in prepared]),
            prepared=tuple(prepared),
            targets=tuple([None if target is None else unwritable(target[rows]) for target in self.targets]),
            weights=tuple([None if own is None else unwritable(own[rows]) for own in self.weights]),
        )

    def take(self, gathered: Gathered, rows: slice) -> Rows:
        """A batch."""
        inputs = tuple([array[rows, ...] for array in gathered.inputs])
        others = [tuple([None if array is None else array[rows, ...] for array in arrays]) for arrays in gathered[1:]]
        return self._batch(Gathered(inputs, *others))

    def whole(self) -> Rows:
        """All rows as one batch."""
        return self._batch(self.gather(slice(None)))

    def _batch(self, rows: Gathered) -> Rows:
        inputs, brought, prepared, targets, weights = rows
        count = inputs[0].shape[0]
        if self._is_weighted:
            sums = tuple(map(partial(weight_that_counts, count), self._losses, prepared, weights))
            shares = tuple([self._shares(count, own, total) for own, total in zip(weights, sums, strict=True)])
        else:
            sums, shares = self._weighing_1(count)
        return Rows(Batch(inputs, brought, shares), prepared, targets, weights, sums, count)

    def _weighing_1(self, count: int) -> tuple[tuple[float, ...], tuple[Any, ...]]:
        """Sums and shares of so many rows that all weigh 1, kept from one batch to the next."""
        if count not in self._equal:
            outputs = len(self.weights)
            shares = self.model.device.asarray(_equal_shares(count, self.model.dtype))
            self._equal = {count: ((float(count),) * outputs, (shares,) * outputs)}
        return self._equal[count]

    def _shares(self, count: int, weights: Any, total: float) -> Any:
        """The weight of each row over that of all that counts, on the backend."""
        if weights is None and total == count:
            return self.model.device.asarray(_equal_shares(count, self.model.dtype))
        weights = np.ones(count) if weights is None else weights
        return self.model.device.asarray((weights / (total or 1.0)).astype(self.model.dtype))


def _warn_of_orders(x: Any, y: Any, sample_weight: Any) -> None:
    """Say so if tables have the same rows by their labels, in different orders: they are taken by position."""
    first = None
    for what, given in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        for one in given.values() if isinstance(given, Mapping) else given if isinstance(given, tuple) else (given,):
            if type(one) is np.ndarray or not (is_frame(one) or is_column(one)):
                continue
            if first is None:
                first = what, one
            elif in_other_order(first[1], one):
                warn_of_mistakes(
                    f"{first[0]} and {what} have the same index in different orders, and rows go by position. "
                    f"Likely fix: {what}.loc[{first[0]}.index], or {what}.to_numpy() if rows stand as they should"
                )
                return


def _leaves_out(loss: Loss | None) -> bool:
    """Whether some of a sample may not count."""
    return loss is not None and (loss.ignore_class is not None or type(loss).counted is not Loss.counted)


def weight_that_counts(count: int, loss: Loss | None, target: Any, weights: Any) -> float:
    """Return the weight of what counts of so many rows, for one output; ``weights`` None where each weighs 1."""
    counted = None if loss is None else loss.counted(get_backend("numpy").xp, target, np.dtype("float64"))
    if counted is not None:
        return float(counted.sum() if weights is None else np.vdot(counted, weights))
    return float(count if weights is None else weights.sum())


@functools.lru_cache(maxsize=16)
def _equal_shares(count: int, dtype: str) -> Any:
    """The weight of each of so many rows that weigh 1, over that of all."""
    return unwritable((np.ones(count) / (count or 1.0)).astype(dtype))


def _labels(name: str, target: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One integer label for each row, from labels (N,) or (N, 1), or from one-hot rows (N, C)."""
    one_hot = target.ndim == 2 and target.shape[1] > 1 and target.dtype.kind in "biuf"
    if one_hot and np.all((target == 0) | (target == 1)) and np.all(target.sum(axis=1) == 1):
        return np.asarray(np.argmax(target, axis=1))
    if target.ndim in (1, 2) and target.size == len(target) and np.all(target == np.floor(target)):
        return target.reshape(-1)
    raise DataError(
        f"class_weight: y of {name!r} must hold integer labels (N,) or one-hot rows (N, classes); got {target.dtype} "
        f"{target.shape}. Use sample_weight for other weights"
    )


class ArrayBatches:
    """Arrays, cut into batches of equal size but for the last, in the order of a shuffle if asked for."""

    def __init__(self, data: Data, size: int, *, shuffle: bool = False, what: str = "class_weight") -> None:
        self.data, self.size, self.shuffle = data, size, shuffle
        if any(weights is not None and not weights.any() for weights in data.weights):
            raise DataError(f"{what}: every row weighs 0, so there is nothing to average")

    def split(self, share: float, size: int) -> tuple[ArrayBatches, ArrayBatches]:
        """Return batches of the first rows, and others, of another size, of the last ones, as a share of all."""
        first, last = self.data.split(share)
        return (
            ArrayBatches(first, self.size, shuffle=self.shuffle, what="validation_split: rows to learn from"),
            ArrayBatches(last, size, what="validation_split: rows held out"),
        )

    @property
    def length(self) -> int:
        """How many batches an epoch has."""
        return -(-self.data.rows // self.size)

    def described(self) -> dict[str, str]:
        """What decides which rows a step takes, in words."""
        return {"batch_size": str(self.size), "shuffle": str(self.shuffle), "number of rows": str(self.data.rows)}

    def skip(self, count: int) -> None:
        """Nothing: every epoch begins with the first rows."""

    def epoch(self, skip: int = 0, step: int | None = None) -> Iterator[Rows]:
        """The batches of one epoch but for the first; the order follows from the model's seed, and the step then."""
        model, rows = self.data.model, self.data.rows
        order = np.arange(rows)
        if self.shuffle:
            step = model.step if step is None else step
            np.random.default_rng([model.seed & 0xFFFFFFFF, model.seed >> 32, step]).shuffle(order)
        many = self.size * max(1, GATHER_BYTES // max(1, self.data.width * self.size))
        for first in range(skip * self.size, rows, many):
            some = slice(first, first + many)
            gathered = self.data.gather(order[some] if self.shuffle else some)
            count = min(many, rows - first)
            for start in range(0, count, self.size):
                yield self.data.take(gathered, slice(start, min(start + self.size, count)))


class StreamBatches:
    """An iterable, or a function that makes one, of batches ``(x, y)`` or ``(x, y, sample_weight)``.

    Without ``steps`` every epoch runs through it once, from its start. With ``steps`` an epoch takes that many
    batches, where the last one stopped, or from the start again with ``restart``; at its end, what can restart does so.
    """

    def __init__(
        self,
        model: Network,
        source: Any,
        losses: tuple[Loss | None, ...],
        *,
        what: str = "x",
        steps: int | None = None,
        restart: bool = False,
        class_weight: Any = None,
    ) -> None:
        self.model, self.source, self.losses, self.what = model, source, losses, what
        self.steps, self.restart, self.class_weight = steps, restart, class_weight
        self._running: Iterator[Any] | None = None
        if isinstance(source, Sized) and not isinstance(source, np.ndarray) and not len(source):
            raise DataError(f"{what}: expected batches, got none")
        if not _may_bring_batches(source):
            raise DataError(
                f"{what}: expected batches, as an iterable of (x, y) or a function that makes one, got "
                f"{type(source).__name__}; arrays need y"
            )
        for batch in source if isinstance(source, list | tuple) else ():
            self._parts(batch)

    @property
    def length(self) -> int | None:
        """How many batches an epoch has, if that can be known."""
        return self.steps or (len(self.source) if isinstance(self.source, Sized) else None)

    def epoch(self, skip: int = 0, step: int | None = None) -> Iterator[Rows]:
        """The batches of one epoch but for the first."""
        if self.steps is None:
            empty = True
            for k, batch in enumerate(self._start()):
                empty = False
                if k >= skip:
                    yield self._rows(batch)
            if empty:
                raise self._ended()
        if self.restart:
            self._running = None
        for _ in range(skip, self.steps or 0):
            yield self._rows(self._next())

    def described(self) -> dict[str, str]:
        """What decides which batches an epoch takes, in words."""
        return {"steps_per_epoch": str(self.steps)}

    def skip(self, count: int) -> None:
        """Draw batches that were trained on before, where epochs begin where the last one stopped."""
        if self.steps is not None:
            for _ in range(count):
                self._next()

    def _start(self) -> Iterable[Any]:
        made = self.source() if callable(self.source) else self.source
        if not isinstance(made, Iterable):
            raise DataError(f"{self.what}: the function gave {type(made).__name__}; expected an iterable of batches")
        return made

    def _next(self) -> Any:
        for _ in range(2):  # at the end, start again
            if self._running is None:
                self._running = iter(self._start())
            for batch in self._running:
                return batch
            self._running = None
        raise self._ended()

    def _ended(self) -> DataError:
        return DataError(
            f"{self.what}: there are no more batches. An iterator runs out once; give something that can start again, "
            "such as a list or a generator function"
        )

    def _rows(self, batch: Any) -> Rows:
        x, y, *rest = self._parts(batch)
        weight = rest[0] if rest else None
        return Data(self.model, x, y, self.losses, weight, self.class_weight).whole()

    def _parts(self, batch: Any) -> Any:
        """A batch, if it has two or three entries."""
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            got = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
            raise DataError(
                f"{self.what}: every batch must be (x, y) or (x, y, sample_weight), got {got}; arrays need y"
            )
        return batch


def _may_bring_batches(source: Any) -> bool:
    """Whether something can be an iterable of batches, or a function that makes one."""
    is_data = isinstance(source, _NO_BATCHES) or is_frame(source) or is_column(source)
    return not is_data and (callable(source) or isinstance(source, Iterable))


def batches_of(
    model: Network,
    x: Any,
    y: Any,
    losses: tuple[Loss | None, ...],
    *,
    size: int,
    shuffle: bool = False,
    sample_weight: Any = None,
    class_weight: Any = None,
    steps: int | None = None,
) -> ArrayBatches | StreamBatches:
    """Arrays where there are targets, else an iterable of batches."""
    if y is not None:
        if steps is not None:
            raise ArgumentError("steps_per_epoch: expected None for arrays, which end; it is for iterables of batches")
        return ArrayBatches(Data(model, x, y, losses, sample_weight, class_weight), size, shuffle=shuffle)
    if sample_weight is not None:
        raise ArgumentError("sample_weight: expected None for batches, which bring theirs as (x, y, sample_weight)")
    steps = None if steps is None else positive(steps, "steps_per_epoch")
    return StreamBatches(model, x, losses, steps=steps, class_weight=class_weight)


def held_out(
    model: Network, data: Any, losses: tuple[Loss | None, ...], size: int, *, steps: int | None = None
) -> ArrayBatches | StreamBatches:
    """Validation data: a tuple of arrays, or batches."""
    if isinstance(data, list) and data and not isinstance(data[0], tuple | list):
        data = tuple(data)
    if isinstance(data, tuple) and len(data) in (2, 3):
        if steps is not None:
            raise ArgumentError("validation_steps: expected None for arrays, which end; it is for iterables of batches")
        x, y, *weight = data
        try:
            return ArrayBatches(Data(model, x, y, losses, *weight), size)
        except DataError as error:
            raise DataError(f"validation_data: {error}") from None
    if isinstance(data, tuple) or not _may_bring_batches(data):
        raise ArgumentError(
            f"validation_data: expected (x, y), (x, y, sample_weight), or batches of these, got {type(data).__name__}"
        )
    steps = None if steps is None else positive(steps, "validation_steps")
    return StreamBatches(model, data, losses, what="validation_data", steps=steps, restart=True)
