"""What the laws say of a subject, as a table for people and as data for programs."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

from lamella.terminal import Table, plain, styled
from lamella.testing.comparison import Fault

__all__ = ["ConformanceError", "ConformanceReport", "Verdict"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one law says of a subject. ``faults`` holds everything that breaks the law; ``detail`` sums it up."""

    law: str
    outcome: Literal["holds", "broken", "skipped"]
    detail: str
    faults: tuple[Fault, ...] = ()

    def lines(self) -> list[str]:
        """Everything there is to say: each fault with its values, counterexample and likely cause."""
        told = [fault.lines() for fault in self.faults] or [[self.detail]]
        return [line for first, *more in told for line in (first, *(f"  {line}" for line in more))]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data, ready for JSON; values that JSON lacks become strings."""
        faults = [_plain(dataclasses.asdict(fault)) for fault in self.faults]
        return {"law": self.law, "outcome": self.outcome, "detail": self.detail, "faults": faults}


@dataclasses.dataclass(frozen=True, repr=False)
class ConformanceReport:
    """What every law says of a subject. ``print(report)`` shows a table.

    Attributes:
        subject: the layer, loss, activation, optimizer or metric, and its inputs.
        verdicts: one for each law, in the order in which they are documented.
        seed: what the inputs were drawn with.
    """

    subject: str
    verdicts: tuple[Verdict, ...]
    seed: int = 0

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """The verdicts of laws that do not hold."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome == "broken")

    @property
    def conforms(self) -> bool:
        """Whether no law is broken."""
        return not self.broken

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for JSON."""
        verdicts = [verdict.as_dict() for verdict in self.verdicts]
        return {"subject": self.subject, "conforms": self.conforms, "seed": self.seed, "verdicts": verdicts}

    def __repr__(self) -> str:
        many = f"breaks {len(self.broken)} of" if self.broken else "obeys"
        skipped = sum(verdict.outcome == "skipped" for verdict in self.verdicts)
        some = f", {skipped} skipped" if skipped else ""
        return f"<ConformanceReport: {self.subject} {many} {len(self.verdicts)} laws{some}>"

    def __str__(self) -> str:
        return plain("\n".join(self.table().lines(width=80)))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> Table:
        """Return the report as a table with styles, which a terminal shows."""
        styles = {"holds": "green", "broken": "bold red", "skipped": "yellow"}
        table = Table(("law", "", "what was seen"), title=self.subject)
        for verdict in self.verdicts:
            seen = "\n".join(verdict.lines()) if verdict.outcome == "broken" else verdict.detail
            table.add(verdict.law, styled(verdict.outcome, styles[verdict.outcome]), seen)
        return table


class ConformanceError(AssertionError):
    """A subject breaks one law or more.

    The message lists every fault: both values, the smallest counterexample that was found, and its likely cause.
    ``report`` holds all verdicts.
    """

    def __init__(self, report: ConformanceReport) -> None:
        self.report = report
        laws = f"breaks {len(report.broken)} of {len(report.verdicts)} laws"
        told: dict[str, str] = {}  # what one error breaks everywhere, with rows of any number, is told once
        lines = [f"{report.subject} {laws}"]
        for verdict in sorted(report.broken, key=_is_told_elsewhere):
            for fault in verdict.faults:
                text = fault.lines()
                if (key := re.sub(r"\d+", "", " ".join(text))) in told:
                    lines.append(f"  {verdict.law}: the same as under {told[key]}")
                    continue
                told[key] = verdict.law
                lines.append(f"  {verdict.law}: {text[0]}")
                lines += [f"      {line}" for line in text[1:]]
        super().__init__("\n".join(lines))


def _is_told_elsewhere(verdict: Verdict) -> bool:
    """Whether all that a law has to say is that another one is broken; then that one comes first."""
    return all(fault.cause.endswith(": see purity") for fault in verdict.faults)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
