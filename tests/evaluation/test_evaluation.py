"""Statistics of scores and their intervals, held to the numbers of rliable 1.2.0."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from optional import needs
from parllel.evaluation import (
    ATARI_SCORES,
    Interval,
    bootstrap_interval,
    draw_bands,
    draw_intervals,
    draw_profiles,
    human_normalized,
    interquartile_mean,
    mean_score,
    median_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    read_curves,
)

# Printed by rliable 1.2.0 (arch 6.3.0, NumPy 1.26.4): the scores x [5, 6] and y [4, 6], 300
# resamples after numpy.random.seed(11), intervals of 90 %.
RLIABLE: dict[str, Any] = json.loads(Path(__file__).with_name("rliable_1_2_0.json").read_text())
X, Y, TAUS = (np.array(RLIABLE[name]) for name in ("x", "y", "taus"))
EXACT = {"rtol": 0, "atol": 1e-12}


class OldGenerator(np.random.Generator):
    """Draws the integers that NumPy's generator of old draws, which rliable uses."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(0))
        self._old = np.random.RandomState(seed)

    def integers(self, low: Any, *, size: Any) -> Any:  # type: ignore[override]
        return self._old.randint(low, size=size)


def aggregates(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    functions = (interquartile_mean, mean_score, median_score, optimality_gap)
    return np.array([function(scores) for function in functions])


@pytest.mark.parametrize(
    ("name", "statistic", "scores", "options"),
    [
        ("aggregates", aggregates, (X,), {}),
        ("over_tasks", aggregates, (X,), {"over_tasks": True}),
        ("improvement", lambda x, y: probability_of_improvement(x, y)[np.newaxis], (X, Y), {}),
        ("profile", lambda x: performance_profile(x, TAUS), (X,), {}),
        ("profile_of_means", lambda x: performance_profile(x, TAUS, of_means=True), (X,), {}),
    ],
)
def test_numbers_are_those_of_rliable(
    name: str, statistic: Any, scores: Any, options: dict[str, Any]
) -> None:
    rng = OldGenerator(RLIABLE["seed"])
    interval = bootstrap_interval(
        statistic, *scores, n_resamples=300, confidence=0.9, seed=rng, **options
    )
    np.testing.assert_allclose(interval.value, RLIABLE[name]["value"], **EXACT)
    np.testing.assert_allclose(interval[1:], RLIABLE[name]["interval"], **EXACT)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_statistics_equal_loops_over_runs_and_tasks(n_runs: int, n_tasks: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(-3, 4, (2, n_runs, n_tasks)).astype(float)
    for number, each in enumerate(scores):
        flat = sorted(score for run in each for score in run)
        middle = flat[len(flat) // 4 : len(flat) - len(flat) // 4]
        means = [sum(task) / n_runs for task in each.T]
        assert interquartile_mean(scores)[number] == pytest.approx(sum(middle) / len(middle))
        assert mean_score(scores)[number] == pytest.approx(sum(means) / n_tasks)
        assert median_score(scores)[number] == pytest.approx(np.median(means))
        gap = sum(max(2 - score, 0) for score in flat) / len(flat)
        assert optimality_gap(scores, target=2)[number] == pytest.approx(gap)
        above = [sum(score > at for score in flat) / len(flat) for at in (-1, 0, 2.5)]
        np.testing.assert_allclose(performance_profile(scores, [-1, 0, 2.5])[number], above)


def test_a_learning_curve_is_resampled_as_whole_runs() -> None:
    rng = np.random.default_rng(3)
    level = rng.normal(size=(1, 8, 1))
    curve = level + np.zeros((4, 1, 1))  # the same at each point
    value, low, high = bootstrap_interval(interquartile_mean, curve, seed=1)
    assert value.shape == low.shape == high.shape == (4,)
    assert len(set(low)) == len(set(high)) == 1
    assert low[0] < value[0] < high[0]


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n_covered = 0
    for _ in range(200):
        _, low, high = bootstrap_interval(
            mean_score, rng.normal(size=(20, 3)), n_resamples=200, confidence=0.9, seed=rng
        )
        n_covered += bool(low <= 0 <= high)
    assert 164 <= n_covered <= 194  # 0.9 of 200, less what percentiles of 20 runs miss


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones(3),), {}, r"got shape \(3,\), expected \(\.\.\., n_runs, n_tasks\)"),
        ((np.ones((0, 3)),), {}, r"got shape \(0, 3\)"),
        ((np.ones((1, 3)),), {}, "got 1 run, expected 2 or more"),
        (([[1.0, 2.0], [3.0, np.nan]],), {}, "run 1 in task 1 is NaN or infinite"),
        (([[np.inf, 2.0], [3.0, 4.0]],), {}, "run 0 in task 0 is NaN or infinite"),
        (([X, np.full_like(X, np.nan)],), {}, "run 0 in task 0 at point 1 is NaN or infinite"),
        (([[1.0, 2.0], [3.0]],), {}, r"scores\[0\]: got lists of different lengths"),
        ((np.ma.masked_less(X, X.mean()),), {}, r"scores\[0\]: got an array with masked numbers"),
        ((), {}, "scores: got none"),
        ((X,), {"n_resamples": 0}, "got n_resamples=0"),
        ((X,), {"confidence": 95}, "confidence=95"),
        ((X, X), {"over_tasks": True}, "over_tasks: got True with the scores of 2"),
    ],
)
def test_scores_that_tell_nothing_are_refused(
    arguments: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(lambda *scores: mean_score(scores[0]), *arguments, **options)


def test_statistics_that_are_no_numbers_of_one_shape_are_refused() -> None:
    with pytest.raises(TypeError, match="got object, expected real numbers"):
        mean_score([[None, 1.0]])
    with pytest.raises(ValueError, match="got NaN or infinity"):
        bootstrap_interval(lambda scores: np.nan, X, n_resamples=2)
    with pytest.raises(ValueError, match=r"got shape \(\d+,\) for a resample, expected \(30,\)"):
        bootstrap_interval(np.unique, X)
    with pytest.raises(ValueError, match="others: got 5 tasks, expected 6"):
        probability_of_improvement(X, Y[:, :5])
    with pytest.raises(ValueError, match=r"others: got the points \(3,\), expected \(2,\)"):
        probability_of_improvement(np.stack([X] * 2), np.stack([Y] * 3))


def test_a_number_that_is_an_array_is_not_taken_for_each_task() -> None:
    n_tasks = X.shape[-1]
    with pytest.raises(ValueError, match="target: got array"):
        optimality_gap(X, target=np.ones(n_tasks))  # type: ignore[arg-type]  # what is tested
    for thresholds in (np.ones((n_tasks, 1)), 1.0, [0.0, np.nan]):
        with pytest.raises(ValueError, match="thresholds: got shape"):
            performance_profile(X, thresholds)
    for wrong in (["21"], [None]):
        with pytest.raises(TypeError, match=r"score: got .*, expected real numbers"):
            human_normalized("pong", wrong)  # type: ignore[arg-type]  # what is tested


def test_a_statistic_may_overwrite_what_it_is_given() -> None:
    def overwriting(scores: NDArray[np.float64]) -> float:
        scores -= 1
        return float(scores.mean())

    found = bootstrap_interval(overwriting, X, n_resamples=20, seed=0)
    expected = bootstrap_interval(lambda scores: scores.mean() - 1, X, n_resamples=20, seed=0)
    np.testing.assert_allclose(found, expected)


@needs("ale_py")
def test_games_are_found_by_the_ids_of_environments() -> None:
    import ale_py
    import gymnasium as gym

    gym.register_envs(ale_py)
    found = set()
    for name in gym.registry:
        if name.startswith("ALE/") and "-ram" not in name:
            try:
                found.add(float(human_normalized(name, 0)))
            except ValueError as error:
                assert "expected one of the 57" in str(error)  # noqa: PT017  # not one of them
    scores = {float(human_normalized(game, 0)) for game in ATARI_SCORES}
    assert len(ATARI_SCORES) == 57
    assert scores == found
    for game, (random, human) in ATARI_SCORES.items():
        np.testing.assert_allclose(human_normalized(game, [random, human]), [0, 1], atol=1e-15)
    spellings = ("ALE/SpaceInvaders-v5", "SpaceInvadersNoFrameskip-v4", "space_invaders")
    assert len({float(human_normalized(each, 500)) for each in spellings}) == 1


def write_run(folder: Path, rows: str) -> Path:
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,train/episode_return,loss\n" + rows)
    return folder


def test_curves_are_read_at_the_steps_that_all_runs_have(tmp_path: Path) -> None:
    one = write_run(tmp_path / "0", "10,1,\n20,2,9\n30,3,\n")
    other = write_run(tmp_path / "1", "10,5,\n20,,8\n30,7,7\n40,8,\n")
    steps, curves = read_curves([one, other / "metrics.csv"])
    assert steps.tolist() == [10, 30]
    assert curves.tolist() == [[[1], [5]], [[3], [7]]]
    with pytest.raises(ValueError, match=r"logged 'entropy' \(numbers logged: .*0: 0, .*1: 0\)"):
        read_curves([one, other], "entropy")
    with pytest.raises(ValueError, match="got no step"):
        read_curves([])
    with pytest.raises(FileNotFoundError):
        read_curves([tmp_path])


@needs("matplotlib")
def test_pictures_have_a_mark_for_each_algorithm(tmp_path: Path) -> None:
    from matplotlib.image import imread

    band = Interval(*(np.linspace(0.2, 1, 6) * each for each in (0.8, 0.5, 0.9)))
    point = Interval(*(np.float64(each) for each in (0.8, 0.5, 0.9)))
    files = [tmp_path / f"{name}.png" for name in ("bands", "profiles", "intervals")]
    draw_bands(files[0], np.arange(6) * 1000, {"one": band}, title="seeds")
    draw_profiles(files[1], TAUS, {"one": band, "other": band})
    draw_intervals(
        files[2], {"IQM": {"one": point, "other": point}, "mean": {"one": point, "other": point}}
    )
    blue, orange = (31, 95, 168), (180, 83, 9)
    for path, n_colors in zip(files, (1, 2, 2), strict=True):
        pixels = (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
        shown = [bool((pixels == color).all(axis=1).any()) for color in (blue, orange)]
        assert sum(shown) == n_colors
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(each.name for each in files)


@needs("matplotlib")
def test_pictures_of_nothing_are_refused(tmp_path: Path) -> None:
    point = Interval(*(np.float64(each) for each in (0.8, 0.5, 0.9)))
    with pytest.raises(ValueError, match=r"one: got shape \(\), expected \(3,\)"):
        draw_bands(tmp_path / "a.png", [1, 2, 3], {"one": point})
    with pytest.raises(ValueError, match="got no algorithm"):
        draw_profiles(tmp_path / "a.png", [1, 2, 3], {})
    with pytest.raises(ValueError, match="got none"):
        draw_intervals(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match=r"mean: got the algorithms \['b'\], expected \['a'\]"):
        draw_intervals(tmp_path / "a.png", {"IQM": {"a": point}, "mean": {"b": point}})
    assert not list(tmp_path.iterdir())
