"""What a layer sees while it runs: its arrays, the backend's functions, and where results go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lamella.backends.counter import mix_keys, uniform
from lamella.errors import LayerError, did_you_mean

__all__ = ["Arrays", "Context", "Phase"]


class Arrays:
    """A layer's arrays, read as attributes: ``ctx.params.kernel``."""

    __slots__ = ("__dict__", "_label")

    def __init__(self, label: str, arrays: Mapping[str, Any]) -> None:
        self._label = label
        self.__dict__.update(arrays)

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(self.__dict__) or "nothing"
        raise AttributeError(f"{self._label} declared {known}; no {name!r}.{did_you_mean(name, self.__dict__)}")


class Phase:
    """Where a pass stands, for all of its layers.

    Attributes:
        key: low and high word of the seed, and the step, from which random numbers follow.
        run: how many runs of the pass have begun.
        is_forward: whether the forward pass is running.
        drew: who is told what layers draw.
    """

    __slots__ = ("drew", "is_forward", "key", "run")

    def __init__(self, drew: Callable[[Any], None] | None = None) -> None:
        self.key: tuple[Any, ...] = ()
        self.run = 0
        self.is_forward = True
        self.drew = drew


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
            on other backends and where shares are added up. Functions such as `lamella.primitives.affine_gradients`
            take either: ``out=ctx.out.kernel``.
        wants_dx: for each input, whether its gradient is used; where not, ``backward_pass`` may return None.
    """

    __slots__ = (
        "_crc",
        "_draws",
        "_offset",
        "_phase",
        "_recording",
        "_rows",
        "_run",
        "dtype",
        "gradients",
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
        training: bool,
        recording: bool,
        trainable: bool,
        wants_dx: tuple[bool, ...],
        rows: Any,
        offset: int,
        phase: Phase,
        crc: int,
    ) -> None:
        self.xp = xp
        self.dtype = dtype
        self.params = self.state = self.out = Arrays(label, {})
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
        self._phase = phase
        self._run = 0  # of the phase, when the layer drew last
        self._draws = 0  # how often it has drawn in that run

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
        declared, given = self.params.__dict__, self.gradients
        for name, gradient in gradients.items():
            own = declared.get(name)
            if own is None or getattr(gradient, "shape", None) != own.shape or gradient.dtype != own.dtype:
                self._refuse("grad", "parameter", name, gradient, declared)
            if name in given:
                raise LayerError(f"{self.label}: ctx.grad({name}=...) was called twice in one backward pass")
            given[name] = gradient

    def update(self, **arrays: Any) -> None:
        """Replace state arrays after this step. The values must be equal in all slices: functions of totals."""
        if not self._phase.is_forward:
            raise LayerError(f"{self.label}: ctx.update is for forward_pass; what backward_pass learns comes too late")
        if not self.training:
            raise LayerError(f"{self.label}: ctx.update outside training; test ctx.training first")
        declared = self.state.__dict__
        for name, array in arrays.items():
            own = declared.get(name)
            if own is None or getattr(array, "shape", None) != own.shape or array.dtype != own.dtype:
                self._refuse("update", "state", name, array, declared)
            self.updates[name] = array

    def _refuse(self, method: str, kind: str, name: str, array: Any, declared: Mapping[str, Any]) -> None:
        """Say what is wrong with an array that is not like the one that was declared."""
        where = f"{self.label}: ctx.{method}({name}=...)"
        own = declared.get(name)
        if own is None:
            known = ", ".join(declared) or "nothing of the kind"
            raise LayerError(f"{where}, but the layer declared {known}.{did_you_mean(name, declared)}")
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
        if not (self.training and self._phase.is_forward):
            raise LayerError(f"{self.label}: ctx.uniform is for forward_pass in training; save what you drew")
        if per not in ("row", "step"):
            raise LayerError(f"{self.label}: ctx.uniform(per={per!r}): expected 'row' or 'step'")
        if self._run != self._phase.run:
            self._run, self._draws = self._phase.run, 0
        key = mix_keys(self.xp, (*self._phase.key, self._crc, self._draws))
        self._draws += 1
        if per == "step":
            values = uniform(self.xp, key, None, 0, shape)
        else:
            values = uniform(self.xp, key, shape[0], self._offset * self._repeats(shape), shape)
        if self._phase.drew is not None:
            self._phase.drew(values)
        return values

    def _repeats(self, shape: tuple[Any, ...]) -> Any:
        """How many entries of axis 0 each row of the slice has."""
        repeats = shape[0] // self._rows
        if repeats * self._rows != shape[0]:
            raise LayerError(
                f"{self.label}: ctx.uniform({shape!r}): axis 0 must be the {self._rows} rows of the slice, or a "
                "multiple; for draws that do not depend on the batch say per='step'"
            )
        return repeats
