"""How large the graphs of a training step and of inference are, and how long it takes until onnxruntime can run them.

    python benchmarks/graphs.py

For each network of the suite: nodes and kilobytes of the graphs, without weights, and the milliseconds to trace them
and to load them, the least of several rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(variable, None)

sys.path.insert(0, str(Path(__file__).parent / "suite"))

import lamella_networks
import workloads

import lamella as lm
from lamella.training.rules import Rules
from lamella_onnx.models import trace_model
from lamella_onnx.runtime import session
from lamella_onnx.training.trace import trace_training


def least(what: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The least time of several runs, in milliseconds, and the last result."""
    times, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = what()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times), result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often to trace and load each graph (5)")
    given = parser.parse_args(argv)
    networks = {one.network: one for one in workloads.WORKLOADS}
    print(f"{'network':14}{'graph':12}{'nodes':>8}{'kB':>8}{'trace ms':>12}{'load ms':>12}")
    for name, workload in networks.items():
        x = lm.Input(workload.shape)
        model = lm.Model(x, lamella_networks.NETWORKS[name](x))
        loss, optimizer, target = lm.losses.SoftmaxCrossEntropy(), lm.optimizers.SGD(), lm.ArraySpec(("N",), "int64")
        arrays = [*model.parameters, *model.state]
        graphs: dict[str, Callable[[], Any]] = {
            "step": lambda: trace_training(model, [loss], optimizer, Rules(model), [target]).proto(),
            "inference": lambda: trace_model(model, given=arrays).proto,
        }
        for title, trace in graphs.items():
            traced, proto = least(trace, given.rounds)
            content = proto.SerializeToString()
            loaded, _ = least(lambda content=content: session(content), given.rounds)
            print(f"{name:14}{title:12}{len(proto.graph.node):8}{len(content) / 1e3:8.0f}{traced:12.1f}{loaded:12.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
