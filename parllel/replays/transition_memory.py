"""TransitionMemory: memory of a minibatch of transitions, which is written again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from parllel.arrays import Array, ArraySpec
from parllel.arrays.interop import may_share_memory
from parllel.cuda import AnyArray
from parllel.ops.agent_transitions import earn_of_agents
from parllel.ops.row_copy import Gather, prepare_gather
from parllel.ops.stack_gather import RowSource
from parllel.ops.transitions import DrawnTransitions, SampledRing
from parllel.replays.agent_ends import AgentEnds
from parllel.replays.final_obs import FinalObs
from parllel.replays.minibatch_outputs import FixedTensors, output_spec
from parllel.storages import Memory, Side, aligned, allocate
from parllel.tree import ArrayDict, path_text
from parllel.tree.agent_forms import parts_of

# Written when a transition is drawn: they belong to its last step, or to no step alone.
DRAWN: dict[str, np.dtype[Any]] = {
    "index": np.dtype(np.int64),
    "n_step_return": np.dtype(np.float32),
    "n_step_discount": np.dtype(np.float32),
    "terminated": np.dtype(bool),
    "truncated": np.dtype(bool),
}
NOT_GATHERED = ("terminated", "truncated", "valid")
NEXT = "next_observation"


class TransitionMemory:
    """One minibatch of transitions, in a block of memory of its own.

    Args:
        sources: the sources that `find_sources` returned.
        batch_size: number of transitions.
        storage: kind of the memory: that of the sources, or another kind of host memory.
        extra: names and dtypes of further branches [batch_size], which the draw writes; they are
            arguments of `DrawnTransitions`.
        agents: the ends of environments with several agents; None for one agent. Each agent then
            has returns, discounts and flags of its own, and a branch `valid` (`EARNED`).
        discount: for each step, of agents' returns.

    Attributes:
        sources: as given, or as `bind` was given last.
        tree: Arrays [batch_size, ...], with the branches of `sources`, of `DRAWN` and of `extra`.
        drawn: the arrays that a draw writes: some branches of the tree, and the rows that `gather`
            reads next.
        memory: the block.

    A replay buffer makes it: `ReplayBuffer.make_memory`.

    >>> from parllel.ops.stack_gather import RowSource
    >>> rewards = np.float32([5, 6, 7])
    >>> sources = ArrayDict({"reward": RowSource(rewards), NEXT: RowSource(rewards)})
    >>> memory = TransitionMemory(sources, 2, "local", extra={})
    >>> memory.gather()  # of row 0: no draw has written other rows yet
    >>> memory.tensors["reward"], memory.tensors[NEXT]
    (tensor([5., 5.]), tensor([5., 5.]))
    """

    def __init__(
        self,
        sources: ArrayDict,
        batch_size: int,
        storage: str,
        *,
        extra: Mapping[str, np.dtype[Any]],
        agents: AgentEnds | None = None,
        discount: float = 1.0,
    ) -> None:
        first = next(source for _, source in sources.walk())
        self._is_on_gpu = not isinstance(first.frames, np.ndarray)
        own = storage if self._is_on_gpu else "local"
        specs, hidden = _specs_of(sources, batch_size, {**DRAWN, **extra}, agents)
        of_envs = {name: Array.from_spec(spec, own) for name, spec in hidden.items()}
        self.memory: Memory = allocate(storage, count_bytes(specs))
        self.tree = specs.apply(Array.from_spec, self.memory)
        self._tensors = FixedTensors(self.tree, ArrayDict.to_torch)
        self.batch_size = batch_size
        # The row and the next row of each transition, and what else a draw needs for each.
        vectors = Array((3, batch_size), np.int64, storage=own)
        rows, next_rows, scratch = (read(vectors[number], self._is_on_gpu) for number in range(3))
        branches = {
            name: read(of_envs.get(name, self.tree[name]), self._is_on_gpu)
            for name in (*DRAWN, *extra)
        }
        self.drawn = DrawnTransitions(
            identity=branches.pop("index"),
            row=rows,
            next_row=next_rows,
            scratch=scratch,
            **branches,
        )
        self._earn: Callable[[], None] | None = None
        if agents is not None:
            earned = agents.make_earned(
                self.tree,
                row=rows,
                n_step_discount=branches["n_step_discount"],
                on_gpu=self._is_on_gpu,
            )
            self._earn = partial(earn_of_agents, agents.ring, discount, earned)
        self._rows = range(batch_size)
        self._picks = rows, next_rows
        self.bind(sources)

    def bind(self, sources: ArrayDict) -> None:
        """Gather from other sources of the same rows from now on."""
        self.sources = sources
        self._gather = self._prepare(sources, *self._picks)

    @property
    def tensors(self) -> ArrayDict:
        """The memory as a tree of torch tensors; of elements of different length, packed `Jagged`.

        Of these the host has to know the number: in memory of a GPU it waits for it.
        """
        return self._tensors()

    def present(self, tree: ArrayDict) -> ArrayDict:
        """Return a tree of Arrays like `tree` as the tensors of a minibatch."""
        return tree.to_torch()

    def _prepare(self, sources: ArrayDict, rows: AnyArray, next_rows: AnyArray) -> Gather:
        written = dict(self.tree.walk())
        following = dict(ArrayDict({NEXT: sources[NEXT]}).walk())
        leaves = {path: source for path, source in sources.walk() if math.prod(source.shape[1:])}
        picked = [
            replace(source, rows=next_rows if path in following else rows)
            for path, source in leaves.items()
        ]
        side: Side = "gpu" if self._is_on_gpu else "host"
        outputs = [written[path].gather_output(side) for path in leaves]
        return prepare_gather(outputs, picked, names=[path_text(path) for path in leaves])

    def gather(self, seed: AnyArray | None = None) -> None:
        """Gather the rows that were drawn, for all branches; images are shifted by the seed.

        In host memory they are there when this returns. On a device it is one launch in the
        caller's current stream, and one for what several agents earn; the host does not wait.
        """
        self._gather(self._rows, seed)
        if self._earn is not None:
            self._earn()

    def close(self) -> None:
        """Free the memory. Tensors that were taken before stay valid."""
        self.tree.close()


def _specs_of(
    sources: ArrayDict,
    batch_size: int,
    drawn: Mapping[str, np.dtype[Any]],
    agents: AgentEnds | None,
) -> tuple[ArrayDict, dict[str, ArraySpec]]:
    """Return the specs of a minibatch, and of what a draw writes that the minibatch has not.

    Of several agents, numbers of environments are not in it: agents have their own by that name.
    """
    specs, hidden = sources.apply(output_spec, batch_size), {}
    for name, dtype in drawn.items():
        specs[name] = ArraySpec.of((batch_size,), dtype)
    if agents is not None:
        for name, spec in agents.make_specs_of(batch_size).items():
            if name in drawn:
                hidden[name] = specs[name]
            specs[name] = spec
    return specs, hidden


def find_sources(samples: ArrayDict, final_obs: FinalObs, *, on_gpu: bool) -> ArrayDict:
    """Return the tree of a minibatch with a `RowSource`, the rows to gather from, for each leaf.

    Args:
        samples: the sample tree.
        final_obs: the final observations beside its ring. The branch `next_observation` is read
            from the next row of the ring, or from these.
        on_gpu: whether a GPU gathers.
    """
    kept: Mapping[str, Any] = {
        name: branch for name, branch in samples.items() if name not in NOT_GATHERED
    }
    sources = ArrayDict(kept).apply(ring_source, 0, on_gpu)
    tables = ArrayDict({NEXT: final_obs.table}).walk()
    before = read(final_obs.place, on_gpu)

    def add_table(source: RowSource) -> RowSource:
        table = table_source(next(tables)[1], on_gpu)
        return replace(
            source,
            beside=table.frames,
            beside_rows=before if source.stack > 1 else None,
            beside_lengths=table.lengths,
        )

    following = ArrayDict({NEXT: samples["observation"]}).apply(ring_source, 1, on_gpu)
    return ArrayDict({**sources, **following.apply(add_table)})


def ring_of(leaf: Array, *, on_gpu: bool) -> AnyArray:
    """Return the rows of a leaf's ring over its memory, with T and B as one dimension."""
    rows: AnyArray = ring_source(leaf, 0, on_gpu).frames
    return rows


