"""What a layer's author touches: configuration, specs, declarations, nodes, layers, contexts, specimens."""

from lamella.protocol.configured import Configured
from lamella.protocol.context import Context
from lamella.protocol.declare import ArrayDeclaration, Declare
from lamella.protocol.layer import Layer
from lamella.protocol.node import Input, Node
from lamella.protocol.spec import ArraySpec
from lamella.protocol.specimen import Specimen

__all__ = ["ArrayDeclaration", "ArraySpec", "Configured", "Context", "Declare", "Input", "Layer", "Node", "Specimen"]
