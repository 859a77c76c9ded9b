"""Environments that are not in gq's table: what is asked, what data record, what the spaces say; and refusals."""

import gzip
import json
import pickle
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces

from gq.config import TDMPC2Config, environment_of, to_toml
from gq.data import hdf5, pickle_reader
from gq.data.hdf5 import ForeignError
from gq.data.reading import read_trajectories
from gq.datasets.loading import download, load_dataset
from gq.envs.make import make
from gq.envs.scores import reference_for
from gq.envs.specs import EnvironmentRequest, Record, describe, settle, spec_of
from gq.envs.tasks import TASKS, Task
from gq.errors import DataError, GqError, UsageError
from gq.files import parse_toml
from gq.repair.doubts import doubts
from gq.repair.repair import repair
from gq.rollouts.statistics import Episode, summarise

LIMIT = 12


class Mine(gymnasium.Env):
    """An environment whose every property is an argument."""

    def __init__(self, observation: Any = None, action: Any = None, broken: str = "", render_mode: Any = None) -> None:
        self.observation_space = observation or spaces.Box(-1.0, 1.0, (2, 3), np.float32)
        self.action_space = action or spaces.Box(np.float32([-1, 0]), np.float32([1, 10]))
        self.broken, self.render_mode = broken, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        reward: Any = np.array([float(action[0])])
        observation = self.observation_space.sample()
        if self.broken == "reward":
            reward = np.zeros(2)
        if self.broken == "width":
            observation = np.zeros(4)
        if self.broken == "nan":
            reward = np.nan
        return observation, reward, False, False, {}


@pytest.fixture(autouse=True)
def mine() -> Any:
    gymnasium.register("Mine-v0", lambda **kwargs: Mine(**kwargs), max_episode_steps=LIMIT)
    gymnasium.register("Endless-v0", lambda **kwargs: Mine(**kwargs))
    yield
    del gymnasium.registry["Mine-v0"], gymnasium.registry["Endless-v0"]


def task_with(**arguments: Any) -> Task:
    """Return the task of an environment with spaces, which no JSON can hold."""
    gymnasium.registry["Mine-v0"].entry_point = lambda **kwargs: Mine(**{**arguments, **kwargs})  # type: ignore[assignment]
    return describe("Mine-v0", {})


# What is asked ----------------------------------------------------------------------------------------------------


def test_an_environment_is_known_by_its_spaces_and_its_limit() -> None:
    task = settle(EnvironmentRequest("Mine-v0"))
    assert (task.observation_dim, task.action_low, task.action_high) == (6, (-1.0, 0.0), (1.0, 10.0))
    assert (task.max_episode_steps, task.can_terminate, task.is_known) == (LIMIT, True, False)
    assert settle(EnvironmentRequest("Mine-v0", max_episode_steps=5)).max_episode_steps == 5


def test_one_of_the_table_needs_no_simulator_and_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium, "make", None)
    for asked in (EnvironmentRequest("hopper"), EnvironmentRequest("Hopper-v5", {}, 1000)):
        assert settle(asked) is TASKS["Hopper-v5"]


