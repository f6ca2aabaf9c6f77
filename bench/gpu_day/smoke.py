"""First contact with a GPU: each way from parllel to CUDA once, each reported by itself.

    python bench/gpu_day/smoke.py [--simulated] [--kernels-only]

It prints a line for each check, and goes on after one that fails, but for the first, which asks
for a device; it exits with 1 if any did.
`--simulated` rehearses it without a GPU. `--kernels-only` leaves out what needs torch, which is
then not imported: for compute-sanitizer, under which torch takes minutes.
"""

import argparse
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

# A program finds its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parllel import Array, ArrayDict, cuda
from parllel.cuda.launches import PTX
from parllel.kernels.advantage import estimate_advantage
from parllel.kernels.moment_layout import N_KEPT, N_PLANES, count_copies, lay_out
from parllel.kernels.moments import update_moments
from parllel.ops import advantage as advantage_op
from parllel.ops import moments as moments_op
from parllel.ops.row_copy import RowCopy
from parllel.testing.simulated_cuda import simulated_cuda

ENTRY = re.compile(r"^\.visible \.entry (\w+)\(", re.MULTILINE)
FAR_NBYTES = 5 * 2**30  # of a leaf: addresses that do not fit into 32 bits
FRAME = 28_224  # bytes

Check = Callable[[np.random.Generator], str | None]


# Kernels


def the_device_is_usable(rng: np.random.Generator) -> str:
    reason = cuda.why_unavailable()
    assert reason is None, reason
    return str(cuda.describe()).replace("\n", " | ")


def each_kernel_is_loaded(rng: np.random.Generator) -> str:
    module = cuda.library().RawModule(path=str(PTX))
    found = []
    for name in ENTRY.findall(PTX.read_text()):
        begun = time.perf_counter()
        kernel = module.get_function(name)
        facts = [f"{1e3 * (time.perf_counter() - begun):.0f} ms"]
        for fact in ("num_regs", "local_size_bytes", "binary_version"):
            if hasattr(kernel, fact):  # a simulation has none of them
                facts.append(f"{fact} {getattr(kernel, fact)}")
        found.append(f"{name}: {', '.join(facts)}")
    return "; ".join(found)


def rows_are_copied(rng: np.random.Generator) -> None:
    for nbytes, offset in ((FRAME, 0), (16, 0), (7, 1), (33, 3), (1000, 8)):
        source = rng.integers(0, 256, (500, nbytes), np.uint8)
        block = cuda.to_device(np.zeros(offset + 300 * nbytes, np.uint8))
        out = block[offset:].reshape(300, nbytes)
        index = rng.integers(0, 500, 300)
        RowCopy([out], [cuda.to_device(source)]).run(range(300), cuda.to_device(index))
        assert (cuda.to_host(out) == source[index]).all(), nbytes


