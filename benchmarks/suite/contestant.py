"""What a child process does: prepares one network in one framework, then takes steps whenever it is told to.

It is started by `race.py` with a job as its argument, in JSON, and answers with lines of JSON. It ends when its
standard input does, and with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

FRAMEWORKS = {"lamella": "lamella_networks", "torch": "torch_networks", "jax": "jax_networks"}
CHECKED_STEPS = 3


def end_with_parent() -> None:
    """Let Linux end this process when its parent dies, even while it hangs in a step."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def use_cores(count: int) -> None:
    """Keep to so many cores: frameworks that can't be told a number of threads go by the cores they may use."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def megabytes(field: str) -> float:
    """VmRSS or VmHWM, the memory in use and the most that ever was.

    `getrusage` would do for the peak, but a process there inherits that of the one that started it.
    """
    with contextlib.suppress(OSError):
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Begin the peak of memory again, where the system can: import may have needed more than it left."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def distributions(names: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """Distributions and all that they require and that is installed; extras do not count, nor do installers."""
    waiting, seen = [*names], {"pip", "setuptools", "wheel"}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            yield found
            needed = [one for one in found.requires or [] if "extra ==" not in one]
            waiting += [match[0] for match in (re.match(r"[\w.-]+", one) for one in needed) if match]


def installed_megabytes(names: Sequence[str]) -> float:
    """What distributions and all that they require take on the disk.

    Environments hold more than that: pip, or the tools of a developer.
    """
    files = {
        Path(str(distribution.locate_file(file)))
        for distribution in distributions(names)
        for file in distribution.files or []
    }
    # Installed in place, a distribution lists none of its modules. They are where they were imported from.
    modules = [module for key, module in sys.modules.items() if "." not in key and key.startswith(tuple(names))]
    folders = {Path(module.__file__).parent for module in modules if getattr(module, "__path__", None)}
    files |= {file for folder in folders for file in folder.rglob("*")}
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def checked(step: Any, learned: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The first steps: their losses, what they changed, and when the first was done. Of inference, the output."""
    import numpy as np

    first = step()
    answer: dict[str, Any] = {"first_step_seconds": time.time() - job["started"]}
    if job["training"]:
        answer["losses"] = [first, *(step() for _ in range(CHECKED_STEPS - 1))]
        np.savez(job["results"], *learned())
    else:
        np.savez(job["results"], step())
    return answer


def turn(step: Any, steps: int, seconds: float) -> dict[str, Any]:
    """Take steps, at least so many and for so long. One before them is not timed: others had the caches."""
    step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < steps or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"ms": 1e3 * statistics.median(times), "steps": len(times)}


def main() -> None:
    job = json.loads(sys.argv[1])
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is not for the parent

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=channel, flush=True)

    end_with_parent()
    use_cores(job["threads"])
    began = time.perf_counter()
    try:
        framework = importlib.import_module(FRAMEWORKS[job["framework"]])
    except ModuleNotFoundError as error:
        return answer(missing=f"{error}")
    imported = time.perf_counter() - began
    if "workload" not in job:
        about = framework.describe(job["options"])
        if "missing" not in about:
            size = installed_megabytes(about.pop("distributions"))
            about |= {"python": platform.python_version(), "threads": job["threads"], "installed_megabytes": size}
        return answer(**about)

    import numpy as np
    import workloads

    workload = workloads.Workload(**job["workload"])
    with np.load(job["arrays"]) as file:
        arrays = dict(file)
    forget_peak()
    before = megabytes("VmRSS")
    step, learned = framework.prepare(workload, arrays, job["threads"], job["options"])
    answer(import_seconds=imported, **checked(step, learned, job | {"training": workload.training}))
    for line in sys.stdin:
        answer(**turn(step, **json.loads(line)), peak_megabytes=megabytes("VmHWM") - before)
    return None


if __name__ == "__main__":
    main()
