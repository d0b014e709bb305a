"""What people see while a model trains: a live line for the epoch, and one line for each that is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamella.callbacks import Callback
from lamella.network import Network
from lamella.terminal import Line, Terminal, styled

__all__ = ["Progress", "is_watched"]

_WIDTH, _LEAST = 24, 6  # of the bar


def is_watched() -> bool:
    """Whether somebody is watching: in a terminal, or in a notebook."""
    terminal = Terminal()
    return terminal.is_terminal or terminal.is_notebook


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _numbers(logs: Mapping[str, Any]) -> list[str]:
    """The numbers with their names; arrays, as of each class, have no room in a line."""

    def text(value: float) -> str:
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"

    return [f"{name} {text(value)}" for name, value in logs.items() if not np.ndim(value)]


def _lines(numbers: Sequence[str], room: int) -> list[str]:
    """Numbers side by side in one line where there is room, else in several, those of validation apart."""
    if len(whole := "  ".join(numbers)) <= room:
        return [whole]
    lines: list[str] = []
    for before, number in zip(("", *numbers), numbers, strict=False):
        apart = number.startswith("val_") and not before.startswith("val_")
        if lines and not apart and len(lines[-1]) + 2 + len(number) <= room:
            lines[-1] += f"  {number}"
        else:
            lines.append(number)
    return lines


class Progress(Callback):
    """Prints training on a terminal: bar, loss, metrics, samples per second, and the time that is left."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self.terminal = terminal or Terminal()

    def on_train_begin(self, model: Network, epochs: int, batches: int | None) -> None:
        self.epochs, self.batches, self.epoch = epochs, batches, 0  # None: as many as the first epoch turns out to have
        self.done = 0  # batches of all epochs
        self.began = time.perf_counter()
        self.line = Line(self.terminal)
        self.line.start()

    def on_epoch_begin(self, model: Network, epoch: int) -> None:
        self.epoch, self.batch, self.rows = epoch, 0, 0
        self.epoch_began, self.shown = time.perf_counter(), 0.0

    def on_batch_end(self, model: Network, rows: int, logs: Mapping[str, Any]) -> None:
        self.batch += 1
        self.done += 1
        self.rows += rows
        now = time.perf_counter()
        if not self.line.started or (now - self.shown < 0.1 and self.batch != self.batches):
            return
        self.shown = now
        label, tail = self._label(), f"  {self._speed(now)}"
        if self.batches is None:
            label += f"batch {self.batch}"
            numbers = self._fitting(logs, len(label + tail))
            bar = ""
        else:
            left = (now - self.began) / self.done * max(0, self.epochs * self.batches - self.done)
            tail += f"  {_duration(left)} left"
            numbers = self._fitting(logs, len(label + tail) + _LEAST)
            width = max(_LEAST, min(_WIDTH, self.terminal.width - len(label + numbers + tail)))
            filled = min(width, width * self.batch // self.batches)
            done, rest = "━─" if self.terminal.has_unicode else "=-"
            bar = styled(done * filled, "green") + styled(rest * (width - filled), "dim")
        self.line.show(f"{label}{bar}{numbers}{styled(tail, 'dim')}")

    def on_epoch_end(self, model: Network, epoch: int, logs: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        self.batches = self.batches or self.batch
        label, terminal = self._label(), self.terminal.is_terminal
        lines = _lines(_numbers(logs), self.terminal.width - len(label) if terminal else sys.maxsize)
        line = f"\n{' ' * len(label)}".join(lines)
        tail = f"  {self._speed(now)}  {now - self.epoch_began:.1f} s"
        if not terminal or len(label) + len(lines[-1]) + len(tail) <= self.terminal.width:
            line += styled(tail, "dim")
        self.line.show("")
        self.line.above(self.terminal.shown(f"{label}{line}"))

    def on_train_end(self, model: Network) -> None:
        self.line.stop()

    def say(self, text: str) -> None:
        """Print a line beside those of epochs."""
        self.terminal.print(text)

    def _fitting(self, logs: Mapping[str, Any], taken: int) -> str:
        """As many of the numbers as the terminal has room for beside so many characters; the loss comes first."""
        first, *others = _numbers(logs)
        text, more = f"  {first}", "  …" if self.terminal.has_unicode else "  ..."
        for k, number in enumerate(others, start=1):
            if taken + len(text) + 2 + len(number) + len(more) * (k < len(others)) > self.terminal.width:
                return text + more
            text += f"  {number}"
        return text

    def _label(self) -> str:
        return f"epoch {self.epoch + 1:>{len(str(self.epochs))}}/{self.epochs}  "

    def _speed(self, now: float) -> str:
        return f"{self.rows / max(now - self.epoch_began, 1e-9):,.0f} samples/s"
