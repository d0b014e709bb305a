"""What training measured: values for each epoch, ready for a data frame or a picture."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import file_path, measured, text
from lamella.callbacks import larger_is_better
from lamella.errors import ArgumentError, DataError, counted, did_you_mean, shown

__all__ = ["History"]

_TRAINING, _VALIDATION, _TEXT, _FRAME = "#9aa5b1", "#0b6e99", "#333f48", "#c3ccd4"


class History:
    """What `fit` measured: one value for each epoch, by name, as in ``history["val_loss"][-1]``.

    ``history.history`` is a dict of lists of equal length: ``pandas.DataFrame(history.history)`` takes it as it is. The
    values of metrics of each class, and of confusion matrices, are arrays.

    Attributes:
        history: the values by name, one for each epoch that ended: as planned, or early as a callback asked.
        stopped: why training ended before its last epoch, or None.
        interrupted: whether it was by Ctrl-C.

    >>> history = History()
    >>> history.add({"loss": 0.5, "accuracy": 0.8})
    >>> history
    <History of 1 epoch: loss=0.5, accuracy=0.8>
    """

    def __init__(self) -> None:
        self.history: dict[str, list[Any]] = {}
        self.stopped: str | None = None
        self.interrupted = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"History has no {name!r}.{elsewhere.hint(elsewhere.HISTORY, name)}")

    def add(self, logs: Mapping[str, Any]) -> None:
        """Append the values of one epoch; NaN stands where a name has none."""
        if not isinstance(logs, Mapping):
            raise ArgumentError(f"History.add: logs: expected a dict of numbers by name, got {shown(logs)}")
        logs = {
            text(name, "History.add: logs", "'loss'"): measured(value, f"History.add: logs[{name!r}]")
            for name, value in logs.items()
        }
        before = self.epochs
        for name in dict.fromkeys((*self.history, *logs)):
            self.history.setdefault(name, [math.nan] * before).append(logs.get(name, math.nan))

    @property
    def epochs(self) -> int:
        """How many epochs were finished."""
        return max(map(len, self.history.values()), default=0)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the curve of every number, training and validation together; return a matplotlib figure.

        A notebook shows the figure; ``path`` writes it to a file, as PNG, SVG or PDF by the path's ending. A ring marks
        the best epoch in validation. Needs matplotlib: ``pip install 'lamella[plot]'``.

        Raises:
            ImportError: matplotlib is not installed.
            DataError: there is no epoch to draw.
        """
        if path is not None:
            path = file_path(path, "History.plot: path")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:  # an optional dependency
            raise ImportError("history.plot needs matplotlib: pip install 'lamella[plot]'") from error

        if not self.epochs:
            raise DataError("history.plot: no epoch was finished, so there is nothing to draw")
        curves = {name: values for name, values in self.history.items() if all(map(_is_number, values))}
        names = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
        columns = 2 if len(names) == 4 else min(len(names), 3)
        rows = math.ceil(len(names) / columns)
        figure = Figure(figsize=(0.6 + 4.0 * columns, 0.3 + 3.0 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, name in zip(panels, names, strict=False):
            _draw(axes, name, curves.get(name), curves.get(f"val_{name}"))
        for axes in panels[max(0, len(names) - columns) : len(names)]:
            axes.set_xlabel("epoch", color=_TEXT)
        for axes in panels[len(names) :]:
            axes.remove()
        if any(name.startswith("val_") for name in curves):
            panels[0].legend(frameon=False, labelcolor=_TEXT)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def __getitem__(self, name: str) -> list[Any]:
        if not isinstance(name, str) or name not in self.history:
            hint = did_you_mean(name, self.history) if isinstance(name, str) else ""
            raise KeyError(f"history: there is no {shown(name)}; there are {', '.join(self.history) or 'none'}.{hint}")
        return self.history[name]

    def _repr_html_(self) -> str:
        from lamella import notebook  # seldom needed

        curves = {name: values for name, values in self.history.items() if not any(map(np.ndim, values))}
        columns = [("", False), ("", False), (notebook.styled("training", "dim"), True)]
        if any(name.startswith("val_") for name in curves):
            columns += [(notebook.styled("validation", "cyan"), True), ("best", True), ("in epoch", True)]
        rows = []
        for name in dict.fromkeys(name.removeprefix("val_") for name in curves):
            trained, validated = curves.get(name, []), curves.get(f"val_{name}", [])
            best = _best(name, validated)
            last = [f"{values[-1]:.4g}" if values else "" for values in (trained, validated)]
            found = ["", ""] if best is None else [f"{validated[best]:.4g}", f"{best + 1:,}"]
            cells = [notebook.styled(name), notebook.curve(trained, validated, best), *last, *found]
            rows.append(cells[: len(columns)])
        title = notebook.styled(f"History of {counted(self.epochs, 'epoch')}")
        notes = [notebook.styled(f"stopped: {self.stopped}")] if self.stopped else []
        return notebook.table(title, columns if rows else [], rows, notes)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.history)

    def __repr__(self) -> str:
        numbers = {name: values[-1] for name, values in self.history.items() if _is_number(values[-1])}
        last = ", ".join(f"{name}={value:.4g}" for name, value in numbers.items())
        values = f": {last}" if last else ""
        return f"<History of {counted(self.epochs, 'epoch')}{values}{f'; {self.stopped}' if self.stopped else ''}>"


def _is_number(value: Any) -> bool:
    return not np.ndim(value)


def _best(name: str, values: Sequence[float]) -> int | None:
    """The place of the best value, the first of equal ones."""
    larger = larger_is_better(name)
    finite = [(value if larger else -value, -k) for k, value in enumerate(values) if math.isfinite(value)]
    return -max(finite)[1] if finite else None


def _draw(axes: Any, name: str, trained: Sequence[float] | None, validated: Sequence[float] | None) -> None:
    """One panel: the curves of a name, and a ring with the value at the best epoch of validation."""
    from matplotlib.ticker import MaxNLocator

    values = [value for value in (*(trained or ()), *(validated or ())) if math.isfinite(value)]
    for label, curve in (("training", trained), ("validation", validated)):
        if curve:
            color = _TRAINING if validated and curve is trained else _VALIDATION
            marker = "o" if len(curve) < 31 else ""
            axes.plot(range(1, len(curve) + 1), curve, color=color, marker=marker, ms=3, lw=1.6, label=label)
    larger = larger_is_better(name)
    best = _best(name, validated or ())
    if best is not None and validated:
        axes.plot(best + 1, validated[best], "o", color=_VALIDATION, mfc="white", mew=1.6, ms=8)
        axes.annotate(
            f"{validated[best]:.3g}", (best + 1, validated[best]), xytext=(0, -9 if larger else 9),
            textcoords="offset points", ha="center", va="top" if larger else "bottom", color=_VALIDATION, fontsize=9,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        )  # fmt: skip
    falls = all(a >= b for a, b in itertools.pairwise(values))
    if name == "learning_rate" and values and falls and 0 < 5 * min(values) < max(values):
        axes.set_yscale("log")
    axes.set_title(name.replace("_", " "), loc="left", color=_TEXT, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.04, y=0.14)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FRAME)
    axes.tick_params(which="both", color=_FRAME, labelcolor=_TEXT, labelsize=9)