def test_arguments_make_another_task_without_reference_scores() -> None:
    task = settle(EnvironmentRequest("ant", {"include_cfrc_ext_in_observation": False}))
    assert (task.id, task.observation_dim, task.is_known) == ("Ant-v5", 27, False)
    assert reference_for(TASKS["Ant-v5"], "x") is not None
    assert reference_for(task, "x") is None
    environment = make(task)
    assert environment.reset(seed=0)[0].shape == (27,)
    environment.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": spaces.Discrete(3)}, "takes Discrete actions"),
        ({"action": spaces.MultiDiscrete([2, 2])}, "takes MultiDiscrete actions"),
        ({"action": spaces.Box(-np.inf, np.inf, (2,))}, "no finite box of actions"),
        ({"action": spaces.Box(-1, 1, (2, 2))}, "actions of shape"),
        ({"observation": spaces.Box(0, 255, (8, 8, 3), np.uint8)}, "as pictures"),
        ({"observation": spaces.Dict(a=spaces.Discrete(2))}, "shows a as Discrete"),
        ({"observation": spaces.Text(4)}, "as Text"),
    ],
)
def test_what_gq_cannot_use_is_refused_with_its_reason(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        task_with(**arguments)
    assert raised.value.hint


def test_an_environment_without_a_limit_wants_one() -> None:
    with pytest.raises(UsageError, match="no time limit") as raised:
        settle(EnvironmentRequest("Endless-v0"))
    assert "--max-episode-steps" in raised.value.hint
    assert settle(EnvironmentRequest("Endless-v0", max_episode_steps=7)).max_episode_steps == 7


@pytest.mark.parametrize(
    ("name", "kwargs", "message", "hint"),
    [
        ("Pendulun-v1", None, "there is no task Pendulun-v1", "did you mean Pendulum-v1"),
        ("nothing.such:Mine-v0", None, "there is no task nothing.such:Mine-v0", "install the package"),
        ("AntMaze_UMaze-v99", None, "AntMaze_UMaze-v99", "install|pip"),
        ("Hopper-v5", {"wings": 2}, "does not take .*wings", "--env-kwargs"),
        ("dog-run", {"wings": 2}, "takes neither --env-kwargs", "omit"),
    ],
)
def test_a_wrong_name_or_argument_says_what_to_do(name: str, kwargs: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        settle(EnvironmentRequest(name, kwargs))
    assert re.search(hint, raised.value.hint)


# What it gives ------------------------------------------------------------------------------------------------------


def test_observations_are_flat_and_dict_ones_in_one_order() -> None:
    parts = {"zeta": (1,), "desired_goal": (2,), "alpha": (2, 2), "observation": (3,), "achieved_goal": (2,)}
    space = spaces.Dict({key: spaces.Box(-1, 1, shape, np.float64) for key, shape in parts.items()})
    task = task_with(observation=space)
    assert task.observation_keys == ("observation", "achieved_goal", "desired_goal", "alpha", "zeta")
    environment = make(task)
    flat = environment.reset(seed=3)[0]
    plain = Mine(space).reset(seed=3)[0]
    assert flat.tolist() == np.concatenate([plain[key].ravel() for key in task.observation_keys]).tolist()
    assert environment.observation_space.shape == flat.shape == (12,)


def test_dicts_of_dicts_are_flattened_in_the_same_order_in_the_environment_and_in_data(tmp_path: Path) -> None:
    one = spaces.Box(-1.0, 1.0, (1,), np.float64)
    goals = spaces.Dict({"kettle": spaces.Box(-1.0, 1.0, (2,), np.float64), "door": one})
    task = task_with(observation=spaces.Dict({"desired_goal": goals, "observation": one, "achieved_goal": goals}))
    keys = ("achieved_goal/door", "achieved_goal/kettle", "desired_goal/door", "desired_goal/kettle")
    assert task.observation_keys == ("observation", *keys)
    environment = make(task)
    observation, _ = environment.reset(seed=0)
    raw = environment.unwrapped.observation_space
    raw.seed(0)
    drawn = raw.sample()
    expected = [drawn["observation"], *(drawn[key.split("/")[0]][key.split("/")[1]] for key in keys)]
    np.testing.assert_array_equal(observation, np.concatenate(expected))
    with h5py.File(tmp_path / "a.hdf5", "w") as root:
        for name, column in columns().items():
            if name != "observations":
                root[name] = column
        for number, key in enumerate(task.observation_keys):
            width = 2 if "kettle" in key else 1
            root[f"observations/{key}"] = np.full((2 * LIMIT, width), number, np.float32)
    found = read_trajectories(tmp_path / "a.hdf5", environment=EnvironmentRequest("Mine-v0"))
    assert found.observations[3].tolist() == [0, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("name", "width", "num_actions"),
    [("FetchReach-v4", 16, 4), ("FrankaKitchen-v1", 93, 9), ("AdroitHandPen-v1", 45, 24)],
)
def test_robots_of_gymnasium_robotics_are_made(name: str, width: int, num_actions: int) -> None:
    pytest.importorskip("gymnasium_robotics", reason="Gymnasium-Robotics is not installed")
    task = describe(name, {})
    assert (task.observation_dim, task.action_dim) == (width, num_actions)
    environment = make(task)
    environment.reset(seed=0)
    assert environment.step(np.zeros(num_actions))[0].shape == (width,)
    environment.close()


def test_an_environment_of_mujoco_py_names_its_newest_version(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("Mine-v1", lambda **kwargs: Mine(**kwargs), max_episode_steps=LIMIT)

    def fail(**_: Any) -> None:
        raise gymnasium.error.DependencyNotInstalled("No module named 'mujoco_py'.")

    monkeypatch.setattr(gymnasium.registry["Mine-v0"], "entry_point", fail)
    with pytest.raises(UsageError, match="Mine-v0 needs mujoco_py") as raised:
        describe("Mine-v0", {})
    assert "Mine-v1" in raised.value.hint
    del gymnasium.registry["Mine-v1"]


def test_actions_are_scaled_for_each_dimension() -> None:
    task = settle(EnvironmentRequest("Mine-v0"))
    assert task.scale(np.float32([[-1, -1], [0, 0], [1, 1]])).tolist() == [[-1, 0], [0, 5], [1, 10]]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("reward", r"rewards of shape \(2,\)"),
        ("width", "4 observed numbers, not the 6"),
        ("nan", "a reward of nan"),
    ],
)
def test_an_environment_that_gives_something_else_stops_with_one_line(broken: str, message: str) -> None:
    environment = make(settle(EnvironmentRequest("Mine-v0", {"broken": broken})))
    environment.reset(seed=0)
    with pytest.raises(GqError, match=message):
        environment.step(np.zeros(2))
    fine = make(settle(EnvironmentRequest("Mine-v0")))
    fine.reset(seed=0)
    assert fine.step(np.float32([0.5, 1]))[1] == 0.5


def test_an_environment_that_changed_since_the_run_is_noticed() -> None:
    task = settle(EnvironmentRequest("Mine-v0"))
    task_with(action=spaces.Box(-2, 2, (2,)))
    with pytest.raises(GqError, match="is not what it was: lowest actions are"):
        make(task)


# What a run keeps ---------------------------------------------------------------------------------------------------


def test_the_configuration_holds_the_whole_environment() -> None:
    task = settle(EnvironmentRequest("hopper", {"forward_reward_weight": 2.0, "healthy_z_range": [0.6, 9.0]}, 200))
    config = TDMPC2Config().made_for(task)
    tree = parse_toml(to_toml(config))
    assert tree["task"] == "Hopper-v5"
    assert {key: tree["environment"][key] for key in ("id", "kwargs", "max_episode_steps", "wrappers")} == {
        "id": "Hopper-v5",
        "kwargs": {"forward_reward_weight": 2.0, "healthy_z_range": [0.6, 9.0]},
        "max_episode_steps": 200,
        "wrappers": [],
    }
    assert environment_of(tree) == task
    assert environment_of({"task": "hopper"}) is TASKS["Hopper-v5"]
    assert config.replace({"train.seed": 1}).environment == task
    assert config.replace({"task": "Ant-v5"}).environment is TASKS["Ant-v5"]


def test_what_a_file_asks_of_the_environment_is_a_request() -> None:
    config = TDMPC2Config().replace({"task": "hopper", "environment.kwargs.frame_skip": 2})
    assert config.request == EnvironmentRequest("hopper", {"frame_skip": 2})
    with pytest.raises(UsageError, match=r"no setting environment\.kwarg"):
        config.replace({"environment.kwarg": {}})


# What data record ---------------------------------------------------------------------------------------------------


def recorded(**spec: Any) -> Record:
    record = Record.of({"env_spec": json.dumps({"id": "Hopper-v5"} | spec)})
    assert record
    return record


def test_data_are_of_the_environment_that_they_record() -> None:
    assert settle(EnvironmentRequest(), recorded(max_episode_steps=1000)) is TASKS["Hopper-v5"]
    rescaled = {"name": "RescaleAction", "entry_point": "x", "kwargs": {"min_action": -2.0, "max_action": 2.0}}
    record = recorded(kwargs={"frame_skip": 2, "render_mode": "rgb_array"}, additional_wrappers=[rescaled])
    task = settle(EnvironmentRequest("hopper"), record)
    assert (task.kwargs, [one["name"] for one in task.wrappers]) == ({"frame_skip": 2}, ["RescaleAction"])
    assert task.action_high == (2.0, 2.0, 2.0)
    assert record.problems() == {"env-wrapper": "RescaleAction", "env-kwargs": '{"frame_skip": 2}'}
    assert settle(EnvironmentRequest(), Record.of({"env_spec": spec_of(task)})) == task
    harmless = recorded(additional_wrappers=[{"name": "RecordEpisodeStatistics", "kwargs": None}])
    assert settle(EnvironmentRequest(), harmless) is TASKS["Hopper-v5"]


@pytest.mark.parametrize(
    ("request_", "spec", "message"),
    [
        (EnvironmentRequest("Walker2d-v5"), {}, "--task Walker2d-v5 contradicts the data, which record Hopper-v5"),
        (EnvironmentRequest(kwargs={"frame_skip": 3}), {"kwargs": {"frame_skip": 2}}, "--env-kwargs .* contradicts"),
        (EnvironmentRequest(max_episode_steps=5), {"max_episode_steps": 6}, "--max-episode-steps 5 contradicts"),
        (
            EnvironmentRequest(),
            {"additional_wrappers": [{"name": "NormalizeObservation", "kwargs": {"epsilon": 1e-8}}]},
            "recorded through NormalizeObservation",
        ),
        (
            EnvironmentRequest(),
            {"additional_wrappers": [{"name": "RescaleAction", "kwargs": None}]},
            "through RescaleAction",
        ),
        (EnvironmentRequest(), {"id": "os:Mine-v0"}, "whose code is run only if you name it"),
    ],
)
def test_what_contradicts_the_record_or_cannot_be_made_again_is_refused(
    request_: EnvironmentRequest, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        settle(request_, recorded(**spec))
    assert raised.value.hint


def test_actions_that_the_environment_clipped_are_clipped_in_the_data(tmp_path: Path) -> None:
    spec = {"id": "Mine-v0", "additional_wrappers": [{"name": "ClipAction", "kwargs": {}}]}
    with h5py.File(tmp_path / "a.hdf5", "w") as root:
        root.attrs.update(env_id="Mine-v0", env_spec=json.dumps(spec))
        for name, column in (columns() | {"actions": np.full((2 * LIMIT, 2), [-3, 4], np.float32)}).items():
            root[name] = column
    found = read_trajectories(tmp_path / "a.hdf5", environment=EnvironmentRequest())
    assert found.environment == describe("Mine-v0", {})
    assert (found.actions == [-1, 4]).all()  # of the boxes -1 to 1 and 0 to 10


def test_the_record_can_be_ignored() -> None:
    spec = {"additional_wrappers": [{"name": "NormalizeObservation", "kwargs": {}}], "kwargs": {"frame_skip": 2}}
    asked = EnvironmentRequest("hopper", ignore_env_spec=True)
    assert settle(asked, recorded(**spec)) is TASKS["Hopper-v5"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"id": 3}', '{"kwargs": {}}', '{"id": "A", "additional_wrappers": [3]}']
)
def test_a_damaged_record_is_none(text: str) -> None:
    assert Record.of({"env_spec": text}) is None


def write(path: Path, **columns: Any) -> Path:
    """Write a flat file of 24 rows, two episodes of Mine's limit."""
    rows = 2 * LIMIT
    usual = {
        "observations": np.ones((rows, 6), np.float32),
        "actions": np.zeros((rows, 2), np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": np.zeros(rows, bool),
    }
    with h5py.File(path, "w") as root:
        root.attrs["env_id"] = "Mine-v0"
        for name, value in (usual | columns).items():
            if isinstance(value, dict):
                for key, part in value.items():
                    root[f"{name}/{key}"] = part
            elif value is not None:
                root[name] = value
    return path


ENDS = np.arange(2 * LIMIT) % LIMIT == LIMIT - 1


@pytest.mark.parametrize(
    "flags",
    [
        {"timeouts": ENDS},
        {"truncations": ENDS},
        {"truncateds": ENDS},
        {"dones": ENDS},
        {"episode_terminals": ENDS.astype(np.float32)},
        {"episode_ends": np.flatnonzero(ENDS) + 1},
        {"episode_ends": ENDS},
        {"trajectory_ids": np.repeat([7, 9], LIMIT)},
        {"terminals": None, "terminations": ENDS & False, "truncations": ENDS},
        {},  # the limit of the task says it
    ],
)
def test_ends_of_episodes_are_found_under_every_name(flags: dict[str, Any], tmp_path: Path) -> None:
    found = read_trajectories(write(tmp_path / "data.hdf5", **flags), environment=EnvironmentRequest())
    assert found.lengths.tolist() == [LIMIT, LIMIT]
    assert not found.terminals.any()
    assert found.environment == settle(EnvironmentRequest("Mine-v0"))


def test_ends_that_are_terminals_stay_so(tmp_path: Path) -> None:
    first = np.arange(2 * LIMIT) == 4
    path = write(tmp_path / "data.hdf5", terminals=first, dones=first | ENDS)
    found = read_trajectories(path, environment=EnvironmentRequest())
    assert found.lengths.tolist() == [5, LIMIT - 5, LIMIT]
    assert np.flatnonzero(found.terminals).tolist() == [4]
    alone = read_trajectories(write(tmp_path / "b.hdf5", terminals=None, dones=ENDS), environment=EnvironmentRequest())
    assert np.flatnonzero(alone.terminals).tolist() == [LIMIT - 1, 2 * LIMIT - 1]


@pytest.mark.parametrize("column", [ENDS, np.arange(2 * LIMIT)])
def test_a_column_that_may_mark_episodes_is_not_ignored(column: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", last_of_it=column)
    with pytest.raises(DataError, match="the column last_of_it may say where episodes end"):
        read_trajectories(path, environment=EnvironmentRequest())
    path = write(tmp_path / "b.hdf5", last_of_it=column, timeouts=ENDS)
    assert read_trajectories(path, environment=EnvironmentRequest()).num_episodes == 2


def test_places_of_ends_that_are_none_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", episode_ends=np.array([12, 99]))
    with pytest.raises(DataError, match="episode_ends are not rows of the file"):
        read_trajectories(path, environment=EnvironmentRequest())


def test_dict_observations_are_read_in_the_order_of_the_environment(tmp_path: Path) -> None:
    space = spaces.Dict(
        {"observation": spaces.Box(-1, 1, (3,)), "desired_goal": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (1,))}
    )
    task_with(observation=space)
    parts = {"observation": 1, "desired_goal": 2, "b": 3}
    columns = {key: np.full((2 * LIMIT, *space[key].shape), value, np.float32) for key, value in parts.items()}
    found = read_trajectories(write(tmp_path / "d.hdf5", observations=columns), environment=EnvironmentRequest())
    assert found.observations[0].tolist() == [1, 1, 1, 2, 2, 3]
    assert found.environment
    assert found.environment.observation_keys == ("observation", "desired_goal", "b")


def test_observations_of_any_shape_are_read_flat_but_pictures_are_not(tmp_path: Path) -> None:
    deep = columns() | {"observations": columns()["observations"].reshape(-1, 2, 3)}
    np.savez(tmp_path / "data.npz", **deep)
    found = read_trajectories(tmp_path / "data.npz", environment=EnvironmentRequest("Mine-v0"))
    np.testing.assert_array_equal(found.observations, columns()["observations"])
    np.savez(tmp_path / "data.npz", **deep | {"observations": np.zeros((2 * LIMIT, 4, 4, 3), np.uint8)})
    with pytest.raises(DataError, match="observations are pictures"):
        read_trajectories(tmp_path / "data.npz", environment=EnvironmentRequest("Mine-v0"))


def test_discrete_actions_are_called_so(tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", actions=np.zeros(2 * LIMIT, np.int64), timeouts=ENDS)
    with pytest.raises(DataError, match="actions are discrete"):
        read_trajectories(path, environment=EnvironmentRequest())


# What repair says of it -----------------------------------------------------------------------------------------------


def codes(path: Path) -> dict[str, int]:
    return {finding.code: finding.count for finding in repair(path, simulate="off").findings}


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"kwargs": {"frame_skip": 2}}, "env-kwargs"),
        ({"max_episode_steps": 7}, "env-limit"),
        ({"additional_wrappers": [{"name": "NormalizeReward", "kwargs": {}}]}, "env-wrapper"),
        ({}, None),
    ],
)
def test_repair_says_what_the_data_record(spec: dict[str, Any], code: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / "data.hdf5", observations=np.ones((2 * LIMIT, 11), np.float32), timeouts=ENDS)
    with h5py.File(path, "a") as root:
        root.attrs["env_id"], root.attrs["env_spec"] = "Hopper-v5", json.dumps({"id": "Hopper-v5"} | spec)
    found = codes(path).keys() & {"env-kwargs", "env-limit", "env-wrapper"}
    assert found == ({code} if code else set())
    fits = "dimension-mismatch" in codes(path)
    assert fits == (code in (None, "env-limit")), "other arguments and wrappers may have other widths"


