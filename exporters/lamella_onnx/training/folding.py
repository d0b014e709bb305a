"""Updates folded into products: ``p - s (A B)`` becomes one ``Gemm``, without the gradient ever standing in memory.

Plain gradient descent moves a kernel by the learning rate times a product, the sum over all rows of what came in times
what came back. Gemm adds a product to an array as it multiplies: ``Gemm(A, -s B, p)``. For a step on one row, which is
all memory traffic, that is a third of it.

Source: https://onnx.ai/onnx/operators/onnx__Gemm.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from lamella_onnx.tracer.graph import Graph, Node, Scope

__all__ = ["fold_updates"]


def fold_updates(graph: Graph, outputs: Iterable[str]) -> None:
    """Fold every update of a graph whose product nothing else needs; ``outputs`` are the values that it gives."""
    makers = {node.outputs[0]: node for node in graph.nodes}
    uses = Counter([*outputs, *(name for node in graph.nodes for name in _taken(node))])
    for place, node in reversed(list(enumerate(graph.nodes))):
        scaled = makers.get(node.inputs[1]) if node.operator == "Sub" else None
        if scaled is None or scaled.operator != "Mul" or uses[scaled.outputs[0]] != 1:
            continue
        for scale, product in (scaled.inputs, scaled.inputs[::-1]):
            maker = makers.get(product)
            if maker is None or maker.operator != "MatMul" or uses[product] != 1:
                continue
            if len(graph.kind(scale)[0]) == 0 and len(graph.kind(product)[0]) == 2:
                graph.nodes[place : place + 1] = _folded(graph, node, scale, maker, makers)
                break


def _folded(graph: Graph, update: Node, scale: str, product: Node, makers: dict[str, Node]) -> list[Node]:
    """The nodes that stand for an update."""
    left, right = product.inputs
    turned = makers.get(left)
    transposed = turned is not None and turned.operator == "Transpose"
    if turned is not None and transposed:
        left = turned.inputs[0]
    minus, moved = (graph.value(*graph.kind(name)) for name in (scale, right))
    return [
        Node("Neg", [scale], (minus,), {}, product.layer),
        Node("Mul", [minus, right], (moved,), {}, product.layer),
        Node("Gemm", [left, moved, update.inputs[0]], update.outputs, {"transA": int(transposed)}, product.layer),
    ]


def _taken(node: Node) -> Iterator[str]:
    """What a node takes, in the body of a loop too."""
    yield from node.inputs
    body = node.attributes.get("body")
    if isinstance(body, Scope):
        yield from body.outputs
        for inner in body.nodes:
            yield from _taken(inner)
