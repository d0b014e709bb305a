"""Times steps of lamella next to PyTorch and JAX: the same networks, weights and data, one process each, taking turns.

    make bench                           # makes environments for PyTorch and JAX, then runs everything
    python benchmarks/suite --list       # what there is
    python benchmarks/suite --workloads 'cnn*' lstm-64 --rounds 3
    python benchmarks/suite --quick      # small batches, one step: fails on errors, never on times

Before anything is timed, all contestants must agree on the losses of three steps and on what these change in every
parameter; in inference, on the outputs. In every round each takes a few steps while the others sleep, and the order is
reversed every other round.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import fnmatch
import importlib.util
import os
import platform
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import race
import report
import workloads

from lamella.terminal import Line, Terminal

QUICK = {"rounds": 1, "steps": 1, "seconds": 0.0, "pause": 0.0}
QUICK_BATCH = 8
BUSY = 0.5  # load from which times mislead


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = race.Settings()
    what = parser.add_argument_group("what runs")
    what.add_argument("--workloads", nargs="+", metavar="PATTERN", default=["*"], help="such as 'mlp*' lstm-64 (all)")
    what.add_argument("--contestants", nargs="+", metavar="PATTERN", default=["*"], help="such as 'lamella*' (all)")
    what.add_argument("--backends", nargs="+", metavar="NAME", default=[], help="of lamella (that of LAMELLA_BACKEND)")
    what.add_argument("--list", action="store_true", help="list workloads and contestants, and end")
    where = parser.add_argument_group("interpreters that have the contestants")
    where.add_argument("--torch", metavar="PYTHON", help="has PyTorch (.bench/torch, else this one)")
    where.add_argument("--jax", metavar="PYTHON", help="has JAX (.bench/jax, else this one)")
    where.add_argument("--lamella", metavar="PYTHON", help="has another version of lamella, as one more contestant")
    how = parser.add_argument_group("how long")
    how.add_argument("--rounds", type=at_least(1), metavar="N", help=f"turns of each contestant ({usual.rounds})")
    how.add_argument("--steps", type=at_least(1), metavar="N", help=f"least steps of a turn ({usual.steps})")
    how.add_argument("--seconds", type=float, metavar="S", help=f"least time of a turn ({usual.seconds})")
    how.add_argument("--threads", type=at_least(1), metavar="N", default=race.cores(), help="of each (all cores)")
    how.add_argument("--timeout", type=float, metavar="S", default=usual.timeout, help="for one answer (%(default)s)")
    how.add_argument("--quick", action="store_true", help="small batches and one step: a test of the suite itself")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="where results go (%(default)s)")
    return parser.parse_args(argv)


def at_least(least: int) -> Any:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        return int(text)

    return number


def all_contestants(given: argparse.Namespace) -> list[race.Contestant]:
    named = given.backends or [None]  # None: that of LAMELLA_BACKEND, else NumPy
    found = [
        race.Contestant(f"lamella {name}" if name else "lamella", "lamella", sys.executable, {"backend": name})
        for name in named
    ]
    if given.lamella:
        found.append(race.Contestant("lamella before", "lamella", given.lamella, {"backend": "numpy"}))
    torch, jax = given.torch or race.default_python("torch"), given.jax or race.default_python("jax")
    return [
        *found,
        race.Contestant("PyTorch", "torch", torch),
        race.Contestant("PyTorch channels last", "torch", torch, {"channels_last": True}),
        race.Contestant("torch.compile", "torch", torch, {"compile": True}),
        race.Contestant("JAX", "jax", jax),
    ]


def chosen(names: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    """The names that match a pattern, in their order."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            sys.exit(f"no {what} is called {pattern!r}; there are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def machine() -> dict[str, Any]:
    """What the times hold for."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = model[1] if model else platform.processor()
    return {"processor": name, "cores": race.cores(), "system": platform.platform(), "load": os.getloadavg()[0]}


def look(
    contestants: Sequence[race.Contestant],
    named: set[str],
    settings: race.Settings,
    found: dict[str, Any],
    line: Line,
) -> None:
    """Find out who can take part. One that isn't installed is left out; one that is named, or fails, is an error."""
    with line:
        for one in contestants:
            line.show(f"looking at {one.label}")
            try:
                about = race.describe(one, settings)
            except race.ContestantError as error:
                found["errors"][one.label] = str(error)
            else:
                absent = "errors" if one.label in named else "left_out"
                found[absent if "missing" in about else "contestants"][one.label] = about.get("missing", about)
    for label, reason in found["left_out"].items():
        print(f"without {label}: {reason}")
    for message in found["errors"].values():
        print(message, file=sys.stderr)


