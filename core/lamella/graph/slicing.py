"""How a batch is cut into slices: what a row of it costs, and how many rows each slice takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lamella.backends import Backend
from lamella.graph.operations import Graph

__all__ = ["Cost", "Cut", "consecutive", "cost_of", "cut", "runs_whole", "slice_rows"]

SLICE_BYTES = 1 << 20  # what the largest layer of a slice may read and write
INLINE_WORK = 1 << 21  # multiplications below which a step is one slice on the calling thread
# A batch of dense layers stays whole, and BLAS gets all threads, up to some size, if products outweigh the rest:
PRODUCTS = 200  # multiplications for each entry that layers give
WHOLE_BYTES = 1 << 25  # what the largest layer may read and write


class Cost(NamedTuple):
    """What decides how the batches of a graph are cut."""

    work: int  # multiplications that a row costs, roughly: in layers that walk over time, in one step and for one gate
    largest: int  # bytes that the largest layer reads and writes for a row
    widest: int  # entries of the largest matrix of weights
    coupled: bool  # whether layers share sums over the batch
    recurrent: bool  # whether layers walk over time
    products: float  # multiplications for each entry that layers give, 0 where some are no products of matrices


class Cut(NamedTuple):
    """How a batch runs."""

    rows: list[slice]  # of each slice
    backend: Backend  # whose functions run
    blas: int  # threads that BLAS gets, where there is one slice; 0 for as many as it has


def cost_of(graph: Graph) -> Cost:
    """Return what a row costs; an axis of unknown size counts as 16.

    Every weight is used once for each output position. Where layers walk over time, all steps come one after the
    other, and threads pay only if one of them is long.
    """
    itemsize = 4 if graph.dtype == "float32" else 8
    sizes = {
        value: math.prod(n if isinstance(n, int) else 16 for n in spec.shape[1:]) for value, spec in graph.specs.items()
    }
    work = largest = 0
    for operation in graph.operations:
        shapes = [graph.arrays[full].shape for full in operation.params.values()]
        if operation.layer.recurrent:
            work += _work_of_a_step(shapes)
        else:
            width = graph.specs[operation.inputs[0]].shape[-1]
            terms = max((_terms(shape, width) for shape in shapes), default=1)
            work += max(1, terms) * sum(sizes[value] for value in operation.outputs)
        largest = max(largest, itemsize * sum(sizes[value] for value in (*operation.inputs, *operation.outputs)))
    matrices = (math.prod(array.shape) for array in graph.arrays.values() if len(array.shape) == 2)
    coupled = any(operation.forward_yields or operation.backward_yields for operation in graph.operations)
    recurrent = any(operation.layer.recurrent for operation in graph.operations)
    matrices_only = all(len(array.shape) <= 2 for array in graph.arrays.values())
    given = sum(sizes[value] for operation in graph.operations for value in operation.outputs)
    products = work / max(1, given) if matrices_only else 0.0
    return Cost(work, largest, max(matrices, default=0), coupled, recurrent, products)


def _work_of_a_step(shapes: Iterable[tuple[int, ...]]) -> int:
    """Multiplications in one step of a recurrence and for one of its gates, whose kernels stand side by side."""
    kernels = [shape for shape in shapes if len(shape) == 2] or [(1, 1)]
    units, columns = kernels[-1]  # that of the state, (units, gates * units)
    return sum(map(math.prod, kernels)) // max(1, columns // max(1, units))


def _terms(kernel: tuple[int, ...], width: int | str) -> int:
    """How many products one entry of the output sums: kernels are (in, out) or (filters, channels, height, width)."""
    if len(kernel) == 2:
        return kernel[0] if kernel[0] == width else 1  # else a table, in which rows are looked up
    return math.prod(kernel[1:])


def runs_whole(graph: Graph, rows: int) -> bool:
    """Whether a batch is one slice whose products BLAS spreads over all threads: a pure function of graph and rows.

    So it is with dense layers, whose products outweigh all that runs on one thread then, and with recurrent layers that
    have too little to do in each step for threads of ours.
    """
    cost = cost_of(graph)
    if cost.recurrent:
        return cost.products > 0.0 and cost.work * rows < INLINE_WORK
    return cost.products >= PRODUCTS and cost.largest * rows <= WHOLE_BYTES


def slice_rows(graph: Graph, rows: int, threads: int, *, training: bool = True) -> list[int]:
    """How many rows each slice of a batch takes: a pure function of graph, rows and threads.

    One slice for steps so small that threads cost more than they give, and for those that run whole. Else a multiple of
    the threads, of slices whose largest layer fits a core's cache, but not of so few rows that the gradients of dense
    layers, which every slice computes whole, cost more than the rest. There is one for each thread where layers share
    sums over the batch in training, since every slice waits with all of its activations then, and where layers walk
    over time, since every slice takes as many steps as the batch.
    """
    cost = cost_of(graph)
    if cost.work * rows < INLINE_WORK or runs_whole(graph, rows):
        return [rows]
    size = max(SLICE_BYTES // max(1, cost.largest), min(256, cost.widest // 4096), 1)
    if cost.recurrent or (cost.coupled and training):
        size = rows
    count = min(rows, math.ceil(math.ceil(rows / size) / threads) * threads)
    return [rows * (k + 1) // count - rows * k // count for k in range(count)]


def cut(graph: Graph, rows: int, backend: Backend, threads: int, *, training: bool = True) -> Cut:
    """Return how a batch runs on a backend: its slices, and who works on them."""
    if backend.runs_whole(graph, rows):
        return Cut([slice(0, rows)], backend, 1)
    blas = threads if runs_whole(graph, rows) else 1
    sizes = slice_rows(graph, rows, threads, training=training)
    if len(sizes) == 1 and blas == 1 < threads and not training:
        blas = 0  # products so small that BLAS keeps to one thread by itself
    return Cut(consecutive(sizes), backend.sliced, blas)


def consecutive(sizes: Sequence[int]) -> list[slice]:
    """Return slices of the given sizes, one after the other.

    >>> consecutive([3, 4])
    [slice(0, 3, None), slice(3, 7, None)]
    """
    return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]
