"""`gq compare`: paired by seed, right on known distributions, and honest about what it cannot tell."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from commandline import copy_run, gq, train_tiny
from gq import presets
from gq.results.compare import compare_runs, outlook, rounded, sentence
from gq.results.evaluate import evaluate
from gq.rollouts.episodes import EpisodeRequest, Step
from gq.rollouts.intervals import (
    mean_interval,
    num_for_power,
    shown_effect,
    student_t,
    unseen_cost,
    unseen_share,
)
from gq.rollouts.statistics import compare_paired, episodes_needed
from measured import BEST, ENGINES, LAST, dt_config, write_evaluation, write_run


def normal(num: int, mean: float, sd: float, seed: int = 0) -> np.ndarray:
    """Return values of exactly this mean and standard deviation."""
    values = np.random.default_rng(seed).standard_normal(num)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


# Statistics


def test_a_clear_difference_is_found_and_named() -> None:
    a = normal(20, 1000, 300)
    result = compare_paired(a, a + normal(20, 300, 120, seed=1))
    assert (result.verdict, result.more_episodes) == ("b", None)
    assert result.difference_mean == pytest.approx(300)
    assert result.difference_std == pytest.approx(120)
    expected = 2.0930 * 120 / math.sqrt(20)  # Student's
    assert result.half_width == pytest.approx(expected, rel=0.08)
    known = "certain at the 95 % level, where falls in more than 14% of the episodes would have been seen"
    assert sentence(result) == f"B is better by 300 ± {result.half_width:.0f}; {known}"
    assert outlook(result) == ""
    assert compare_paired(a, a - normal(20, 300, 120, seed=1)).verdict == "a"


def test_pairing_finds_what_the_scatter_between_episodes_hides() -> None:
    a = normal(20, 1000, 800)
    shift = normal(20, 300, 20, seed=1)
    assert compare_paired(a, a + shift).verdict == "b"
    assert compare_paired(a, np.roll(a, 1) + shift).verdict == "unclear"


def test_the_same_episodes_are_equal() -> None:
    a = normal(20, 1000, 300)
    result = compare_paired(a, a)
    assert (result.verdict, result.difference_ci95, result.a_wins, result.b_wins) == ("equal", (0, 0), 0, 0)
    assert sentence(result) == "A and B are equal episode by episode (20)"


def test_an_unclear_difference_says_how_many_episodes_would_settle_it() -> None:
    a = normal(20, 1000, 300)
    result = compare_paired(a, a + normal(20, 50, 150, seed=1))
    assert result.verdict == "unclear"
    loss = result.unseen_cost / result.unseen_share
    assert result.more_episodes == num_for_power(1 / 3, lambda num: unseen_share(num) * loss / 150) - 20 == 66
    assert sentence(result).startswith("cannot tell: B is ahead by 50 ± ")
    words = "66 more episodes (--episodes 86) would settle it four times in five, if the difference is really 50"
    assert outlook(result) == f"{words} and they scatter as these do"


def test_nothing_is_promised_where_the_difference_is_about_zero() -> None:
    a = normal(20, 1000, 300)
    result = compare_paired(a, a + normal(20, 10, 150, seed=1))
    assert (result.verdict, result.more_episodes) == ("unclear", None)
    assert "may be nothing" in outlook(result)
    assert "more episodes" not in outlook(result)
    assert result.detectable == pytest.approx(max(shown_effect(20) * 150, result.unseen_cost))


@pytest.mark.parametrize("num", [1, 2, 4])
def test_a_handful_of_episodes_never_decides(num: int) -> None:
    result = compare_paired(np.arange(num) * 1.0, np.arange(num) + 100.0)
    assert (result.verdict, result.more_episodes) == ("unclear", None)
    assert sentence(result).startswith("cannot tell: ")
    assert outlook(result) == "run 5 episodes at least"
    assert result.difference_ci95 is None


def test_the_number_that_is_promised_settles_it_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    needed = 20 + (episodes_needed(50.0, 150.0, 20) or 0)
    draws = generator.normal(50, 150, (100, needed))
    settled = sum(compare_paired(np.zeros(needed), draw).verdict == "b" for draw in draws)
    assert 0.7 <= settled / 100 <= 0.9


@pytest.mark.parametrize(("kind", "lowest"), [("normal", 0.93), ("falls", 0.90)])
@pytest.mark.parametrize("num", [8, 20])
def test_the_interval_covers_the_truth_as_often_as_it_says(kind: str, lowest: float, num: int) -> None:
    generator = np.random.default_rng(num)
    hits = 0
    for _ in range(200):
        if kind == "normal":
            draw = generator.normal(30, 100, num)
        else:  # the difference of policies of which either falls in a quarter of the episodes
            draw = 30 + 1000 * ((generator.random(num) < 0.25) * 1.0 - (generator.random(num) < 0.25))
        interval = mean_interval(draw)
        hits += interval[0] <= 30 <= interval[1]
    assert lowest <= hits / 200 <= 0.99


def test_students_quantiles() -> None:
    table = {1: 12.706, 2: 4.303, 4: 2.776, 5: 2.571, 7: 2.365, 19: 2.093, 100: 1.984, 10_000: 1.960}
    assert {degrees: round(student_t(degrees), 3) for degrees in table} == pytest.approx(table, abs=0.0031)


def test_the_interval_of_a_few_runs_is_students_and_of_a_few_episodes_there_is_none() -> None:
    for values, half in (([1.0, 2.0, 3.0], 2.4841), ([1.0, 2.0, 3.0, 4.0], 2.0541)):
        mean = float(np.mean(values))
        assert mean_interval(np.array(values), fewest=2) == pytest.approx((mean - half, mean + half), abs=1e-3)
        assert mean_interval(np.array(values)) is None


def test_the_interval_is_wider_on_the_side_of_the_longer_tail() -> None:
    values = np.array([1.0, 1, 2, 2, 3, 3, 4, 12])
    low, high = mean_interval(values) or (0, 0)
    half = student_t(7) * values.std(ddof=1) / math.sqrt(8)
    assert low == pytest.approx(values.mean() - half)  # not narrower than Student's where the tail is short
    assert high > values.mean() + 1.5 * half
    assert mean_interval(-values) == pytest.approx((-high, -low))
    symmetric = np.array([-3.0, -1, 0, 1, 3])
    half = 2.7764 * symmetric.std(ddof=1) / math.sqrt(5)
    assert mean_interval(symmetric) == pytest.approx((-half, half), abs=1e-3)


def test_what_no_episode_showed_is_bounded_by_the_rule_of_three() -> None:
    assert [round(unseen_share(num), 3) for num in (10, 20, 50, 1000)] == [0.259, 0.139, 0.058, 0.003]
    assert (1 - unseen_share(20)) ** 20 == pytest.approx(0.05)
    assert unseen_cost(np.full(20, 3000.0)) == pytest.approx(3000 * unseen_share(20))  # a fall returns 0
    assert unseen_cost(np.array([2000.0, -1000.0])) == pytest.approx(1500 * unseen_share(2))  # or the lowest seen
    assert unseen_cost(np.full(20, -150.0)) == pytest.approx(150 * unseen_share(20))


def test_a_difference_that_unseen_falls_could_undo_is_not_certain() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(2800, 5, 20), generator.normal(3000, 5, 20)
    result = compare_paired(a, b)
    assert result.difference_ci95 is not None
    assert result.difference_ci95[0] > 190
    assert result.unseen_cost == pytest.approx(3000 * unseen_share(20), rel=1e-2)
    assert result.verdict == "unclear"
    words = "cannot tell: B is ahead by 201.2 ± 2.8, but falls in up to 14% of its 20 episodes could have gone unseen"
    assert sentence(result).startswith(words)
    needed = 20 + (result.more_episodes or 0)
    assert unseen_share(needed) * 3000 < 200 < unseen_share(needed - 2) * 3000
    more = compare_paired(np.tile(a, 3), np.tile(b, 3))
    assert more.verdict == "b"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("num", [10, 20, 50])
def test_equal_policies_of_which_one_falls_are_rarely_told_apart(share: float, num: int) -> None:
    generator = np.random.default_rng(num)
    wrong = 0
    for _ in range(400):
        well = generator.random(num) >= share
        falls = np.where(well, generator.normal(3000, 30, num), generator.uniform(200, 1500, num))
        steady = generator.normal((1 - share) * 3000 + share * 850, 30, num)
        wrong += compare_paired(falls, steady).verdict != "unclear"
    assert wrong / 400 <= 0.05


@pytest.mark.parametrize(("effect", "num"), [(1.4, 8), (1.2, 10), (1.0, 12), (0.6, 25)])
def test_the_promised_number_shows_the_effect_in_77_to_83_percent(effect: float, num: int) -> None:
    assert num_for_power(effect) == num
    generator = np.random.default_rng(1)
    shown = [(mean_interval(draw) or (0, 0))[0] > 0 for draw in generator.normal(effect, 1, (4000, num))]
    assert 0.77 <= np.mean(shown) <= 0.83


@pytest.mark.parametrize(
    ("value", "uncertainty", "shown"),
    [(1234.56, 60, "1,235"), (1.23456, 0.05, "1.235"), (12.3456, 3.2, "12.3"), (5, 0, "5"), (3, math.inf, "∞")],
)
def test_numbers_have_as_many_digits_as_they_are_worth(value: float, uncertainty: float, shown: str) -> None:
    assert rounded(value, uncertainty) == shown


# Runs


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs, of which B returns 300 more at 1000, and the same at 3000."""
    a, b = (write_run(tmp_path / name, dt_config(train__seed=seed)) for seed, name in enumerate("ab"))
    low, high = normal(20, 900, 200), normal(20, 2500, 300)
    write_evaluation(a, {1000.0: low, 3000.0: high})
    write_evaluation(b, {1000.0: low + normal(20, 300, 50, seed=1), 3000.0: high})
    return a, b


