"""Builders of the common cases. They return new objects and leave their arguments unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from parllel.arrays import Array, ArraySpec, Fill, Leaf, stacked_spec
from parllel.cages import (
    TIMEOUT_S,
    AgentForm,
    AnyEnv,
    Cage,
    Capacities,
    OnWorkerError,
    ProcessCage,
    Seed,
    SerialCage,
    TrajInfo,
    as_tree,
    empty_rows,
    info_values,
    row_specs,
    spawn_seeds,
)
from parllel.cages.process.processors import processors_to_bind
from parllel.cages.process.worker_numbers import check_n_serial_envs, find_n_workers
from parllel.cages.values.spaces import ACTION_MASK
from parllel.samplers import Actor, RecurrentActor
from parllel.samplers.agent import check_step
from parllel.storages import default_storage
from parllel.tree import ArrayDict, TreePath, allocate_tree, dict_map, leaves_of, path_text
from parllel.tree.leaves import as_ndarray

FrameFills: TypeAlias = "Fill | Mapping[str, FrameFills]"
"""The fill of a stack of frames at an episode's beginning; or a mapping of leaves' names to it."""

MakeEnv: TypeAlias = "Callable[..., AnyEnv] | str"
"""A function that returns one environment, or the id of one, as `gymnasium.make` takes it."""

_ENV_BRANCHES = ("observation", "action", "reward", "terminated", "truncated", "env_info")


def build_cages(
    make_env: MakeEnv,
    n_envs: int,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    make_traj_info: Callable[[], TrajInfo] = TrajInfo,
    seed: Seed = None,
    n_workers: int | Literal["serial"] | None = None,
    timeout_s: float = TIMEOUT_S,
    on_worker_error: OnWorkerError = "raise",
    bind_workers: bool = False,
    worker_cage: Callable[..., Cage] | None = None,
    n_serial_envs: int = 0,
) -> list[Cage]:
    """Make cages that hold `n_envs` environments together, divided as equally as possible.

    For the same seed, environments behave the same however they are divided. Workers write their
    rows into `shared` and `pinned` trees themselves; for other memory, the cages copy.

    Args:
        make_env: returns one gymnasium environment. For workers it has to be possible to pickle
            it; a lambda, or a function of the script itself, works too (see `ProcessCage`).
        n_envs: number of environments.
        env_kwargs: keyword arguments for `make_env`.
        make_traj_info: returns the summary of a new episode.
        seed: seed of the run; each environment gets a SeedSequence of its own from it.
        n_workers: number of worker processes, each with a ProcessCage; at most `n_envs` are made.
            With 0 or "serial", there is one SerialCage instead, and environments step in this
            process. By default, an environment is made here and some random steps are timed.
            Where a step takes less than 20 us, environments stay in this process, which is faster
            then; otherwise there are as many workers as physical cores. Nothing is timed where
            there is only one environment or core or another system than Linux (one SerialCage),
            nor with on_worker_error="restart" (workers).
        timeout_s, on_worker_error: as for `ProcessCage`.
        bind_workers: whether each worker stays on a processor of its own (`ProcessCage`'s
            `processor`), of those that this process may use. It gains on an idle machine where
            steps take some 20 us or more, and loses where other programs run; AlternatingSampler
            mostly does better without it.
        worker_cage: makes the cage of a worker, a `ProcessCage` by default; or `RayCage`, whose
            workers may be on any machine of a cluster, so that `n_workers` has to be given.
            Further arguments go by `functools.partial(RayCage, actor_options=...)`.
        n_serial_envs: how many environments, the last ones, step in this process while the others
            step in workers: this process works instead of waiting, and one worker less has to be
            woken in each step. With 2 cores and a BasicSampler, `n_workers=1` and some 9 or 10
            environments of 16 here are faster than 2 workers (docs/environments.md). An
            AlternatingSampler is faster without. By default, there is a worker less then.

    Raises:
        TypeError: n_serial_envs is no int.
        ValueError: n_envs is not positive, n_workers is negative, the number of seeds is not
            `n_envs`; or `n_workers` is missing, or `bind_workers` set, where it can't be; or
            n_serial_envs is negative, leaves none to workers, or comes with "restart".

    Example:
        >>> from parllel.testing.toy_envs import Clock
        >>> [cage.n_envs for cage in build_cages(Clock, n_envs=4, n_workers="serial")]
        [4]
    """
    seeds = spawn_seeds(seed, n_envs)
    make_env = _maker(make_env)
    if worker_cage is not None and n_workers is None:
        raise ValueError(
            "n_workers: got None, expected a number: how many processors there are for workers of"
            f" {worker_cage!r} is not known here"
        )
    if worker_cage is not None and bind_workers:
        raise ValueError("bind_workers: got True, expected False: only a ProcessCage's worker is")
    check_n_serial_envs(n_serial_envs, n_envs, on_worker_error)
    n_sent = n_envs - n_serial_envs  # those that workers step
    n_workers = find_n_workers(
        *(n_workers, n_sent, make_env, env_kwargs or {}),
        n_busy=1 if n_serial_envs else 0,
        # With "restart", environments that may end their process are wanted in another one.
        is_timed=on_worker_error == "raise",
    )
    make_serial = partial(SerialCage, make_env, env_kwargs, make_traj_info)
    if n_workers == 0:
        return [make_serial(n_envs=n_envs, seed=seeds)]
    make_cage: Callable[..., Cage] = partial(
        worker_cage or ProcessCage,
        *(make_env, env_kwargs, make_traj_info),
        timeout_s=timeout_s,
        on_worker_error=on_worker_error,
    )
    processors = processors_to_bind(n_workers) if bind_workers else [None] * n_workers
    makers = _worker_makers(make_cage, seeds[:n_sent], processors)
    if not n_serial_envs:
        return _make_together(makers)
    here = partial(make_serial, n_envs=n_serial_envs, seed=seeds[n_sent:])
    return _make_beside(makers, here)


def _worker_makers(
    make_cage: Callable[..., Cage],
    seeds: Sequence[np.random.SeedSequence],
    processors: Sequence[int | None],
) -> list[Callable[[], Cage]]:
    """Return a function for each processor that makes a cage of its share of the environments."""
    n_envs, n_workers = len(seeds), len(processors)
    ends = [n_envs * number // n_workers for number in range(n_workers + 1)]
    makers: list[Callable[[], Cage]] = []
    for (begin, end), processor in zip(pairwise(ends), processors, strict=True):
        own = {} if processor is None else {"processor": processor}
        own |= {"n_envs": end - begin, "first_env": begin}
        makers.append(partial(make_cage, seed=seeds[begin:end], **own))
    return makers


def _maker(make_env: MakeEnv) -> Callable[..., AnyEnv]:
    return partial(gym.make, make_env) if isinstance(make_env, str) else make_env


def _make_beside(makers: Sequence[Callable[[], Cage]], make_here: Callable[[], Cage]) -> list[Cage]:
    """Make the cages of workers, and behind them one that steps in this process meanwhile."""
    with ExitStack() as stack:
        here = make_here()  # in this thread, which steps it: some environments know only one
        stack.callback(here.close)
        cages = [*_make_together(makers), here]
        stack.pop_all()  # they stay open
    return cages


def _make_together(makers: Sequence[Callable[[], Cage]]) -> list[Cage]:
    """Call all makers at the same time: each waits until its environments are made."""
    with ThreadPoolExecutor(len(makers)) as pool:
        futures = [pool.submit(maker) for maker in makers]
    cages = [future.result() for future in futures if future.exception() is None]
    for error in (future.exception() for future in futures):
        if error is not None:
            with ExitStack() as stack:  # it closes all, also where one can't be closed
                for cage in cages:
                    stack.callback(cage.close)
                raise error
    return cages


def build_example(
    make_env: MakeEnv,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    storage: str | None = None,
    info: Mapping[str, Any] | None = None,
    capacity: Capacities = None,
    on_overflow: Literal["raise", "drop"] = "raise",
) -> ArrayDict:
    """Return one step of an environment, which is made for this and closed: a batch of one row.

    The branches are `observation`, `action`, `reward`, `terminated`, `truncated` and `env_info`,
    all Arrays of shape [1, ...].

    The environment's spaces decide on the shapes and dtypes of `observation` and `action`: those
    of the space, but 32 bits instead of 64, unless the space's bounds need more. Rewards are
    float32.

    `env_info` keeps the entries of the step's info that are numbers or arrays of numbers. A single
    integer or boolean becomes float64, as a later step may have a fraction there; floats become
    float32, and other arrays keep their dtype. Entries that come later, such as those of an
    episode's end, have to be declared by `info`.

    Clouds of points, graphs and sequences have different lengths, up to a capacity; their leaves
    are `JaggedArray`s. A graph is a branch with the leaves `nodes`, `edges` (where its space has an
    `edge_space`) and `edge_links`.

    Args:
        make_env: returns one gymnasium environment; or the id of one, as `gymnasium.make` takes.
        env_kwargs: keyword arguments for `make_env`.
        storage: kind of the memory; `parllel.default_storage()` if left out. An agent's model has
            to be on the same device: `example["reward"].to_torch().device`.
        info: a value for each entry of infos that the step may not have, as in
            `info={"is_success": False, "episode": {"r": 0.0, "l": 0}}`. Its dtype and shape decide
            on those of the rows, also for entries that the step has; Python's floats are float32.
        capacity: the largest length of observations whose space has none: `100` for a `Sequence`,
            `{"nodes": 20, "edges": 60}` for a `Graph`; in an observation that is a tree, by the
            names of its branches. A `PointCloud` brings its own.
        on_overflow: what happens to a longer one: "raise" a MisfitError, or "drop" its last rows,
            which is said once and counted. Of a graph, edges are dropped, and too many nodes raise.

    Raises:
        MisfitError: the environment does not give what its spaces declare.
        TypeError: `make_env` makes no environment, a space's values are no arrays of one shape, a
            value of `info` is no number, or a capacity is of another form than the branch.
        ValueError: a capacity is missing, or of a branch that the observation does not have.

    Example:
        >>> from parllel.testing.toy_envs import Clock
        >>> example = build_example(Clock, storage="local", info={"is_success": False})
        >>> example["observation"].shape, example["reward"].dtype
        ((1, 2), dtype('float32'))
        >>> example["env_info"]["is_success"].dtype
        dtype('bool')
    """
    with SerialCage(_maker(make_env), env_kwargs, seed=0) as cage:
        return example_of(
            cage, storage=storage, info=info, capacity=capacity, on_overflow=on_overflow
        )


def example_of(
    cage: Cage,
    *,
    storage: str | None = None,
    info: Mapping[str, Any] | None = None,
    capacity: Capacities = None,
    on_overflow: Literal["raise", "drop"] = "raise",
) -> ArrayDict:
    """Return a random step of a cage's first environment, in the form of `build_example`.

    Where the cage can give rows that are no transitions (`Cage.gives_invalid_rows`), there is a
    branch `valid` too, from which `build_sample_tree` makes one.

    Episodes under way go on; a cage that was never reset is reset first, which seeds it.

    Args:
        cage: a cage of any kind, with any number of environments.
        storage, info, capacity, on_overflow: as for `build_example`.

    Raises:
        MisfitError, TypeError, ValueError: as for `build_example`.
        WorkerError: instead of a MisfitError, where the environment is in a worker.

    Example:
        >>> from parllel.testing.toy_envs import Clock
        >>> cage = SerialCage(Clock, n_envs=3)
        >>> example_of(cage, storage="local")["reward"].shape
        (1,)
    """
    batch_shape = (cage.n_envs,) if cage.n_envs > 1 else ()
    action = empty_rows(cage.action_space, batch_shape)
    observations = _new_rows(cage, capacity=capacity, on_overflow=on_overflow)
    observation = observations if cage.n_envs > 1 else observations[0]
    agents = cage.agents
    reward: Any = np.zeros(batch_shape, np.float32)
    terminated, truncated = np.zeros(batch_shape, np.bool_), np.zeros(batch_shape, np.bool_)
    if agents is not None:
        reward = agents.rows(batch_shape, np.float32)
        terminated, truncated = (agents.flag_rows(batch_shape) for _ in range(2))
    cage.random_step_async(
        out_action=action,
        out_obs=observation,
        out_reward=reward,
        out_terminated=terminated,
        out_truncated=truncated,
    )
    *_, env_info = cage.await_step()
    values: dict[str, Any] = {
        "action": action,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
    }
    if cage.n_envs > 1:
        values = {name: rows[0] for name, rows in values.items()}
        env_info = env_info[0]
    values["env_info"] = info_values(env_info, info or {}, ())
    _warn_of_mask(observation, values["env_info"], agents)
    if agents is not None and agents.has_flags:
        values["valid"] = dict_map(np.ones_like, values["terminated"])
    elif cage.gives_invalid_rows:
        values["valid"] = np.bool_(True)
    storage = storage or default_storage()
    rows = {name: dict_map(_as_row, value, storage) for name, value in values.items()}
    return ArrayDict({"observation": dict_map(_copy_to, observations[:1], storage), **rows})


def _warn_of_mask(observation: Any, env_info: ArrayDict, agents: AgentForm | None) -> None:
    """Warn of masks of actions that only infos have."""
    way_out = (
        "cages.MaskInObservation, which moves it into the observation (each single one, before they"
        " are made a vector environment)"
    )
    infos: Sequence[Any] = [env_info]
    if agents is not None and agents.has_flags:
        way_out = f"cages.ParallelAgents(env, info_mask={ACTION_MASK!r})"
        infos = list(env_info.values())
    has_mask = any(path[-1:] == (ACTION_MASK,) for path, _ in leaves_of(observation))
    if not has_mask and any(ACTION_MASK in info for info in infos):
        warnings.warn(
            f"{ACTION_MASK}: it is in the environment's infos, where no agent sees it; wrap the"
            f" environment in {way_out}",
            stacklevel=4,
        )


def build_sample_tree(
    example: ArrayDict,
    agent: Actor,
    *,
    batch_shape: Sequence[int],
    storage: str | None = None,
    full_size: int | None = None,
    frames: FrameFills | None = None,
) -> ArrayDict:
    """Allocate the tree that a sampler writes, in one block of memory.

    Args:
        example: one step, as `build_example` returns it.
        agent: makes one step on the example, which shows the shapes of its results.
        batch_shape: (T, B), the numbers of steps and environments.
        storage: kind of the memory; that of the example if left out.
        full_size: number of rows of a larger ring that the batches fill in turn, a multiple of T.
        frames: given, each frame is stored once (`FrameArray`). Observations then are stacks
            [stack, ...] of the last frames of an environment, the newest one last. The word tells
            what fills a stack at the beginning of an episode: "first" repeats the first frame, as
            gymnasium's `FrameStackObservation`; "zero" takes zeros, as its padding type "zero"
            and ALE's vector environment. For a tree of observations, a mapping names the leaves
            that are stacks, as in `{"image": "zero"}`. Agents in an axis have a stack each,
            [T, B, N, stack, ...]. Writing anything but such stacks raises ValueError.

    Returns:
        The example's branches of shape [T, B, ...] (`observation` with padding 1) and
        `agent_info`. If the agent gives a value, that has padding 1, and there is `final_value`.
        If the example has `valid`, so has the tree, bool [T, B]: whether a row is a transition to
        learn from. For a `RecurrentActor` there are `valid` and `initial_rnn_state` [B, ...], and
        `bootstrap_value` [B] if it gives a value; its state is that of one environment afterwards.

    Raises:
        TypeError: `frames` is one word for a tree; or the agent's step returns no pair of actions
            and a mapping.
        ValueError: `frames` names a leaf that the observation does not have or that is no stack,
            or is another word.

    Example:
        >>> from parllel.testing.toy_envs import Clock
        >>> class Zeros:
        ...     def step(self, observation, *, deterministic=False):
        ...         n_envs = len(observation)
        ...         return np.zeros(n_envs, np.int64), {"value": np.zeros(n_envs, np.float32)}
        ...     def value(self, observation):
        ...         return np.zeros(len(observation), np.float32)
        >>> example = build_example(Clock, storage="local")
        >>> samples = build_sample_tree(example, Zeros(), batch_shape=(128, 16))
        >>> samples["observation"].shape, samples["observation"].padding
        ((128, 16, 2), 1)
        >>> samples["agent_info"]["value"].shape, samples["final_value"].shape
        ((128, 16), (128, 16))
    """
    recurrent: Any = agent if isinstance(agent, RecurrentActor) else None
    if recurrent is not None:
        recurrent.begin(1)
        state = as_tree(recurrent.rnn_state)
    result = agent.step(example["observation"], deterministic=True)  # draws nothing
    check_step(agent, result)
    _, agent_info = result
    storage = storage or _storage_of(example)
    rows = ArrayDict({**{name: example[name] for name in _ENV_BRANCHES}, "agent_info": agent_info})
    specs = rows.apply(_spec, tuple(batch_shape), full_size)
    specs["observation"] = dict_map(_padded, specs["observation"])
    if frames is not None:
        valid = example.get("valid")
        n_agent_dims = int(isinstance(valid, Array) and valid.ndim > 1)
        specs["observation"] = frame_specs(
            ("observation",), specs["observation"], frames, n_agent_dims
        )
    if "value" in agent_info:
        specs["final_value"] = specs["agent_info"]["value"]
        specs["agent_info"]["value"] = dict_map(_padded, specs["agent_info"]["value"])
    if "valid" in example:
        specs["valid"] = dict_map(_spec, example["valid"], tuple(batch_shape), full_size)
    elif recurrent is not None:
        specs["valid"] = ArraySpec.of(batch_shape, np.bool_, full_size=full_size)
    if recurrent is not None:
        specs["initial_rnn_state"] = dict_map(_spec, state, tuple(batch_shape[1:2]), None)
        if "value" in agent_info:
            specs["bootstrap_value"] = dict_map(
                _spec, as_tree(agent_info["value"]), tuple(batch_shape[1:2]), None
            )
    return allocate_tree(specs, storage)


def build_eval_tree(samples: ArrayDict, *, n_envs: int) -> ArrayDict:
    """Allocate the small tree that an `EvalSampler` of `n_envs` environments writes over and over.

    It is in memory of the same kind as the tree of training.

    Args:
        samples: the tree of training, for its shapes, dtypes and kind of memory.
        n_envs: number of environments of the evaluation.

    Example:
        >>> specs = {name: ArraySpec.of((128, 16), np.float32) for name in _ENV_BRANCHES}
        >>> build_eval_tree(allocate_tree(ArrayDict(specs)), n_envs=4)["reward"].shape
        (1, 4)
    """
    specs = ArrayDict({name: dict_map(_eval_spec, samples[name], n_envs) for name in _ENV_BRANCHES})
    return allocate_tree(specs, _storage_of(samples))


def _storage_of(tree: ArrayDict) -> str:
    """Return the kind of memory of a tree's rewards."""
    (_, leaf), *_ = leaves_of(tree["reward"])
    return str(leaf.storage)


