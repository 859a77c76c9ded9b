"""What commands print: one JSON document, one path, or text; results on stdout and everything else on stderr."""

import json
import os
import pty
import re
import select
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from commandline import PATIENCE_S, TINY, child_environment, copy_run, document, gq, gq_child, gq_command
from gq.datasets.catalog import ENTRIES
from gq.envs.tasks import resolve_task
from gq.models.config import SIZES
from gq.settings import read_config_file

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")
RESULT_KEYS = {
    "target_return",
    "num_episodes",
    "return_mean",
    "return_std",
    "return_iqm",
    "return_ci95",
    "normalized_mean",
    "reference",
    "length_mean",
}


@pytest.fixture
def run(trained: Path, own_home: Path) -> Path:
    """A run of the cache, so that --latest finds it."""
    return copy_run(trained, own_home / "runs" / "hopper-v5-dt-1m-20260101-000000-abcd")


def quiet_line(*arguments: Any) -> str:
    """Run a command with -q and return its one line; nothing may be on stderr."""
    result = gq(*arguments, "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    return line


def human_lines(*arguments: Any) -> list[str]:
    """Run a command for people, in a pipe, and return the lines of stdout."""
    result = gq(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    return [line.rstrip() for line in result.stdout.splitlines()]


# Each command in three modes


def test_training_simulates_a_built_in_dataset_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gq.datasets.loading.DEFAULT_NUM_TRANSITIONS", 200)
    name = "builtin/hopper/medium"
    assert gq("train", "dt", "--dataset", name, "--dry-run").exit_code == 2, "a rehearsal makes nothing"
    command = ("train", "dt", "--dataset", name, "--steps", "1", *TINY, "--out", tmp_path / "run")
    first = gq(*command)
    assert first.exit_code == 0, first.stderr
    assert "builtin/hopper/medium is not in the cache: simulating it first" in first.stderr
    second = gq(*command[:-1], tmp_path / "again")
    assert second.exit_code == 0, second.stderr
    assert "simulating" not in second.stderr


def test_download_in_three_modes(own_home: Path) -> None:
    command = ("download", "builtin/hopper/medium", "--transitions", "60")
    path = own_home / "datasets" / "builtin" / "hopper" / "medium.hdf5"
    assert human_lines(*command) == [str(path)]
    assert quiet_line(*command) == str(path)
    printed = document(*command)
    assert printed["id"] == "builtin/hopper/medium"
    assert printed["path"] == str(path)
    assert printed["task"] == "Hopper-v5"
    assert printed["num_transitions"] >= 60
    assert printed["was_cached"] is True
    assert gq(*command).stderr.splitlines()[-1].startswith("builtin/hopper/medium: ")


def test_the_list_of_datasets_in_three_modes() -> None:
    assert [entry["id"] for entry in document("download", "--list")["datasets"]] == list(ENTRIES)
    assert gq("download", "--list", "-q").stdout.splitlines() == list(ENTRIES)
    lines = human_lines("download", "--list", "humanoid")
    assert lines[0].split()[:2] == ["dataset", "size"]
    assert [line.split()[0] for line in lines[1:]] == [name for name in ENTRIES if "humanoid" in name]


def test_train_in_three_modes(data: Path, own_home: Path) -> None:
    command = ("train", "dt", "--dataset", data, "--steps", "2", *TINY)
    lines = human_lines(*command)
    assert lines[0].split() == ["target", "return", "length", "episodes"]
    run = Path(lines[-1])
    assert run.parent == own_home / "runs"
    assert (run / "checkpoints" / "last.json").is_file()
    assert (Path(quiet_line(*command)) / "config.toml").is_file()
    printed = document(*command)
    assert Path(printed["run"]).is_dir()
    assert (printed["task"], printed["dataset"], printed["steps"]) == ("Hopper-v5", str(data), 2)
    assert len(printed["evaluation"]) == 2  # p90 and p99 of six episodes are one
    assert printed["evaluation"][0].keys() >= RESULT_KEYS
    assert len(list((own_home / "runs").iterdir())) == 3


def test_training_says_where_and_what_next(data: Path, tmp_path: Path) -> None:
    command = ("train", "dt", "--dataset", data, "--steps", "2", *TINY, "--set", "eval.every=0")
    result = gq(*command)
    lines = result.stderr.splitlines()
    assert lines[0].startswith("the data do not repeat in the installed Hopper-v5: other physics")
    assert lines[1] == f"run: {result.stdout.strip()}"
    assert lines[-1] == "next: gq eval --latest"
    assert gq(*command, "--out", tmp_path / "mine").stderr.splitlines()[-1] == f"next: gq eval {tmp_path / 'mine'}"


def test_a_dry_run_in_three_modes(data: Path, own_home: Path, tmp_path: Path) -> None:
    command = ("train", "dt", "--dataset", data, "--size", "13m", "--out", tmp_path / "run", "--dry-run")
    printed = document(*command)
    assert printed["run"] == quiet_line(*command) == str(tmp_path / "run")
    assert printed["parameters"] == document("params", "13m", "--task", "hopper")["models"][0]["parameters"]
    assert printed["config"]["model"]["embed_dim"] == 512
    (tmp_path / "shown.toml").write_text(gq(*command).stdout)
    shown = read_config_file(tmp_path / "shown.toml")
    assert shown["task"] == "Hopper-v5"
    assert shown == json.loads(json.dumps(printed["config"]))
    assert not own_home.exists()
    assert not (tmp_path / "run").exists()


def test_the_dataset_taken_by_default_is_named() -> None:
    gq("download", "builtin/hopper/medium", "--transitions", "60")
    result = gq("train", "bc", "--dry-run")
    assert "dataset: builtin/hopper/medium, the one downloaded last" in result.stderr
    assert 'dataset = "builtin/hopper/medium"' in result.stdout


def test_eval_in_three_modes(run: Path) -> None:
    command = ("eval", "--latest", "--target", "30,10", "--episodes", "5")
    printed = document(*command)
    assert (printed["run"], printed["task"]) == (run.name, "Hopper-v5")
    assert printed["dataset"].endswith("data.hdf5")
    assert [result["target_return"] for result in printed["results"]] == [30, 10]
    for result in printed["results"]:
        assert result.keys() >= RESULT_KEYS
        assert result["num_episodes"] == 5
        low, high = result["return_ci95"]
        assert low <= result["return_mean"] <= high
        assert result["reference"] == "gq-v5"
    assert printed["versions"].keys() >= {"gq", "python", "torch", "mujoco", "gymnasium"}
    means = [float(word) for word in quiet_line(*command).split()]
    assert means == [round(result["return_mean"], 1) for result in printed["results"]]
    lines = human_lines(*command)
    assert lines[0].startswith(f"{run.name}, step-000000004, Hopper-v5")
    words = [line.split()[0] for line in lines[1:] if not line.startswith("With 5 episodes, falls in up to 45%")]
    assert words == ["target", "30", "10", "Scores"]
    assert len(list((run / "evals").iterdir())) == 3


@pytest.mark.usefixtures("drawing")
def test_render_in_three_modes(run: Path, tmp_path: Path) -> None:
    video = tmp_path / "small.mp4"
    command = ("render", "--latest", "--size", "64x64")
    (line,) = human_lines(*command)
    assert Path(line).parent == run / "videos"
    assert Path(line).stat().st_size > 1000
    assert Path(quiet_line(*command, "--output", video)) == video
    printed = document(*command, "--output", video, "--force", "--target", "5,40")
    assert printed["path"] == str(video)
    assert video.is_file()
    assert printed["run"] == run.name
    assert printed["num_frames"] > 1
    assert [episode["target_return"] for episode in printed["episodes"]] == [5, 40]


def test_params_in_three_modes() -> None:
    models = document("params")["models"]
    assert [model["size"] for model in models] == list(SIZES)
    assert [model["parameters"] for model in models] == [model["parameters_formula"] for model in models]
    assert models[-1]["parameters_published"] == 1_936_361_838
    assert gq("params", "-q").stdout.split() == [str(model["parameters"]) for model in models]
    assert quiet_line("params", "0.1b") == str(models[2]["parameters"])
    assert any("= 104,894,993" in line for line in human_lines("params"))


def test_params_of_a_run_and_of_data(run: Path, data: Path) -> None:
    (model,) = document("params", run)["models"]
    assert model["parameters"] == document("train", "dt", "--out", run, "--resume", "--dry-run")["parameters"]
    result = gq("params", "13m", "--dataset", data)
    assert result.stderr.startswith("warning: 13m has ")
    assert "Hopper-v5" in result.stdout
    assert gq("params", "--dataset", data).stderr.count("\n") == 1, "one warning for all sizes"


def test_a_plan_for_resuming_shows_the_stored_configuration(run: Path) -> None:
    printed = document("train", "dt", "--out", run, "--resume", "--steps", "9", "--dry-run")
    assert printed["config"]["train"]["steps"] == 9
    assert printed["config"]["model"]["embed_dim"] == 16


# Help and version


COMMANDS = (
    ["train", "dt"],
    ["train", "bc"],
    ["train", "odt"],
    ["train", "tdmpc2"],
    *(["runs", c] for c in ("list", "show", "rename", "remove", "prune")),
    ["doctor"],
    *(
        [c]
        for c in (
            "download",
            "repair",
            "finetune",
            "distill",
            "plot",
            "eval",
            "report",
            "compare",
            "render",
            "collect",
            "push",
            "pull",
            "params",
        )
    ),
)


def test_help_shows_examples_and_exit_codes() -> None:
    root = gq("--help").stdout
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in root
    assert [line.split()[0] for line in root.split("Commands:\n")[1].split("\n\n")[0].splitlines()] == [
        "download",
        "repair",
        "train",
        "finetune",
        "distill",
        "plot",
        "eval",
        "report",
        "table",
        "benchmark",
        "compare",
        "render",
        "collect",
        "push",
        "pull",
        "params",
        "doctor",
        "sweep",
        "runs",
    ]
    for command in ([], ["train"], *COMMANDS):
        text = gq(*command, "--help").stdout
        assert "Examples:\n    gq " in text, command
        assert text.startswith(" ".join(["Usage: gq", *command]))
        assert max(map(len, text.splitlines())) <= 80, command
        assert "<int>" not in text
        assert "default: 0]" not in text.split("--verbose")[-1].split("--no-color")[0]


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_a_command_group_alone_shows_its_help(arguments: list[str]) -> None:
    result = gq(*arguments)
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert result.stdout == ""


def test_every_command_takes_the_same_output_options() -> None:
    for command in COMMANDS:
        text = gq(*command, "--help").stdout
        for option in ("--json", "-q, --quiet", "-v, --verbose", "--no-color", "--no-progress"):
            assert f"  {option} " in text, (command, option)


def test_the_version_and_the_block_for_bug_reports() -> None:
    from gq import __version__

    assert gq("--version").stdout == f"gq {__version__}\n"
    lines = gq("--version", "-v").stdout.splitlines()
    assert lines[0] == f"gq {__version__}"
    names = {line.split()[0] for line in lines}
    assert names >= {"python", "torch", "mujoco", "gymnasium", "platform", "CUDA", "CPU", "OpenGL", "datasets", "runs"}


# Terminals


def in_terminal(*arguments: Any, **changes: str) -> str:
    """Run a command in a pseudo-terminal and return everything it shows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        gq_command(*arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=child_environment(**{"COLUMNS": "100", "TERM": "xterm-256color"} | changes),
    )
    os.close(slave)
    shown = b""
    while select.select([master], [], [], PATIENCE_S)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    assert process.wait(PATIENCE_S) == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


def test_training_is_live_in_a_terminal(data: Path) -> None:
    command = ("train", "dt", "--dataset", data, "--steps", "200", *TINY, "--set", "train.log_every=1")
    shown = in_terminal(*command)  # takes a second or more, and the bar is drawn ten times a second
    assert COLOUR.search(shown)
    assert re.search(r"\d/200.* steps/s  loss \d\.\d{4}  grad \d", shown)
    assert re.search(r"step 200: mean return by target: \d+ at ", shown)


def test_colours_and_the_bar_can_be_switched_off() -> None:
    command = ("download", "builtin/hopper/medium", "--transitions", "300", "--force")
    assert COLOUR.search(in_terminal(*command))
    for arguments, changes in [([], {"NO_COLOR": "1"}), (["--no-color"], {})]:
        shown = in_terminal(*command, *arguments, **changes)
        assert not COLOUR.search(shown)
        assert "simulating" in shown
    shown = in_terminal(*command, "--no-progress")
    assert "simulating" not in shown
    assert "\x1b" not in shown


def test_names_with_brackets_are_shown_as_they_are(trained: Path, tmp_path: Path) -> None:
    run = copy_run(trained, tmp_path / "[red]run:smile:")
    assert human_lines("eval", run, "--episodes", "1", "--target", "1")[0].startswith("[red]run:smile:, step-")


def test_a_terminal_too_narrow_for_a_table_gets_all_of_it(run: Path) -> None:
    shown = in_terminal("params", "tdmpc2", "--size", "5", "--no-color", COLUMNS="50")
    assert "…" not in shown
    for value in ("parameters 5,159,082", "with target 8,152,227", "q 2,993,145", "original 31.8 G", "update 15.6 G"):
        assert value in shown
    listed = in_terminal("runs", "list", "--no-color", COLUMNS="60").splitlines()
    assert listed[0] == run.name
    assert "state finished" in listed[1]
    assert "changed (UTC)" in " ".join(listed)


def test_commands_and_paths_are_whole_lines_in_a_terminal(run: Path) -> None:
    lines = in_terminal("runs", "show", run, "--no-color", COLUMNS="60").splitlines()
    (command,) = [line for line in lines if line.startswith("again: gq train dt ")]
    assert command.endswith("model.context_length=4")
    assert any(line.startswith(f"in {run}, ") for line in lines)


def test_a_path_with_a_space_is_quoted_in_what_to_type_next(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    trained = gq("train", "dt", "--dataset", data, "--steps", "2", *TINY, "--set", "eval.every=0", "--out", run)
    assert trained.stderr.splitlines()[-1] == f"next: gq eval '{run}'"
    again = gq("train", "dt", "--dataset", data, "--out", run)
    assert f"gq train dt --out '{run}' --resume" in again.stderr


# As typed by a user


@pytest.mark.usefixtures("drawing")
def test_the_four_lines_of_the_product(tmp_path: Path) -> None:
    empty, home = tmp_path / "empty", tmp_path / "cache"
    empty.mkdir()
    for arguments in (
        ("download", "builtin/hopper/medium", "--transitions", "300"),
        ("train", "dt", "--steps", "4", *TINY),
        ("render", "--latest"),
        ("params",),
    ):
        result = gq_child(*arguments, cwd=empty, GQ_HOME=str(home), MUJOCO_GL="")
        assert result.returncode == 0, result.stderr
        if arguments[0] == "render":
            video = Path(result.stdout.strip())
    assert video.is_relative_to(home / "runs")
    assert video.suffix == ".mp4"
    assert not list(empty.iterdir()), "nothing is written where the user stands"
    assert sorted(path.name for path in home.iterdir()) == ["datasets", "runs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "empty"]


def test_halfcheetah_leaves_no_log_file(tmp_path: Path) -> None:
    task = resolve_task("HalfCheetah-v5")
    generator = np.random.default_rng(0)
    data, empty = tmp_path / "data.hdf5", tmp_path / "empty"
    empty.mkdir()
    with h5py.File(data, "w") as file:
        file["observations"] = generator.standard_normal((40, task.observation_dim))
        file["actions"] = generator.uniform(-1, 1, (40, task.action_dim))
        file["rewards"] = generator.uniform(0, 1, (40, 1))
        file["terminals"] = np.zeros(40, bool)
        file["timeouts"] = np.arange(40) % 20 == 19
    result = gq_child(
        *("train", "dt", "--dataset", data, "--task", "halfcheetah", "--steps", "2", "--target", "10"),
        *("--out", tmp_path / "run", *TINY),
        cwd=empty,
    )
    assert result.returncode == 0, result.stderr
    assert "1000         1" in result.stdout, "one whole episode was run"
    assert not list(empty.iterdir())


def test_params_of_the_newest_run_are_those_of_its_own_task(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQ_RUNS_DIR", str(trained.parent))
    newest = json.loads(gq("params", "--latest", "--json").stdout)
    named = json.loads(gq("params", trained, "--json").stdout)
    assert newest == named
    assert (newest["task"], len(newest["models"])) == ("Hopper-v5", 1)
