"""How large the graphs of a training step and of inference are, and how long it takes until onnxruntime can run them.

    python benchmarks/suite/graphs.py

For each network of the suite: nodes and kilobytes of the graphs, without weights, and the milliseconds to trace them
and to load them, the least of several rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
    print(f"{'network':14}{'graph':12}{'nodes':>8}{'kB':>8}{'trace ms':>12}{'load ms':>12}")
    for name, workload in {one.network: one for one in workloads.WORKLOADS}.items():
        x = lm.Input(workload.shape)
        model = lm.Model(x, lamella_networks.NETWORKS[name](x))
        for title, trace in (("step", step_of), ("inference", inference_of)):
            traced, proto = least(partial(trace, model), given.rounds)
            content = proto.SerializeToString()
            loaded, _ = least(partial(session, content), given.rounds)
            print(f"{name:14}{title:12}{len(proto.graph.node):8}{len(content) / 1e3:8.0f}{traced:12.1f}{loaded:12.1f}")
    return 0


def step_of(model: lm.Model) -> Any:
    """A step of gradient descent."""
    loss, target = lm.losses.SoftmaxCrossEntropy(), lm.ArraySpec(("N",), "int64")
    return trace_training(model, [loss], lm.optimizers.SGD(), Rules(model), [target]).proto()


def inference_of(model: lm.Model) -> Any:
    """Inference, with weights as inputs."""
    return trace_model(model, given=[*model.parameters, *model.state]).proto


if __name__ == "__main__":
    sys.exit(main())