def _new_rows(cage: Cage, **options: Any) -> Array | ArrayDict:  # Any: as of row_specs
    """Return a row for the observation of each environment."""
    rows: Array | ArrayDict = dict_map(
        Array.from_spec, row_specs(cage.observation_space, (cage.n_envs,), **options)
    )
    return rows


def _copy_to(rows: Array, storage: str) -> Array:
    return rows.to(storage)


def _as_row(value: ArrayLike, storage: str) -> Array:
    row = Array.from_numpy(value, batch_shape=(1,), storage=storage, force_32bit=False)
    row[0] = value
    return row


def _spec(row: Leaf, batch_shape: tuple[int, ...], full_size: int | None) -> ArraySpec:
    if isinstance(row, Array):  # of any kind
        return row.spec.changed(batch_shape=batch_shape, full_size=full_size)
    values = as_ndarray(row)
    return ArraySpec.of(batch_shape, values.dtype, values.shape[1:], full_size=full_size)


def _padded(spec: ArraySpec) -> ArraySpec:
    return spec.changed(padding=1)


def frame_specs(
    path: TreePath, spec: ArraySpec | ArrayDict, frames: FrameFills, n_agent_dims: int = 0
) -> ArraySpec | ArrayDict:
    """Return the specs of an observation, with specs of frames for its stacks.

    Samples have the axis of agents, where they have one, before the axis of the stack.
    """
    text = path_text(path)
    if isinstance(frames, Mapping) and isinstance(spec, ArrayDict):
        unknown = sorted(set(frames) - set(spec))
        if unknown:
            raise ValueError(f"frames: got {unknown}, expected names of {text}: {sorted(spec)}")
        changed = {
            name: frame_specs((*path, name), spec[name], frames[name], n_agent_dims)
            for name in frames
        }
        return ArrayDict({**spec, **changed})
    if isinstance(spec, ArrayDict):
        raise TypeError(
            f"frames: got {frames!r} for {text}, a tree of {sorted(spec)}; name the leaves that are"
            f" stacks, as in {{{next(iter(spec))!r}: {frames!r}}}"
        )
    if isinstance(frames, Mapping) or frames not in get_args(Fill):
        raise ValueError(f'frames: got {frames!r} for {text}, expected "first" or "zero"')
    if len(spec.feature_shape) <= n_agent_dims or spec.kind != ArraySpec.kind:
        got = "one number" if spec.kind == ArraySpec.kind else f"a leaf of the kind {spec.kind!r}"
        got += " of each agent" if n_agent_dims else ""
        raise ValueError(f"frames: {text} is {got}, expected a stack of shape (stack, ...)")
    return stacked_spec(spec, frames, n_agent_dims)


def _eval_spec(leaf: Array, n_envs: int) -> ArraySpec:
    batch_shape = (1, n_envs, *leaf.batch_shape[2:])
    return leaf.spec.changed(batch_shape=batch_shape, padding=min(leaf.padding, 1), full_size=1)
