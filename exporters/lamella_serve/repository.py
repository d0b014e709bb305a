"""The models of a server: which there are, which are loaded, and how they come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lamella import DataError
from lamella.errors import shown
from lamella_onnx.validity import in_one_line
from lamella_serve.configuration import given_by
from lamella_serve.model import DAMAGED, ServedModel, Settings
from lamella_serve.places import Place, find, is_version
from lamella_serve.refusals import Refusal

__all__ = ["Repository"]

_log = logging.getLogger("lamella_serve")


class _Entry:
    """A model by name: its loaded versions, and those that are not, with the reason."""

    def __init__(self) -> None:
        self.versions: dict[int, ServedModel] = {}
        self.unavailable: dict[int, str] = {}


def _unavailable(versions: Iterable[int], reason: str) -> _Entry:
    entry = _Entry()
    entry.unavailable = dict.fromkeys(versions, reason)
    return entry


class Repository:
    """The models at some paths. All but the loading of files is for the event loop."""

    def __init__(self, paths: Sequence[Path], settings: Settings) -> None:
        """Load all models.

        Raises:
            DataError: a model can't be served, or there is none.
            FileNotFoundError: there is no such path.
        """
        self._paths, self._settings = paths, settings
        self._entries: dict[str, _Entry] = {}
        self._loading = asyncio.Lock()
        for place in find(paths).values():
            self._entries[place.name] = self._loaded(place)

    def __iter__(self) -> Iterator[ServedModel]:
        """All loaded models."""
        for entry in self._entries.values():
            yield from entry.versions.values()

    def get(self, name: str, version: str = "") -> ServedModel:
        """Return a loaded model; without a version, the newest.

        Raises:
            Refusal: there is none.
        """
        entry = self._entries.get(name)
        if entry is not None and entry.versions:
            if not version:
                return entry.versions[max(entry.versions)]
            if not is_version(version):
                raise Refusal(400, f"version {shown(version)} of model {name!r} is no number")
            found = entry.versions.get(int(version))
            if found is not None:
                return found
        raise Refusal(404, self._unknown(name, version))

    def _unknown(self, name: str, version: str) -> str:
        entry = self._entries.get(name)
        if entry is None:
            return f"there is no model {name!r}; this server has {', '.join(map(repr, self._entries)) or 'none'}"
        if not entry.versions:
            return f"model {name!r} is not loaded ({'; '.join(entry.unavailable.values())})"
        return f"model {name!r} has no version {version}; it has {', '.join(map(str, entry.versions))}"

    def versions(self, name: str) -> list[str]:
        """The loaded versions of a model."""
        return [str(one) for one in sorted(self._entries[name].versions)]

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Every model that is loaded, was, or could be, with its state and the reason."""
        rows = []
        for name in sorted({*self._entries, *self._places()}):
            entry = self._entries.get(name, _Entry())
            if not entry.versions and not entry.unavailable:
                rows.append({"name": name})
            for version in sorted({*entry.versions, *entry.unavailable}):
                loaded = version in entry.versions
                told = {"state": "READY"} if loaded else {"state": "UNAVAILABLE", "reason": entry.unavailable[version]}
                rows.append({"name": name, "version": str(version), **told})
        return [row for row in rows if row.get("state") == "READY"] if ready else rows

    def _places(self) -> dict[str, Place]:
        try:
            return find(self._paths)
        except (DataError, OSError):  # someone moves files about
            return {}

    async def load(self, name: str, parameters: object = None) -> None:
        """Load a model from its place, anew if it is loaded; until that is done, the old one answers.

        Arguments:
            parameters: what a client sends along, such as another configuration; none are taken.

        Raises:
            Refusal: there is none of the name, or it can't be served; then what was loaded stays.
        """
        if parameters:
            raise Refusal(400, "this server loads models from its own folders, as they are there: send no parameters")
        async with self._loading:  # and not in the thread: those that wait there would keep all threads from others
            entry, reason = await asyncio.to_thread(self._load, name)
        before = self._entries.get(name)
        if entry.versions or before is None or not before.versions:
            self._entries[name] = entry
        if reason is not None:
            raise Refusal(400, f"model {name!r} can't be loaded: {reason}")

    def _load(self, name: str) -> tuple[_Entry, str | None]:
        """What is at a model's place, and why it can't be served."""
        try:
            place = find(self._paths).get(name)
            if place is None:
                raise Refusal(404, f"there is no model {name!r} at the paths that this server was started with")
            versions = place.versions()
        except (DataError, OSError) as error:
            raise Refusal(400, f"model {name!r} can't be loaded: {in_one_line(error)}") from error
        try:
            return self._loaded(place), None
        except DataError as error:
            reason = in_one_line(error)
            _log.warning("not loaded", extra={"model": name, "reason": reason})
            return _unavailable(versions, reason), reason

    async def unload(self, name: str) -> None:
        """Forget a model; what waits for it is still answered.

        Raises:
            Refusal: there is none of the name.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise Refusal(404, self._unknown(name, ""))
        self._entries[name] = _unavailable((*entry.unavailable, *entry.versions), "unloaded")
        _log.info("unloaded", extra={"model": name})

    def _loaded(self, place: Place) -> _Entry:
        entry = _Entry()
        where = place.file or place.folder
        try:
            given = given_by(place) if place.folder is not None else None
            versions = place.versions() if given is None else given.chosen(place.versions())
            if not versions:
                raise DataError("there is no version to serve")
            for version in versions:
                where = place.path(version, "model.onnx" if given is None else given.file)
                entry.versions[version] = ServedModel(
                    place.name,
                    version,
                    where,
                    self._settings,
                    max_batch_size=None if given is None else given.max_batch_size,
                    labels=None if given is None else given.labels,
                )
        except (DataError, OSError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else in_one_line(error)
            raise DataError(f"{where}: {said}") from error
        except DAMAGED as error:
            raise DataError(f"{where}: it can't be read: {in_one_line(error)}") from error
        for model in entry.versions.values():
            _tell(model)
        return entry


def _tell(model: ServedModel) -> None:
    """Log how a model is served."""
    taken = None if model.seconds is None else round(1e3 * model.seconds, 3)
    _log.info(
        "loaded",
        extra={
            "model": model.name,
            "version": model.version,
            "milliseconds_per_row": taken,
            "joined": model.verdict.joined,
            "reason": model.verdict.reason,
        },
    )
