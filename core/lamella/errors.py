"""The errors lamella raises. Each message says where, what was expected, what was given, and the likely fix."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable

from lamella.elsewhere import NAMES

__all__ = [
    "ArgumentError",
    "BackendError",
    "BusyError",
    "DataError",
    "GraphError",
    "LamellaError",
    "LayerError",
    "MistakeWarning",
    "NonFiniteError",
    "RegistryError",
    "VersionWarning",
    "counted",
    "did_you_mean",
    "in_words",
    "place_of",
    "shown",
    "without_addresses",
]


class LamellaError(Exception):
    """What every error below is, beside the built-in kind that it belongs to."""


class ArgumentError(LamellaError, ValueError):
    """A constructor argument that a layer, loss, optimizer, ... cannot use."""


class GraphError(LamellaError, ValueError):
    """Layers that do not fit together, found while a model is assembled."""


class DataError(LamellaError, ValueError):
    """Arrays given to fit, evaluate, predict or gradients that do not fit the model."""


class LayerError(LamellaError, RuntimeError):
    """A layer failed, or broke the layer protocol, while a model ran."""


class NonFiniteError(LamellaError, ArithmeticError):
    """The loss became NaN or infinite, or a model to export is; the message names the first offending layer."""


class BackendError(LamellaError, ImportError):
    """A backend that cannot run here, since what it needs is not installed; the message says what to install."""


class BusyError(LamellaError, RuntimeError):
    """Another thread is training the model, or changes it otherwise; only one at a time may do so."""


class RegistryError(LamellaError, LookupError):
    """A name that no plugin gives, that several give, or whose plugin cannot be imported."""


class VersionWarning(UserWarning):
    """A file was written with another version of a distribution than the one installed."""


class MistakeWarning(UserWarning):
    """Something that can be done, and is most probably not what was meant; the message says what would be."""


_LONGEST = 200  # characters of a value in an error message


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts.

    >>> counted(1, "row"), counted(2, "row")
    ('1 row', '2 rows')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def in_words(error: BaseException) -> str:
    """Return the class of an error and its message, also where the message can't be had.

    What would move a terminal's cursor or change its colors is escaped.

    >>> in_words(KeyError("x"))
    "KeyError: 'x'"
    >>> print(in_words(ValueError("\\x1b[2J, \\x07")))
    ValueError: \\x1b[2J, \\x07
    """
    try:
        message = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as another:
        message = f"(its message can't be had: {type(another).__name__} in __str__)"
    characters = (one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in message)
    return f"{type(error).__name__}: {''.join(characters)}"


def place_of(error: BaseException) -> str:
    """Return where in the code of others an error arose, as ``" (file, line 12)"``, or an empty string.

    It is the deepest line of the file that was called first, such as that of a layer: there it calls NumPy, say.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    own = frames[0][0].f_code.co_filename if frames else ""
    others = [(frame.f_code.co_filename, line) for frame, line in frames if frame.f_code.co_filename != own]
    lines = [line for file, line in others if file == others[0][0]]
    return f" ({others[0][0]}, line {lines[-1]})" if others else ""


def shown(value: object) -> str:
    """Return a value as an error message shows it: on one line, not too long, and whatever its own repr does.

    >>> shown("rleu"), len(shown([0.5] * 1000))
    ("'rleu'", 200)
    """
    try:
        text = " ".join(repr(value).split()) if not isinstance(value, str) else repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # of somebody's class, or for an int of thousands of digits
        return f"an object of {type(value).__qualname__} that cannot be shown"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def without_addresses(text: str) -> str:
    """Return a repr in which functions stand without the addresses they have in memory.

    >>> without_addresses("Scaled(<function half at 0x7f1c2a>)")
    'Scaled(<function half>)'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+(?=>)", "", text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string.

    A name that begins with what was given is closer than others.

    >>> did_you_mean("dnese", ["dense", "conv2d"]), did_you_mean("lr", ["learning_rate", "rho"])
    (" Did you mean 'dense'?", " Did you mean 'learning_rate'?")
    >>> did_you_mean("onnx", ["onednn", "onnxruntime"])
    " Did you mean 'onnxruntime'?"
    """
    folded = {option.lower(): option for option in known}
    given = name.lower()
    close = [one for one in (NAMES.get(given),) if one in folded]
    close = close or sorted((one for one in folded if len(given) > 1 and one.startswith(given)), key=len)
    close = close or difflib.get_close_matches(given, folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""
