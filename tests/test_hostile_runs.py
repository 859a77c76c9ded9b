"""Run folders that were edited, swapped or crafted: none evaluates to another number, none raises a traceback."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commandline import TINY, document, gq, train_tiny
from gq.errors import GqError
from gq.paths import checkpoint_folders
from gq.runs.bound import check_run, read_state, settings_of
from gq.runs.folder import read_config

pytestmark = [pytest.mark.usefixtures("fast_disk")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def another(trained: Path, folder: Path) -> Path:
    """Train a run of another seed on the same data."""
    data = trained.parent / "data.hdf5"
    result = gq("train", "dt", "--dataset", data, "--steps", "4", "--out", folder / "other", *TINY, "--seed", "5")
    assert result.exit_code == 0, result.stderr
    return folder / "other"


def edit(run: Path, old: str, new: str) -> None:
    path = run / "config.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def craft(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change state.json, and the manifest so that its hash is right again."""
    folder = checkpoint_folders(run)[-1]
    file = folder / "state.json"
    state = json.loads(file.read_text())
    changed = change(state)
    file.write_text(json.dumps(state if changed is None else changed))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    content = file.read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def setting(run: Path, key: str) -> str:
    """Return a line of config.toml."""
    return next(line for line in (run / "config.toml").read_text().splitlines() if line.startswith(f"{key} = "))


def test_every_setting_is_in_the_hashed_checkpoint(run: Path) -> None:
    folder = checkpoint_folders(run)[-1]
    state = read_state(folder)
    assert state["config"] == settings_of(read_config(run))
    assert {"model.embed_dim", "data.dataset", "task", "optim.learning_rate"} <= state["config"].keys()
    check_run(run, folder)


@pytest.mark.parametrize("key", ["rope_theta", "num_heads", "learning_rate", "seed", "return_scale", "context_length"])
def test_an_edited_setting_is_refused_with_both_values(run: Path, key: str) -> None:
    line = setting(run, key)
    value = line.split(" = ")[1]
    other = {"num_heads": "1", "context_length": "7", "rope_theta": "12.0"}.get(
        key, "3" if "." not in value else "0.123"
    )
    edit(run, line, f"{key} = {other}")
    for command in (
        ["eval", run, "--episodes", "1"],
        ["render", run],
        ["collect", run, "-o", run / "d.hdf5", "--episodes", "1"],
    ):
        result = gq(*command)
        assert result.exit_code in (1, 2), command
        assert f"{key} = " in result.stderr
        assert "the checkpoint was made with" in result.stderr
        assert len(result.stderr.strip().splitlines()) <= 4
        assert "Traceback" not in result.stderr
    resumed = gq("train", "dt", "--out", run, "--resume", "--steps", "6")
    assert resumed.exit_code in (1, 2)
    assert "the checkpoint was made with" in resumed.stderr
    compared = gq("compare", run, run)
    assert compared.exit_code in (1, 2)
    examined = gq("doctor", "--offline", "--verify", "--json")
    assert "Traceback" not in examined.stderr


def test_what_may_change_on_resumption_may_be_edited(run: Path) -> None:
    edit(run, setting(run, "num_episodes"), "num_episodes = 2")
    edit(run, setting(run, "log_every"), "log_every = 1")
    assert gq("eval", run, "--episodes", "1").exit_code == 0
    resumed = gq("train", "dt", "--out", run, "--resume", "--steps", "5", "--set", "eval.num_episodes=1")
    assert resumed.exit_code == 0, resumed.stderr


def test_the_configuration_of_another_run_is_found(trained: Path, run: Path, tmp_path: Path) -> None:
    other = another(trained, tmp_path)
    shutil.copy(other / "config.toml", run / "config.toml")
    result = gq("eval", run, "--episodes", "1")
    assert result.exit_code in (1, 2)
    assert "the checkpoint was made with" in result.stderr


def test_swapped_weights_of_a_valid_shape_are_found(trained: Path, run: Path, tmp_path: Path) -> None:
    other = another(trained, tmp_path)
    source, target = (checkpoint_folders(one)[-1] / "model.safetensors" for one in (other, run))
    shutil.copy(source, target)
    result = gq("eval", run, "--episodes", "1")
    assert result.exit_code == 1
    assert "its bytes are not those that were written" in result.stderr


CRAFTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [],
    "a number": lambda state: 5,
    "no step": lambda state: {key: value for key, value in state.items() if key != "step"},
    "another step": lambda state: state | {"step": 77},
    "a text as step": lambda state: state | {"step": "two"},
    "a negative size": lambda state: state | {"metrics_bytes": -1},
    "a huge size": lambda state: state | {"metrics_bytes": 1 << 60},
    "progress that is no object": lambda state: state | {"progress": [1, 2]},
    "progress of another kind": lambda state: state | {"progress": state["progress"] | {"decisions": 4}},
    "progress that is text": lambda state: state | {"progress": state["progress"] | {"step": "many"}},
    "progress without end": lambda state: state | {"progress": state["progress"] | {"step": 10**17}},
    "versions that are a list": lambda state: state | {"versions": ["x"]},
    "data that are a text": lambda state: state | {"dataset": "hopper"},
    "a configuration that is a list": lambda state: state | {"config": ["x"]},
    "a configuration with escapes": lambda state: state | {"config": {"model.embed_dim": "\x1b[31mred"}},
    "deep nesting": lambda state: state | {"progress": {"step": [[[[[[[[[[1]]]]]]]]]]}},
}


@pytest.mark.parametrize("how", CRAFTED)
def test_a_crafted_state_is_refused_in_two_lines(run: Path, how: str) -> None:
    craft(run, CRAFTED[how])
    for command in (["train", "dt", "--out", run, "--resume", "--steps", "5"], ["eval", run, "--episodes", "1"]):
        result = gq(*command)
        assert "Traceback" not in result.stderr, (how, command)
        assert "\x1b" not in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith(("error", "hint"))]) <= 4
        if command[0] == "train":
            assert result.exit_code in (1, 2), result.stderr


def test_a_pipe_in_the_place_of_a_file_is_no_file(run: Path) -> None:
    folder = checkpoint_folders(run)[-1]
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    result = gq("eval", run, "--episodes", "1")
    assert result.exit_code == 1
    assert "model.safetensors is missing" in result.stderr


def test_a_pointer_to_elsewhere_is_not_followed(run: Path) -> None:
    for name in ("../../../etc", "step-1/../../..", "/etc"):
        (run / "checkpoints" / "best.json").write_text(json.dumps({"checkpoint": name}))
        found = document("eval", run, "--episodes", "1")
        assert found["checkpoint"] == checkpoint_folders(run)[-1].name


def test_states_of_the_version_before_hold_no_configuration_and_open(run: Path) -> None:
    craft(run, lambda state: {key: value for key, value in state.items() if key != "config"})
    assert gq("eval", run, "--episodes", "1").exit_code == 0
    check_run(run, checkpoint_folders(run)[-1])
    craft(run, lambda state: state | {"config": {"task": "Walker2d-v5"}})
    with pytest.raises(GqError, match="task = "):
        check_run(run, checkpoint_folders(run)[-1])
