"""VectorCage over ALE's AtariVectorEnv, against stepping it bare with the same actions."""

from collections.abc import Callable

import numpy as np
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from timing import interleave, print_table, print_target, print_title, ratio

from parllel import Array, ArrayDict
from parllel.cages import VectorCage

GAME, B = "pong", 8
T = 16  # steps of a sample: 20 ms. Both contestants play the same games, sample for sample.
REPEATS = 201
SEED = 0
LEAST_SHARE = 0.97  # of the steps per second of the bare environment
INFO = ("lives", "frame_number", "episode_frame_number")


def main() -> None:
    print_title(f"Stepping {B} times {GAME}, random actions, T = {T}")
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        contestants = {"bare": loop_of_the_bare_environment(mode), "VectorCage": loop_of_cage(mode)}
        seconds = interleave(contestants, repeats=REPEATS)
        print_table(f"{T * B} steps, {mode.name}", seconds, references=["bare"])
        times = ratio(seconds, "VectorCage", "bare")
        print_target(f"VectorCage / bare, time, {mode.name}", times, 1 / LEAST_SHARE)
        print(f"VectorCage has {1 / times:.1%} of the steps per second of the bare environment")


def random_actions(n_actions: int) -> Callable[[], np.ndarray]:
    rng = np.random.default_rng(SEED)
    return lambda: rng.integers(0, n_actions, (T, B))


def loop_of_the_bare_environment(mode: AutoresetMode) -> Callable[[], object]:
    env = AtariVectorEnv(GAME, B, autoreset_mode=mode)
    children = np.random.SeedSequence(SEED).spawn(B)  # seeds as the cage gives them
    env.reset(seed=np.array([child.generate_state(2)[0] for child in children]) >> 1)
    draw = random_actions(env.single_action_space.n)

    def step() -> None:
        for action in draw():
            env.step(action)

    return step


def loop_of_cage(mode: AutoresetMode) -> Callable[[], object]:
    kwargs = {"game": GAME, "num_envs": B, "autoreset_mode": mode}
    cage = VectorCage(AtariVectorEnv, kwargs, seed=SEED)
    observation = Array((T, B), np.uint8, feature_shape=(4, 84, 84), padding=1)
    samples = ArrayDict(
        {
            "action": Array((T, B), np.int64),
            "reward": Array((T, B), np.float32),
            "terminated": Array((T, B), bool),
            "truncated": Array((T, B), bool),
            "env_info": {name: Array((T, B), np.int32) for name in INFO},
        }
    )
    cage.reset_async(out_obs=observation[0])
    cage.await_step()
    commands = [
        cage.bind_step(
            samples["action"][t],
            out_obs=observation[t + 1],
            out_reward=samples["reward"][t],
            out_terminated=samples["terminated"][t],
            out_truncated=samples["truncated"][t],
            out_info=samples["env_info"][t],
        )
        for t in range(T)
    ]
    draw = random_actions(cage.action_space.n)

    def step() -> None:
        samples["action"][...] = draw()
        for command in commands:
            cage.start(command)
            cage.await_step()
        cage.take_completed()

    return step


if __name__ == "__main__":
    main()