def find_ring(
    samples: ArrayDict,
    final_obs: FinalObs,
    breaks: Array | None,
    *,
    on_gpu: bool,
    n_steps: int,
    agents: AgentEnds | None = None,
) -> SampledRing:
    """Return the leaves of a ring by which steps are drawn, as kernels read them.

    Args:
        samples: the sample tree.
        final_obs: the final observations beside its ring.
        breaks: the bits of its steps, if there are any.
        on_gpu: whether a GPU draws.
        n_steps: steps of a transition.
        agents: the ends of environments with several agents; None for one agent.
    """
    leaves = {"final_slot": final_obs.slot}
    if agents is None:
        leaves |= {name: samples[name] for name in ("reward", "terminated", "truncated")}
        if "valid" in samples:
            leaves["valid"] = samples["valid"]
    rings = {name: ring_of(leaf, on_gpu=on_gpu) for name, leaf in leaves.items()}
    width = final_obs.slot.shape[1]
    if agents is not None:
        # The draw of steps sums up rewards that nothing reads: any agent's will do.
        reward = next(iter(parts_of(samples["reward"]).values()))
        rewards = ring_of(reward, on_gpu=on_gpu).reshape(-1)[: reward.full_size * width]
        rings |= {"reward": rewards, **agents.flags}
    bits = None if breaks is None else read(breaks, on_gpu).reshape(-1)
    return SampledRing(**{"valid": None, **rings}, breaks=bits, width=width, n_steps=n_steps)


