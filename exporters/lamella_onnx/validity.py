"""Whether a graph is valid ONNX, in words that name what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from lamella.errors import did_you_mean

__all__ = ["first_unknown", "in_one_line", "not_valid"]

_LONGEST = 2000  # letters; names in files may be longer


def not_valid(proto: onnx.ModelProto) -> str:
    """Return what is wrong with a graph, in one line; nothing if it is valid ONNX."""
    if what := first_unknown(proto):
        return what
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return in_one_line(error)
    return ""


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those in the bodies of loops."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)


def first_unknown(proto: onnx.ModelProto) -> str:
    """Return what is wrong with the first node whose operator or attribute does not exist."""
    opsets = {given.domain: given.version for given in proto.opset_import}
    return next(filter(None, (_unknown(node, opsets) for node in _nodes(proto.graph.node))), "")


def _unknown(node: onnx.NodeProto, opsets: dict[str, int]) -> str:
    if node.domain:
        return ""  # only the operators of ONNX itself are known
    operator, opset = node.op_type, opsets[""]
    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
        if operator in known:
            return f"{operator} is not in opset {opset}, but in newer ones"
        return f"there is no operator {operator!r} in opset {opset}.{did_you_mean(operator, sorted(known))}"
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            known = set(schema.attributes)
            return (
                f"{operator} has no attribute {attribute.name!r}; it has {', '.join(sorted(known)) or 'none'}."
                f"{did_you_mean(attribute.name, sorted(known))}"
            )
    return ""


def in_one_line(error: object) -> str:
    """Return what is said, without line breaks and what a terminal would obey."""
    said = "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip())
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
