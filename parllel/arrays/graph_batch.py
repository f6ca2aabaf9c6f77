"""GraphBatch, batch_graphs: many graphs as one, in the form that torch-geometric has."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from parllel import cuda
from parllel.arrays.jagged import Jagged


class GraphBatch(NamedTuple):
    """Many graphs as one graph whose parts are not linked; arrays of NumPy or tensors of torch.

    A last graph without nodes shows in none of them: tell layers that pool how many graphs there
    are, as by torch-geometric's `size=len(nodes)`.

    >>> nodes = Jagged.of([np.zeros((2, 1)), np.zeros((1, 1))], "float32")
    >>> graphs = batch_graphs(nodes, Jagged.of([[[0, 1]], [[0, 0]]]))
    >>> graphs.batch.tolist(), graphs.edge_index.tolist()
    ([0, 0, 1], [[0, 2], [1, 2]])

    Args:
        x: [n_nodes, *feature_shape], the nodes of all graphs, one graph after the other.
        batch: int64 [n_nodes], the number of the graph that each node belongs to.
        edge_index: int64 [2, n_edges], the nodes in `x` that each edge leads from and to.
    """

    x: Any
    batch: Any
    edge_index: Any


def batch_graphs(nodes: Jagged, edge_links: Jagged) -> GraphBatch:
    """Return graphs in the form that torch-geometric takes: (x, batch, edge_index).

    The nodes are packed, and each graph's links are moved by the nodes of the graphs before it.
    Features of edges are `edges.packed().values`, in the same order as the links.

    >>> nodes = Jagged.of([np.zeros((3, 1)), np.zeros((2, 1))], "float32")
    >>> links = Jagged.of([[[0, 2]], [[0, 1], [1, 0]]])
    >>> batch_graphs(nodes, links).edge_index.tolist()
    [[0, 3, 4], [2, 4, 3]]

    Args:
        nodes: k elements [n, *feature_shape], the nodes of each graph.
        edge_links: k elements [e, 2] of integers, of the same library: the numbers of the two nodes
            of each edge, counted in its own graph from 0.

    Returns:
        Arrays of NumPy, or tensors for values of torch or CuPy. What is packed is not copied.

    Raises:
        TypeError: links are no integers, or of another library.
        ValueError: nodes and links have another batch shape, or links have other items; or,
            where the host can read them at once, a link leads to a node that its graph has not.
    """
    if nodes.batch_shape != edge_links.batch_shape:
        raise ValueError(
            f"edge_links: got those of graphs {edge_links.batch_shape}, expected"
            f" {nodes.batch_shape}, as the nodes have"
        )
    if type(nodes.values) is not type(edge_links.values):
        raise TypeError(
            f"edge_links: got {type(edge_links.values)}, expected {type(nodes.values)}, as the"
            " nodes are; to_torch() and to_ndarray() convert them"
        )
    if edge_links.feature_shape != (2,):
        raise ValueError(
            f"edge_links: got rows of shape {edge_links.feature_shape}, expected (2,), a link from"
            " one node to another"
        )
    if "int" not in str(edge_links.dtype):
        raise TypeError(f"edge_links: got {edge_links.dtype}, expected integers")
    if cuda.is_device_array(nodes.values):
        nodes, edge_links = nodes.to_torch(), edge_links.to_torch()
    packed, links = nodes.packed(), edge_links.packed()
    graph_of = links.segment_ids()
    own = links.values
    counts = packed.counts[graph_of]
    if isinstance(own, np.ndarray) or own.device.type == "cpu":
        is_outside = ((own < 0) | (own >= counts[:, None])).any(1)
        if is_outside.any():
            at = int(np.asarray(is_outside).argmax())
            graph = int(graph_of[at])
            raise ValueError(
                f"edge_links of graph {graph}: got a link {own[at].tolist()}, expected numbers of"
                f" its {int(counts[at])} nodes, counted from 0"
            )
    edge_index = (own + packed.offsets[:-1][graph_of][:, None]).T
    if isinstance(edge_index, np.ndarray):
        edge_index = np.ascontiguousarray(edge_index, np.int64)
    else:
        edge_index = edge_index.long().contiguous()
    return GraphBatch(packed.values, packed.segment_ids(), edge_index)
