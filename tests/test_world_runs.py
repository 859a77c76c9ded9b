"""Runs of TD-MPC2 are evaluated, filmed and collected like any other, by planning or by the policy network alone."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from breaking import forked
from commandline import TINY, copy_run, gq, train_tiny
from gq import presets
from gq.collecting import CollectionRequest, collect
from gq.config import TDMPC2Config
from gq.data.reading import read_trajectories
from gq.errors import Interrupted, UsageError
from gq.planning.acting import MAX_BLOCK_SIZE, PlanningPolicy
from gq.policies.loading import Acting, load_run
from gq.rendering import VideoOptions, render
from gq.results.evaluate import evaluate
from gq.rollouts.collect import episode_start
from gq.rollouts.episodes import EpisodeRequest
from gq.training.world import train_world_model
from simulator import make

pytestmark = pytest.mark.usefixtures("one_thread")

FAILED, USAGE = 1, 2
SETTINGS = {
    "model.encoder_dim": 16,
    "model.mlp_dim": 32,
    "model.latent_dim": 16,
    "planner.iterations": 2,
    "planner.num_samples": 16,
    "planner.num_policy_samples": 4,
    "planner.num_elites": 4,
    "train.decisions": 60,
    "train.seed_decisions": 50,
    "train.updates_per_decision": 0.2,
    "train.batch_size": 8,
    "train.device": "cpu",
    "train.precision": "float32",
    "eval.every": 0,
}


def trained(folder: Path, task: str) -> Path:
    """Train a tiny agent for a moment."""
    config = presets.tdmpc2("1").replace({"task": task, **SETTINGS})
    assert isinstance(config, TDMPC2Config)
    return train_world_model(config, folder / "agent").run


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent whose episodes last a few steps."""
    return trained(tmp_path_factory.mktemp("pendulum"), "InvertedPendulum-v5")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent for a task of DeepMind Control."""
    pytest.importorskip("dm_control")
    return trained(tmp_path_factory.mktemp("cartpole"), "cartpole-swingup")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("transformer"))


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_a_control_run_is_evaluated_in_both_modes(cartpole: Path, tmp_path: Path) -> None:
    run = copy_run(cartpole, tmp_path / "agent")
    result = gq("eval", run, "--mode", "policy,plan", "--episodes", "1", "--seed", "7", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert [row["mode"] for row in printed["results"]] == ["policy", "plan"]
    assert [row["target_return"] for row in printed["results"]] == [None, None]
    assert [row["num_episodes"] for row in printed["results"]] == [1, 1]
    assert [row["length_mean"] for row in printed["results"]] == [500, 500]
    counts = {"decisions": 60, "frames": 120, "action_repeat": 2, "step": 12}
    assert {name: printed[name] for name in counts} == counts
    assert {"mujoco", "dm_control"} <= printed["versions"].keys()
    (file,) = (run / "evals").iterdir()
    episodes = json.loads(file.read_text())["episodes"]
    assert [(episode["mode"], episode["seed"]) for episode in episodes] == [("policy", 7), ("plan", 7)]
    assert not any("target_return" in episode for episode in episodes)


def test_the_table_has_a_column_of_modes_and_none_of_targets(pendulum: Path) -> None:
    result = gq("eval", pendulum, "--episodes", "2", "--mode", "plan,policy,plan")
    caption, headings, *rows, legend, basis = [line.rstrip() for line in result.stdout.splitlines() if line.strip()]
    assert caption.startswith("agent, step-000000012, InvertedPendulum-v5, after 60 decisions, 60 frames")
    assert headings.split()[:2] == ["mode", "return"]
    assert [row.split()[0] for row in rows] == ["plan", "policy", "mode", "plan", "policy"]
    assert legend.startswith("episodes of each: 2; ")
    assert "mujoco" in basis
    assert "gymnasium" in basis
    assert "dm_control" not in basis
    assert gq("eval", pendulum, "--episodes", "1", "-q").stdout.count(" ") == 0, "planning only"


def test_an_episode_is_the_same_alone_and_among_others(pendulum: Path) -> None:
    for mode in ("plan", "policy"):
        among = evaluate(pendulum, Acting(stochastic=True), EpisodeRequest(4), modes=[mode])
        alone = [
            evaluate(pendulum, Acting(stochastic=True), EpisodeRequest(1, seed=seed), modes=[mode])
            .results[0]
            .return_mean
            for seed in range(4)
        ]
        assert among.results[0].return_mean == np.mean(alone)
        assert among.results[0].return_max == max(alone)


def test_actions_are_sampled_only_when_asked(pendulum: Path) -> None:
    observations = np.full((1, 4), 0.01, np.float32)
    for mode in ("plan", "policy"):
        actions = []
        for stochastic, seed in [(False, 0), (False, 0), (True, 0), (True, 0), (True, 1)]:
            policy = load_run(pendulum, Acting(mode=mode, stochastic=stochastic, device="cpu")).policy
            policy.reset(np.zeros(1), [seed])
            actions.append(float(policy.act(np.array([0]), observations)[0, 0]))
        mean, again, first, first_again, second = actions
        assert mean == again
        assert first == first_again
        assert len({mean, first, second}) == 3
    policies = [load_run(pendulum, Acting(mode="policy", device="cpu")).policy for _ in range(2)]
    for seed, policy in enumerate(policies):
        policy.reset(np.zeros(1), [seed])
    first, second = (policy.act(np.array([0]), observations) for policy in policies)
    assert np.array_equal(first, second), "the policy's mean needs no draws"


# --- acting in blocks -------------------------------------------------------------------------------------------------


def walk(policy: Any, rows_of_steps: list[list[int]], num_episodes: int) -> dict[int, np.ndarray]:
    """Return the actions of the episodes that run in each step, for observations made up from row and step."""
    policy.reset(np.zeros(num_episodes), [10 + row for row in range(num_episodes)])
    actions: dict[int, list[np.ndarray]] = {row: [] for row in range(num_episodes)}
    for step, rows in enumerate(rows_of_steps):
        observations = np.array([[0.1 * row, 0.2 * step, 0.3, -0.1] for row in rows], np.float32)
        for row, action in zip(rows, policy.act(np.array(rows), observations), strict=True):
            actions[row].append(action)
    return {row: np.stack(parts) for row, parts in actions.items() if parts}


@pytest.mark.parametrize("mode", ["plan", "policy"])
def test_bits_do_not_depend_on_which_other_episodes_run(pendulum: Path, mode: Any) -> None:
    num_episodes = MAX_BLOCK_SIZE + 3  # more than one block
    policy = load_run(pendulum, Acting(mode=mode, stochastic=True, device="cpu")).policy
    everyone = list(range(num_episodes))
    full = walk(policy, [everyone] * 3, num_episodes)
    thinned = walk(policy, [everyone, [0, 2, MAX_BLOCK_SIZE + 1], [2, MAX_BLOCK_SIZE + 1]], num_episodes)
    assert np.array_equal(full[2], thinned[2])
    assert np.array_equal(full[MAX_BLOCK_SIZE + 1], thinned[MAX_BLOCK_SIZE + 1])
    assert np.array_equal(full[0][:2], thinned[0])
    assert not np.isclose(full[2], full[3]).any(), "episodes draw numbers of their own"


def test_plans_of_a_block_are_those_of_each_alone(pendulum: Path) -> None:
    """As on a GPU, where a block is planned at once, with rows that nobody uses."""
    policy = load_run(pendulum, Acting(device="cpu")).policy
    assert isinstance(policy, PlanningPolicy)
    rows = [[0, 1, 2, 3], [1, 3], [3]]
    alone = walk(policy, rows, 4)
    assert policy.block_size == 1
    reset = policy.reset

    def reset_as_one_block(target_returns: np.ndarray, seeds: Any) -> None:
        reset(target_returns, seeds)
        policy.block_size = 4

    policy.reset = reset_as_one_block  # type: ignore[method-assign]
    together = walk(policy, rows, 4)
    for row in range(4):
        np.testing.assert_allclose(together[row], alone[row], rtol=1e-4, atol=1e-5)
    assert np.isfinite(policy.planned_values).all()


# --- films ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawing")
def test_a_film_of_a_control_run_is_in_real_time(cartpole: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    result = gq("render", cartpole, "--mode", "policy", "--output", output, "--size", "64x48", "--fps", "10", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["fps"] == pytest.approx(10), "a decision is two control steps of 10 ms"
    assert (printed["num_frames"], printed["mode"], printed["episodes"][0]["length"]) == (100, "policy", 500)
    with av.open(output) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 100
    assert frames[0].shape == (48, 64, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 30, "something moves"
    assert "policy: return " in result.stderr


@pytest.mark.usefixtures("drawing")
def test_a_film_shows_the_episodes_of_the_evaluation(pendulum: Path, tmp_path: Path) -> None:
    film = render(
        pendulum,
        episodes=EpisodeRequest(2, seed=3),
        video=VideoOptions(width=64, height=64, fps=5),
        output=tmp_path / "a.gif",
    )
    assert film.mode == "plan"
    measured = evaluate(pendulum, episodes=EpisodeRequest(2, seed=3)).results[0]
    assert np.mean([episode.episode_return for episode in film.episodes]) == pytest.approx(measured.return_mean)


# --- datasets ---------------------------------------------------------------------------------------------------------

NUM_EPISODES = 18  # more than a block


@pytest.fixture(scope="module")
def collected(pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("collected") / "a.hdf5"
    collect(pendulum, output, CollectionRequest(num_episodes=NUM_EPISODES, seed=4))
    return output.read_bytes()


@pytest.mark.parametrize("num_envs", [1, 5])
def test_the_number_of_environments_changes_no_byte(
    pendulum: Path, tmp_path: Path, collected: bytes, num_envs: int
) -> None:
    collect(pendulum, tmp_path / "b.hdf5", CollectionRequest(num_episodes=NUM_EPISODES, seed=4, num_envs=num_envs))
    assert (tmp_path / "b.hdf5").read_bytes() == collected


def test_a_signal_changes_no_byte(pendulum: Path, tmp_path: Path, collected: bytes) -> None:
    def interrupt(done: int, _: int | None) -> None:
        if done >= 40:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="finished episodes are kept"):
        collect(
            pendulum,
            tmp_path / "b.hdf5",
            CollectionRequest(num_episodes=NUM_EPISODES, seed=4, num_envs=3),
            progress=interrupt,
        )
    collect(pendulum, tmp_path / "b.hdf5", CollectionRequest(num_episodes=NUM_EPISODES, seed=4))
    assert (tmp_path / "b.hdf5").read_bytes() == collected


def test_a_kill_changes_no_byte(pendulum: Path, tmp_path: Path, collected: bytes) -> None:
    output = tmp_path / "b.hdf5"

    def kill(done: int, _: int | None) -> None:
        if done >= 60:
            os.kill(os.getpid(), signal.SIGKILL)

    wanted = CollectionRequest(num_episodes=NUM_EPISODES, seed=4, num_envs=3)
    process = forked(lambda: collect(pendulum, output, wanted, progress=kill))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / ".b.hdf5.parts" / "episodes").stat().st_size > 0
    notes: list[str] = []
    collect(pendulum, output, CollectionRequest(num_episodes=NUM_EPISODES, seed=4), note=notes.append)
    assert output.read_bytes() == collected
    assert any("resuming with what is in" in note for note in notes)


def test_the_mode_decides_what_is_collected_and_is_in_the_file(pendulum: Path, tmp_path: Path) -> None:
    files = {
        mode: collect(pendulum, tmp_path / f"{mode}.hdf5", CollectionRequest(num_episodes=2), Acting(mode=mode))
        for mode in ("plan", "policy")
    }
    assert files["plan"].sha256 != files["policy"].sha256
    for mode in files:
        with h5py.File(tmp_path / f"{mode}.hdf5") as file:
            assert file.attrs["mode"] == mode
            assert file.attrs["command"] == (
                f"gq collect agent --checkpoint 12 --mode {mode} --noise 0.0 --random-share 0.0 --seed 0 --episodes 2"
            )
            assert "gymnasium_version" in file.attrs
            assert "dm_control_version" not in file.attrs
    default = collect(pendulum, tmp_path / "default.hdf5", CollectionRequest(num_episodes=2))
    assert default.sha256 == files["plan"].sha256
    with pytest.raises(UsageError, match="made with mode = policy, not plan"):
        collect(pendulum, tmp_path / "policy.hdf5", CollectionRequest(num_episodes=2))


def test_data_of_a_control_task_are_what_happened_and_train_a_transformer(cartpole: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.hdf5"
    result = gq("collect", cartpole, "-o", data, "--mode", "policy", "--episodes", "2", "--noise", "0.3", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert (printed["env_id"], printed["transitions"], printed["terminated_share"]) == ("cartpole-swingup", 1000, 0)
    stored = read_trajectories(data)
    environment = make("cartpole-swingup")
    observation, _ = environment.reset(seed=episode_start(0, 1)[0])
    for row in range(500, 1000):
        assert np.array_equal(stored.observations[row], observation)
        observation, reward, *_ = environment.step(stored.actions[row])
        assert stored.rewards[row] == np.float32(reward)
    with h5py.File(data) as file:
        assert np.flatnonzero(file["timeouts"]).tolist() == [499, 999]
        assert "dm_control_version" in file.attrs
        assert "gymnasium_version" not in file.attrs
    result = gq(
        "train", "dt", "--dataset", data, "--steps", "2", "--out", tmp_path / "dt", *TINY, "--set", "eval.every=0"
    )
    assert result.exit_code == 0, result.stderr
    result = gq("eval", tmp_path / "dt", "--episodes", "1", "--target", "100", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert (printed["task"], printed["warnings"]) == ("cartpole-swingup", [])
    assert printed["results"][0]["length_mean"] == 500


# --- what is refused --------------------------------------------------------------------------------------------------


def assert_refused(result: Any, message: str, hint: str) -> None:
    assert result.exit_code == USAGE, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


COMMANDS = {"eval": [], "render": [], "collect": ["-o", "unused.hdf5"]}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("drawing")
def test_targets_and_unknown_modes_are_refused(
    pendulum: Path, transformer: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = COMMANDS[command]
    assert_refused(gq(command, pendulum, *options, "--target", "100"), "target", "omit --target")
    assert_refused(
        gq(command, pendulum, *options, "--mode", "zzz"),
        "unknown mode 'zzz'",
        "modes: baseline, policy, naive3, hybrid3",
    )
    assert_refused(gq(command, pendulum, *options, "--mode", ""), "unknown mode ''", "modes: baseline, ")
    for mode in ("plan", "policy"):
        refused = gq(command, transformer, *options, "--mode", mode)
        assert_refused(refused, "dt runs have no planner", "omit --mode")
    assert list(tmp_path.glob("*.hdf5")) == []


def test_a_builtin_policy_has_no_modes(tmp_path: Path) -> None:
    result = gq("collect", "builtin/hopper/expert", "-o", tmp_path / "a.hdf5", "--mode", "plan")
    assert_refused(result, "builtin/hopper/expert has no planner", "omit --mode")


def test_a_missing_dm_control_is_one_hint(cartpole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dm_control" or name == "gq.envs.control"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dm_control", None)
    result = gq("eval", cartpole, "--episodes", "1")
    assert result.exit_code == FAILED
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: DeepMind Control tasks need dm_control")
    assert lines[1] == 'hint: pip install "gym-qwen[dmc]"'