def measure(
    tasks: Sequence[workloads.Workload],
    contestants: Sequence[race.Contestant],
    settings: race.Settings,
    found: dict[str, Any],
    line: Line,
    path: Path,
) -> None:
    """Race on one workload after another. One that fails does not end the rest."""
    terminal = Terminal()
    print(terminal.shown(report.heading()), flush=True)
    with line:
        for k, task in enumerate(tasks):
            runners = [one for one in contestants if one.takes_part(task)]
            where = f"[{k + 1}/{len(tasks)}] "
            if not runners:
                continue
            try:
                result = race.run(task, runners, settings, lambda text, where=where: line.show(where + text))
            except race.ContestantError as error:
                found["errors"][task.name] = str(error)
                print(f"{task.name}: {error}", file=sys.stderr, flush=True)
            else:
                found["workloads"][task.name] = result
                print(terminal.shown(report.lines(task.name, result)), flush=True)
            found["means"] = report.means(found["workloads"])
            report.write(path, found)


def sum_up(found: dict[str, Any], path: Path) -> None:
    """Print tables of everything, and draw the chart."""
    terminal = Terminal()
    for table in report.summary(found["workloads"], found["contestants"]):
        print()
        terminal.print(table)
    written = [path]
    if importlib.util.find_spec("matplotlib"):
        written.append(path.with_suffix(".png"))
        about = [found["machine"]["processor"], f"threads of each: {found['settings']['threads']}", found["date"][:10]]
        report.draw(found["workloads"], list(found["contestants"]), written[-1], "; ".join(about))
    print(f"\nwritten: {', '.join(map(str, written))}")


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    every = {one.name: one for one in workloads.WORKLOADS}
    contestants = all_contestants(given)
    if given.list:
        print("\n".join(f"{name:<18}{workload.title}" for name, workload in every.items()))
        print(f"\ncontestants: {', '.join(one.label for one in contestants)}")
        return 0
    tasks = [every[name] for name in chosen(list(every), given.workloads, "workload")]
    labels = chosen([one.label for one in contestants], given.contestants, "contestant")
    contestants = [one for one in contestants if one.label in labels]
    settings = race.Settings(threads=given.threads, timeout=given.timeout)
    if given.quick:
        settings = dataclasses.replace(settings, **QUICK)
        small = [dataclasses.replace(one, batch=min(one.batch, QUICK_BATCH)) for one in tasks]
        tasks = list(dict.fromkeys(small))
    asked = {key: getattr(given, key) for key in ("rounds", "steps", "seconds") if getattr(given, key) is not None}
    settings = dataclasses.replace(settings, **asked)
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "settings": dataclasses.asdict(settings),
        "machine": machine(),
        "contestants": {},
        "left_out": {},
        "workloads": {},
        "means": {},
        "errors": {},
    }
    path = given.folder / ("quick.json" if given.quick else "bench.json")
    line = Line(Terminal(sys.stderr))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # contestants and their files go too
    try:
        look(contestants, {f"lamella {name}" for name in given.backends}, settings, found, line)
        ready = [one for one in contestants if one.label in found["contestants"]]
        if not ready:
            print("nobody is left to run", file=sys.stderr)
            return 1
        print(f"{found['machine']['processor']}; threads of each: {settings.threads}; rounds: {settings.rounds}\n")
        if not given.quick and found["machine"]["load"] > BUSY:
            print(f"The machine is busy (load {found['machine']['load']:.1f}): times will mislead.\n")
        measure(tasks, ready, settings, found, line, path)
    except KeyboardInterrupt:
        found["errors"]["interrupted"] = "what was measured before is in the results"
    if found["workloads"]:
        sum_up(found, path)
    for name, message in found["errors"].items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
