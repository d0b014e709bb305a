"""What a layer sees while it runs: its arrays, the backend's functions, and where results go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella.backends.counter import mix_keys, uniform
from lamella.errors import LayerError, did_you_mean

__all__ = ["Arrays", "Context"]


class Arrays:
    """A layer's arrays, read as attributes: ``ctx.params.kernel``."""

    __slots__ = ("__dict__", "_label")

    def __init__(self, label: str, arrays: Mapping[str, Any]) -> None:
        self._label = label
        self.__dict__.update(arrays)

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(self.__dict__) or "nothing"
        raise AttributeError(f"{self._label} declared {known}; no {name!r}.{did_you_mean(name, self.__dict__)}")


class Context:
    """What a layer sees during one forward and backward pass over one slice of the batch.

    Attributes:
        label: the name and class of the layer, for messages.
        params: the layer's parameters, ``ctx.params.kernel``; never written to.
        state: the layer's state, as it was before this step.
        saved: what ``save`` was given in the forward pass.
        xp: the array functions listed in `lamella.backends.NAMESPACE`.
        dtype: the model's float dtype, as ``xp`` names it.
        training: True in a training step, False in inference.
        trainable: False where the layer is frozen.
        out: for each parameter, an array to compute its gradient in and hand to ``grad``, which saves a copy; or None,
            on other backends and where shares are added up. Functions such as `lamella.primitives.sum_of_products` take
            either: ``out=ctx.out.kernel``.
        wants_dx: for each input, whether its gradient is used; where not, ``backward_pass`` may return None.
    """

    __slots__ = (
        "_crc",
        "_offset",
        "_recording",
        "_rows",
        "draws",
        "dtype",
        "gradients",
        "is_forward",
        "key",
        "label",
        "out",
        "params",
        "saved",
        "state",
        "trainable",
        "training",
        "updates",
        "wants_dx",
        "xp",
    )

    def __init__(
        self,
        *,
        label: str,
        xp: Any,
        dtype: Any,
        params: Arrays,
        state: Arrays,
        training: bool,
        recording: bool,
        trainable: bool,
        wants_dx: tuple[bool, ...],
        rows: Any,
        offset: int,
        crc: int,
    ) -> None:
        self.xp = xp
        self.dtype = dtype
        self.params = params
        self.state = state
        self.training = training
        self.trainable = trainable
        self.wants_dx = wants_dx
        self.saved: tuple[Any, ...] = ()
        self.gradients: dict[str, Any] = {}  # what the engine takes after the backward pass
        self.updates: dict[str, Any] = {}  # what the engine applies once the step has succeeded
        self.label = label
        self._rows = rows
        self._offset = offset
        self._recording = recording
        self._crc = crc
        # What the engine sets before it calls the layer.
        self.key: tuple[Any, ...] = ()  # low and high word of the seed, and the step
        self.draws = 0  # how often the layer has drawn
        self.is_forward = True
        self.out = params

    @property
    def rows(self) -> str:
        """Which rows of the batch this slice has, as ``first:end``; for messages."""
        return f"{self._offset}:{self._offset + self._rows}"

    def save(self, *arrays: Any) -> None:
        """Keep arrays for the backward pass, which finds them in ``ctx.saved``. References, not copies.

        Where no backward pass follows, nothing is kept.
        """
        if not self._recording:
            return
        if self.saved:
            raise LayerError(f"{self.label}: ctx.save was called twice; give it all arrays in one call")
        self.saved = arrays

    def grad(self, **gradients: Any) -> None:
        """Hand over this slice's own share of the gradients of parameters, by name."""
        for name, gradient in gradients.items():
            self._check("grad", "parameter", name, gradient, self.params)
            if name in self.gradients:
                raise LayerError(f"{self.label}: ctx.grad({name}=...) was called twice in one backward pass")
            self.gradients[name] = gradient

    def update(self, **arrays: Any) -> None:
        """Replace state arrays after this step. The values must be equal in all slices: functions of totals."""
        if not self.is_forward:
            raise LayerError(f"{self.label}: ctx.update is for forward_pass; what backward_pass learns comes too late")
        if not self.training:
            raise LayerError(f"{self.label}: ctx.update outside training; test ctx.training first")
        for name, array in arrays.items():
            self._check("update", "state", name, array, self.state)
            self.updates[name] = array

    def _check(self, method: str, kind: str, name: str, array: Any, declared: Arrays) -> None:
        """Whether an array that is handed over has the shape and dtype of the one that was declared."""
        where = f"{self.label}: ctx.{method}({name}=...)"
        own = declared.__dict__.get(name)
        if own is None:
            known = ", ".join(declared.__dict__) or "nothing of the kind"
            raise LayerError(f"{where}, but the layer declared {known}.{did_you_mean(name, declared.__dict__)}")
        if getattr(array, "shape", None) != own.shape or array.dtype != own.dtype:
            got = f"{tuple(array.shape)} {array.dtype}" if hasattr(array, "shape") else repr(array)
            rows = kind == "parameter" and hasattr(array, "shape") and tuple(array.shape)[1:] == tuple(own.shape)
            fix = "; sum over the rows of the slice: xp.sum(..., axis=0)" if rows else ""
            raise LayerError(f"{where}: expected the {kind}'s {tuple(own.shape)} {own.dtype}, got {got}{fix}")

    def uniform(self, shape: tuple[Any, ...], *, per: str = "row") -> Any:
        """Draw float32 values in [0, 1), the same ones on every backend and for any slicing of the batch.

        The values follow from the seed, the step, the layer's name, how often the layer has drawn, the row in the
        batch and the element in the row. Axis 0 counts rows, or k times as many of them after a reshape to
        (N*k, ...). With ``per="step"`` the draw does not depend on the batch and may have any shape.
        """
        if not (self.training and self.is_forward):
            raise LayerError(f"{self.label}: ctx.uniform is for forward_pass in training; save what you drew")
        if per not in ("row", "step"):
            raise LayerError(f"{self.label}: ctx.uniform(per={per!r}): expected 'row' or 'step'")
        key = mix_keys(self.xp, (*self.key, self._crc, self.draws))
        self.draws += 1
        if per == "step":
            return uniform(self.xp, key, None, 0, shape)
        repeats = shape[0] // self._rows
        if repeats * self._rows != shape[0]:
            raise LayerError(
                f"{self.label}: ctx.uniform({shape!r}): axis 0 must be the {self._rows} rows of the slice, or a "
                "multiple; for draws that do not depend on the batch say per='step'"
            )
        return uniform(self.xp, key, shape[0], self._offset * repeats, shape)
