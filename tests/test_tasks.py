"""Task names, and the table of interfaces against the real environments."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box

from gq.envs.tasks import TASKS, Task, resolve_task, task_in_name
from gq.errors import UsageError
from simulator import make


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Hopper-v5", "Hopper-v5"),
        ("hopper", "Hopper-v5"),
        ("HOPPER", "Hopper-v5"),
        ("hopper-v4", "Hopper-v4"),
        ("humanoid-v5", "Humanoid-v5"),
        ("humanoid", "Humanoid-v5"),
        ("humanoidstandup", "HumanoidStandup-v5"),
        ("ant", "Ant-v5"),
        ("Ant-V4", "Ant-v4"),
        ("walker2d", "Walker2d-v5"),
        ("inverteddoublependulum", "InvertedDoublePendulum-v5"),
    ],
)
def test_names_in_any_case_and_without_a_version_resolve(name: str, task: str) -> None:
    assert resolve_task(name).id == task


@pytest.mark.parametrize("name", TASKS)
def test_every_id_resolves_to_itself(name: str) -> None:
    assert resolve_task(name) is TASKS[name]
    assert TASKS[name].id == name


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Hoper-v5", "Hopper-v5"),
        ("Humanoid-v3", "Humanoid-v5"),
        ("halfchetah", "HalfCheetah-v5"),
        ("walker", "Walker2d"),
    ],
)
def test_a_misspelt_name_is_refused_with_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=f"there is no task {name}") as caught:
        resolve_task(name)
    assert caught.value.exit_code == 2
    assert suggestion in caught.value.hint


@pytest.mark.parametrize("name", ["", "xyzzy", "-v5", "hopper-v6", "hopper-medium-v2"])
def test_an_unknown_name_is_refused_with_a_next_step(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_task(name)
    assert caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("hopper-medium-v2", "Hopper-v5"),
        ("d4rl/hopper-medium-replay-v2", "Hopper-v5"),
        ("halfcheetah-medium-expert-v2", "HalfCheetah-v5"),
        ("hopper_medium_replay-v2.hdf5", "Hopper-v5"),
        ("walker2d-expert-v1", "Walker2d-v5"),
        ("walker_mixed.hdf5", "Walker2d-v5"),
        ("walker2d_random.hdf5", "Walker2d-v5"),
        ("ant-random-v0", "Ant-v5"),
        ("humanoid_medium-v2.pkl", "Humanoid-v5"),
        ("humanoid-expert-v2", "Humanoid-v5"),
        ("mujoco/humanoidstandup/simple-v0", "HumanoidStandup-v5"),
        ("mujoco/hopper/medium-v0", "Hopper-v5"),
        ("builtin/hopper/expert", "Hopper-v5"),
        ("Hopper-v4.hdf5", "Hopper-v5"),
        ("data/ant/hopper-medium.hdf5", "Hopper-v5"),
    ],
)
def test_the_task_in_a_dataset_name(name: str, task: str) -> None:
    found = task_in_name(name)
    assert found is not None
    assert found.id == task


@pytest.mark.parametrize(
    "name", ["", "data.hdf5", "maze2d-umaze-v1", "antmaze-large-v2", "pen-human-v1", "hoppers-v2", "grant"]
)
def test_a_name_without_a_task_gives_none(name: str) -> None:
    assert task_in_name(name) is None


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_table_equals_the_real_environment(task: Task) -> None:
    try:
        environment = make(task.id)
    except Exception as error:  # an environment that this installation cannot load
        pytest.skip(f"{task.id} does not load: {error}")
    observation, _ = environment.reset(seed=0)
    box = environment.action_space
    environment.close()
    assert isinstance(box, Box)
    assert observation.shape == environment.observation_space.shape == (task.observation_dim,)
    np.testing.assert_array_equal(box.high, np.full(task.action_dim, task.action_bound, np.float32))
    np.testing.assert_array_equal(box.low, -box.high)
    assert environment.spec is not None
    assert environment.spec.max_episode_steps == task.max_episode_steps


def test_at_least_the_benchmark_tasks_load() -> None:
    for name in ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"):
        make(name).close()


def test_making_an_environment_says_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HalfCheetah-v5", "Hopper-v4"):
        environment = make(name)
        environment.reset(seed=0)
        environment.step(environment.action_space.sample())
        environment.close()
    assert list(tmp_path.iterdir()) == [], "no MUJOCO_LOG.TXT"
    assert capfd.readouterr() == ("", "")
