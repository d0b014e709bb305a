"""Which code on a page is a name that the reference explains."""

from __future__ import annotations

import re
from collections.abc import Iterable

CALL = re.compile(r"([\w.]+)(?:\(.*\))?", re.DOTALL)
Place = tuple[str, str]  # a page, and the anchor of a heading there


class Names:
    """Names of the reference in full: ``lamella.losses.Huber``, ``losses:huber``, ``commands:lamella serve``.

    >>> names = Names([("lamella.losses.Huber", "reference/losses", "huber")])
    >>> names.find("lm.losses.Huber(2.0)"), names.find("Huber"), names.find("fit")
    (('reference/losses', 'huber'), ('reference/losses', 'huber'), None)
    """

    def __init__(self, listed: Iterable[tuple[str, str, str]] = ()) -> None:
        self._places: dict[str, Place] = {}
        self._last: dict[str, set[str]] = {}
        for full, page, anchor in listed:
            if full not in self._places:
                self._places[full] = page, anchor
                self._last.setdefault(re.split(r"[.:]", full)[-1], set()).add(full)

    def find(self, code: str, page: str = "", row: str = "") -> Place | None:
        """Where code is explained that is a name, or a call of one, and means one thing; first on its own page.

        In the row of a table that begins with a kind, such as ``losses``, registered names are of that kind. The cell
        itself with which a row begins may be the name of an argument.
        """
        if code.startswith("lamella "):
            return self._places.get(f"commands:{' '.join(code.split()[:2])}")
        found = CALL.fullmatch(code)
        name = found[1] if found else ""
        if place := self._places.get(f"{row}:{name}"):
            return place
        if "." in name:
            name = re.sub(r"^model\.(?=[a-z_]+$)", "lamella.Model.", re.sub(r"^lm\.", "lamella.", name))
            return self._places.get(name)
        is_plain = name.islower() and (code == row or "_" not in name)  # then only what is registered is meant
        meant = [one for one in self._last.get(name, ()) if not is_plain or (":" in one and code != row)]
        every = {self._places[one] for one in meant}
        own = {place for place in every if place[0] == page}
        return own.pop() if len(own) == 1 else every.pop() if len(every) == 1 else None
