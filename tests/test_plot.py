"""`gq plot`: what runs logged becomes curves, seeds of one experiment a band, beside the published results."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commandline import gq, gq_child
from gq import presets
from gq.config import to_toml
from gq.envs.tasks import resolve_task
from gq.errors import GqError, UsageError
from gq.results import figures as picture
from gq.results.curves import Learning, official_curve, read_learning, running_mean
from gq.results.figures import learning_drawing, lines_of
from gq.results.history import read_history, read_records
from gq.results.style import brief, compact, shorter
from gq.results.terminal import draw_lines
from plotted import TASK, transformer_run, world_run, write_run


def by_name(learning: Learning) -> dict[str, Any]:
    return {learning.label(curve): curve for curve in learning.curves}


# Reading


def test_a_run_of_tdmpc2_has_three_curves_over_frames(tmp_path: Path) -> None:
    learning = read_learning([world_run(tmp_path / "a")])
    curves = by_name(learning)
    assert list(curves) == ["planning", "policy alone", "training episodes"]
    assert learning.x_name == "frames"
    assert curves["planning"].x.tolist() == [40_000, 80_000, 120_000, 160_000]
    assert curves["planning"].mean.tolist() == [100, 200, 300, 400]
    assert curves["policy alone"].mean.tolist() == [50, 100, 150, 200]
    assert curves["training episodes"].x.tolist() == [1000]
    assert curves["planning"].low is None


@pytest.mark.parametrize(("x", "first"), [("decisions", 20_000), ("frames", 40_000), ("updates", 19_990)])
def test_progress_is_counted_as_asked(tmp_path: Path, x: str, first: int) -> None:
    learning = read_learning([world_run(tmp_path / "a")], x=x)
    assert learning.curves[0].x[0] == first
    assert bool(learning.official) == (x == "frames")


def test_a_transformer_has_a_curve_per_target_the_highest_first(tmp_path: Path) -> None:
    learning = read_learning([transformer_run(tmp_path / "a")])
    assert [curve.what for curve in learning.curves] == ["target 3000", "target 1000"]
    assert (learning.x_name, learning.official) == ("updates", {})
    assert learning.curves[0].mean.tolist() == [2100, 2200]


def test_behaviour_cloning_is_asked_for_nothing(tmp_path: Path) -> None:
    (curve,) = read_learning([transformer_run(tmp_path / "a", algo="bc")]).curves
    assert (curve.what, curve.target, curve.mean.tolist()) == ("evaluation", None, [2100, 2200])


def test_finetuning_is_counted_in_environment_steps(tmp_path: Path) -> None:
    config = presets.odt("tiny").replace({"task": "Hopper-v5"})
    records: list[dict[str, Any]] = [
        {"step": 0, "environment_steps": 0, "eval/target_3000/return_mean": 1.0},
        {"step": 0, "environment_steps": 400, "rollout/return_mean": 5.0},
        {"step": 20, "environment_steps": 400, "eval/target_3000/return_mean": 2.0},
    ]
    learning = read_learning([write_run(tmp_path / "a", config, records)])
    assert learning.x_name == "environment-steps"
    assert by_name(learning)["target 3000"].x.tolist() == [0, 400]
    assert by_name(learning)["training episodes"].mean.tolist() == [5.0]


def test_a_torn_last_line_is_being_written(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    whole = read_records(run / "metrics.jsonl")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "eval/return_m')
    assert read_records(run / "metrics.jsonl") == whole
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("{torn\n" + text)
    with pytest.raises(GqError, match=r"damaged at line 1$"):
        read_history(run)


def test_a_return_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a", num_points=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9e4, "decisions": 90000, "frames": 180000, "eval/return_mean": null}\n')
    assert read_learning([run]).curves[0].x.tolist() == [40_000, 80_000]


def test_a_run_without_evaluations_says_when_to_come_back(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", presets.tdmpc2("1").replace({"task": TASK, "eval.every": 700}), [{"step": 1}])
    with pytest.raises(UsageError, match="has no evaluation yet") as caught:
        read_history(run)
    assert caught.value.hint == "the first one comes after 700 decisions, and one when the run ends"
    (run / "metrics.jsonl").unlink()
    (run / "config.toml").write_text('algo = "dt"\ntask = "Hopper-v5"\n[eval]\nevery = 0\n')
    with pytest.raises(UsageError) as caught:
        read_history(run)
    assert f"gq eval {run}" in caught.value.hint


def test_a_run_that_has_only_trained_shows_its_episodes(tmp_path: Path) -> None:
    learning = read_learning([world_run(tmp_path / "a", num_points=0), world_run(tmp_path / "b", update__horizon=2)])
    assert [curve.what for curve in learning.shown(TASK)] == ["training episodes", "planning"]


def test_a_config_of_another_version_can_be_plotted(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    (run / "config.toml").write_text((run / "config.toml").read_text() + "\n[future]\nkey = 1\n")
    assert len(read_learning([run]).curves) == 3
    (run / "config.toml").write_text("algo = \n")
    with pytest.raises(GqError, match=r"cannot use .*config\.toml"):
        read_learning([run])


# Seeds


def test_two_seeds_have_a_band_from_the_lower_to_the_higher(tmp_path: Path) -> None:
    runs = [
        world_run(tmp_path / name, scale=scale, train__seed=seed) for name, scale, seed in [("a", 1, 0), ("b", 2, 1)]
    ]
    learning = read_learning(runs)
    curve = by_name(learning)["planning (2 runs)"]
    assert curve.mean.tolist() == [150, 300, 450, 600]
    assert curve.low.tolist() == [100, 200, 300, 400]
    assert curve.high.tolist() == [200, 400, 600, 800]
    assert curve.runs == ("a", "b")
    assert curve.band == "min-max"
    assert learning.caption().startswith("mean over runs; band: lowest to highest; ")


def test_four_seeds_have_a_band_from_the_lowest_to_the_highest_and_five_a_bootstrap_interval(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / str(seed), scale=1 + seed, train__seed=seed) for seed in range(5)]
    few, many = (read_learning(some).curves[0] for some in (runs[:4], runs))
    assert (few.band, few.mean[0], few.low[0], few.high[0]) == ("min-max", 250, 100, 400)
    assert (many.band, many.mean[0]) == ("bootstrap", 300)
    assert 110 < many.low[0] < 150
    assert 450 < many.high[0] < 490
    assert many.low[3] == pytest.approx(4 * many.low[0]), "the same runs are drawn for all points"
    assert "band: 95 % bootstrap interval" in read_learning(runs).caption()


def test_the_mean_of_the_middle_half_ignores_an_outlier(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / str(seed), scale=scale, train__seed=seed) for seed, scale in enumerate([1, 2, 3, 90])]
    (iqm, mean) = (read_learning(runs, aggregate=how).curves[0].mean[0] for how in ("iqm", "mean"))
    assert (iqm, mean) == (250, 2400)
    assert read_learning(runs, aggregate="iqm").caption().startswith("interquartile mean over runs; ")


def test_a_band_can_be_chosen_and_left_out(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / str(seed), scale=1 + seed, train__seed=seed) for seed in range(3)]
    curve = read_learning(runs, band="bootstrap").curves[0]
    assert (curve.band, curve.low[0], curve.high[0]) == ("bootstrap", 100, 300)
    curve = read_learning(runs, band="none").curves[0]
    assert (curve.band, curve.low, curve.mean[0]) == ("", None, 200)


def test_a_mean_ends_where_the_shortest_run_ends_and_fills_points_between(tmp_path: Path) -> None:
    long = world_run(tmp_path / "a", num_points=4)
    short = world_run(tmp_path / "b", num_points=1, every=70_000, train__seed=1)
    with (short / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "decisions": 10000, "frames": 20000, "eval/return_mean": 0.0}\n')
    text = (short / "metrics.jsonl").read_text().splitlines()
    (short / "metrics.jsonl").write_text("\n".join([text[0], text[-1], *text[1:-1]]) + "\n")
    curve = by_name(read_learning([long, short]))["planning (2 runs)"]
    assert curve.x.tolist() == [40_000, 80_000, 120_000]
    assert curve.low.tolist() == pytest.approx([100 / 6, 50, 100 / 1.2])  # from 0 at 20k to 100 at 140k


def test_runs_without_a_common_stretch_are_lines_of_their_own(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / "a", num_points=1), world_run(tmp_path / "b", num_points=1, every=9000, train__seed=1)]
    assert [curve.name for curve in read_learning(runs).curves if curve.rank == 0] == ["a, planning", "b, planning"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"train.seed_decisions": 2000}, ["train.seed_decisions 0, planning", "train.seed_decisions 2000, planning"]),
        ({"update.horizon": 2}, ["update.horizon 3, planning", "update.horizon 2, planning"]),
        ({"size": "mine"}, ["size 1, planning", "size mine, planning"]),
        ({"train.decisions": 9, "eval.num_episodes": 3, "log.tensorboard": True}, ["planning (2 runs)"]),
    ],
)
def test_what_differs_besides_the_seed_makes_another_line(
    tmp_path: Path, change: dict[str, Any], names: list[str]
) -> None:
    other = {key.replace(".", "__"): value for key, value in change.items()}
    runs = [world_run(tmp_path / "a"), world_run(tmp_path / "b", train__seed=5, **other)]
    assert [curve.name for curve in read_learning(runs).shown(TASK) if curve.what == "planning"] == names


def test_the_length_of_a_cosine_is_no_incidental(tmp_path: Path) -> None:
    runs = [transformer_run(tmp_path / "a"), transformer_run(tmp_path / "b", train__steps=9000)]
    assert len({curve.group for curve in read_learning(runs).curves}) == 2


def test_runs_that_differ_in_many_settings_are_named(tmp_path: Path) -> None:
    many = {"update__horizon": 2, "update__learning_rate": 0.1, "update__gradient_clip": 1.0, "train__batch_size": 9}
    runs = [world_run(tmp_path / "a"), world_run(tmp_path / "b", **many)]
    assert [curve.group for curve in read_learning(runs).shown(TASK)] == ["a", "b"]


def test_finetuned_seeds_belong_together_if_their_parents_do(tmp_path: Path) -> None:
    record = {"step": 1, "environment_steps": 9, "eval/target_3000/return_mean": 1.0}
    for name, seed, rate in [("p0", 0, 0.1), ("p1", 1, 0.1), ("p2", 0, 0.2)]:
        config = presets.odt("tiny").replace({"task": "Hopper-v5", "train.seed": seed, "optim.learning_rate": rate})
        write_run(tmp_path / name, config, [])
        child = write_run(tmp_path / f"{name}-on", config, [record])
        text = to_toml(config).replace('algo = "odt"', 'algo = "finetune"')
        (child / "config.toml").write_text(f'{text}\n[online]\nparent = "{tmp_path / name}"\n')
    runs = [tmp_path / f"p{index}-on" for index in range(3)]
    learning = read_learning(runs[:2])
    assert [curve.runs for curve in learning.curves] == [("p0-on", "p1-on")]
    assert len(read_learning(runs).curves) == 2
    shutil.rmtree(tmp_path / "p1")
    assert [curve.group for curve in read_learning(runs[:2]).curves] == ["p0-on", "p1-on"]


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(run)
    assert read_learning([run, tmp_path / "link", run]).curves[0].runs == ("a",)


def test_running_means_are_centred() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0])
    assert running_mean(values, 3).tolist() == pytest.approx([1.5, 3, 11 / 3, 4.5])
    assert running_mean(values, 1) is values
    assert running_mean(values, 99).tolist() == pytest.approx([3, 3, 3, 3])
    assert running_mean(np.array([5.0]), 3).tolist() == [5]


# The published results


def test_the_table_of_published_results() -> None:
    curve = official_curve("tdmpc2", "dog-run")
    assert curve is not None
    assert curve.frames[0] == 100_000
    assert curve.frames[-1] == 14_000_000
    assert (curve.mean[0], curve.sd[0], curve.num_seeds[0]) == (27, 17, 3)
    assert (curve.mean[-1], curve.sd[-1], curve.num_seeds[-1]) == (870, 16, 2)
    assert curve.label == "TD-MPC2 paper's results, 3 seeds"
    assert "nicklashansen/tdmpc2" in curve.source
    assert official_curve("dt", "dog-run") is None
    assert official_curve("tdmpc2", "HalfCheetah-v5") is None


def test_the_table_is_whole_and_possible() -> None:
    path = Path(picture.__file__).parent / "official_results.json"
    tasks = json.loads(path.read_text())["tasks"]
    assert len(tasks) == 18
    for task, points in tasks.items():
        assert resolve_task(task).action_repeat == 2
        assert [point[0] for point in points][:6] == [100_000, 200_000, 500_000, 1_000_000, 2_000_000, 4_000_000]
        assert all(0 <= mean <= 1000 and 0 <= sd < 500 and seeds in (2, 3) for _, mean, sd, seeds in points)


def test_ours_and_theirs_are_compared_at_equal_frames(tmp_path: Path) -> None:
    learning = read_learning([world_run(tmp_path / "a")])
    (row,) = learning.comparison()  # ours end at 160k
    assert (row["frames"], row["decisions"], row["label"]) == (100_000, 50_000, "planning")
    assert row["mean"] == pytest.approx(250)
    assert (row["official_mean"], row["official_sd"]) == (839, 43)
    assert read_learning([world_run(tmp_path / "b", num_points=2)]).comparison() == []


# The command


def test_the_json_document(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / "a"), world_run(tmp_path / "b", scale=2, train__seed=1)]
    result = gq("plot", *runs, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["curves"][0] == {
        "label": "planning (2 runs)",
        "task": TASK,
        "metric": "return",
        "series": "planning",
        "x_name": "frames",
        "aggregate": "mean",
        "band": "min-max",
        "x": [40_000, 80_000, 120_000, 160_000],
        "mean": [150, 300, 450, 600],
        "low": [100, 200, 300, 400],
        "high": [200, 400, 600, 800],
        "runs": ["a", "b"],
    }
    assert document["official"][0]["mean"][:2] == [839, 872]
    assert document["at_equal_frames"][0]["mean"] == pytest.approx(375)
    assert document["path"] is None
    assert not (runs[0] / "plots").exists(), "data alone were asked for"


def test_the_csv_has_every_point(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    result = gq("plot", run, "--csv")
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert result.stdout == learning_drawing(read_learning([run])).csv() + "\n"
    assert rows[1]["label"] == "planning"
    assert (float(rows[1]["x"]), float(rows[1]["mean"]), rows[1]["low"]) == (80_000, 200, "")
    official = [row for row in rows if row["series"] == "official"]
    assert len(official) == 6
    assert (float(official[0]["low"]), float(official[0]["high"])) == (839 - 43, 839 + 43)


def test_a_run_s_own_picture_is_drawn_anew(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    path = run / "plots" / "learning.png"
    for _ in range(2):
        result = gq("plot", run, "-q")
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{path}\n", "")
    with Image.open(path) as image:
        assert image.width > 800
        assert image.getpixel((2, 2))[:3] == (255, 255, 255)
        colours = {pixel[:3] for _, pixel in image.getcolors(1 << 24)}
    assert {(0, 0x72, 0xB2), (0x80, 0x80, 0x80)} <= colours, "ours and the published one"
    assert [file.name for file in path.parent.iterdir()] == ["learning.png"]


def test_the_picture_of_several_runs_never_takes_the_place_of_another(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / "a"), transformer_run(tmp_path / "b")]
    paths = {gq("plot", *runs, "-q").stdout.strip() for _ in range(2)}
    assert len(paths) == 2
    assert all(Path(path).parent == runs[0] / "plots" and Path(path).is_file() for path in paths)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    run, path = world_run(tmp_path / "a"), tmp_path / "curve.svg"
    path.write_text("mine")
    result = gq("plot", run, "--output", path)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {path} is there already", "hint: --force replaces it"]
    assert path.read_text() == "mine"
    result = gq("plot", run, "--output", path, "--force")
    assert result.stdout == f"{path}\n"
    drawn = path.read_bytes()
    assert b"<svg" in drawn
    gq("plot", run, "--output", path, "--force")
    assert path.read_bytes() == drawn, "equal curves give equal files"


def test_people_get_a_table(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    lines = gq("plot", run).stdout.splitlines()
    assert lines[0].split() == ["return", "by", "frames", "40k", "80k", "120k", "160k", "last"]
    assert lines[1].split() == ["planning", "100", "200", "300", "400", "400", "at", "160k"]
    assert any(line.split() == ["planning", "100,000", "50,000", "250", "839", "±", "43"] for line in lines)
    assert lines[-1] == str(run / "plots" / "learning.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a.jpg"], "a.jpg is neither a picture's name nor .csv"),
        (["--json", "--csv"], "--json and --csv exclude each other"),
        (["--terminal", "--json"], "--json and --terminal exclude each other"),
        (["--terminal", "-o", "a.png"], "--terminal and --output exclude each other"),
        (["--asked", "--sweep"], "--asked and --sweep exclude each other"),
        (["--asked", "--metric", "loss"], "--metric is for learning curves"),
        (["--asked"], "is a tdmpc2 run, which takes no target return"),
        (["--smooth", "0"], "--smooth must be at least 1, not 0"),
        (["--x", "environment-steps"], "does not count environment-steps"),
        (["--x", "wall-time"], "'wall-time' is not one of"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = gq("plot", world_run(tmp_path / "a"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_wrong_x_names_the_right_ones(tmp_path: Path) -> None:
    result = gq("plot", world_run(tmp_path / "a"), transformer_run(tmp_path / "b"), "--x", "frames")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {tmp_path / 'b'} does not count frames", "hint: --x updates"]


def test_neither_torch_nor_mujoco_is_loaded(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    (tmp_path / "torch").mkdir()
    for name in ("torch", "mujoco", "gymnasium", "h5py"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('loaded')")
    source = str(Path(picture.__file__).parents[2])
    result = gq_child("plot", run, PYTHONPATH=f"{tmp_path}:{source}")
    assert result.returncode == 0, result.stderr
    assert (run / "plots" / "learning.png").is_file()


# The terminal


def test_the_picture_in_a_terminal(tmp_path: Path) -> None:
    learning = read_learning([world_run(tmp_path / "a")])
    lines = lines_of(learning, TASK)
    assert [line.letter for line in lines] == ["a", "b", "*"]
    cells = draw_lines(lines, width=60, x_name="frames", y_name="return")
    rows = ["".join(character for character, _ in row) for row in cells]
    assert max(map(len, rows)) <= 60
    assert rows[0] == "return"
    assert rows[1].startswith("839┤")
    assert rows[1].index("*") == 4 + round(56 * 100 / 160) - 1, "it ends at 100k of 160k frames"
    assert rows[-4].endswith("160k frames")
    assert rows[-3:] == ["  a planning", "  b policy alone", "  * TD-MPC2 paper's results, 3 seeds"]
    assert [row[-1] for row in rows[1:13] if row[-1] in "ab"] == ["a", "b"], "planning ends higher"
    marks = "".join(rows[1:13])
    assert (marks.count("a"), marks.count("b")) == (2, 2), "lines are told apart without colours"
    rising = [max(row.find(chr(code)) for code in range(0x2801, 0x2900)) for row in rows[1:13]]
    assert rising[6] > rising[9] > 0


def test_a_long_name_takes_several_rows(tmp_path: Path) -> None:
    learning = read_learning([world_run(tmp_path / "a")])
    rows = [
        "".join(text for text, _ in row)
        for row in draw_lines(lines_of(learning, TASK), width=25, x_name="x", y_name="y")
    ]
    assert rows[-2:] == ["  * TD-MPC2 paper's", "    results, 3 seeds"]


def test_what_has_a_single_point_is_seen(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a", num_points=1)
    output = tmp_path / "a.png"
    assert gq("plot", run, "--output", output).exit_code == 0
    with Image.open(output) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    is_orange = (pixels[..., 0] > 200) & (pixels[..., 1] < 140) & (pixels[..., 2] < 60)
    rows = np.flatnonzero(is_orange.any(axis=1))
    assert np.diff(rows).max() > 50, "the policy alone has a marker, and a name in the legend below"


def test_lines_of_one_value_and_below_zero_can_be_drawn(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a", scale=-1.0, num_points=1)
    learning = read_learning([run], x="updates")
    rows = draw_lines(lines_of(learning, TASK), width=10, x_name="updates", y_name="return")
    assert "".join(character for character, _ in rows[12]).startswith("-100┤")
    assert gq("plot", run).exit_code == 0


def test_numbers_are_short() -> None:
    assert [compact(number) for number in (0, 500, 20_000, 1_500_000)] == ["0", "500", "20k", "1.5M"]
    assert [shorter(number) for number in (0, 2077.74, 20_000)] == ["0", "2078", "20k"]
    assert [brief(number) for number in (2801.4, 0.012345, -3.14159, 1_234_567)] == ["2801", "0.0123", "-3.14", "1.23M"]