def test_repair_calls_dict_and_discrete_data_and_unknown_flags_what_they_are(tmp_path: Path) -> None:
    parts = {"observation": np.zeros((2 * LIMIT, 3), np.float32), "desired_goal": np.ones((2 * LIMIT, 2), np.float32)}
    assert codes(write(tmp_path / "a.hdf5", observations=parts, timeouts=ENDS))["dict-observations"] == 1
    discrete = codes(write(tmp_path / "b.hdf5", actions=np.zeros(2 * LIMIT, np.int64), timeouts=ENDS))
    assert discrete == {"discrete-actions": 1}
    assert codes(write(tmp_path / "c.hdf5", marks=ENDS))["unread-flag-column"] == 1


# Reaching a goal ------------------------------------------------------------------------------------------------------


def test_an_episode_succeeds_where_the_environment_says_so_once() -> None:
    environment = make(settle(EnvironmentRequest("Mine-v0")))
    plain = environment.unwrapped.step
    environment.reset(seed=0)
    environment.step(np.zeros(2))
    assert environment.success is None  # type: ignore[attr-defined]
    for told, expected in ((False, False), (True, True), (False, True)):
        environment.unwrapped.step = lambda action, told=told: (*plain(action)[:4], {"success": told})  # type: ignore[method-assign]
        environment.step(np.zeros(2))
        assert environment.success is expected  # type: ignore[attr-defined]
    environment.reset(seed=1)
    assert environment.success is None  # type: ignore[attr-defined]
    episodes = [Episode(seed, 0.0, 1.0, 5, False, success) for seed, success in enumerate((True, False, True, True))]
    assert summarise(episodes, None)[0].success_rate == 0.75
    assert summarise([replace(episodes[0], success=None), episodes[1]], None)[0].success_rate is None


