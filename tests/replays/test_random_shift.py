"""RandomShift: shifts of the images of minibatches, as programs see them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from parllel import Array, ArrayDict, FrameArray
from parllel.replays import (
    Minibatches,
    Prefetcher,
    PrioritizedReplayBuffer,
    RandomShift,
    ReplayBuffer,
)
from parllel.testing.simulated_cuda import simulated_cuda
from schedules import each_schedule

T, B, N_BATCHES = 4, 3, 3
HEIGHT, WIDTH, STACK, PIXELS = 20, 36, 4, 3

Minibatch = dict[str, npt.NDArray[Any]]


def make_observation(kind: str, storage: str) -> Array:
    sizes: dict[str, Any] = {"full_size": T * N_BATCHES, "padding": 1, "storage": storage}
    if kind == "frames":
        return FrameArray((T, B), np.uint8, (HEIGHT, WIDTH), stack=STACK, **sizes)
    last = {"stacks": (STACK, HEIGHT, WIDTH), "channels last": (HEIGHT, WIDTH, 3)}[kind]
    return Array((T, B), np.uint8, feature_shape=last, **sizes)


def make_tree(kind: str, storage: str = "local") -> ArrayDict:
    sizes: dict[str, Any] = {"full_size": T * N_BATCHES, "storage": storage}
    flags = {name: Array((T, B), bool, **sizes) for name in ("terminated", "truncated")}
    reward = Array((T, B), np.float32, **sizes)
    return ArrayDict({"observation": make_observation(kind, storage), "reward": reward, **flags})


def write(tree: ArrayDict, replay: ReplayBuffer) -> None:
    """Write batches of random images; no episode ends."""
    rng, observation = np.random.default_rng(0), tree["observation"]
    replay.restart()
    for _ in range(N_BATCHES):
        replay.begin_batch()
        tree.rotate()
        for t in range(T + 1):
            if isinstance(observation, FrameArray):
                frames = rng.integers(0, 256, (B, HEIGHT, WIDTH), np.uint8)
                observation.write_frames(t, frames, is_first=rng.random(B) < 0.3)
            else:
                observation[t] = rng.integers(0, 256, observation.shape[1:], np.uint8)
        replay.end_batch()


def make_replay(
    kind: str = "stacks",
    storage: str = "local",
    *,
    shift: RandomShift | None = None,
    buffer: type[ReplayBuffer] = ReplayBuffer,
) -> ReplayBuffer:
    tree = make_tree(kind, storage)
    replay = buffer(tree, rng=np.random.default_rng(1), shift=shift)
    write(tree, replay)
    return replay


def sample(replay: ReplayBuffer, n: int = 8) -> Minibatch:
    minibatch = replay.sample(n)
    return {name: leaf.cpu().numpy().copy() for name, leaf in minibatch.items()}


def shift_of(kind: str) -> RandomShift:
    return RandomShift(PIXELS, channels_last=kind == "channels last")


def find_shift(
    image: npt.NDArray[Any], shifted: npt.NDArray[Any], *, channels_last: bool = False
) -> tuple[int, int]:
    """Return the only window of the padded image that is the shifted one."""
    axes = (-3, -2) if channels_last else (-2, -1)
    pad = [(0, 0)] * image.ndim
    for axis in axes:
        pad[axis] = (PIXELS, PIXELS)
    padded = np.pad(image, pad, mode="edge")
    found = []
    for top in range(2 * PIXELS + 1):
        for left in range(2 * PIXELS + 1):
            window = padded.take(range(top, top + HEIGHT), axes[0])
            if np.array_equal(window.take(range(left, left + WIDTH), axes[1]), shifted):
                found.append((top, left))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("kind", ["stacks", "frames", "channels last"])
def test_minibatches_are_the_same_but_for_shifts(kind: str) -> None:
    plain, shifted = make_replay(kind), make_replay(kind, shift=shift_of(kind))
    shifts = []
    for _ in range(3):
        images, windows = sample(plain), sample(shifted)
        for name in images.keys() - {"observation", "next_observation"}:
            np.testing.assert_array_equal(images[name], windows[name])
        for name in ("observation", "next_observation"):
            assert windows[name].dtype == np.uint8
            shifts += [
                find_shift(*pair, channels_last=kind == "channels last")
                for pair in zip(images[name], windows[name], strict=True)
            ]
    # 48 draws of 49: two streams that were one would give at most 24 pairs.
    assert len(set(shifts)) > 24


@each_schedule
@pytest.mark.parametrize("kind", ["stacks", "frames", "channels last"])
@pytest.mark.parametrize("buffer", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_device_shifts_as_the_host_does(
    buffer: type[ReplayBuffer], kind: str, schedule: str, seed: int
) -> None:
    expected = make_replay(kind, shift=shift_of(kind), buffer=buffer)
    with simulated_cuda(schedule, seed) as simulation:
        replay = make_replay(kind, "device", shift=shift_of(kind), buffer=buffer)
        replay.sample(8)
        expected.sample(8)
        n_before = len(simulation.launches)
        found, right = sample(replay), sample(expected)
        names = [launch.name for launch in simulation.launches[n_before:]]
        assert names[-1] == "shifted_frames"
        assert len(names) == (2 if buffer is ReplayBuffer else 3)
        for name, leaf in right.items():
            np.testing.assert_array_equal(found[name], leaf)
        replay.close()
        replay.samples.close()


def test_images_of_one_observation_are_shifted_alike_and_others_not_at_all() -> None:
    tree = make_tree("stacks")
    row = np.arange(WIDTH, dtype=np.uint8)
    batch_shape: dict[str, Any] = {"full_size": T * N_BATCHES, "padding": 1}
    parts = {
        "left": Array((T, B), np.uint8, feature_shape=(HEIGHT, WIDTH), **batch_shape),
        "right": Array((T, B), np.uint8, feature_shape=(1, HEIGHT, WIDTH), **batch_shape),
        "speed": Array((T, B), np.float32, feature_shape=(2, 2), **batch_shape),
    }
    tree["observation"] = ArrayDict(parts)
    for name in ("left", "right"):
        parts[name].full[0 : T * N_BATCHES + 1] = row
    parts["speed"].full[0 : T * N_BATCHES + 1] = np.arange(4.0).reshape(2, 2)
    replay = ReplayBuffer(tree, rng=np.random.default_rng(1), shift=RandomShift(PIXELS))
    replay.restart()
    replay.begin_batch()
    tree.rotate()
    replay.end_batch()
    observation = replay.sample(16)["observation"]
    assert torch.equal(observation["left"], observation["right"][:, 0])
    assert len({tuple(each) for each in observation["left"][:, 0].tolist()}) > 3
    assert (observation["speed"] == torch.arange(4.0).reshape(2, 2)).all()


@pytest.mark.parametrize("kind", ["stacks", "frames"])
def test_a_run_that_goes_on_has_the_same_shifts(tmp_path: Path, kind: str) -> None:
    replay = make_replay(kind, shift=RandomShift(PIXELS))
    replay.sample(8)
    replay.save(tmp_path)
    expected = [sample(replay) for _ in range(2)]
    loaded = ReplayBuffer(make_tree(kind), rng=np.random.default_rng(9), shift=RandomShift(PIXELS))
    loaded.load(tmp_path)
    for resumed in (loaded, ReplayBuffer.open(tmp_path)):
        for minibatch in expected:
            for name, leaf in sample(resumed).items():
                np.testing.assert_array_equal(leaf, minibatch[name])


def test_a_run_with_other_shifts_is_refused(tmp_path: Path) -> None:
    make_replay(shift=RandomShift(PIXELS)).save(tmp_path)
    for shift in (None, RandomShift(PIXELS + 1)):
        other = ReplayBuffer(make_tree("stacks"), rng=np.random.default_rng(9), shift=shift)
        with pytest.raises(ValueError, match="'shift_pixels': 3"):
            other.load(tmp_path)


def test_a_prefetcher_has_the_same_shifts() -> None:
    expected, replay = (make_replay(shift=RandomShift(PIXELS)) for _ in range(2))
    with Prefetcher(replay, batch_size=8) as prefetcher:
        for _ in range(3):
            minibatch = prefetcher.next()
            for name, leaf in sample(expected).items():
                np.testing.assert_array_equal(minibatch[name].numpy(), leaf)


# Minibatches


@pytest.mark.parametrize("kind", ["stacks", "frames"])
def test_minibatches_shift_anew_in_each_pass(cuda_device: torch.device, kind: str) -> None:
    images, results = {}, {}
    for storage in ("local", "device"):
        replay = make_replay(kind, storage)
        batch = ArrayDict({"observation": replay.samples["observation"]})
        batch["number"] = Array.from_numpy(np.arange(T * B).reshape(T, B)).to(storage)
        plain = Minibatches(2, np.random.default_rng(2))
        images[storage] = {
            int(number): image
            for part in plain.of(batch)
            for number, image in zip(part["number"], part["observation"].clone().cpu(), strict=True)
        }
        minibatches = Minibatches(2, np.random.default_rng(2), shift=RandomShift(PIXELS))
        results[storage] = [
            (part["number"].tolist(), part["observation"].cpu().numpy().copy())
            for part in minibatches.of(batch, n_passes=2)
        ]
    for (numbers, windows), (others, expected) in zip(*results.values(), strict=True):
        assert numbers == others
        np.testing.assert_array_equal(windows, expected)
    shifts: dict[int, list[tuple[int, int]]] = {}
    for numbers, windows in results["local"]:
        for number, window in zip(numbers, windows, strict=True):
            found = find_shift(images["local"][number].numpy(), window)
            shifts.setdefault(number, []).append(found)
    assert all(len(each) == 2 for each in shifts.values())
    assert sum(first != second for first, second in shifts.values()) > T * B // 2


def test_without_shifts_the_generator_draws_what_it_drew() -> None:
    rng = np.random.default_rng(2)
    batch = ArrayDict({"observation": Array.from_numpy(np.zeros((4, 2, 8, 8), np.uint8))})
    list(Minibatches(2, rng).of(batch))
    expected = np.random.default_rng(2)
    expected.permutation(8)
    assert rng.bit_generator.state == expected.bit_generator.state


# What is refused


@pytest.mark.parametrize(
    ("shape", "dtype", "shift", "message"),
    [
        ((84,), np.uint8, RandomShift(4), "got no image in the branches"),
        ((3, 84, 84), np.float32, RandomShift(4), r"observation.*float32.*images of uint8"),
        ((84, 84, 3), np.uint8, RandomShift(2), r"observation.*\(84, 84, 3\).*channels_last=True"),
        ((4, 84, 84), np.uint8, RandomShift(2, True), r"leave channels_last out"),
        ((84, 84), np.uint8, RandomShift(2, True), "got no image in the branches"),
        ((84, 84, 17), np.uint8, RandomShift(2, True), "at most 16 channels"),
        ((5, 4, 6), np.uint8, RandomShift(4), "got up to 4 pixels of images of 4 x 6"),
    ],
)
def test_other_layouts_are_refused(
    shape: tuple[int, ...], dtype: Any, shift: RandomShift, message: str
) -> None:
    tree = make_tree("stacks")
    tree["observation"] = Array(
        (T, B), dtype, feature_shape=shape, full_size=T * N_BATCHES, padding=1
    )
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(tree, rng=np.random.default_rng(0), shift=shift)
    batch = ArrayDict({"observation": Array((4, 2), dtype, feature_shape=shape)})
    with pytest.raises(ValueError, match=message):
        list(Minibatches(1, np.random.default_rng(0), shift=shift).of(batch))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0,), ValueError), ((-1,), ValueError), ((1.5,), TypeError), ((True,), TypeError)],
)
def test_shifts_of_no_pixels_are_refused(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="pixels: got"):
        RandomShift(*arguments)
    with pytest.raises(TypeError, match="channels_last: got 'yes'"):
        RandomShift(4, "yes")  # type: ignore[arg-type]
