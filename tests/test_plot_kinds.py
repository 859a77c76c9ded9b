"""`gq plot` of other things than returns over steps: any metric, asked returns, datasets; in files and terminals."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from commandline import gq, gq_child
from gq.errors import GqError, UsageError
from gq.files import write_json
from gq.results.curves import aggregate, band_of, read_learning
from gq.results.distributions import joined, read_summary
from gq.results.figures import label_x
from gq.results.history import History, read_history, repeated_seeds
from gq.results.targets import read_targets
from plotted import TASK, transformer_run, world_run
from tiny import write_hopper_file

PICTURES = (".png", ".svg", ".pdf")


def evaluate_as_if(
    run: Path, returns: dict[float, list[float]], *, name: str = "20260101-000000", **changes: Any
) -> Path:
    """Write an evaluation of a run: the episodes' returns by target."""
    episodes = [
        {"seed": seed, "target_return": target, "episode_return": value, "length": 9, "terminated": True}
        for target, values in returns.items()
        for seed, value in enumerate(values)
    ]
    document = {
        "checkpoint": "step-000000200",
        "stochastic": False,
        "versions": {},
        "results": [],
        "episodes": episodes,
    }
    write_json(run / "evals" / f"{name}.json", document | changes)
    return run


def log_times(run: Path, seconds: dict[int, float]) -> Path:
    lines = [json.dumps({"step": step, "seconds": value}) + "\n" for step, value in seconds.items()]
    (run / "times.jsonl").write_text("".join(lines))
    return run


# Any metric


def test_any_metric_can_be_drawn_and_its_seeds_are_one_line(tmp_path: Path) -> None:
    runs = [transformer_run(tmp_path / str(seed), train__seed=seed) for seed in range(2)]
    learning = read_learning(runs, metrics=["loss", "eval/target_1000/return_std"])
    assert learning.panels == [("Hopper-v5", "loss"), ("Hopper-v5", "eval/target_1000/return_std")]
    loss, std = learning.curves
    assert (loss.x.tolist(), loss.mean.tolist(), loss.runs) == ([50], [1.0], ("0", "1"))
    assert (std.x.tolist(), std.mean.tolist()) == ([100, 200], [3, 3])
    assert [learning.label(curve) for curve in learning.curves] == [
        "loss, 2 runs",
        "eval/target_1000/return_std, 2 runs",
    ]


def test_a_metric_of_tdmpc2_is_not_beside_published_returns(tmp_path: Path) -> None:
    learning = read_learning([world_run(tmp_path / "a")], metrics=["loss"])
    assert (learning.x_name, learning.official, learning.curves[0].name) == ("frames", {}, "a")


def test_an_unknown_metric_names_close_ones_and_all_that_there_are(tmp_path: Path) -> None:
    result = gq("plot", world_run(tmp_path / "a"), "--metric", "los")
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error == f"error: {tmp_path / 'a'} has no metric los"
    assert hint.startswith("hint: did you mean loss? it has episode/return_mean, eval/policy_return_mean, ")
    assert "decisions" not in hint, "that is a place, not a metric"