def compared(*arguments: object) -> dict:
    result = gq("compare", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_evaluations_on_record_are_paired(pair: tuple[Path, Path]) -> None:
    document = compared(*pair)
    first, second = document["results"]
    assert (first["verdict"], second["verdict"]) == ("b", "equal")
    assert first["difference_mean"] == pytest.approx(300)
    assert first["sentence"].startswith("B returns more by 300 ± "), "more was asked for in the other line"
    assert document["episodes_run"] == 0
    assert document["a"]["checkpoint"] == BEST
    assert gq("compare", *pair, "-q").stdout == "b equal\n"
    assert "target 1000: B returns more by 300 ±" in gq("compare", *pair).stdout


def test_only_seeds_that_both_have_are_compared(pair: tuple[Path, Path]) -> None:
    write_evaluation(pair[0], {1000.0: [1.0] * 30, 3000.0: [1.0] * 30}, seed=20, name="20250101-000000-000000")
    (first, _) = compared(*pair)["results"]
    assert first["num_episodes"] == 20


def test_targets_that_differ_are_matched_by_rank_with_a_note(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "c", dt_config(eval__targets=[1100.0, 3100.0]))
    write_evaluation(other, {1100.0: normal(20, 1500, 9), 3100.0: normal(20, 1500, 9)})
    document = compared(pair[0], other)
    assert [(r["a"]["target_return"], r["b"]["target_return"]) for r in document["results"]] == [
        (1000, 1100),
        (3000, 3100),
    ]
    assert any("matched by rank" in note for note in document["notes"])


def test_targets_that_cannot_be_matched_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "c", dt_config(eval__targets=[1100.0]))
    result = gq("compare", pair[0], other)
    assert result.exit_code == 2
    assert "hint: ask both for the same: --target 3000" in result.stderr


