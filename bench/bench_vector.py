"""Time of VectorCage over ALE's AtariVectorEnv, against stepping it bare with the same actions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ale_py import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from parllel import Array, ArrayDict
from parllel.cages import VectorCage
from support.report import Report, parse_out
from support.timing import interleave, ratio

RACES = (
    ("breakout", AutoresetMode.SAME_STEP),
    ("pong", AutoresetMode.SAME_STEP),
    ("pong", AutoresetMode.NEXT_STEP),
)
B = 8
T = 4  # steps of a sample: 5 ms; few, so that what slows one contestant slows all of a round
REPEATS = 134
N_SETS = 3  # of environments: where their memory lies makes some of them faster than others
SEED = 0
LEAST_SHARE = 0.97  # of the steps per second of the bare environment
INFO = ("lives", "frame_number", "episode_frame_number")

OURS, WITH_INFO = "VectorCage", "VectorCage, with info"
BARE, KEPT = "bare", "bare, observations kept"


def main(out: Path, repeats: int = REPEATS) -> None:
    report = Report(
        "vector",
        f"Stepping AtariVectorEnv with random actions: {B} environments, {T} steps",
        [
            f"{repeats} interleaved rounds with each of {N_SETS} sets of environments; ratios are",
            "medians over the rounds. All play the same games, with the same seeds and actions, in",
            "each round the same steps of them.",
            f"'{OURS}' writes observations, rewards and flags to Arrays, '{WITH_INFO}' also",
            f"three entries of info. '{BARE}' keeps nothing; '{KEPT}' copies the observations",
            "to a NumPy array.",
        ],
    )
    for game, mode in RACES:
        race(report, game, mode, repeats)
    report.write(out)


def race(report: Report, game: str, mode: AutoresetMode, repeats: int) -> None:
    seconds: dict[str, list[float]] = {}
    for _ in range(N_SETS):
        contestants = {
            OURS: loop_of_cage(game, mode),
            WITH_INFO: loop_of_cage(game, mode, INFO),
            BARE: bare_loop(game, mode),
            KEPT: bare_loop(game, mode, keeps=True),
        }
        for name, samples in interleave(contestants, repeats=repeats).items():
            seconds.setdefault(name, []).extend(samples)
    rates = {name: T * B / float(np.median(samples)) for name, samples in seconds.items()}
    heading = f"{game}, {mode.name}"
    report.add_table(heading, seconds, references=[BARE, KEPT], columns={"steps/s": rates})
    times = ratio(seconds, OURS, BARE)
    report.add_target(f"{heading}: time / time of the bare one", times, 1 / LEAST_SHARE)


def random_actions(n_actions: int) -> Callable[[], np.ndarray]:
    rng = np.random.default_rng(SEED)
    return lambda: rng.integers(0, n_actions, (T, B))


def bare_loop(game: str, mode: AutoresetMode, *, keeps: bool = False) -> Callable[[], object]:
    env = AtariVectorEnv(game, B, autoreset_mode=mode)
    children = np.random.SeedSequence(SEED).spawn(B)  # seeds as the cage gives them
    env.reset(seed=np.array([child.generate_state(2)[0] for child in children]) >> 1)
    draw = random_actions(env.single_action_space.n)
    kept = np.zeros((T, B, 4, 84, 84), np.uint8)

    def step() -> None:
        for t, action in enumerate(draw()):
            observation, *_ = env.step(action)
            if keeps:
                kept[t] = observation

    return step


def loop_of_cage(game: str, mode: AutoresetMode, info: Sequence[str] = ()) -> Callable[[], object]:
    kwargs = {"game": game, "num_envs": B, "autoreset_mode": mode}
    cage = VectorCage(AtariVectorEnv, kwargs, seed=SEED)
    observation = Array((T, B), np.uint8, feature_shape=(4, 84, 84), padding=1)
    samples = ArrayDict(
        {
            "action": Array((T, B), np.int64),
            "reward": Array((T, B), np.float32),
            "terminated": Array((T, B), bool),
            "truncated": Array((T, B), bool),
            "env_info": {name: Array((T, B), np.int32) for name in info},
        }
    )
    cage.reset_async(out_obs=observation[0])
    cage.await_step()
    commands = [
        cage.prepare_step(
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
            cage.start_command(command)
            cage.await_step()
        cage.take_completed()

    return step


if __name__ == "__main__":
    main(parse_out(__doc__))