def count_bytes(specs: ArrayDict) -> int:
    """Return the size in bytes of a block of memory for all leaves of a tree of specs."""
    return sum(aligned(spec.nbytes) for _, spec in specs.walk())


def table_source(leaf: Array, on_gpu: bool) -> RowSource:
    """Return the rows of a table [n, ...]."""
    return leaf.row_source("gpu" if on_gpu else "host", n_axes=1)


def ring_source(leaf: Array, n_behind: int, on_gpu: bool) -> RowSource:
    """Return the rows of a ring and of the padding behind it, with T and B as one dimension."""
    if leaf.may_move:
        raise ValueError(
            f"got a {type(leaf).__name__} whose memory may grow, so that what is written later"
            ' would be missed; allocate its whole capacity, and choose on_overflow="raise" or'
            ' "drop"'
        )
    rows = leaf.full[0 : leaf.full_size + n_behind]
    _check_shared(leaf, rows)
    return rows.row_source("gpu" if on_gpu else "host")


def _check_shared(leaf: Array, rows: Array) -> None:
    """Raise unless rows are gathered from the leaf's own memory, which samplers write later."""
    frames = rows.row_source("host" if leaf.is_on_host else "gpu").frames
    parts = leaf.memory_parts.values()
    if frames.size and not any(may_share_memory(frames, part) for part in parts):
        raise ValueError(
            f"got a {type(leaf).__name__} whose rows are copied to be gathered, so that what is"
            " written later would be missed; expected rows without gaps, one after the other in"
            " memory, as build_sample_tree makes them"
        )


def read(leaf: Array, on_gpu: bool) -> AnyArray:
    """Return a leaf as the array that a side works on: CuPy's for a GPU, else NumPy's."""
    return leaf.to_cupy() if on_gpu else leaf.to_ndarray()
