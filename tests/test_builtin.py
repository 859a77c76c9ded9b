import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from commandline import PATIENCE_S
from gq.data.reading import read_trajectories
from gq.data.trajectories import Trajectories
from gq.datasets.builtin import download_builtin, simulate, simulate_in_workers, simulate_policy
from gq.datasets.catalog import ENTRIES
from gq.errors import GqError, UsageError
from gq.policies.packaged import ENVIRONMENTS, NAMES, Network, PackagedPolicy, Slots, load_policy

MEDIUM, EXPERT = "builtin/hopper/medium", "builtin/hopper/expert"
SOURCE_FOLDER = Path(__file__).parents[1] / "src"
COLUMNS = ("observations", "actions", "rewards", "terminals", "offsets")


@pytest.fixture(scope="module")
def medium() -> Trajectories:
    return simulate(MEDIUM, 5000, num_workers=1)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter, with `folder` as the current folder."""
    script = folder / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    return subprocess.run([sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True)


def equal(a: Trajectories, b: Trajectories) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def test_two_workers_give_the_same_bits_as_this_process(medium: Trajectories) -> None:
    assert equal(medium, simulate(MEDIUM, 5000, num_workers=2))


def test_a_shorter_dataset_is_the_beginning_of_a_longer_one(medium: Trajectories) -> None:
    short = simulate(MEDIUM, 1500)
    assert np.array_equal(short.observations, medium.observations[: short.num_transitions])


def test_another_seed_gives_other_data(medium: Trajectories) -> None:
    other = simulate(MEDIUM, 100, seed=1)
    assert not np.array_equal(other.observations[0], medium.observations[0])
    assert not np.array_equal(other.actions[:50], medium.actions[:50])


def test_episodes_of_one_seed_differ(medium: Trajectories) -> None:
    starts = medium.observations[medium.offsets[:-1]]
    assert len(np.unique(starts, axis=0)) == medium.num_episodes


def test_only_whole_episodes_and_as_few_as_hold_the_transitions(medium: Trajectories) -> None:
    assert medium.num_transitions >= 5000
    assert medium.num_transitions - medium.lengths[-1] < 5000
    assert medium.offsets[-1] == medium.num_transitions


def test_an_episode_ends_by_a_fall_or_by_the_time_limit(medium: Trajectories) -> None:
    ends = medium.offsets[1:] - 1
    np.testing.assert_array_equal(medium.terminals[ends], medium.lengths < 1000)
    assert medium.terminals.sum() == medium.terminals[ends].sum()  # and none elsewhere
    assert 0 < medium.terminals.sum() < medium.num_episodes  # both kinds occur
    assert medium.lengths.max() == 1000


def test_arrays_are_float32_in_the_units_of_the_environment(medium: Trajectories) -> None:
    assert medium.task == "Hopper-v5"
    assert {getattr(medium, name).dtype for name in COLUMNS[:3]} == {np.dtype(np.float32)}
    assert medium.observations.shape[1] == 11
    assert medium.actions.shape[1] == 3
    assert np.abs(medium.actions).max() == 1.0


def test_replaying_the_stored_actions_gives_the_stored_episode(medium: Trajectories) -> None:
    from simulator import make

    env = make("Hopper-v5")
    observation, _ = env.reset(seed=int(np.random.default_rng([0, 0]).integers(2**31)))
    for row in range(medium.offsets[1]):
        np.testing.assert_array_equal(observation.astype(np.float32), medium.observations[row])
        observation, reward, terminated, _, _ = env.step(medium.actions[row])
        assert np.float32(reward) == medium.rewards[row]
        assert terminated == medium.terminals[row]


def test_expert_returns_3000_and_medium_is_spread_below_it(medium: Trajectories) -> None:
    expert = simulate(EXPERT, 5000)
    assert expert.returns.mean() >= 3000
    assert 1000 < medium.returns.mean() < 3000
    assert medium.returns.std() > 400


@pytest.mark.parametrize("name", NAMES)
def test_packaged_policies_state_their_returns(name: str) -> None:
    metadata = load_policy(name).metadata
    assert (metadata["return_mean"], metadata["return_std"]) == pytest.approx(
        (ENTRIES[name].return_mean, ENTRIES[name].return_std), abs=0.5
    )
    assert metadata["num_episodes"] >= 50
    assert {"env_id", "noise", "method", "return_std", "gymnasium_version", "mujoco_version"} <= set(metadata)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_expert_is_better_than_medium_and_medium_than_its_past(environment: str) -> None:
    medium, replay, expert = (
        load_policy(f"builtin/{environment}/{level}").metadata["return_mean"]
        for level in ("medium", "medium-replay", "expert")
    )
    assert replay < medium < expert


def test_every_environment_has_its_file_and_all_together_are_small() -> None:
    files = sorted((SOURCE_FOLDER / "gq" / "policies" / "packaged_weights").iterdir())
    assert [path.stem for path in files] == sorted(ENVIRONMENTS)
    assert sum(path.stat().st_size for path in files) < 1_000_000


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_stated_returns_are_those_of_the_dataset(environment: str) -> None:
    """The first episode of each dataset is within what its 50 measured ones span."""
    for level in ("medium", "medium-replay", "expert"):
        name = f"builtin/{environment}/{level}"
        made, metadata = simulate(name, 1, num_workers=1), load_policy(name).metadata
        assert metadata["return_min"] - 0.1 <= made.returns[0] <= metadata["return_max"] + 0.1
        assert np.abs(made.actions).max() <= load_policy(name).action_high.max()


def tiny_policy(*weights: list[list[float]], noise: float = 0.0, squash: bool = False) -> PackagedPolicy:
    """Return a policy whose first layer subtracts (1, 0), in boxes of +-0.4 and 0 to 10."""
    arrays = tuple(np.array(weight, np.float32) for weight in weights)
    biases = tuple(np.zeros(len(weight), np.float32) for weight in weights)
    network = Network(mean=np.array([1, 0], np.float32), weights=arrays, biases=biases, squash=squash)
    return PackagedPolicy(
        env_id="none",
        networks=(network, network),
        probabilities=np.array([0.5, 0.5]),
        noise=noise,
        action_low=np.array([-0.4, 0.0], np.float32),
        action_high=np.array([0.4, 10.0], np.float32),
        metadata={},
    )


def test_actions_are_clipped_and_mapped_to_the_action_box() -> None:
    policy = tiny_policy([[1.0, 0.0], [0.0, 100.0]])
    observations = np.array([[1.5, -2.0, 9.0], [0.0, 0.001, 9.0]])  # the last column is not the policy's
    actions = policy.to_box(Slots(policy.networks, 2).act(observations))
    np.testing.assert_allclose(actions, [[0.2, 0.0], [-0.4, 5.5]], atol=1e-6)
    assert actions.dtype == np.float32


def test_hidden_layers_are_rectified_and_the_last_one_squashed() -> None:
    policy = tiny_policy([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0, 0.0], [0.0, 0.0, -1.0]], squash=True)
    values = Slots(policy.networks, 2).act(np.array([[1.5, 2.0], [0.0, -1.0]]))
    np.testing.assert_allclose(values, np.tanh([[1.0, -2.0], [1.0, 0.0]]), rtol=1e-6)


def test_each_slot_has_its_own_network() -> None:
    first, second = tiny_policy([[1.0, 0.0], [0.0, 1.0]]), tiny_policy([[0.0, 1.0], [5.0, 0.0]])
    slots = Slots((first.networks[0], second.networks[0]), 2)
    slots.choose(1, 1)
    np.testing.assert_allclose(slots.act(np.array([[3.0, 4.0], [3.0, 4.0]])), [[2.0, 4.0], [4.0, 10.0]])


def test_the_number_of_environments_in_a_process_changes_no_bit() -> None:
    policy = load_policy("builtin/hopper/medium-replay")
    alone, together = (simulate_policy(policy, 3, num_slots=number) for number in (1, 5))
    for _, a, b in zip(range(8), alone, together, strict=False):
        assert a.terminated == b.terminated
        np.testing.assert_array_equal(a.rows, b.rows)


def test_the_packaged_noise_is_in_the_data() -> None:
    policy = load_policy("builtin/hopper/expert")
    made = simulate("builtin/hopper/expert", 3000, num_workers=1)
    means = Slots(policy.networks, 1)
    residuals = np.concatenate([made.actions[i] - means.act(made.observations[i : i + 1])[0] for i in range(3000)])
    inside = np.abs(made.actions[:3000].ravel()) < 0.5  # not clipped, neither the action nor nearly all its noise
    assert residuals[inside].std() == pytest.approx(0.1, rel=0.1)


def test_a_replay_dataset_has_about_as_many_rows_of_each_network() -> None:
    policy = load_policy("builtin/hopper/medium-replay")
    made = simulate("builtin/hopper/medium-replay", 30_000)
    generators = [np.random.default_rng([0, i]) for i in range(made.num_episodes)]
    chosen = [
        (generator.integers(2**31), generator.choice(len(policy.networks), p=policy.probabilities))[1]
        for generator in generators
    ]
    rows = np.bincount(chosen, weights=made.lengths, minlength=len(policy.networks)) / made.num_transitions
    assert len(rows) == 7
    assert rows.min() > 0.3 / 7
    assert rows.max() < 2.2 / 7


def test_the_canonical_file_reads_back_equal(tmp_path: Path) -> None:
    path = download_builtin(MEDIUM, tmp_path / "hopper" / "medium.hdf5", num_transitions=3000)
    expected = simulate(MEDIUM, 3000)
    assert equal(read_trajectories(path), expected)
    with h5py.File(path) as file:
        assert file["observations"].shape == (expected.num_transitions, 11)
        ends = np.asarray(file["terminals"][:] != 0) | np.asarray(file["timeouts"][:] != 0)
        np.testing.assert_array_equal(np.flatnonzero(ends), expected.offsets[1:] - 1)
        attributes = dict(file.attrs)
    assert attributes["env_id"] == "Hopper-v5"
    assert attributes["source"] == MEDIUM
    assert attributes["policy_sha256"] == load_policy(MEDIUM).sha256
    assert attributes["num_transitions"] == expected.num_transitions
    assert attributes["return_mean"] == pytest.approx(expected.returns.mean())
    assert {"licence", "seed", "gymnasium_version", "mujoco_version", "policy_return_mean"} <= set(attributes)


def test_progress_rises_to_the_number_asked_for() -> None:
    calls: list[tuple[int, int]] = []
    simulate(MEDIUM, 1500, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (1500, 1500)


def test_wrong_requests_are_refused_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="builtin/hopper/medum") as caught:
        simulate("builtin/hopper/medum", 100)
    assert MEDIUM in caught.value.hint
    with pytest.raises(UsageError, match="0 transitions"):
        simulate(MEDIUM, 0)
    with pytest.raises(UsageError, match="-1 is negative"):
        download_builtin(MEDIUM, tmp_path / "medium.hdf5", seed=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_simulating(tmp_path: Path) -> None:
    (tmp_path / "datasets").write_text("a file where the folder should be")
    calls: list[int] = []
    with pytest.raises(GqError, match="cannot write"):
        download_builtin(MEDIUM, tmp_path / "datasets" / "medium.hdf5", progress=lambda done, _: calls.append(done))
    assert calls == []


def test_a_script_without_a_main_guard_works_and_leaves_no_file(tmp_path: Path) -> None:
    code = f"from gq.datasets.builtin import simulate\nprint(simulate({MEDIUM!r}, 1500, num_workers=2).num_transitions)"
    result = run_python(code, tmp_path)
    assert result.stderr == ""
    assert int(result.stdout) >= 1500
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]  # no MUJOCO_LOG.TXT


def test_neither_the_caller_nor_the_workers_import_torch(tmp_path: Path) -> None:
    for package in ("torch", "h5py"):
        (tmp_path / f"{package}.py").write_text(f"raise RuntimeError('{package} was imported')")  # found first
    code = f"from gq.datasets.builtin import simulate\nprint(simulate({MEDIUM!r}, 1500, num_workers=2).num_transitions)"
    assert run_python(code, tmp_path).stderr == ""
    assert "torch was imported" in run_python("import torch", tmp_path).stderr


def test_a_worker_that_fails_gives_one_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gymnasium.py").write_text("raise RuntimeError('broken installation')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GqError, match=r"a simulation process ended: .*broken installation"):
        next(simulate_in_workers(MEDIUM, 0, 2))


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
import signal
import gq.datasets.builtin as worker
from gq.datasets.builtin import simulate
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit that it is ignored
start, pids = worker.start_worker, []
def remember(call):
    process = start(call)
    pids.append(process.pid)
    return process
worker.start_worker = remember
try:
    simulate({MEDIUM!r}, 10**7, num_workers=2, progress=lambda done, total: print(pids, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, script], cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # as a terminal does: to the parent and the workers
        else:
            parent.kill()
        stdout, stderr = parent.communicate(timeout=PATIENCE_S)
    assert stderr == b""
    assert stdout.endswith(b"interrupted\n") == (number == signal.SIGINT)
    deadline = time.monotonic() + PATIENCE_S
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not reaped does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
