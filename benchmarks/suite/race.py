"""Contestants as processes of their own, what they must agree on, and rounds in which they take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import workloads

# What contestants may differ by: float32 rounds each sum in another order. For the change of parameters see
# `workloads.Network.tolerance`. The file of results says how much of these each contestant used.
LOSS = 1e-4  # of a loss
ROUNDING = 1e-6  # of a parameter, beside the tolerance of its change
STATISTICS = 2e-3  # of running statistics: PyTorch's variance divides by n - 1
OUTPUT = 1e-4  # of the largest output

# Slow NumPy's BLAS down, or give one contestant another number of threads than the rest.
REMOVED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PAUSE = 0.1  # seconds between turns: threads of the one before spin a while before they sleep


class ContestantError(Exception):
    """A contestant that failed, hung, or computes something else."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A framework with options, and the interpreter that has it."""

    label: str
    framework: str
    python: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        return self.framework != "lamella"

    def takes_part(self, workload: workloads.Workload) -> bool:
        """Whether it differs from the others here: the layout of images needs images."""
        return workload.has_images or not self.options.get("channels_last")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long everything takes."""

    rounds: int = 7
    steps: int = 3  # in a turn, at least
    seconds: float = 0.25  # a turn lasts, at least
    pause: float = PAUSE
    timeout: float = 300.0  # seconds that a contestant may stay silent
    threads: int = 1


class Child:
    """A contestant's process."""

    def __init__(self, contestant: Contestant, settings: Settings, folder: Path, **job: Any) -> None:
        self.contestant, self.timeout = contestant, settings.timeout
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.results = self.folder / "results.npz"
        environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "NPROC": str(settings.threads),  # JAX's threads
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),  # the first step always compiles
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no processes that wait beside the contestants
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        job |= {"framework": contestant.framework, "options": dict(contestant.options), "threads": settings.threads}
        job |= {"started": time.time(), "results": str(self.results)}
        self._errors = (self.folder / "stderr.txt").open("w+b")
        self.process = subprocess.Popen(
            [contestant.python, str(Path(__file__).with_name("contestant.py")), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,  # a group, which ends as a whole: compilers too
        )

    def answer(self) -> dict[str, Any]:
        """What it says next."""
        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            self.kill()

        timer = threading.Timer(self.timeout, give_up)
        timer.start()
        try:
            line = self.process.stdout.readline()  # type: ignore[union-attr]
        finally:
            timer.cancel()
        if timed_out.is_set():
            raise ContestantError(f"{self.contestant.label} said nothing for {self.timeout:g} s and was ended")
        if not line:
            raise ContestantError(f"{self.contestant.label} ended with status {self.process.wait()}:\n{self.stderr()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **command: Any) -> dict[str, Any]:
        """Tell it to take a turn, and wait for its end."""
        with contextlib.suppress(BrokenPipeError):  # the answer tells why
            self.process.stdin.write(json.dumps(command) + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def stderr(self) -> str:
        """The end of what it wrote to standard error."""
        self._errors.flush()
        lines = (self.folder / "stderr.txt").read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-30:])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it; a contestant has nothing to put away."""
        self.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


def describe(contestant: Contestant, settings: Settings) -> dict[str, Any]:
    """Versions, kernels and size of a contestant; or, as "missing", why it can't take part."""
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        try:
            child = Child(contestant, settings, Path(folder))
        except OSError as error:
            return {"missing": f"{contestant.python} can't be run: {error.strerror}"}
        try:
            return child.answer()
        finally:
            child.close()


def differences(
    workload: workloads.Workload, start: Mapping[str, np.ndarray], child: Child, reference: Child
) -> list[tuple[str, float, float]]:
    """How far the arrays of two contestants are apart: what it is, the difference, and what is allowed."""
    with np.load(child.results) as mine, np.load(reference.results) as theirs:
        pairs = [(mine[name].astype("float64"), theirs[name].astype("float64")) for name in theirs.files]
        if len(mine.files) != len(pairs) or any(a.shape != b.shape for a, b in pairs):
            return [("number or shapes of arrays", math.inf, 0.0)]
    if not workload.training:
        ((own, right),) = pairs
        return [("output", float(np.abs(own - right).max()), OUTPUT * float(np.abs(right).max()))]
    network = workloads.NETWORKS[workload.network]
    names = [weight.name for weight in network.weights()]
    found = []
    for k, (own, right) in enumerate(pairs):
        size = float(np.linalg.norm(right))
        if k < len(names):
            allowed = network.tolerance * float(np.linalg.norm(right - start[names[k]])) + ROUNDING * size
            found.append((f"change of {names[k]}", float(np.linalg.norm(own - right)), allowed))
        else:
            found.append(
                (f"running statistics {k - len(names)}", float(np.linalg.norm(own - right)), STATISTICS * size)
            )
    return found


def check(
    workload: workloads.Workload,
    start: Mapping[str, np.ndarray],
    children: Mapping[str, Child],
    said: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """See that all contestants compute what the first does; return how much of what is allowed each one used.

    Losses before each of three steps must agree, and the change of every parameter, array by array. Losses alone would
    hide a wrong gradient, since a few small steps hardly move them.
    """
    first, *others = children
    used = {}
    for label in others:
        found = []
        if workload.training:
            pairs = zip(said[label]["losses"], said[first]["losses"], strict=True)
            found += [(f"loss {k + 1}", abs(own - right), LOSS * abs(right)) for k, (own, right) in enumerate(pairs)]
        found += differences(workload, start, children[label], children[first])
        wrong = [(what, error, allowed) for what, error, allowed in found if not error <= allowed]  # NaN is wrong
        if wrong:
            what, error, allowed = wrong[0]
            raise ContestantError(
                f"{label} computes something else than {first}: {what} differs by {error:.3g}, allowed is {allowed:.3g}"
                + (f" (and {len(wrong) - 1} more)" if wrong[1:] else "")
            )
        used[label] = max(error / allowed if allowed else 0.0 for _, error, allowed in found)
    return used


def run(
    workload: workloads.Workload,
    contestants: Sequence[Contestant],
    settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Race on one workload: start all, see that they agree, then let them take turns.

    Raises:
        ContestantError: one of them failed, hung, or computes something else.
    """
    children: dict[str, Child] = {}
    said: dict[str, dict[str, Any]] = {}
    turns: dict[str, list[dict[str, Any]]] = {one.label: [] for one in contestants}
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as name:
        folder = Path(name)
        arrays = workload.draw()
        np.savez(folder / "arrays.npz", **arrays)
        job = {"workload": dataclasses.asdict(workload), "arrays": str(folder / "arrays.npz")}
        try:
            for one in contestants:  # one after another: the time to the first step is measured
                progress(f"{workload.name}: {one.label} starts")
                children[one.label] = Child(one, settings, folder, **job)
                said[one.label] = children[one.label].answer()
            used = check(workload, arrays, children, said)
            for k in range(settings.rounds):
                for label in list(children)[:: -1 if k % 2 else 1]:
                    progress(f"{workload.name}: round {k + 1} of {settings.rounds}, {label}")
                    time.sleep(settings.pause)
                    turns[label].append(children[label].ask(steps=settings.steps, seconds=settings.seconds))
        finally:
            for child in children.values():
                child.close()
    return {
        "title": workload.title,
        "training": workload.training,
        "batch": workload.batch,
        "optimizer": workload.optimizer,
        "parameters": sum(math.prod(weight.shape) for weight in workloads.NETWORKS[workload.network].weights()),
        "contestants": {
            label: {
                **spread([one["ms"] for one in turns[label]]),
                "peak_megabytes": turns[label][-1]["peak_megabytes"],
                "tolerance_used": used.get(label, 0.0),
                **said[label],
            }
            for label in children
        },
        "ratios": ratios(contestants, {label: [one["ms"] for one in found] for label, found in turns.items()}),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, most, and all of them."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": list(values)}


def ratios(contestants: Sequence[Contestant], times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """For each lamella the time of the fastest peer over its own, round by round: above 1, lamella is faster.

    The fastest peer is that of the round, so that a peer can't lose by chance.
    """
    peers = [times[one.label] for one in contestants if one.is_peer]
    if not peers:
        return {}
    best = [min(round_) for round_ in zip(*peers, strict=True)]
    own = [one.label for one in contestants if not one.is_peer]
    return {label: spread([b / t for b, t in zip(best, times[label], strict=True)]) for label in own}


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def default_python(name: str) -> str:
    """The interpreter of the environment that ``make bench`` makes for a peer, or this one."""
    made = Path(__file__).parents[2] / ".bench" / name / "bin" / "python"
    return str(made) if made.exists() else sys.executable
