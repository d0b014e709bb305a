"""Times servers of one ONNX model on this machine: `lamella serve` beside those that people would take instead.

    make bench-serving                       # makes environments for the others, then runs everything; that of Triton
                                             # is the one that `make judge` makes
    python benchmarks/serving --list         # what there is
    python benchmarks/serving --models digits --contestants lamella FastAPI --rounds 3
    python benchmarks/serving --quick        # one short turn: fails on errors, never on times

wrk (Debian: apt install wrk) sends one row per request over 1, 16 and 64 connections, as JSON and in binary form: the
Open Inference Protocol where a server speaks it, else the bytes. Before anything is timed, each server must answer what
onnxruntime does. In every round each takes a turn while the others have nothing to do, and the order is reversed every
other round.
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
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import race
import report

from lamella.terminal import Line, Terminal

QUICK = {"rounds": 1, "seconds": 1}
BUSY = 0.5  # load from which times mislead


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = race.Settings()
    parser.add_argument("--models", nargs="+", metavar="PATTERN", default=["*"], help="such as digits (all)")
    parser.add_argument("--contestants", nargs="+", metavar="PATTERN", default=["*"], help="such as lamella (all)")
    parser.add_argument("--list", action="store_true", help="list models and contestants, and end")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"turns of each contestant ({usual.rounds})")
    parser.add_argument("--seconds", type=int, metavar="S", help=f"time of a turn ({usual.seconds})")
    parser.add_argument("--quick", action="store_true", help="one short turn: a test of the race itself")
    parser.add_argument("--folder", type=Path, default=Path("runs/serving"), help="where results go (%(default)s)")
    return parser.parse_args(argv)


def chosen(names: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    """The names that match a pattern, in their order."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            sys.exit(f"no {what} is called {pattern!r}; there are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def machine() -> dict[str, Any]:
    """What the times hold for."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = model[1] if model else platform.processor()
    cores = len(os.sched_getaffinity(0))
    return {"processor": name, "cores": cores, "system": platform.platform(), "load": os.getloadavg()[0]}


def look(contestants: Sequence[race.Contestant], found: dict[str, Any]) -> None:
    """Find out who is installed. Peers that are not are left out; lamella must be."""
    for one in contestants:
        try:
            found["contestants"][one.label] = one.versions()
        except race.ContestantError as error:
            if not one.is_peer:
                raise
            found["left_out"][one.label] = str(error)
            print(f"without {one.label}: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    every = race.contestants()
    if given.list:
        print(f"models: {', '.join(models.MODELS)}\ncontestants: {', '.join(one.label for one in every)}")
        return 0
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed (Debian, Ubuntu: apt install wrk)")
    names = chosen(list(models.MODELS), given.models, "model")
    labels = chosen([one.label for one in every], given.contestants, "contestant")
    settings = dataclasses.replace(race.Settings(), **(QUICK if given.quick else {}))
    asked = {key: getattr(given, key) for key in ("rounds", "seconds") if getattr(given, key) is not None}
    settings = dataclasses.replace(settings, **asked)
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "settings": dataclasses.asdict(settings),
        "machine": machine(),
        "contestants": {},
        "left_out": {},
        "workloads": {},
        "errors": {},
    }
    look([one for one in every if one.label in labels], found)
    ready = [one for one in every if one.label in found["contestants"]]
    path = given.folder / ("quick.json" if given.quick else "serving.json")
    terminal, line = Terminal(), Line(Terminal(sys.stderr))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers go too
    if not given.quick and found["machine"]["load"] > BUSY:
        print(f"The machine is busy (load {found['machine']['load']:.1f}): times will mislead.\n")
    print(terminal.shown(report.heading()), flush=True)
    try:
        with line:
            for name in names:
                line.show(f"{name}: servers start")
                model = models.export(name, given.folder / "models")
                for workload, result in race.run(name, model, ready, settings, found["errors"], line.show):
                    found["workloads"][workload] = result
                    print(terminal.shown(report.lines(workload, result)), flush=True)
                    report.write(path, found)
    except KeyboardInterrupt:
        found["errors"]["interrupted"] = "what was measured before is in the results"
    if found["workloads"]:
        written = [path, path.with_suffix(".md")]
        if importlib.util.find_spec("matplotlib"):
            written.append(path.with_suffix(".png"))
            report.draw(found["workloads"], written[-1], f"{found['machine']['processor']}; {found['date'][:10]}")
        print(f"\nwritten: {', '.join(map(str, written))}")
    for where, message in found["errors"].items():
        print(f"failed: {where}: {message}", file=sys.stderr)
    return 1 if found["errors"] or not found["workloads"] else 0


if __name__ == "__main__":
    sys.exit(main())