def test_a_policy_without_target_is_compared_at_each_of_the_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    clone = write_run(tmp_path / "bc", presets.bc().replace({"task": "Hopper-v5", "eval.targets": [3000.0]}))
    write_evaluation(clone, {3000.0: normal(20, 1500, 9)})
    document = compared(clone, pair[0])
    assert [r["a"]["target_return"] for r in document["results"]] == [None, None]
    assert [r["verdict"] for r in document["results"]] == ["a", "b"]


def test_other_engines_or_sampled_actions_are_not_compared(pair: tuple[Path, Path]) -> None:
    for changes in ({"versions": {**ENGINES, "mujoco": "2.1.0"}}, {"stochastic": True}, {"context": "blocks"}):
        (file,) = (pair[1] / "evals").iterdir()
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | changes))
        result = gq("compare", *pair)
        assert result.exit_code == 1, "there are no weights to run episodes with"
        file.write_text(before)


def test_other_engines_serve_where_both_have_them(pair: tuple[Path, Path]) -> None:
    old = {**ENGINES, "mujoco": "2.1.0"}
    for run in pair:
        (file,) = (run / "evals").iterdir()
        file.write_text(json.dumps(json.loads(file.read_text()) | {"versions": old}))
    assert compared(*pair)["engines"]["mujoco"] == "2.1.0"


def test_runs_of_two_tasks_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "c", dt_config(task="Walker2d-v5"))
    assert gq("compare", pair[0], other).exit_code == 2


def test_a_damaged_record_is_noted(pair: tuple[Path, Path]) -> None:
    (pair[0] / "evals" / "x.json").write_text("{")
    result = gq("compare", *pair)
    assert result.exit_code == 0
    assert "note: cannot use" in result.stderr


def test_another_evaluation_may_be_written_meanwhile(tmp_path: Path) -> None:
    a = train_tiny(tmp_path)
    b = copy_run(a, tmp_path / "b")
    evaluate(b, episodes=EpisodeRequest(1, targets=[30], seed=100))
    (other,) = (b / "evals").glob("*.json")

    def meanwhile(_step: Step) -> None:
        for run in (a, b):
            (run / "evals").mkdir(exist_ok=True)
            (run / "evals" / "20990101-000000-000000.json").write_text(other.read_text())

    comparison = compare_runs((a, None), (b, None), episodes=EpisodeRequest(3, targets=[30]), watch=meanwhile)
    assert comparison.results[0].num_episodes == 3


def test_missing_episodes_are_run_once_and_kept(tmp_path: Path) -> None:
    a = train_tiny(tmp_path)
    b = copy_run(a, tmp_path / "b")
    command = (a, b, "--target", "30", "--episodes")
    first = compared(*command, 5)
    assert (first["episodes_run"], first["results"][0]["verdict"]) == (10, "equal")
    second = compared(*command, 7)
    assert (second["episodes_run"], second["results"][0]["num_episodes"]) == (4, 7)
    assert compared(*command, 7)["episodes_run"] == 0
    assert compared(a, a, "--target", "40", "--episodes", "2")["episodes_run"] == 2, "one and the same run"
    assert LAST not in first["a"]["checkpoint"]
