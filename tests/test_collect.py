"""Collected data are what the simulator did, and the same bits however they were made."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import filelock
import h5py
import numpy as np
import pytest

from breaking import forked
from commandline import TINY, gq, train_tiny
from gq import collecting
from gq.collecting import Collected, CollectionRequest, collect
from gq.data.reading import read_trajectories
from gq.data.replay import EpisodeLog, LoggedEpisode
from gq.data.trajectories import Trajectories
from gq.errors import DataError, GqError, UsageError
from gq.policies.loading import Acting
from gq.rollouts.collect import BLOCK_SIZE, Recipe, episode_start, record_episodes
from simulator import make
from tiny import write_hopper_file

BUILTIN = "builtin/hopper/expert"
pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def bc_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cloned")
    data = write_hopper_file(folder / "data.hdf5")
    sizes = ("--set", "model.embed_dim=16", "--set", "model.context_length=4", "--set", "eval.num_episodes=1")
    result = gq("train", "bc", "--dataset", data, "--steps", "4", "--out", folder / "run", *sizes)
    assert result.exit_code == 0, result.stderr
    return folder / "run"


class FakePolicy:
    """Propose the same action always, plus numbers from torch's default generator."""

    is_rowwise = False

    def __init__(self, action: np.ndarray, *, spread: float = 0.0) -> None:
        self.action, self.spread, self.autocast = action, spread, nullcontext
        self.returns_to_go = np.zeros(0)
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        self.executed: list[np.ndarray] = []

    def reset(self, target_returns: np.ndarray, seeds: Sequence[int]) -> None:
        self.returns_to_go, self.seeds = target_returns, seeds
        self.generators = [np.random.default_rng(seed) for seed in seeds]

    def act(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        self.batches.append((rows, observations.copy()))
        drawn = np.array([self.generators[row].standard_normal(len(self.action)) for row in rows])
        return np.tile(self.action, (len(rows), 1)) + self.spread * drawn

    def record(self, rows: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        self.executed.append(actions.copy())


def record(
    task: str, policy: Any, recipe: Recipe, num_episodes: int, num_envs: int = BLOCK_SIZE
) -> dict[int, LoggedEpisode]:
    """Run the first episodes, at most a block, in groups of `num_envs`."""
    episodes: dict[int, LoggedEpisode] = {}
    environments = [make(task) for _ in range(num_envs)]
    for start in range(0, num_episodes, num_envs):
        record_episodes(
            policy,
            environments,
            range(start, min(start + num_envs, num_episodes)),
            recipe,
            finished=episodes.__setitem__,
            stepped=lambda num_running: False,
        )
    return episodes


def stacked_actions(episodes: dict[int, LoggedEpisode]) -> np.ndarray:
    return np.concatenate([np.stack(episodes[number].actions) for number in sorted(episodes)])


# --- equal bits -------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"targets": [10.0, 50.0, 90.0], "noise": 0.2, "random_share": 0.1, "seed": 5}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_number_of_environments_changes_no_byte(run: Path, tmp_path: Path, num_envs: int) -> None:
    plain = collect(run, tmp_path / "plain.hdf5", CollectionRequest(num_episodes=20, **OPTIONS))
    other = collect(run, tmp_path / "other.hdf5", CollectionRequest(num_episodes=20, num_envs=num_envs, **OPTIONS))
    assert (tmp_path / "plain.hdf5").read_bytes() == (tmp_path / "other.hdf5").read_bytes()
    assert plain.sha256 == other.sha256


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"noise": 0.21}, {"random_share": 0.0}, {"targets": [10.0, 50.0]}, {"checkpoint": "last"}]
)
def test_every_option_is_in_the_file(run: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    plain = collect(run, str(tmp_path / "plain.hdf5"), CollectionRequest(num_episodes=2, **OPTIONS))
    is_same_checkpoint = "checkpoint" in change  # a run of four steps has only one
    wanted = CollectionRequest(num_episodes=2, **OPTIONS | ({} if is_same_checkpoint else change))
    acting = Acting(**change) if is_same_checkpoint else Acting()
    other = collect(run, tmp_path / "other.hdf5", wanted, acting)
    assert (plain.sha256 == other.sha256) == is_same_checkpoint


def test_the_policy_always_sees_a_whole_block_with_each_episode_in_its_own_row() -> None:
    wide, narrow = FakePolicy(np.zeros(3)), FakePolicy(np.zeros(3))
    recipe = Recipe(seed=1, targets=(1.0, 2.0, 3.0), noise=0.3)
    record("Hopper-v5", wide, recipe, 5)
    record("Hopper-v5", narrow, recipe, 5, num_envs=2)
    for policy in (wide, narrow):
        assert all(rows.tolist() == list(range(BLOCK_SIZE)) for rows, _ in policy.batches)
        assert policy.returns_to_go.tolist() == [1, 2, 3] * 5 + [1]
    first = wide.batches[0][1]
    assert (first[:5] != 0).any(axis=1).all()
    assert not first[5:].any(), "rows without an episode are zeros"
    starts = [observations for _, observations in narrow.batches if not observations[5:].any()]
    assert any(np.array_equal(observations[2:4], first[2:4]) for observations in starts), "the second group"


def test_a_policy_that_acts_row_by_row_is_asked_for_running_episodes_only() -> None:
    recipe = Recipe(seed=1, noise=0.3)
    policies = [FakePolicy(np.zeros(3)) for _ in range(3)]
    policies[1].is_rowwise = policies[2].is_rowwise = True
    blocks, alone, narrow = (
        record("Hopper-v5", policy, recipe, 5, n) for policy, n in zip(policies, (5, 5, 2), strict=True)
    )
    assert np.array_equal(stacked_actions(blocks), stacked_actions(alone))
    assert np.array_equal(stacked_actions(blocks), stacked_actions(narrow))
    lengths = [len(alone[number].rewards) for number in range(5)]
    asked = [row for rows, observations in policies[1].batches for row in rows.tolist()]
    assert [asked.count(number) for number in range(5)] == lengths
    assert all(len(rows) == len(observations) for rows, observations in policies[1].batches)
    assert all(policy.seeds == [episode_start(1, number)[0] for number in range(BLOCK_SIZE)] for policy in policies)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_policy_that_draws_is_repeated_too(num_envs: int) -> None:
    recipe = Recipe(seed=2, noise=0.1)
    actions = stacked_actions(record("Hopper-v5", FakePolicy(np.zeros(3), spread=0.2), recipe, 6))
    again = record("Hopper-v5", FakePolicy(np.zeros(3), spread=0.2), recipe, 6, num_envs)
    assert np.array_equal(actions, stacked_actions(again))
    first, second = (np.stack(again[number].actions)[:10] for number in (0, 1))
    assert not np.isclose(first, second).any(), "episodes have noise of their own"


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"])
def test_an_environment_that_is_used_again_remembers_nothing(task: str) -> None:
    recipe, policy = Recipe(seed=3, noise=0.5), FakePolicy(np.zeros(make(task).action_space.shape or 0))
    fresh, used = (record(task, policy, recipe, 2, num_envs) for num_envs in (2, 1))
    for number in range(2):
        assert np.array_equal(fresh[number].observations, used[number].observations)
        assert np.array_equal(fresh[number].rewards, used[number].rewards)


def test_blocks_draw_different_numbers() -> None:
    drawn = []
    for number in (0, BLOCK_SIZE):
        policy, episodes = FakePolicy(np.zeros(3), spread=0.2), dict[int, LoggedEpisode]()
        stepped = {"finished": episodes.__setitem__, "stepped": lambda num_running: False}
        record_episodes(policy, [make("Hopper-v5")], [number], Recipe(seed=2), **stepped)
        drawn.append(episodes[number].actions[:10])
    assert not np.isclose(*drawn).any()


def test_collecting_until_there_are_enough_transitions_takes_the_first_episodes(run: Path, tmp_path: Path) -> None:
    collect(run, tmp_path / "many.hdf5", CollectionRequest(num_episodes=40, **OPTIONS))
    enough = collect(run, tmp_path / "enough.hdf5", CollectionRequest(num_transitions=500, num_envs=4, **OPTIONS))
    many, some = read_trajectories(tmp_path / "many.hdf5"), read_trajectories(tmp_path / "enough.hdf5")
    assert enough.transitions == some.num_transitions >= 500 > some.offsets[-2], "the last episode goes beyond"
    assert np.array_equal(many.offsets[: len(some.offsets)], some.offsets)
    for name in ("observations", "actions", "rewards", "terminals"):
        assert np.array_equal(getattr(many, name)[:500], getattr(some, name)[:500]), name


# --- what is stored is what happened ----------------------------------------------------------------------------------


def replay(trajectories: Trajectories, seed: int, *, nudge: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Return the observations, rewards and terminals of the stored actions in a fresh environment."""
    environment = make(str(trajectories.task))
    observations, rewards, terminals = [], [], []
    for number in range(trajectories.num_episodes):
        observation, _ = environment.reset(seed=episode_start(seed, number)[0])
        for row in range(trajectories.offsets[number], trajectories.offsets[number + 1]):
            observations.append(observation)
            action = trajectories.actions[row] + np.float32(nudge)
            observation, reward, terminated, truncated, _ = environment.step(action)
            rewards.append(reward)
            terminals.append(terminated)
        assert terminated or truncated or nudge, "whole episodes"
    return np.array(observations, np.float32), np.array(rewards, np.float32), terminals


@pytest.mark.parametrize(("source", "num_episodes"), [("run", 20), (BUILTIN, 2)])
def test_the_stored_actions_give_the_stored_observations_and_rewards(
    run: Path, tmp_path: Path, source: str, num_episodes: int
) -> None:
    policy = run if source == "run" else source
    collect(
        policy, tmp_path / "a.hdf5", CollectionRequest(num_episodes=num_episodes, noise=0.1, random_share=0.05, seed=3)
    )
    stored = read_trajectories(tmp_path / "a.hdf5")
    observations, rewards, terminals = replay(stored, 3)
    assert np.array_equal(stored.observations, observations)
    assert np.array_equal(stored.rewards, rewards)
    assert stored.terminals.tolist() == terminals
    nudged, _, _ = replay(stored, 3, nudge=1e-4)
    assert not np.array_equal(stored.observations, nudged)


def test_the_file_is_canonical_and_says_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    done = collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=3, **OPTIONS))
    with h5py.File(tmp_path / "a.hdf5") as file:
        kinds = {name: (file[name].dtype, file[name].shape) for name in file}
        attributes = dict(file.attrs)
    num_rows = done.transitions
    assert kinds == {
        "observations": (np.float32, (num_rows, 11)),
        "actions": (np.float32, (num_rows, 3)),
        "rewards": (np.float32, (num_rows,)),
        "terminals": (bool, (num_rows,)),
        "timeouts": (bool, (num_rows,)),
    }
    expected = {"env_id": "Hopper-v5", "policy": "run", "checkpoint": "step-000000004", "seed": 5, "noise": 0.2}
    expected |= {"random_share": 0.1, "num_episodes": 3, "num_transitions": num_rows, "return_mean": done.return_mean}
    assert {name: attributes[name] for name in expected} == expected
    assert attributes["targets"].tolist() == [10, 50, 90]
    assert {"gymnasium_version", "mujoco_version", "numpy_version", "torch_version", "device"} <= attributes.keys()
    manifest = json.loads((run / "checkpoints/step-000000004/MANIFEST.json").read_text())
    assert attributes["policy_sha256"] == manifest["files"]["model.safetensors"]["sha256"]
    options = "--checkpoint 4 --target 10.0,50.0,90.0 --noise 0.2 --random-share 0.1 --seed 5 --episodes 3"
    assert attributes["command"] == f"gq collect run {options}"


def test_the_figures_are_those_of_the_file(run: Path, tmp_path: Path) -> None:
    done = collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=20, noise=0.5))
    stored = read_trajectories(tmp_path / "a.hdf5")
    assert (done.episodes, done.transitions) == (20, stored.num_transitions)
    assert done.return_mean == pytest.approx(stored.returns.mean())
    assert done.return_std == pytest.approx(stored.returns.std())
    assert done.length_mean == pytest.approx(stored.num_transitions / 20)
    assert done.terminated_share == stored.terminals.sum() / 20


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "action_dim", "half_range"), [("Hopper-v5", 3, 1.0), ("Humanoid-v5", 17, 0.4)])
def test_noise_is_in_half_action_ranges(task: str, action_dim: int, half_range: float) -> None:
    proposal = np.full(action_dim, 0.1 * half_range, np.float32)
    actions = stacked_actions(record(task, FakePolicy(proposal), Recipe(seed=0, noise=0.2), BLOCK_SIZE))
    noise = (actions - proposal) / half_range
    assert noise.size > 900
    assert noise.std() == pytest.approx(0.2, rel=4 / np.sqrt(2 * noise.size))
    assert noise.mean() == pytest.approx(0, abs=4 * 0.2 / np.sqrt(noise.size))


def test_the_policy_learns_of_the_actions_that_were_executed() -> None:
    policy = FakePolicy(np.zeros(3, np.float32))
    (episode,) = record("Hopper-v5", policy, Recipe(seed=0, noise=0.2), 1).values()
    assert np.array_equal([actions[0] for actions in policy.executed], episode.actions)
    assert all(actions[0].any() for actions in policy.executed), "with noise they are not the proposals"


def test_without_noise_the_proposals_are_executed() -> None:
    proposal = np.array([0.1, -0.2, 0.3], np.float32)
    actions = stacked_actions(record("Hopper-v5", FakePolicy(proposal), Recipe(seed=0), 4))
    assert (actions == proposal).all()


def test_a_share_of_the_steps_is_random() -> None:
    proposal = np.zeros(3, np.float32)
    actions = stacked_actions(record("Hopper-v5", FakePolicy(proposal), Recipe(seed=0, random_share=0.25), BLOCK_SIZE))
    is_random = (actions != proposal).any(axis=1)
    num_steps = len(actions)
    assert is_random.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / num_steps))
    drawn = actions[is_random]
    assert (actions != proposal).all(axis=1).sum() == len(drawn), "all of an action is"
    assert drawn.std() == pytest.approx(1 / np.sqrt(3), rel=0.15), "uniform on [-1, 1]"


@pytest.mark.parametrize(("task", "bound"), [("Hopper-v5", np.float32(1)), ("Humanoid-v5", np.float32(0.4))])
def test_actions_stay_inside_the_action_space(task: str, bound: np.float32) -> None:
    space: Any = make(task).action_space
    actions = stacked_actions(record(task, FakePolicy(2 * space.high), Recipe(seed=0, noise=3.0, random_share=0.1), 3))
    assert actions.dtype == np.float32
    assert all(space.contains(action) for action in actions)
    assert ((actions == bound) | (actions == -bound)).mean() > 0.5
    assert not space.contains(np.nextafter(actions.max(axis=0), np.float32(9)))


def test_a_policy_gone_wrong_is_refused() -> None:
    with pytest.raises(GqError, match="not a finite number"):
        record("Hopper-v5", FakePolicy(np.array([0, np.nan, 0])), Recipe(seed=0), 1)


# --- going on ---------------------------------------------------------------------------------------------------------


def count_episodes(monkeypatch: pytest.MonkeyPatch, *, stop_after: int = 10**9) -> list[int]:
    """Return a list that fills with the numbers of the episodes that are run; send SIGTERM after some."""
    numbers: list[int] = []
    append = EpisodeLog.append

    def counted(log: EpisodeLog, number: int, episode: LoggedEpisode) -> None:
        append(log, number, episode)
        numbers.append(number)
        if len(numbers) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EpisodeLog, "append", counted)
    return numbers


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "home")


def parts_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def test_a_stopped_collection_goes_on_where_it_was(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = collect(run, tmp_path / "whole.hdf5", CollectionRequest(num_episodes=20, **OPTIONS))
    output = tmp_path / "a.hdf5"
    notes: list[str] = []
    with monkeypatch.context() as patch:
        first = count_episodes(patch, stop_after=7)
        with pytest.raises(GqError, match=r"stopped by SIGTERM, \d+ finished episodes are kept") as stopped:
            collect(run, output, CollectionRequest(num_episodes=20, num_envs=5, **OPTIONS))
    assert stopped.value.exit_code == 130
    assert not output.exists()
    second = count_episodes(monkeypatch)
    resumed = collect(run, output, CollectionRequest(num_episodes=20, num_envs=7, **OPTIONS), note=notes.append)
    assert len(first) >= 7
    assert sorted(first + second) == list(range(20)), "no episode is run twice"
    assert resumed.sha256 == reference.sha256
    assert notes == [f"resuming with what is in {parts_of(output)}"]
    assert names_in(tmp_path) == ["a.hdf5", "whole.hdf5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "was begun with seed = 5, not 6"),
        ({"targets": [10.0]}, r"was begun with targets = \[10.0, 50.0, 90.0\], not \[10.0\]"),
        ({"num_episodes": 21}, "was begun with num_requested_episodes = 20, not 21"),
    ],
)
def test_parts_of_another_request_are_not_mixed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    wanted = CollectionRequest(num_episodes=20, **OPTIONS)
    changed = replace(wanted, **change)
    output = tmp_path / "a.hdf5"
    with monkeypatch.context() as patch:
        count_episodes(patch, stop_after=3)
        with pytest.raises(GqError, match="stopped"):
            collect(run, output, wanted)
    before = (parts_of(output) / "episodes").read_bytes()
    with pytest.raises(UsageError, match=message) as refused:
        collect(run, output, changed)
    assert "--force" in refused.value.hint
    assert (parts_of(output) / "episodes").read_bytes() == before
    forced = collect(run, output, changed, force=True)
    assert forced.sha256 == collect(run, tmp_path / "b.hdf5", changed).sha256


def test_another_file_is_not_overwritten_without_force(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.hdf5"
    output.write_text("mine")
    for _ in range(2):
        with pytest.raises(UsageError, match="is there already, and gq collect did not make it") as refused:
            collect(run, output, CollectionRequest(num_episodes=1))
        assert refused.value.hint == "replace it with --force, or choose another --output"
    assert output.read_text() == "mine"
    first = collect(run, output, CollectionRequest(num_episodes=1), force=True)
    with pytest.raises(UsageError, match="is there already, made with num_requested_episodes = 1, not 2"):
        collect(run, output, CollectionRequest(num_episodes=2))
    with pytest.raises(UsageError, match="is there already, made with num_requested_episodes = 1, not None"):
        collect(run, output, CollectionRequest(num_transitions=1))
    with pytest.raises(UsageError, match=r"is there already, made with targets = \[.*\], not \[1.0, 2.0\]"):
        collect(run, output, CollectionRequest(num_episodes=1, targets=[1.0, 2.0]))
    assert collecting.sha256(output) == first.sha256
    assert names_in(tmp_path) == ["a.hdf5"]


def test_a_file_of_another_format_is_not_taken_for_ours(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=1))
    monkeypatch.setattr(collecting, "FORMAT", 2)
    with pytest.raises(UsageError, match="made by another gq"):
        collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=1))


def test_the_same_command_again_finds_its_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    first = collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=3))
    numbers = count_episodes(monkeypatch)
    assert collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=3), note=notes.append) == first
    assert numbers == []
    assert notes == [f"{tmp_path / 'a.hdf5'} is there already"]
    assert collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=3), force=True) == first
    assert sorted(numbers) == [0, 1, 2]


def test_a_kill_between_the_file_and_the_removal_of_its_parts_is_harmless(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.hdf5"
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "remove", lambda parts: None)
        first = collect(run, output, CollectionRequest(num_episodes=3))
    assert (parts_of(output) / "request.json").exists()
    assert collect(run, output, CollectionRequest(num_episodes=3)) == first
    assert names_in(tmp_path) == ["a.hdf5"]


def test_the_same_command_again_keeps_what_another_one_began(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.hdf5"
    older = collect(run, output, CollectionRequest(num_episodes=3, **OPTIONS))
    with monkeypatch.context() as patch:
        first = count_episodes(patch, stop_after=7)
        with pytest.raises(GqError, match="stopped"):
            collect(run, output, CollectionRequest(num_episodes=20, **OPTIONS), force=True)
    assert collect(run, output, CollectionRequest(num_episodes=3, **OPTIONS)) == older
    second = count_episodes(monkeypatch)
    assert collect(run, output, CollectionRequest(num_episodes=20, **OPTIONS), force=True).episodes == 20
    assert sorted(first + second) == list(range(20)), "no episode is run twice"


def test_a_failed_write_keeps_the_episodes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = Mock(side_effect=GqError("cannot write: No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "write_canonical", fail)
        with pytest.raises(GqError, match="No space"):
            collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=3))
    assert not (tmp_path / "a.hdf5").exists()
    numbers = count_episodes(monkeypatch)
    assert collect(run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=3)).episodes == 3
    assert numbers == []


def test_two_processes_do_not_write_the_same_file(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.hdf5"
    parts_of(output).mkdir()
    with filelock.FileLock(parts_of(output) / ".lock"), pytest.raises(GqError, match="another process") as refused:
        collect(run, output, CollectionRequest(num_episodes=1))
    assert refused.value.hint.startswith("wait for it")
    assert collect(run, output, CollectionRequest(num_episodes=1)).episodes == 1


def test_a_log_that_was_cut_or_damaged_gives_its_whole_episodes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    episodes = [
        LoggedEpisode(
            *(generator.standard_normal(shape).astype(np.float32) for shape in ((n, 2), (n, 1), (n,))), n % 2 == 0
        )
        for n in (3, 1, 2)
    ]
    path, dims = tmp_path / "episodes", {"observation_dim": 2, "action_dim": 1}
    ends = [0]
    with EpisodeLog(path, **dims) as log:
        for number, episode in zip((4, 0, 7), episodes, strict=True):
            log.append(number, episode)
            ends.append(path.stat().st_size)
    content = path.read_bytes()

    def found(changed: bytes) -> list[int]:
        path.write_bytes(changed)
        with EpisodeLog(path, **dims) as log:
            assert log.num_rows == sum(log.lengths.values())
            for number, episode in zip((4, 0, 7), episodes, strict=True):
                if number in log.lengths:
                    assert all(np.array_equal(*pair) for pair in zip(log.read(number), episode, strict=True))
            return list(log.lengths)

    for size in range(len(content) + 1):
        assert found(content[:size]) == [4, 0, 7][: sum(end <= size for end in ends[1:])]
        assert path.stat().st_size in ends, "the torn rest is cut off"
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        assert found(bytes(damaged)) == [4, 0, 7][: sum(end <= position for end in ends[1:])]


def test_damage_after_opening_is_noticed(tmp_path: Path) -> None:
    episode = LoggedEpisode(np.ones((2, 2), np.float32), np.ones((2, 1), np.float32), np.ones(2, np.float32), True)
    with EpisodeLog(tmp_path / "episodes", observation_dim=2, action_dim=1) as log:
        log.append(0, episode)
        assert log.read(0).terminated
        with (tmp_path / "episodes").open("r+b") as file:
            file.seek(20)
            file.write(b"x")
        with pytest.raises(DataError, match="was damaged while in use"):
            log.read(0)


@pytest.mark.parametrize("first_forgotten", range(5))
def test_a_log_forgets_what_came_after_and_goes_on(tmp_path: Path, first_forgotten: int) -> None:
    """The file is that of a log to which the later episodes were never added, byte for byte, and so it stays."""
    dims = {"observation_dim": 2, "action_dim": 1}
    generator = np.random.default_rng(0)
    old, new = (
        [
            LoggedEpisode(
                *(generator.standard_normal(shape).astype(np.float32) for shape in ((n, 2), (n, 1), (n,))), True
            )
            for n in (3, 1, 4, 2)
        ]
        for _ in range(2)
    )
    wanted = [*old[:first_forgotten], *new[first_forgotten:]]
    path, expected = tmp_path / "episodes", tmp_path / "expected"
    with EpisodeLog(expected, **dims) as log:
        for number, episode in enumerate(old[:first_forgotten]):
            log.append(number, episode)
    kept = expected.read_bytes()
    with EpisodeLog(path, **dims) as log:
        for number, episode in enumerate(old):
            log.append(number, episode)
        for _ in range(2):  # the second time there is nothing left to forget
            log.forget_from(first_forgotten)
            assert list(log.lengths.items()) == list(enumerate((3, 1, 4, 2)))[:first_forgotten]
            assert log.num_rows == sum(log.lengths.values())
            assert path.read_bytes() == kept
        for number in range(first_forgotten, 4):
            log.append(number, new[number])
        assert all(np.array_equal(log.read(number).rewards, wanted[number].rewards) for number in range(4))
    with EpisodeLog(path, **dims) as log:
        assert list(log.lengths) == [0, 1, 2, 3]
        for number, episode in enumerate(wanted):
            assert all(np.array_equal(*pair) for pair in zip(log.read(number), episode, strict=True))


def test_a_log_forgets_at_the_first_later_number_in_the_file_and_only_there(tmp_path: Path) -> None:
    episode = LoggedEpisode(np.ones((2, 2), np.float32), np.ones((2, 1), np.float32), np.ones(2, np.float32), True)
    with EpisodeLog(tmp_path / "episodes", observation_dim=2, action_dim=1) as log:
        for number in (4, 0, 7, 2):
            log.append(number, episode)
        log.forget_from(8)
        assert list(log.lengths) == [4, 0, 7, 2]
        log.forget_from(5)
        assert list(log.lengths) == [4, 0], "episode 2 came after episode 7"
        log.forget_from(0)
        assert (log.lengths, log.num_rows, log.path.stat().st_size) == ({}, 0, 0)


# --- kills ------------------------------------------------------------------------------------------------------------


NUM_EPISODES = 128


@pytest.fixture(scope="module")
def unharmed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float, int]:
    """Return what a collection without interruption gives, how many seconds it takes and how often it reports."""
    output, reports = tmp_path_factory.mktemp("unharmed") / "a.hdf5", []
    start = time.monotonic()
    report = lambda done, total: reports.append(done)  # noqa: E731
    collect(run, output, CollectionRequest(num_episodes=NUM_EPISODES, noise=0.2, seed=4, num_envs=8), progress=report)
    return output.read_bytes(), time.monotonic() - start, len(reports)


def kill_a_collection(run: Path, output: Path, *, report: int | None = None, delay_s: float = 0) -> bool:
    """Start or resume a collection, kill it, and return whether it was unfinished.

    Args:
        report: kill it when it reports progress for the n-th time after the first episode that is kept.
        delay_s: else, after so long.
    """
    log, seen = parts_of(output) / "episodes", []

    def look(done: int, _: int | None) -> None:
        if log.is_file() and log.stat().st_size:
            seen.append(done)
        if len(seen) == report:
            os.kill(os.getpid(), signal.SIGKILL)

    wanted = CollectionRequest(num_episodes=NUM_EPISODES, noise=0.2, seed=4, num_envs=8)
    process = forked(lambda: collect(run, output, wanted, progress=look))
    if report is None:
        time.sleep(delay_s)
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def finish(run: Path, output: Path, expected: bytes) -> None:
    """Let a collection that was killed finish."""
    collect(run, output, CollectionRequest(num_episodes=NUM_EPISODES, noise=0.2, seed=4))
    assert output.read_bytes() == expected
    assert not parts_of(output).exists()


def test_kills_change_no_byte(run: Path, tmp_path: Path, unharmed: tuple[bytes, float, int]) -> None:
    expected, _, num_reports = unharmed
    output = tmp_path / "a.hdf5"
    for report in (1, num_reports // 2):
        assert kill_a_collection(run, output, report=report)
        assert not output.exists(), "whole or absent"
        assert (parts_of(output) / "episodes").stat().st_size > 0
    finish(run, output, expected)


@pytest.mark.slow
def test_many_kills_change_no_byte(run: Path, tmp_path: Path, unharmed: tuple[bytes, float, int]) -> None:
    """Also those at any time, which may come before the first episode is kept or after the end."""
    expected, seconds, num_reports = unharmed
    for attempt in range(5):
        output = tmp_path / f"{attempt}.hdf5"
        for _ in range(2):
            assert kill_a_collection(run, output, report=random.randint(1, num_reports // 4))
            assert not output.exists(), "whole or absent"
        for _ in range(2):
            kill_a_collection(run, output, delay_s=random.uniform(0, 0.9) * seconds)
            assert not output.exists() or output.read_bytes() == expected, "whole or absent"
        finish(run, output, expected)


def test_ctrl_c_keeps_the_episodes_and_says_how_to_go_on(
    run: Path, tmp_path: Path, unharmed: tuple[bytes, float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, plain = tmp_path / "a.hdf5", EpisodeLog.append
    command = ("collect", run, "--episodes", NUM_EPISODES, "--noise", 0.2, "--seed", 4, "-o", output)

    def append(log: EpisodeLog, number: int, episode: LoggedEpisode) -> None:
        plain(log, number, episode)
        if len(log.lengths) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeLog, "append", append)
        stopped = gq(*command)
    assert (stopped.exit_code, stopped.stdout) == (130, ""), stopped.stderr
    _, error, hint = stopped.stderr.splitlines()
    assert error.startswith("error: stopped by SIGINT, ")
    assert error.endswith(" finished episodes are kept")
    assert hint == "hint: the same command resumes"
    assert not output.exists()
    assert gq(*command).exit_code == 0
    assert output.read_bytes() == unharmed[0]


# --- policies ---------------------------------------------------------------------------------------------------------


def test_a_built_in_policy_is_as_good_as_its_dataset_says(tmp_path: Path) -> None:
    done = collect(BUILTIN, tmp_path / "a.hdf5", CollectionRequest(num_episodes=4))
    clean = collect(BUILTIN, tmp_path / "b.hdf5", CollectionRequest(num_episodes=4, noise=0))
    wild = collect(BUILTIN, tmp_path / "c.hdf5", CollectionRequest(num_episodes=4, random_share=0.5))
    assert (done.policy, done.env_id) == (BUILTIN, "Hopper-v5")
    assert min(done.return_mean, clean.return_mean) > 2500 > 1000 > wild.return_mean
    with h5py.File(tmp_path / "a.hdf5") as noisy, h5py.File(tmp_path / "b.hdf5") as quiet:
        assert noisy.attrs["noise"] > 0 == quiet.attrs["noise"]
        assert "targets" not in noisy.attrs


def test_behaviour_cloning_is_collected_too(bc_run: Path, tmp_path: Path) -> None:
    first = collect(bc_run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=5))
    assert first.sha256 == collect(bc_run, tmp_path / "b.hdf5", CollectionRequest(num_episodes=5, num_envs=2)).sha256
    with pytest.raises(UsageError, match="run takes no target return"):
        collect(bc_run, tmp_path / "c.hdf5", CollectionRequest(targets=[5.0]))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Any]:
    """Yield a function that runs a command, expects exit code 2, and returns what it says."""

    def run_it(*arguments: Any) -> tuple[str, ...]:
        result = gq("collect", *arguments, "-o", tmp_path / "new" / "a.hdf5")
        assert (result.exit_code, result.stdout) == (2, "")
        return tuple(result.stderr.splitlines())

    yield run_it
    assert not (tmp_path / "new").exists(), "nothing is begun"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--episodes", 0), "cannot collect 0 episodes"),
        (("--transitions", -1), "cannot collect -1 transitions"),
        (("--episodes", 1, "--transitions", 1), "both a number of episodes and one of transitions are given"),
        (("--noise", -0.1), "the noise -0.1 is not 0 or more"),
        (("--noise", "nan"), "the noise nan is not 0 or more"),
        (("--random-share", 1.5), "the share 1.5 of random actions is not from 0 to 1"),
        (("--seed", -1), "the seed -1 is negative or too large"),
        (("--num-envs", 17), "cannot run 17 environments at a time"),
        (("--target", "high"), "--target high is not a list of numbers"),
        (("--checkpoint", "12"), "run has no checkpoint 12"),
    ],
)
def test_wrong_options_are_refused(run: Path, refused: Any, options: tuple[Any, ...], message: str) -> None:
    error, hint = refused(run, *options)
    assert error == f"error: {message}"
    assert hint.startswith("hint: ")


def test_unknown_policies_are_refused(refused: Any) -> None:
    assert refused("builtin/hoper/expert")[1].startswith("hint: did you mean builtin/hopper/expert")
    assert refused("nothing")[0] == "error: there is no run nothing"
    assert refused()[0] == "error: no run given"
    assert refused(BUILTIN, "--target", 5)[0] == f"error: {BUILTIN} takes no target return"


def test_a_folder_is_no_output(run: Path, tmp_path: Path) -> None:
    result = gq("collect", run, "-o", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path} is a folder\nhint: name a file")
    assert gq("collect", run).exit_code == 2


def test_the_json_document_the_path_and_the_note(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "a.hdf5"
    result = gq("collect", run, "-o", output, "--episodes", 3, "--json")
    document = json.loads(result.stdout)
    assert document == Collected(**{**document, "file": output}).to_dict()
    assert (document["file"], document["episodes"], document["policy"]) == (str(output), 3, "run")
    assert document["sha256"] == collecting.sha256(output)
    again = gq("collect", run, "-o", output, "--episodes", 3)
    assert again.stdout == f"{output}\n"
    assert again.stderr.splitlines()[0] == f"{output} is there already"
    assert again.stderr.splitlines()[1].startswith("run: ")
    quiet = gq("collect", run, "-o", output, "--episodes", 3, "-q")
    assert (quiet.stdout, quiet.stderr) == (f"{output}\n", "")


def test_progress_ends_at_all_steps(run: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    done = collect(
        run, tmp_path / "a.hdf5", CollectionRequest(num_episodes=20), progress=lambda *values: seen.append(values)
    )
    assert seen[-1] == (done.transitions, done.transitions)
    assert all(total is not None and steps <= total for steps, total in seen)


@pytest.mark.parametrize("source", ["run", BUILTIN])
def test_what_was_collected_can_be_trained_on(run: Path, tmp_path: Path, source: str) -> None:
    data = tmp_path / "data.hdf5"
    result = gq("collect", run if source == "run" else source, "-o", data, "--episodes", 3, "-q")
    assert result.exit_code == 0, result.stderr
    result = gq("train", "dt", "--dataset", data, "--steps", 2, "--out", tmp_path / "next", *TINY, "-q")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'next'}\n"), result.stderr
    result = gq("collect", tmp_path / "next", "-o", tmp_path / "again.hdf5", "--episodes", 2, "-q")
    assert result.exit_code == 0, result.stderr
