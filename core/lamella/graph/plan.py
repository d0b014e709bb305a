"""What a pass over a graph has to give: which gradients are wanted, and how long each value lives."""

from __future__ import annotations

from lamella.errors import LayerError
from lamella.graph.operations import Graph
from lamella.protocol.layer import Layer

__all__ = ["Plan"]


class Plan:
    """Which gradients a pass gives: those of trainable parameters, and of the inputs asked for.

    Arguments:
        graph: what the pass runs.
        frozen: the prefixes of layers whose arrays stay as they are.
        wants_dx: whether the gradients of inputs are wanted, of all or of each; integer inputs have none.
        training: whether the pass is part of training.

    Attributes:
        wants_dx: for each operation, whether the gradient of each of its inputs is used.
        runs_backward: for each operation, whether its backward pass has to run.
        parameters: the full names of the parameters that get a gradient.
        dies_after: for each operation, the values that no later one takes.

    Raises:
        LayerError: a layer that has to run backward and defines no backward_pass.
    """

    def __init__(
        self, graph: Graph, frozen: frozenset[str], *, wants_dx: bool | tuple[bool, ...], training: bool
    ) -> None:
        self.graph = graph
        self.frozen = frozen
        self.training = training
        self.wants_dx: list[tuple[bool, ...]] = []
        self.runs_backward: list[bool] = []
        self.parameters: set[str] = set()
        asked = wants_dx if isinstance(wants_dx, tuple) else (wants_dx,) * len(graph.inputs)
        needed = {value: want and graph.specs[value].is_float for value, want in zip(graph.inputs, asked, strict=True)}
        last: dict[int, int] = {}
        for k, operation in enumerate(graph.operations):
            smooth = any(graph.specs[value].is_float for value in operation.outputs)  # integers have no gradient
            wants = tuple(smooth and needed[value] for value in operation.inputs)
            learns = smooth and bool(operation.params) and operation.prefix not in frozen
            self.wants_dx.append(wants)
            self.runs_backward.append(learns or any(wants))
            if learns:
                self.parameters.update(operation.params.values())
            if self.runs_backward[k] and type(operation.layer).backward_pass is Layer.backward_pass:
                raise LayerError(
                    f"{operation.label} defines no backward_pass, so it can predict and be exported but not be trained "
                    "through; define backward_pass(self, ctx, dy)"
                )
            for value in operation.outputs:
                needed[value] = self.runs_backward[k] and graph.specs[value].is_float
            last |= dict.fromkeys((*operation.inputs, *operation.outputs), k)
        self.dies_after: list[list[int]] = [[] for _ in graph.operations]
        kept = frozenset(graph.outputs)
        for value, k in last.items():
            if value not in kept:
                self.dies_after[k].append(value)