# Formats of files -----------------------------------------------------------------------------------------------------


def columns() -> dict[str, np.ndarray]:
    rows = 2 * LIMIT
    return {
        "observations": np.arange(rows * 6, dtype=np.float32).reshape(rows, 6),
        "actions": np.zeros((rows, 2), np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": ENDS,
    }


def episodes() -> list[dict[str, np.ndarray]]:
    return [{name: value[part] for name, value in columns().items()} for part in (slice(LIMIT), slice(LIMIT, None))]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("holder", ["list", "tuple", "dict of episodes", "defaultdicts", "one dict"])
@pytest.mark.parametrize("compress", [False, True])
def test_pickles_of_every_protocol_and_holder_are_read(
    protocol: int, holder: str, compress: bool, tmp_path: Path
) -> None:
    kept: Any = {
        "list": episodes(),
        "tuple": tuple(episodes()),
        "dict of episodes": {str(number): episode for number, episode in enumerate(episodes())},
        "defaultdicts": [defaultdict(list, episode) for episode in episodes()],
        "one dict": columns(),
    }[holder]
    content = pickle.dumps(kept, protocol=protocol)
    path = tmp_path / "data.pkl"
    path.write_bytes(gzip.compress(content) if compress else content)
    found = read_trajectories(path, environment=EnvironmentRequest("Mine-v0"))
    assert found.lengths.tolist() == [LIMIT, LIMIT]
    np.testing.assert_array_equal(found.observations, columns()["observations"])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError):
        read_trajectories(path, environment=EnvironmentRequest("Mine-v0"))


