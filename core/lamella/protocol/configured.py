"""Objects that are nothing but their constructor's arguments: layers, losses, optimizers, metrics, schedules."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lamella import registry
from lamella.arguments import answer, too_many
from lamella.elsewhere import hint
from lamella.errors import ArgumentError, without_addresses

__all__ = ["Configured", "note_words", "words_of"]


class _ConfiguredType(type):
    """Binds the constructor's arguments, runs ``__init__``, then freezes the object."""

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> None:
        super().__init__(name, bases, body)
        cls._bind()

    _signature: inspect.Signature
    _annotated: inspect.Signature
    _constructor: Any
    _elsewhere: Mapping[str, str]

    @property
    def __signature__(cls) -> inspect.Signature:
        """What the class is called with; an instance, such as a layer on nodes, has a signature of its own."""
        return cls._annotated

    def _bind(cls) -> None:
        """Note the constructor's signature, and refuse one that can't be a configuration."""
        name, cls._constructor = cls.__name__, cls.__init__  # type: ignore[misc]
        own = cls._constructor is not object.__init__
        signature = inspect.signature(cls._constructor) if own else inspect.Signature()
        arguments = list(signature.parameters.values())[1:]
        for argument in arguments:
            if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD, argument.POSITIONAL_ONLY):
                kind = (
                    str(argument) if argument.kind != argument.POSITIONAL_ONLY else f"{argument.name} by position only"
                )
                raise TypeError(
                    f"{name}.__init__ takes {kind}. The arguments of a constructor are the configuration that is "
                    "saved, so each needs a name of its own."
                )
            hidden = next((vars(base)[argument.name] for base in cls.__mro__[1:] if argument.name in vars(base)), None)
            if callable(hidden) or isinstance(hidden, property):
                raise TypeError(
                    f"{name}.__init__ takes {argument.name!r}, which would hide what its base class has under that "
                    "name; choose another. Names and freezing come by layer.named('...') and layer.frozen()."
                )
        cls._annotated = signature.replace(parameters=arguments, return_annotation=signature.empty)
        plain = [argument.replace(annotation=argument.empty) for argument in arguments]
        cls._signature = signature.replace(parameters=plain, return_annotation=signature.empty)

    if not TYPE_CHECKING:  # checkers and editors go by each class's own __init__

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls.__init__ is not cls._constructor:  # a decorator, such as dataclass, made another
                cls._bind()
            try:
                bound = cls._signature.bind(*args, **kwargs)
            except TypeError as error:
                own = cls._signature.parameters
                unknown = next((name for name in kwargs if name not in own), None)
                if unknown is None:
                    fault = too_many(own, args, cls._elsewhere) or f"{error}."
                else:
                    fault = f"there is no argument {unknown!r}.{answer(unknown, own, cls._elsewhere)}"
                raise TypeError(f"{cls.__name__}{cls._signature}: {fault}") from None
            bound.apply_defaults()
            config = {name: _freeze(value) for name, value in bound.arguments.items()}
            self = cls.__new__(cls)
            object.__setattr__(self, "_config", MappingProxyType(config))
            try:
                with registry.noting() as notes:
                    self.__init__(**config)
                self._check()
            except ArgumentError as error:
                raise ArgumentError(f"{cls.__name__}: {error}") from None
            note_words(self, notes)
            object.__setattr__(self, "_is_frozen", True)
            return self


class Configured(metaclass=_ConfiguredType):
    """A value made of its constructor's arguments, frozen once ``__init__`` has run.

    There is no need to call ``super().__init__()``. Lists become tuples and NumPy scalars and arrays become plain
    numbers and tuples before ``__init__`` sees them, so that a configuration never changes and can always be written
    to a file. ``==`` compares configurations.

    >>> class Scale(Configured):
    ...     def __init__(self, factor: float = 2.0):
    ...         self.factor = factor
    >>> Scale(2.0) == Scale(), Scale(3.0)
    (True, Scale(factor=3.0))
    """

    _config: Mapping[str, Any]
    _is_frozen = False
    __words__: Mapping[str, registry.Note] = MappingProxyType({})  # registered words among the arguments
    _elsewhere: Mapping[str, str] = MappingProxyType({})  # arguments and attributes of other libraries

    def _check(self) -> None:
        """Raise `ArgumentError` for what ``__init__`` or the class must not have set."""

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, defaults included, by name."""
        return {name: _thaw(value) for name, value in self._config.items()}

    def replace(self, **changes: Any) -> Self:
        """Return a new object of the same class with some constructor arguments changed."""
        return type(self)(**{**self.config(), **changes})

    @classmethod
    def migrate(cls, config: dict[str, Any], version: str) -> dict[str, Any]:
        """Return today's constructor arguments for those in a file that another version of the distribution wrote.

        A plugin that renames an argument overrides this, so that models saved before still load.
        """
        return config

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_frozen:
            argument = f"{name}=" if name in self._config else ""
            fix = hint(self._elsewhere, name) or f" Make a changed one with .replace({argument}...)."
            raise AttributeError(
                f"{type(self).__name__}.{name} can't be set: the object is configuration and frozen after its "
                f"constructor.{fix} What lives during a run goes into ctx.save, ctx.grad or ctx.update."
            )
        object.__setattr__(self, name, value)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            fix = hint(self._elsewhere, name)
            if not fix or hasattr(type(self), name):  # a property has failed, and says why
                return object.__getattribute__(self, name)
            raise AttributeError(f"{type(self).__name__} has no {name!r}.{fix}", name=name)  # and no guess of Python's

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} can't be deleted: the object is configuration")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Configured):
            return NotImplemented
        return self is other or self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(type(self))

    def _identity(self) -> tuple[Any, ...]:
        """What equality compares."""
        return type(self), dict(self._config)

    def __repr__(self) -> str:
        parameters = type(self)._signature.parameters.values()
        given = []
        for argument in parameters:
            value = self._config[argument.name]
            if argument.default is argument.empty and argument.kind is not argument.KEYWORD_ONLY:
                given.append(repr(_thaw(value)))
            elif argument.default is argument.empty or value != _freeze(argument.default):
                given.append(f"{argument.name}={_thaw(value)!r}")
        return without_addresses(f"{type(self).__name__}({', '.join(given)})")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.config())


def note_words(thing: Configured, notes: Iterable[registry.Note]) -> None:
    """Take down what an object, or a part of it, has looked up by name: files keep what was found."""
    found = {note.name: note for note in notes}
    if not found.keys() <= thing.__words__.keys():
        object.__setattr__(thing, "__words__", MappingProxyType({**thing.__words__, **found}))


def words_of(thing: Configured) -> Mapping[str, registry.Note]:
    """What an object has looked up, by name."""
    return thing.__words__


def _rebuild(cls: type[Configured], config: dict[str, Any]) -> Configured:
    return cls(**config)


def _freeze(value: Any) -> Any:
    """An equal value that cannot change, of plain Python types where there is one."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _freeze(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, Mapping):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return value


def _thaw(value: Any) -> Any:
    """The inverse of `_freeze` for mappings, which neither pickle nor JSON can take frozen."""
    if isinstance(value, tuple):
        return tuple(_thaw(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    return value
