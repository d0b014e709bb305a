"""``pytest --lamella PACKAGE``: one test for each specimen and law of what a package gives.

They come beside the tests that pytest collects anyway, marked ``lamella``: ``-m lamella`` runs them alone, and
``-k`` chooses among them by name, specimen and law. `lamella_pytest` loads this module when the option is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from functools import cached_property
from typing import Any

import pytest

from lamella.errors import LamellaError
from lamella.protocol.specimen import Specimen
from lamella.testing.laws import laws_of
from lamella.testing.package import Package, Subject, find_package, title, verdicts_of
from lamella.testing.report import Verdict
from lamella.testing.subjects import kind_of

__all__ = ["pytest_collection", "pytest_make_collect_report"]

_packages = pytest.StashKey[list[Package]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    targets = dict.fromkeys(session.config.getoption("lamella"))
    try:
        session.stash[_packages] = [find_package(target) for target in targets]
    except LamellaError as error:
        raise pytest.UsageError(f"--lamella: {error}") from None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        for package in collector.stash[_packages]:
            name = f"lamella:{package.target}"
            report.result.append(_Package.from_parent(collector, name=name, nodeid=name, package=package))
    return report


class _Package(pytest.Collector):
    """What one ``--lamella`` asks for."""

    def __init__(self, *, package: Package, **given: Any) -> None:
        super().__init__(**given)
        self.package = package
        self.add_marker("lamella")

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        for fault in self.package.faults:
            yield _Fault.from_parent(self, name="loads", fault=fault, where="lamella plugin")
        for subject in self.package.subjects:
            fault = self.package.fault_of(subject)
            yield _Subject.from_parent(self, name=subject.name, subject=subject, fault=fault)


class _Subject(pytest.Collector):
    """A layer, a loss, an optimizer, ..."""

    def __init__(self, *, subject: Subject, fault: str, **given: Any) -> None:
        super().__init__(**given)
        self.subject, self.fault = subject, fault

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        if self.fault:
            yield _Fault.from_parent(self, name="specimen", fault=self.fault, where=self.subject.name)
        if reason := self.subject.not_examined:
            yield _NotExamined.from_parent(self, name="specimen", reason=reason)
        for specimen in self.subject.specimens:
            yield _Specimen.from_parent(self, name=title(specimen), specimen=specimen)


class _Specimen(pytest.Collector):
    """A specimen; all laws examine it when the first is asked for."""

    def __init__(self, *, specimen: Specimen, **given: Any) -> None:
        super().__init__(**given)
        self.specimen = specimen

    def collect(self) -> Iterator[pytest.Item]:
        for law in laws_of(kind_of(self.specimen.subject)):
            yield _Law.from_parent(self, name=law, of=self)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        return {verdict.law: verdict for verdict in verdicts_of(self.specimen)}


class _Law(pytest.Item):
    """What one law says of one specimen."""

    def __init__(self, *, of: _Specimen, **given: Any) -> None:
        super().__init__(**given)
        self.of = of

    def runtest(self) -> None:
        verdicts = self.of.verdicts
        verdict = verdicts.get(self.name) or next(iter(verdicts.values()))  # it did not get as far as this law
        if verdict.outcome == "skipped":
            pytest.skip(verdict.detail)
        if verdict.outcome == "broken":
            lines = "\n  ".join(verdict.lines())
            pytest.fail(f"{title(self.of.specimen)}\n{verdict.law}: {lines}", pytrace=False)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return *_place(type(self.of.specimen.subject), self), f"{self.name} of {title(self.of.specimen)}"


class _Fault(pytest.Item):
    """Something that can't be examined at all."""

    def __init__(self, *, fault: str, where: str, **given: Any) -> None:
        super().__init__(**given)
        self.fault, self.where = fault, where

    def runtest(self) -> None:
        pytest.fail(self.fault, pytrace=False)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.where


class _NotExamined(pytest.Item):
    """Something that no law says anything of."""

    def __init__(self, *, reason: str, **given: Any) -> None:
        super().__init__(**given)
        self.reason = reason

    def runtest(self) -> None:
        pytest.skip(f"not examined: {self.reason}")


def _place(cls: type, item: pytest.Item) -> tuple[Any, int | None]:
    """Where a class is written."""
    try:
        return inspect.getsourcefile(cls) or item.path, inspect.getsourcelines(cls)[1] - 1
    except (OSError, TypeError):  # made while the program runs
        return item.path, None
