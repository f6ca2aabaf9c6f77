"""The form of torch-geometric: its own batches and layers give what parllel's form gives."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from example_runs import load
from optional import needs
from parllel import ArrayDict, Jagged
from parllel.arrays import batch_graphs

pytestmark = [needs("torch_geometric"), pytest.mark.filterwarnings("ignore")]


def mazes(n_graphs: int) -> list[gym.spaces.GraphInstance]:
    """Return graphs of the example, in which the agent has walked a bit."""
    graphs = []
    for number in range(n_graphs):
        env = load("graph_ppo").Maze()
        graph, _ = env.reset(seed=number)
        for action in (0, 1, 2)[: number % 4]:
            graph = env.step(action)[0]
        graphs.append(graph)
    return graphs


def as_observation(graphs: list[Any]) -> ArrayDict:
    """Return graphs as a model is given them."""
    names = ("nodes", "edges", "edge_links")
    columns = {name: Jagged.of([getattr(each, name) for each in graphs]) for name in names}
    return ArrayDict({name: column.to_torch() for name, column in columns.items()})


def as_batch(graphs: list[Any]) -> Any:
    """Return graphs as torch-geometric's own loader joins them."""
    from torch_geometric.data import Batch, Data

    return Batch.from_data_list(
        [
            Data(
                x=torch.from_numpy(graph.nodes),
                edge_index=torch.from_numpy(np.ascontiguousarray(graph.edge_links.T)).long(),
                edge_attr=torch.from_numpy(np.array(graph.edges)),
            )
            for graph in graphs
        ]
    )


def test_a_batch_of_graphs_is_that_of_torch_geometric() -> None:
    graphs = mazes(5)
    observation = as_observation(graphs)
    x, batch, edge_index = batch_graphs(observation["nodes"], observation["edge_links"])
    expected = as_batch(graphs)
    torch.testing.assert_close(x, expected.x, rtol=0, atol=0)
    torch.testing.assert_close(batch, expected.batch, rtol=0, atol=0)
    torch.testing.assert_close(edge_index, expected.edge_index, rtol=0, atol=0)
    edges = observation["edges"].packed().values
    torch.testing.assert_close(edges, expected.edge_attr, rtol=0, atol=0)


def test_a_layer_over_a_batch_is_that_layer_over_each_graph() -> None:
    from torch_geometric.nn import GCNConv, global_add_pool

    torch.manual_seed(0)
    layer, graphs = GCNConv(2, 4), mazes(5)
    observation = as_observation(graphs)
    x, batch, edge_index = batch_graphs(observation["nodes"], observation["edge_links"])
    nodes = layer(x, edge_index)
    pooled = global_add_pool(nodes, batch)
    for number, graph in enumerate(graphs):
        links = torch.from_numpy(np.ascontiguousarray(graph.edge_links.T)).long()
        alone = layer(torch.from_numpy(graph.nodes), links)
        torch.testing.assert_close(nodes[batch == number], alone)
        torch.testing.assert_close(pooled[number], alone.sum(0))


def test_a_round_of_messages_of_the_example_is_a_graph_conv() -> None:
    from torch_geometric.nn import GraphConv

    torch.manual_seed(0)
    model, graphs = load("graph_ppo").GraphNet(), mazes(4)
    observation = as_observation(graphs)
    x, _, (source, target) = batch_graphs(observation["nodes"], observation["edge_links"])
    hidden = expected = model.first(x).relu()
    for own, heard in zip(model.own, model.heard, strict=True):
        messages = torch.zeros_like(hidden).index_add(0, target, hidden[source])
        hidden = (own(hidden) + heard(messages)).relu()
        layer = GraphConv(32, 32)
        layer.lin_root.weight.data, layer.lin_rel.weight.data = own.weight, heard.weight
        layer.lin_rel.bias.data = heard.bias
        expected = layer(expected, as_batch(graphs).edge_index).relu()
    torch.testing.assert_close(hidden, expected)
    # And the model is made of these rounds: it judges what they tell of the halls behind doors.
    before = model(observation).dist_params.logits
    for number, graph in enumerate(graphs):
        first = sum(len(each.nodes) for each in graphs[:number])
        for door, (one, other) in zip(graph.edges, graph.edge_links, strict=True):
            if graph.nodes[one, 0]:
                judged = model.policy(hidden[first + other])[0]
                torch.testing.assert_close(before[number, door], judged)
    with torch.no_grad():
        model.heard[-1].weight += 1
    assert not torch.equal(before, model(observation).dist_params.logits)


def test_the_example_judges_the_doors_of_the_agents_own_hall() -> None:
    torch.manual_seed(0)
    model, graphs = load("graph_ppo").GraphNet(), mazes(6)
    outputs = model(as_observation(graphs))
    for number, graph in enumerate(graphs):
        alone = model(as_observation([graph]))
        torch.testing.assert_close(outputs.dist_params.logits[number], alone.dist_params.logits[0])
        torch.testing.assert_close(outputs.value[number], alone.value[0])
        # Other numbers of halls and another order of doors change nothing but their order.
        order = np.random.default_rng(number).permutation(len(graph.nodes))
        inverse = np.argsort(order)
        shuffled = graph._replace(nodes=graph.nodes[order], edge_links=inverse[graph.edge_links])
        twin = model(as_observation([shuffled]))
        torch.testing.assert_close(twin.dist_params.logits, alone.dist_params.logits)
        swapped = graph._replace(edges=(graph.edges + 1) % 3)
        turned = model(as_observation([swapped])).dist_params.logits
        torch.testing.assert_close(turned.roll(-1, 1), alone.dist_params.logits)