def test_a_metric_gives_its_file_the_name(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    assert gq("plot", run, "--metric", "eval/return_std", "-q").stdout == f"{run / 'plots' / 'eval-return_std.png'}\n"


# Places on x


def test_seconds_come_from_the_times_on_record(tmp_path: Path) -> None:
    run = log_times(transformer_run(tmp_path / "a"), {50: 10.0, 150: 30.0})
    learning = read_learning([run], x="seconds")
    assert learning.curves[0].x.tolist() == [20, 30], "between times by a straight line, after the last one the last"
    (run / "times.jsonl").unlink()
    with pytest.raises(UsageError, match="does not count seconds"):
        read_learning([run], x="seconds")


def test_transitions_are_decisions_of_tdmpc2_and_steps_of_finetuning(tmp_path: Path) -> None:
    assert read_learning([world_run(tmp_path / "a")], x="transitions").curves[0].x[0] == 20_000
    with pytest.raises(UsageError, match="does not count transitions"):
        read_learning([transformer_run(tmp_path / "b")], x="transitions")


@pytest.mark.parametrize(
    ("longest", "unit", "last"), [(90, "seconds", "80"), (840, "minutes", "10"), (9000, "hours", "2.5")]
)
def test_long_times_are_in_longer_units(longest: float, unit: str, last: str) -> None:
    axes = Figure().subplots()
    axes.set_xlim(0, longest)
    label_x(axes, "seconds", longest)
    assert axes.get_xlabel() == f"training time ({unit})"
    assert axes.xaxis.get_major_formatter()(axes.get_xticks()[-1], 0) == last


# Bands


def test_a_bootstrap_interval_is_that_of_a_known_sample() -> None:
    values = np.random.default_rng(1).normal(5, 2, (50, 300))
    low, high = band_of(values, "mean", "bootstrap")
    assert low is not None
    assert high is not None
    assert (high - low).mean() == pytest.approx(2 * 1.96 * 2 / np.sqrt(50), rel=0.05)
    assert np.mean((low <= 5) & (high >= 5)) == pytest.approx(0.94, abs=0.03)
    assert aggregate(np.array([[4.0], [1.0], [2.0], [3.0]]), "iqm").tolist() == [2.5]


# Achieved over asked returns


def test_the_newest_evaluated_checkpoint_counts_and_of_each_target_its_newest(tmp_path: Path) -> None:
    run = transformer_run(tmp_path / "a")
    evaluate_as_if(run, {500.0: [1.0]}, name="1", checkpoint="step-000000100")
    evaluate_as_if(run, {1000.0: [700.0], 3000.0: [2000.0, 2100.0, 2500.0, 2900.0, 3000.0]}, name="2")
    evaluate_as_if(run, {1000.0: [800.0, 810.0, 850.0, 890.0, 900.0]}, name="3")
    evaluate_as_if(run, {2000.0: [5.0]}, name="2b", stochastic=True)
    evaluate_as_if(run, {2500.0: [5.0]}, name="2c", context="blocks")
    (line,) = read_targets([run]).lines
    assert line.x.tolist() == [1000, 3000]
    assert line.mean.tolist() == [850, 2500]
    assert (line.low[0], line.high[0]) == pytest.approx((793.8, 906.2), abs=0.1), (
        "a little wider than Student's t of five"
    )
    assert line.band == "episodes"
    assert line.checkpoints == ("step-000000200",)


def test_seeds_are_one_line_at_the_targets_of_all(tmp_path: Path) -> None:
    runs = [transformer_run(tmp_path / str(seed), train__seed=seed) for seed in range(2)]
    evaluate_as_if(runs[0], {1000.0: [900.0], 2000.0: [1.0]})
    evaluate_as_if(runs[1], {1000.0: [700.0], 3000.0: [1.0]})
    asked = read_targets(runs)
    assert [(line.name, line.x.tolist(), line.mean.tolist()) for line in asked.lines] == [("2 runs", [1000], [800])]
    assert (asked.lines[0].low[0], asked.lines[0].high[0]) == (700, 900)
    assert asked.caption() == "mean over runs; bars: lowest to highest"
    assert read_targets(runs, band="none").lines[0].low is None
    evaluate_as_if(runs[1], {3000.0: [1.0]})
    assert [line.name for line in read_targets(runs).lines] == ["0", "1"], "no target of both"


def test_a_repeated_seed_is_no_other_one(tmp_path: Path) -> None:
    runs = [evaluate_as_if(transformer_run(tmp_path / name), {1000.0: [900.0] * 5}) for name in "ab"]
    asked = read_targets(runs)
    assert [(line.name, line.band, line.low) for line in asked.lines] == [("2 runs", "", None)]
    assert "a and b have the same seed: no interval over runs" in asked.notes
    evaluate_as_if(runs[1], {3000.0: [1.0, 2.0]})
    apart = read_targets(runs)
    assert [line.band for line in apart.lines] == ["episodes", ""], "there is no interval of two episodes"
    assert not any("same seed" in note for note in apart.notes)


def test_imported_weights_and_children_of_other_seeds_are_seeds_of_their_own(tmp_path: Path) -> None:
    runs = [world_run(tmp_path / name) for name in "abc"]
    for run, digest in zip(runs, ("1", "2", "2"), strict=True):
        (run / "environment.json").write_text(json.dumps({"imported": {"sha256": digest}}))
    histories = [read_history(run) for run in runs]
    assert repeated_seeds(histories[:2]) == ""
    assert repeated_seeds(histories) == "b and c have the same seed: no interval over runs"
    children = []
    for seed, parent in enumerate("de"):
        world_run(tmp_path / parent, train__seed=seed)
        settings = {"train.seed": 0, "online.parent": str(tmp_path / parent)}
        children.append(History(tmp_path / f"{parent}-on", settings, []))
    assert repeated_seeds(children) == ""
    assert repeated_seeds([children[0], children[0]])


def test_without_stored_evaluations_the_last_one_of_the_training_counts(tmp_path: Path) -> None:
    asked = read_targets([transformer_run(tmp_path / "a")])
    assert (asked.lines[0].x.tolist(), asked.lines[0].mean.tolist()) == ([1000, 3000], [900, 2200])
    assert asked.lines[0].low is None
    assert asked.notes[0] == "a has no stored evaluation: its last one while it trained"
    assert asked.notes[1].startswith("the data's returns are not shown: ")


def test_the_data_s_returns_are_beside_what_was_asked(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "hopper.hdf5")
    run = evaluate_as_if(transformer_run(tmp_path / "a", data__dataset=str(data)), {1000.0: [900.0]})
    asked = read_targets([run])
    returns = read_summary(str(data)).facts
    assert asked.notes == []
    assert asked.data["Hopper-v5"][[0, -1]].tolist() == [returns["return_min"], returns["return_max"]]
    document = json.loads(gq("plot", "--asked", run, "--json").stdout)
    assert document["lines"][0]["achieved"] == [900]
    assert len(document["data_returns"]["Hopper-v5"]) == returns["num_episodes"]
    other = transformer_run(tmp_path / "b", data__dataset="x", train__batch_size=9)
    assert "different data" in read_targets([run, other]).notes[-1]


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    run = evaluate_as_if(transformer_run(tmp_path / "a"), {1000.0: [1.0]})
    (run / "evals" / "9.json").write_text("{")
    with pytest.raises(GqError, match=r"cannot use .*9\.json"):
        read_targets([run])


@pytest.mark.parametrize(("key", "value"), [("target_return", ""), ("target_return", 1e400), ("episode_return", 1e400)])
def test_a_return_that_is_no_number_is_damage(tmp_path: Path, key: str, value: object) -> None:
    run = evaluate_as_if(transformer_run(tmp_path / "a"), {1000.0: [900.0], 3000.0: [2000.0]})
    (file,) = (run / "evals").iterdir()
    document = json.loads(file.read_text())
    document["episodes"][0][key] = value
    file.write_text(json.dumps(document))
    with pytest.raises(GqError, match="cannot use"):
        read_targets([run])


@pytest.mark.parametrize("suffix", PICTURES)
def test_equal_data_give_equal_files(tmp_path: Path, suffix: str) -> None:
    data = write_hopper_file(tmp_path / "hopper.hdf5")
    run = evaluate_as_if(
        transformer_run(tmp_path / "a", data__dataset=str(data)), {1000.0: [900.0, 950.0], 3000.0: [5.0]}
    )
    for name, arguments in (("curves", [run]), ("asked", [run, "--asked"]), ("data", [data])):
        files = [tmp_path / f"{name}-{turn}{suffix}" for turn in range(2)]
        for file in files:
            result = gq("plot", *arguments, "-o", file)
            assert (result.exit_code, result.stdout) == (0, f"{file}\n"), result.stderr
        assert files[0].read_bytes() == files[1].read_bytes()
        assert b"2026" not in files[0].read_bytes()[:2000] or suffix == ".png"


def test_a_panel_is_a_column_wide_whatever_the_names(tmp_path: Path) -> None:
    run, output = transformer_run(tmp_path / ("long-" * 20)), tmp_path / "a.png"
    assert gq("plot", run, "--metric", "loss", "-o", output).exit_code == 0
    with Image.open(output) as image:
        assert image.width == pytest.approx(3.35 * 300, abs=1)
        row = np.asarray(image.convert("L"))[image.height // 3]
    dark = np.flatnonzero(row < 100)
    assert dark[0] < 300, "the name is wrapped, so the panel keeps its width"


# Datasets


def test_a_dataset_is_described(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "hopper.hdf5")
    document = json.loads(gq("plot", data, "--json").stdout)
    (one,) = document["datasets"]
    assert document["path"] is None
    assert sum(one["histograms"]["return"]["counts"]) == one["num_episodes"] > 1
    assert sum(one["histograms"]["reward"]["counts"]) == one["num_transitions"]
    rows = list(csv.DictReader(io.StringIO(gq("plot", data, "--csv").stdout)))
    assert {row["quantity"] for row in rows} == {"return", "length", "reward"}
    assert sum(int(row["count"]) for row in rows if row["quantity"] == "length") == one["num_episodes"]
    human = gq("plot", data).stdout
    assert "\nreturn, episodes\n" in human
    assert "█" in human
    assert list(tmp_path.iterdir()) == [data], "nothing is written unasked"


def test_runs_and_datasets_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQ_HOME", str(tmp_path))
    run = transformer_run(tmp_path / "runs" / "hopper-v5-dt")
    assert gq("plot", "hopper", "--json").exit_code == 0, "the dataset is not in the cache, so the run is meant"
    file = tmp_path / "datasets" / "mujoco" / "hopper" / "medium-v0.hdf5"
    from gq.datasets import names as registry

    entry = registry.resolve("hopper")
    entry.path.parent.mkdir(parents=True)
    write_hopper_file(entry.path)
    result = gq("plot", "hopper")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: hopper may be a dataset or a run",
        f"hint: the dataset: gq plot {entry.id}; the run: gq plot hopper-v5-dt",
    ]
    assert json.loads(gq("plot", "hopper-v5-dt", "--json").stdout)["curves"]
    data = write_hopper_file(run / "mine.hdf5")
    assert json.loads(gq("plot", data, "--json").stdout)["datasets"], f"data in a run, not {file}"
    result = gq("plot", run, data)
    assert (result.exit_code, "a run and" in result.stderr) == (2, True)
    result = gq("plot", data, "--sweep")
    assert (result.exit_code, "--sweep is for runs" in result.stderr) == (2, True)


def test_marks_that_are_close_have_one_name() -> None:
    assert joined({"p50": 1.0, "p99": 9.0, "max": 9.5}, 1.0) == [("p50", 1.0), ("p99, max", 9.25)]


# Files and terminals


def test_points_go_into_a_csv_file(tmp_path: Path) -> None:
    run, file = world_run(tmp_path / "a"), tmp_path / "a.csv"
    result = gq("plot", run, "-o", file)
    assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    assert file.read_text() == gq("plot", run, "--csv").stdout
    assert gq("plot", run, "-o", file).exit_code == 2, "it is there already"


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("arguments", [[], ["--asked"], ["--metric", "loss"]])
def test_a_terminal_s_width_is_respected(
    tmp_path: Path, columns: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run = transformer_run(tmp_path / "a")
    result = gq("plot", run, "--terminal", *arguments)
    assert result.exit_code == 0, result.stderr
    picture, table = result.stdout.split("\n\n")[:2]
    assert max(map(len, picture.splitlines())) < columns
    assert "\x1b" not in result.stdout, "a pipe has no colours"
    assert not (run / "plots").exists()
    assert table


def test_a_terminal_needs_no_matplotlib(tmp_path: Path) -> None:
    run = world_run(tmp_path / "a")
    (tmp_path / "matplotlib.py").write_text("raise SystemExit('loaded')")
    source = str(Path(read_targets.__code__.co_filename).parents[2])
    result = gq_child("plot", run, "--terminal", PYTHONPATH=f"{tmp_path}:{source}", COLUMNS="60")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{TASK}\nreturn\n839┤")


def test_a_script_gets_the_last_values_where_no_file_is_written(tmp_path: Path) -> None:
    assert gq("plot", transformer_run(tmp_path / "a"), "--terminal", "-q").stdout == "2200 900\n"