def test_archives_of_numpy_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", **columns())
    found = read_trajectories(tmp_path / "data.npz", environment=EnvironmentRequest("Mine-v0"))
    assert found.lengths.tolist() == [LIMIT, LIMIT]
    np.testing.assert_array_equal(found.observations, columns()["observations"])
    np.savez(tmp_path / "b.npz", **columns(), other=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="holds no plain arrays"):
        read_trajectories(tmp_path / "b.npz", environment=EnvironmentRequest("Mine-v0"))


def test_play_without_rewards_is_read_and_training_says_so(tmp_path: Path) -> None:
    play = {name: column for name, column in columns().items() if name != "rewards"}
    np.savez(tmp_path / "data.npz", **play | {"terminals": ENDS.astype(np.float32), "qpos": np.zeros((2 * LIMIT, 3))})
    found = read_trajectories(tmp_path / "data.npz", environment=EnvironmentRequest("Mine-v0"))
    assert found.lengths.tolist() == [LIMIT, LIMIT]
    assert not found.terminals.any()
    assert found.returns.tolist() == [0, 0]
    assert any("every reward is 0" in line for line in doubts(found))


def test_what_unfolds_to_far_more_than_data_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hdf5, pickle_reader):
        monkeypatch.setattr(module, "FREE_BYTES", 1 << 20)
    (tmp_path / "data.pkl.gz").write_bytes(gzip.compress(bytes(3 << 20), 9))
    np.savez_compressed(tmp_path / "data.npz", observations=np.zeros((1 << 20, 6), np.float32))
    for name in ("data.pkl.gz", "data.npz"):
        with pytest.raises(ForeignError, match="bytes and"):
            read_trajectories(tmp_path / name, environment=EnvironmentRequest("Mine-v0"))


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"ARROW1..", "an Arrow table", "give the folder"),
        (b"PAR1....", "is damaged", "fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page", "fetch it again"),
        (b"\x28\xb5\x2f\xfd....", "compressed by zstd", "zstd -d"),
        (b"PK\x03\x04....", "a zip archive", "unpack it"),
        (b"a,b\n1,2\n", "it is text that starts with 'a,b'", "fetch"),
    ],
)
def test_other_content_is_called_what_it_is(content: bytes, message: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_trajectories(tmp_path / "data", environment=EnvironmentRequest("Mine-v0"))
    assert hint in raised.value.hint


# What training says of the data ---------------------------------------------------------------------------------------


def test_sound_data_give_no_doubts_and_others_say_why() -> None:
    download("builtin/hopper/medium", num_transitions=2000)
    sound = load_dataset("builtin/hopper/medium", environment=EnvironmentRequest())
    assert doubts(sound) == []
    (line,) = doubts(replace(sound, rewards=-sound.rewards))
    assert "do not repeat in the installed Hopper-v5: other rewards" in line
    (line,) = doubts(replace(sound, observations=sound.observations * np.float32(0.9)))
    assert "do not repeat in the installed Hopper-v5: other physics" in line
    outside = sound.actions.copy()
    outside[-1] = 1.5
    (line,) = doubts(replace(sound, actions=outside))
    assert line == f"the data have 1 row with actions outside the bounds; more is said by gq repair {sound.source}"
    twice = {name: np.concatenate([getattr(sound, name)] * 2) for name in ("observations", "actions", "rewards")}
    offsets = np.concatenate([sound.offsets, sound.offsets[1:] + sound.offsets[-1]])
    copies = replace(sound, **twice, terminals=np.tile(sound.terminals, 2), offsets=offsets)
    assert f"{sound.num_episodes} episodes that are there already" in doubts(copies)[0]
    shorter = replace(sound, terminals=np.zeros_like(sound.terminals))
    num_cut = int((sound.lengths < 1000).sum())
    assert f"{num_cut} episode" in doubts(shorter)[0]
    assert "cut before the limit of 1,000 steps" in doubts(shorter)[0]
