"""An environment of one's own package, from data to a video, each command in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from commandline import child_environment
from gq import presets
from gq.config import to_toml
from gq.errors import UsageError
from gq.files import parse_toml
from gq.paths import HUB_FILE
from gq.policies.loading import Acting, load_run
from gq.runs.folder import newest_unfinished
from tiny import as_flags

CODE = '''
import gymnasium
import numpy as np


class Point(gymnasium.Env):
    """A point that is to go to the middle; its forces differ in their bounds."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Dict(
        observation=gymnasium.spaces.Box(-9, 9, (2,)), desired_goal=gymnasium.spaces.Box(-9, 9, (2,))
    )
    action_space = gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))

    def __init__(self, speed=0.1, render_mode=None):
        self.speed, self.render_mode = speed, render_mode

    def seen(self):
        return {"observation": self.position.astype(np.float32), "desired_goal": np.zeros(2, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, np.float32)), action
        self.position = self.position + self.speed * (np.asarray(action) - [0, 2])
        distance = float(np.linalg.norm(self.position))
        return self.seen(), -distance, False, False, {"success": distance < 0.5}

    def render(self):
        return np.full((48, 64, 3), 99, np.uint8)


gymnasium.register("Point-v0", Point, max_episode_steps=20)
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "pointpkg"
version = "1"

[tool.hatch.build.targets.wheel]
include = ["pointpkg"]
"""
SMALL = as_flags({"model.embed_dim": 16, "model.num_heads": 2, "model.num_kv_heads": 2, "model.num_layers": 1})
WORLD = [
    *as_flags({"model.encoder_dim": 16, "model.mlp_dim": 32, "model.latent_dim": 16, "planner.iterations": 2}),
    *as_flags({"planner.num_samples": 16, "planner.num_policy_samples": 4, "planner.num_elites": 4}),
    *as_flags({"train.seed_decisions": 60, "train.updates_per_decision": 0.1, "eval.every": 0}),
]


def write_data(path: Path, keys: tuple[str, ...] = ("observation", "desired_goal")) -> None:
    """Write 30 episodes of random numbers in the environment's shapes."""
    generator, rows = np.random.default_rng(0), 600
    with h5py.File(path, "w") as root:
        for key in keys:
            root[f"observations/{key}"] = generator.normal(size=(rows, 2)).astype(np.float32)
        root["actions"] = generator.uniform([-1, 0], [1, 4], (rows, 2)).astype(np.float32)
        root["rewards"] = -generator.uniform(0, 1, rows).astype(np.float32)
        root["terminals"] = np.zeros(rows, bool)
        root["truncateds"] = np.arange(rows) % 20 == 19


def gq(folder: Path, *arguments: object, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = child_environment() | {"GQ_HOME": str(folder / "home")}
    if packages:
        paths = [str(packages), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "gq", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def succeed(folder: Path, *arguments: object, packages: Path | None = None) -> str:
    result = gq(folder, *arguments, packages=packages)
    assert result.returncode == 0, (arguments, result.stderr)
    return result.stdout


def test_a_module_of_the_current_folder_trains_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pointmod.py").write_text(CODE)
    write_data(tmp_path / "mine.hdf5")
    arguments = ["--dataset", "mine.hdf5", "--task", "pointmod:Point-v0", "--env-kwargs", '{"speed": 0.2}']
    short = [*SMALL, "--steps", 4, "--set", "eval.every=0"]
    run = Path(succeed(tmp_path, "train", "dt", *arguments, *short, "--out", tmp_path / "run", "-q").strip())
    section = parse_toml((run / "config.toml").read_text())["environment"]
    assert (section["id"], section["kwargs"], section["max_episode_steps"]) == ("pointmod:Point-v0", {"speed": 0.2}, 20)
    assert section["observation_keys"] == ["observation", "desired_goal"]
    found = json.loads(succeed(tmp_path, "eval", run, "--checkpoint", "last", "--episodes", 2, "--json"))
    assert {result["length_mean"] for result in found["results"]} == {20.0}
    assert all(0 <= result["success_rate"] <= 1 for result in found["results"])

    (run / HUB_FILE).write_text("{}")
    refused = gq(tmp_path, "eval", run, "--checkpoint", "last", "--episodes", 2)
    assert refused.returncode == 2
    assert "runs code of the module pointmod" in refused.stderr
    assert "--allow-module pointmod" in refused.stderr
    with pytest.raises(UsageError, match="was pulled"):
        load_run(run, Acting(checkpoint="last", allow_module="other"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_run(run, Acting(checkpoint="last", allow_module="pointmod")).config.environment.kwargs == {"speed": 0.2}


def test_a_task_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    write_data(tmp_path / "mine.hdf5")
    for arguments in (["dt", "--dataset", "mine.hdf5"], ["tdmpc2", "--size", "1"]):
        result = gq(tmp_path, "train", *arguments, "--task", "nowhere:Point-v0", "--out", tmp_path / "run")
        assert (result.returncode, (tmp_path / "run").exists()) == (2, False)
        assert "there is no task nowhere:Point-v0" in result.stderr
        assert not (tmp_path / "home" / "runs").exists()


@pytest.mark.slow
def test_an_installed_package_works_with_every_command(tmp_path: Path) -> None:
    package, site = tmp_path / "src", tmp_path / "site"
    (package / "pointpkg").mkdir(parents=True)
    (package / "pointpkg" / "__init__.py").write_text(CODE)
    (package / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(package)], check=True)
    write_data(tmp_path / "mine.hdf5")
    task = ["--task", "pointpkg:Point-v0"]
    short = [*SMALL, "--steps", 4, "--set", "eval.every=0"]
    succeed(tmp_path, "train", "dt", "--dataset", "mine.hdf5", *task, *short, "--out", "dt", packages=site)
    succeed(tmp_path, "train", "bc", "--dataset", "mine.hdf5", *task, "--steps", 4, "--out", "bc", packages=site)
    succeed(tmp_path, "train", "tdmpc2", *task, *WORLD, "--decisions", 80, "--out", "world", packages=site)
    for run in ("dt", "world"):
        succeed(tmp_path, "eval", run, "--checkpoint", "last", "--episodes", 2, packages=site)
        succeed(tmp_path, "render", run, "--checkpoint", "last", "--output", f"{run}.mp4", packages=site)
        collect = ["collect", run, "--checkpoint", "last", "--episodes", 3, "-o", f"{run}.hdf5"]
        succeed(tmp_path, *collect, packages=site)
        assert (tmp_path / f"{run}.mp4").stat().st_size > 0
    again = ["train", "dt", "--dataset", "world.hdf5", *task, *short, "--out", "again"]
    succeed(tmp_path, *again, packages=site)
    unnamed = gq(tmp_path, "train", "dt", "--dataset", "world.hdf5", *short, "--out", "b", packages=site)
    assert "whose code is run only if you name it" in unnamed.stderr


def test_a_run_without_a_checkpoint_is_not_what_plain_resume_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GQ_HOME", str(tmp_path))
    failed = tmp_path / "runs" / "hopper-v5-dt-1m-20260101-000000-aaaa"
    failed.mkdir(parents=True)
    (failed / "config.toml").write_text(to_toml(presets.dt("1m")))
    with pytest.raises(UsageError, match="there is no unfinished dt run"):
        newest_unfinished("dt")
    (failed / "checkpoints" / "step-000000001").mkdir(parents=True)
    assert newest_unfinished("dt") == failed