def rows_behind_4_gib_are_copied(rng: np.random.Generator, nbytes: int = FAR_NBYTES) -> None:
    n_rows = nbytes // FRAME
    source = cuda.library().empty((n_rows, FRAME), np.uint8)
    rows = rng.integers(0, 256, (3, FRAME), np.uint8)
    index = np.array([n_rows - 1, 0, n_rows // 2])
    for row, number in zip(rows, index.tolist(), strict=True):
        cuda.copy_to_device(row, out_device=source[number])
    out = cuda.library().empty((3, FRAME), np.uint8)
    RowCopy([out], [source]).run(range(3), cuda.to_device(index))
    assert (cuda.to_host(out) == rows).all()


def pinned_memory_is_read_and_written(rng: np.random.Generator) -> str:
    pinned = Array((64, 7056), np.uint8, storage="pinned")
    values = rng.integers(0, 256, (64, 7056), np.uint8)
    pinned.to_ndarray()[...] = values
    out = cuda.library().empty((64, 7056), np.uint8)
    RowCopy([out], [pinned.to_cupy()]).run(range(64), range(64))
    assert (cuda.to_host(out) == values).all()
    cuda.copy_to_host(out[::-1].copy(), out_host=pinned.to_ndarray())
    cuda.Event().record().synchronize()
    assert (pinned.to_ndarray() == values[::-1]).all()
    is_same = pinned.to_cupy().data.ptr == pinned.to_ndarray().ctypes.data
    pinned.close()
    return f"{'one address' if is_same else 'another address'} on the device"


def advantages_are_those_of_the_host(rng: np.random.Generator) -> str:
    told = []
    for T, B in ((128, 70), (512, 16)):
        floats = [rng.standard_normal(shape).astype(np.float32) for shape in ((T, B), (T + 1, B))]
        flags = [rng.random((T, B)) < 0.1 for _ in range(2)]
        inputs = [*floats, *flags, rng.standard_normal((T, B)).astype(np.float32)]
        options: Any = {"discount": 0.99, "gae_lambda": 0.95}
        host = np.empty((2, T, B), np.float32)
        estimate_advantage(*inputs, **options, out_advantage=host[0], out_return=host[1])
        device = cuda.to_device(np.empty((2, T, B), np.float32))
        advantage_op.estimate_advantage(
            *map(cuda.to_device, inputs), **options, out_advantage=device[0], out_return=device[1]
        )
        found = cuda.to_host(device)
        worst = float(np.abs(found - host).max())
        assert worst < 1e-4, worst
        n_others = int((found.view(np.int32) != host.view(np.int32)).sum())
        told.append(f"({T}, {B}): {n_others} of {host.size} have other bits, by {worst:.2g}")
    return "; ".join(told)


def moments_are_those_of_the_host(rng: np.random.Generator) -> str:
    n_others = 0
    for n_rows, n_features in ((100, 3), (20_000, 1), (500, 300)):
        rows = rng.standard_normal((n_rows, n_features)).astype(np.float32)
        kept = np.zeros((N_KEPT, count_copies(n_features), n_features), np.float32)
        scratch = np.zeros((N_PLANES, lay_out(n_rows, n_features).n_scratch), np.float32)
        counts = np.zeros(n_features, np.int64)
        outputs: Any = {"out_kept": kept, "out_counts": counts, "out_scratch": scratch}
        on_device = {name: cuda.to_device(each) for name, each in outputs.items()}
        options: Any = {"begins_anew": True, "epsilon": 1e-6}
        update_moments(rows, **options, **outputs)
        moments_op.update_moments(cuda.to_device(rows), **options, **on_device)
        found = cuda.to_host(on_device["out_kept"])
        np.testing.assert_allclose(found, kept, rtol=1e-4, atol=1e-5)
        n_others += int((found != kept).sum())
    return f"{n_others} numbers differ"


# With torch


def memory_is_shared_with_torch(rng: np.random.Generator) -> None:
    import torch

    for kind in ("device", "managed", "pinned"):
        array = Array((4, 3), np.float32, storage=kind)
        tensor = array.to_torch()
        tensor.fill_(3)
        assert cuda.to_host(array.to_cupy()).tolist() == 4 * [3 * [3.0]], kind
        array[1] = torch.full((3,), 5.0, device=tensor.device)
        cuda.synchronize()
        assert tensor.cpu()[1].tolist() == 3 * [5.0], kind
        assert torch.from_dlpack(array).cpu().tolist() == tensor.cpu().tolist(), kind
        del tensor
        array.close()


def replay_buffers_draw_the_hosts_minibatches(rng: np.random.Generator) -> None:
    from parllel.replays import PrioritizedReplayBuffer, ReplayBuffer

    for kind in (ReplayBuffer, PrioritizedReplayBuffer):
        expected, found = (draw(kind, storage) for storage in ("local", "device"))
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def draw(kind: Any, storage: str) -> dict[str, Any]:  # Any: a class of replay buffers; arrays
    """Return a minibatch of a full buffer, whose contents depend on no storage."""
    T, B = 16, 4
    ring: Any = {"full_size": 4 * T, "storage": storage}
    leaves = {"reward": np.float32, "action": np.int64, "terminated": bool, "truncated": bool}
    tree = ArrayDict({name: Array((T, B), dtype, **ring) for name, dtype in leaves.items()})
    tree["observation"] = Array((T, B), np.float32, feature_shape=(3,), padding=1, **ring)
    replay = kind(tree, rng=np.random.default_rng(3), n_steps=2)
    replay.restart()
    values = np.random.default_rng(4)
    for _ in range(6):
        replay.begin_batch()
        tree.rotate()
        tree["observation"][: T + 1] = values.standard_normal((T + 1, B, 3)).astype(np.float32)
        tree["reward"][...] = values.integers(-4, 5, (T, B)).astype(np.float32)
        tree["action"][...] = values.integers(0, 9, (T, B))
        for name in ("terminated", "truncated"):
            tree[name][...] = values.random((T, B)) < 0.1
        replay.end_batch()
    minibatch = replay.sample(64)
    if hasattr(replay, "update_priorities"):
        replay.update_priorities(minibatch["index"], minibatch["reward"])
        minibatch = replay.sample(64)
    return {name: leaf.cpu().numpy().copy() for name, leaf in minibatch.items()}


def workers_run_beside_cuda(rng: np.random.Generator) -> str:
    from parllel.patterns import build_cages, build_example, build_sample_tree
    from parllel.samplers import BasicSampler
    from parllel.testing.toy_envs import Clock
    from support.still_envs import DecidedAgent

    agent = DecidedAgent(cuda.to_device, n_actions=2)
    with ExitStack() as stack:
        example = build_example(Clock)
        samples = build_sample_tree(example, agent, batch_shape=(8, 4))
        cages = build_cages(Clock, n_envs=4, n_workers=2, seed=0, timeout_s=30)
        for cage in cages:
            stack.enter_context(cage)
        sampler = BasicSampler(cages, agent, samples)
        for each in (example, samples, sampler):
            stack.callback(each.close)
        sampler.collect_batch()
        reward = samples["reward"].to_ndarray()
        assert (reward == (np.arange(8) % 3 + 1)[:, None]).all(), reward
        return f"samples in {samples['reward'].storage} memory"


OF_KERNELS: tuple[Check, ...] = (
    the_device_is_usable,
    each_kernel_is_loaded,
    rows_are_copied,
    rows_behind_4_gib_are_copied,
    pinned_memory_is_read_and_written,
    advantages_are_those_of_the_host,
    moments_are_those_of_the_host,
)
WITH_TORCH: tuple[Check, ...] = (
    memory_is_shared_with_torch,
    replay_buffers_draw_the_hosts_minibatches,
    workers_run_beside_cuda,
)


def passes(check: Check) -> bool:
    """Run a check, and print what it found."""
    begun = time.perf_counter()
    try:
        detail, verdict = check(np.random.default_rng(0)) or "", "ok"
    except Exception:  # whatever it is, the next check is worth a try
        detail, verdict = f"\n{traceback.format_exc(limit=-5)}", "FAILED"
    spent_ms = 1e3 * (time.perf_counter() - begun)
    print(f"{verdict} {check.__name__} {spent_ms:.1f} ms {detail}".rstrip(), flush=True)
    return verdict == "ok"


def main() -> None:
    parser = argparse.ArgumentParser(description="Try each way from parllel to CUDA once.")
    parser.add_argument("--simulated", action="store_true", help="rehearse it without a GPU")
    parser.add_argument("--kernels-only", action="store_true", help="import no torch")
    options = parser.parse_args()
    checks = OF_KERNELS if options.kernels_only else (*OF_KERNELS, *WITH_TORCH)
    if not options.kernels_only:
        import torch  # noqa: F401  # before a simulation, which gives its operations their order
    if options.simulated:  # where 5 GiB would be the host's
        checks = tuple(each for each in checks if each is not rows_behind_4_gib_are_copied)
    with simulated_cuda("eager") if options.simulated else nullcontext():
        first, *others = checks
        n_passed = int(passes(first))
        if n_passed:  # there is a device
            n_passed += sum([passes(check) for check in others])
    print(f"{n_passed} of {len(checks)} checks passed")
    sys.exit(n_passed < len(checks))


if __name__ == "__main__":
    main()
