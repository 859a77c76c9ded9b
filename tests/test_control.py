"""DeepMind Control through Gymnasium's interface, against the suite itself; and which tasks can terminate."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from commandline import child_environment
from gq.datasets.catalog import TDMPC2
from gq.envs import control_extras, gl
from gq.envs.tasks import CONTROL_TASKS, TASKS, Task, resolve_task
from gq.errors import GqError, UsageError
from simulator import make

SOURCE = Path(__file__).parents[1] / "src"
# The first task of each width of a domain's observations.
WIDTHS = {(name.split("-")[0], task.observation_dim): name for name, task in reversed(CONTROL_TASKS.items())}
ONE_OF_EACH = list(WIDTHS.values())


@pytest.fixture
def control() -> Any:
    """The module under test, where dm_control is installed."""
    pytest.importorskip("dm_control")
    from gq.envs import control as module

    return module


needs_suite = pytest.mark.usefixtures("control")


def raw_environment(control: Any, task: str, seed: int) -> Any:
    """Return the suite's own environment, seeded as dm_control does it."""
    return control.suite.load(*control.suite_name(task), task_kwargs={"random": seed})


def random_actions(task: Task, number: int, seed: int = 0) -> np.ndarray:
    """Return actions, float32 [number, A] in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (number, task.action_dim)).astype(np.float32)


def play(environment: Any, actions: np.ndarray, **reset: Any) -> tuple[np.ndarray, list[float]]:
    """Start an episode and return its observations [n + 1, S] and rewards."""
    observations, rewards = [environment.reset(**reset)[0]], []
    for action in actions:
        observation, reward, *_ = environment.step(action)
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), rewards


# --- names and interfaces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("dog-run", "dog-run"),
        ("Dog-Run", "dog-run"),
        ("dog_run", "dog-run"),
        ("cup-catch", "cup-catch"),
        ("ball_in_cup-catch", "cup-catch"),
        ("ball-in-cup-catch", "cup-catch"),
        ("pointmass-easy", "pointmass-easy"),
        ("point_mass-easy", "pointmass-easy"),
        ("finger-turn_hard", "finger-turn-hard"),
        ("humanoid_CMU-run", "humanoid-cmu-run"),
        ("humanoid-run", "humanoid-run"),
        ("hopper-hop", "hopper-hop"),
        ("hopper", "Hopper-v5"),
        ("humanoid", "Humanoid-v5"),
    ],
)
def test_names_of_both_kinds_resolve(name: str, task: str) -> None:
    assert resolve_task(name).id == task


@pytest.mark.parametrize("name", CONTROL_TASKS)
def test_every_name_is_of_a_task_with_500_decisions_of_two_frames(name: str) -> None:
    task = resolve_task(name)
    assert task is CONTROL_TASKS[name]
    assert (task.id, task.kind, task.max_episode_steps, task.action_repeat) == (name, "control", 500, 2)
    assert (task.action_bound, task.can_terminate) == (1.0, False)
    assert name not in TASKS


def test_all_tasks_with_official_checkpoints_are_there_but_for_the_reachers_of_three_links() -> None:
    assert set(TDMPC2["domains"]["dmcontrol"]) - set(CONTROL_TASKS) == {"reacher-three-easy", "reacher-three-hard"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dog-rum", "dog-run"),
        ("cartpole-swing", "cartpole-swingup"),
        ("cheetah", "cheetah-run"),
        ("walker", "walker-run"),
        ("reacher-three-easy", "its robot is not part of dm_control"),
        ("quadruped-escape", "a display"),
        ("lqr-lqr_2_1", "no time limit"),
        ("xyzzy", "dog-run"),
    ],
)
def test_an_unknown_name_is_refused_with_the_reason_or_a_suggestion(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"there is no task {name}") as caught:
        resolve_task(name)
    assert said in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("cartpole-swingup", (5, 1)),
        ("pendulum-swingup", (3, 1)),
        ("acrobot-swingup", (6, 1)),
        ("walker-walk", (24, 6)),
        ("cheetah-run", (17, 6)),
        ("hopper-hop", (15, 4)),
        ("reacher-easy", (6, 2)),
        ("cup-catch", (8, 2)),
        ("finger-spin", (9, 2)),
        ("finger-turn-easy", (12, 2)),
        ("fish-swim", (24, 5)),
        ("quadruped-run", (78, 12)),
        ("humanoid-walk", (67, 21)),
        ("dog-run", (223, 38)),
        ("humanoid-cmu-run", (137, 56)),
        ("swimmer-swimmer6", (25, 5)),
        ("pointmass-easy", (4, 2)),
    ],
)
def test_the_table_has_the_documented_widths(name: str, widths: tuple[int, int]) -> None:
    assert (CONTROL_TASKS[name].observation_dim, CONTROL_TASKS[name].action_dim) == widths


@needs_suite
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_table_equals_the_real_environment(name: str) -> None:
    task, environment = CONTROL_TASKS[name], make(name)
    observation, information = environment.reset(seed=0)
    assert observation.shape == (task.observation_dim,)
    assert (observation.dtype, information) == (np.float32, {})
    assert environment.observation_space.contains(observation)
    assert environment.action_space == Box(-1.0, 1.0, (task.action_dim,), np.float32)
    assert environment.unwrapped.environment.action_spec().shape == (task.action_dim,)
    assert environment.unwrapped.environment._step_limit == task.max_episode_steps * task.action_repeat


@pytest.mark.parametrize("name", control_extras.EXTRAS)
def test_an_extra_task_has_the_interface_of_its_base(name: str) -> None:
    task, base = CONTROL_TASKS[name], CONTROL_TASKS[control_extras.EXTRAS[name].base]
    assert (task.observation_dim, task.action_dim) == (base.observation_dim, base.action_dim)


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cartpole-swingup", "quadruped-walk", "finger-turn-hard", "humanoid-run"])
def test_a_decision_is_two_steps_of_the_suite_with_summed_rewards(control: Any, name: str) -> None:
    task, raw = CONTROL_TASKS[name], raw_environment(control, name, seed=4)
    actions, spec = random_actions(task, 25), raw.action_spec()
    observations, rewards = play(make(name), actions, seed=4)
    moment = raw.reset()
    for index, action in enumerate(actions):
        parts = [np.atleast_1d(part).astype(np.float32) for part in moment.observation.values()]
        np.testing.assert_array_equal(observations[index], np.concatenate(parts))
        scaled = spec.minimum + (action.astype(np.float64) + 1) / 2 * (spec.maximum - spec.minimum)
        first, moment = raw.step(scaled), raw.step(scaled)
        assert rewards[index] == pytest.approx(first.reward + moment.reward, rel=1e-9)
    assert raw.physics.time() == pytest.approx(2 * 25 * raw.control_timestep())


def test_observations_are_in_the_order_of_the_suite(control: Any) -> None:
    environment: Any = make("walker-walk").unwrapped
    observation, _ = environment.reset(seed=0)
    physics = environment.environment.physics
    assert list(environment.environment.observation_spec()) == ["orientations", "height", "velocity"]
    np.testing.assert_array_equal(observation[:14], physics.orientations().astype(np.float32))
    assert observation[14] == np.float32(physics.torso_height())
    np.testing.assert_array_equal(observation[15:], physics.velocity().astype(np.float32))
    np.testing.assert_array_equal(
        control.flatten({"b": np.array([[1.0, 2.0]]), "a": 3.0}), np.array([1, 2, 3], np.float32)
    )


@needs_suite
def test_actions_fill_a_box_that_is_not_symmetric() -> None:
    environment: Any = make("quadruped-walk").unwrapped
    spec = environment.environment.action_spec()
    assert not np.allclose(spec.minimum, -spec.maximum)
    middle = (spec.minimum + spec.maximum) / 2
    for action, expected in [(1, spec.maximum), (-1, spec.minimum), (0, middle), (7, spec.maximum), (-7, spec.minimum)]:
        environment.reset(seed=0)
        environment.step(np.full(12, action, np.float32))
        np.testing.assert_allclose(environment.data.ctrl, expected, rtol=0, atol=1e-12)


@needs_suite
def test_an_episode_is_truncated_after_500_decisions_and_never_terminates() -> None:
    task, environment = CONTROL_TASKS["pendulum-swingup"], make("pendulum-swingup")
    for seed in (0, None):
        environment.reset(seed=seed)
        ends = [environment.step(action)[2:4] for action in random_actions(task, 500)]
        assert ends == [(False, False)] * 499 + [(False, True)]
        with pytest.raises(AssertionError, match="reset comes first"):
            environment.step(np.zeros(1, np.float32))


@needs_suite
def test_an_action_that_is_no_number_is_refused() -> None:
    environment = make("pendulum-swingup")
    environment.reset(seed=0)
    with pytest.raises(AssertionError, match="not finite"):
        environment.step(np.full(1, np.nan, np.float32))


@needs_suite
def test_the_time_of_a_decision() -> None:
    assert make("cheetah-run").unwrapped.dt == pytest.approx(0.02)  # type: ignore[attr-defined]
    assert make("humanoid-run").unwrapped.dt == pytest.approx(0.05)  # type: ignore[attr-defined]


# --- seeds ------------------------------------------------------------------------------------------------------------


@needs_suite
@pytest.mark.parametrize("name", ["cheetah-run", "reacher-hard", "cup-spin", "quadruped-fetch", "swimmer-swimmer6"])
def test_a_seed_gives_the_same_bits_whatever_ran_before_or_runs_beside(name: str) -> None:
    actions = random_actions(CONTROL_TASKS[name], 20)
    observations, rewards = play(make(name), actions, seed=11)
    environment, other = make(name), make(name)
    play(environment, random_actions(CONTROL_TASKS[name], 7, seed=1), seed=3)
    other.reset(seed=5)
    np.random.seed(99)  # a change to the global generator must not matter
    assert np.array_equal(environment.reset(seed=11)[0], observations[0])
    for index, action in enumerate(actions):
        other.step(-action)
        observation, reward, *_ = environment.step(action)
        assert np.array_equal(observation, observations[index + 1])
        assert reward == rewards[index]


@needs_suite
def test_other_seeds_and_later_episodes_start_elsewhere() -> None:
    environment = make("walker-walk")
    starts = [environment.reset(seed=seed)[0] for seed in (0, None, 1, None, 0, None)]
    assert np.array_equal(starts[0], starts[4])
    assert np.array_equal(starts[1], starts[5])
    assert len({start.tobytes() for start in starts[:4]}) == 4


def test_a_seed_means_what_it_does_in_the_suite(control: Any) -> None:
    raw, environment = raw_environment(control, "fish-swim", seed=2**31), make("fish-swim")
    for seed in (2**31, None):
        expected = control.flatten(raw.reset().observation)
        assert np.array_equal(environment.reset(seed=seed)[0], expected)


@needs_suite
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_suite_has_not_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="no seed for pendulum-swingup") as caught:
        make("pendulum-swingup").reset(seed=seed)
    assert caught.value.hint


# --- what goes wrong --------------------------------------------------------------------------------------------------


@needs_suite
def test_a_simulation_that_diverges_truncates_at_the_last_observation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    environment: Any = make("cheetah-run").unwrapped
    expected, _ = environment.reset(seed=0)
    environment.data.qvel[:] = np.nan
    observation, reward, terminated, truncated, information = environment.step(np.zeros(6, np.float32))
    assert np.array_equal(observation, expected)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "mjWARN_BAD" in information["physics_error"]
    assert np.array_equal(environment.reset(seed=0)[0], expected)
    assert environment.step(np.zeros(6, np.float32))[3:] == (False, {})
    assert list(tmp_path.iterdir()) == [], "no MUJOCO_LOG.TXT"
    assert capfd.readouterr() == ("", "")


def test_the_reward_before_it_diverges_counts(control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: Any = make("cup-catch").unwrapped
    observation, _ = environment.reset(seed=0)
    moments = [SimpleNamespace(discount=1.0, reward=0.25, observation={"a": 1.0})]

    def step(_: np.ndarray) -> Any:
        if not moments:
            raise control.PhysicsError("diverged")
        return moments.pop()

    monkeypatch.setattr(environment.environment, "step", step)
    after, reward, terminated, truncated, information = environment.step(np.zeros(2, np.float32))
    assert np.array_equal(after, observation)
    assert (reward, terminated, truncated, information) == (0.25, False, True, {"physics_error": "diverged"})


def test_a_start_that_diverges_is_drawn_again_and_given_up_in_the_end(
    control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment: Any = make("cup-catch").unwrapped
    real, failures = environment.environment.reset, [3]

    def reset() -> Any:
        failures[0] -= 1
        if failures[0] >= 0:
            raise control.PhysicsError("diverged")
        return real()

    monkeypatch.setattr(environment.environment, "reset", reset)
    assert environment.reset(seed=0)[0].shape == (8,)
    failures[0] = control.NUM_START_ATTEMPTS
    with pytest.raises(GqError, match="cup-catch diverges from every start: diverged") as caught:
        environment.reset(seed=0)
    assert caught.value.hint


def test_without_dm_control_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gq.envs.control", raising=False)
    monkeypatch.setitem(sys.modules, "dm_control", None)  # type: ignore[arg-type]
    with pytest.raises(GqError, match="DeepMind Control tasks need dm_control") as caught:
        make("dog-run")
    assert caught.value.hint == 'pip install "gym-qwen[dmc]"'
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    make("HalfCheetah-v5").close()


@needs_suite
def test_nothing_is_said_or_written_without_a_display(tmp_path: Path) -> None:
    code = """
import os, sys
from gq.envs import tasks, make
tasks.resolve_task("dog-run")
assert "dm_control" not in sys.modules
environment = make.make(tasks.resolve_task("cheetah-run"))
environment.reset(seed=0)
environment.step(environment.action_space.sample())
environment.close()
assert "MUJOCO_GL" not in os.environ
"""
    variables = child_environment()
    variables["PYTHONPATH"] = str(SOURCE)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        variables.pop(name, None)
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [], "no MUJOCO_LOG.TXT"


@needs_suite
def test_pictures_are_drawn() -> None:
    try:
        gl.select_backend()
    except GqError as error:
        pytest.skip(str(error))
    environment = make("quadruped-walk", render_mode="rgb_array", width=96, height=64)
    environment.reset(seed=0)
    picture: Any = environment.render()
    environment.close()
    other = make("quadruped-walk", render_mode="rgb_array", width=96, height=64, camera_name="global")
    other.reset(seed=0)
    from_elsewhere: Any = other.render()
    other.close()
    assert (picture.shape, picture.dtype) == ((64, 96, 3), np.uint8)
    assert picture.std() > 5
    assert not np.array_equal(picture, from_elsewhere)


# --- extra tasks ------------------------------------------------------------------------------------------------------


def reward_of(name: str, **methods: Any) -> float:
    """Return an extra task's reward of a state given as what the physics' methods and `heights` say."""
    heights = {(body, "z"): height for body, height in methods.pop("heights", {}).items()}
    velocity = np.array(methods.pop("ball_velocity", (0.0, 0.0)))
    ball = type("Velocities", (), {"__getitem__": lambda self, joints: velocity})()
    named = SimpleNamespace(data=SimpleNamespace(xpos=heights, qvel=ball))
    functions = {method: lambda value=value: value for method, value in methods.items()}
    return control_extras.EXTRAS[name].reward(SimpleNamespace(named=named, **functions))


@pytest.mark.parametrize(
    ("name", "state", "reward"),
    [
        ("walker-walk-backwards", {"torso_height": 1.3, "torso_upright": 1.0, "horizontal_velocity": -1.0}, 1.0),
        ("walker-walk-backwards", {"torso_height": 1.3, "torso_upright": 1.0, "horizontal_velocity": -0.5}, 3.5 / 6),
        ("walker-walk-backwards", {"torso_height": 1.3, "torso_upright": 1.0, "horizontal_velocity": 1.0}, 1 / 6),
        ("walker-walk-backwards", {"torso_height": 0.6, "torso_upright": 0.0, "horizontal_velocity": -2.0}, 0.2),
        ("walker-run-backwards", {"torso_height": 1.2, "torso_upright": 1.0, "horizontal_velocity": -4.0}, 3.5 / 6),
        ("walker-run-backwards", {"torso_height": 1.2, "torso_upright": 1.0, "horizontal_velocity": -9.0}, 1.0),
        ("cheetah-run-backwards", {"speed": -9.0}, 1.0),
        ("cheetah-run-backwards", {"speed": -2.0}, 0.25),
        ("cheetah-run-backwards", {"speed": 3.0}, 0.0),
        ("cheetah-run-front", {"speed": 6.0, "heights": {"torso": 1.2, "bfoot": 1.5, "ffoot": 0.0}}, 1.0),
        ("cheetah-run-front", {"speed": 3.0, "heights": {"torso": 1.2, "bfoot": 0.6, "ffoot": 2.0}}, 0.46 * 3.5 / 6),
        ("cheetah-run-back", {"speed": 0.0, "heights": {"torso": 0.6, "ffoot": 1.2, "bfoot": 0.0}}, 0.64 / 6),
        ("cheetah-jump", {"speed": 0.3, "heights": {"torso": 1.2, "ffoot": 1.2, "bfoot": 1.3}}, 1.0),
        ("cheetah-jump", {"speed": -0.75, "heights": {"torso": 1.2, "ffoot": 1.2, "bfoot": 0.0}}, 3.25 / 6),
        ("hopper-hop-backwards", {"height": 0.7, "speed": -1.0}, 1.0),
        ("hopper-hop-backwards", {"height": 0.7, "speed": -0.5}, 0.5),
        ("hopper-hop-backwards", {"height": 0.7, "speed": 0.0}, 0.0),
        ("hopper-hop-backwards", {"height": 0.5, "speed": -2.0}, 0.0),
        ("pendulum-spin", {"angular_velocity": np.array([-9.5])}, 1.0),
        ("pendulum-spin", {"angular_velocity": np.array([4.5])}, 0.5),
        ("pendulum-spin", {"angular_velocity": np.array([0.0])}, 0.0),
        ("cup-spin", {"in_target": 0.0, "ball_to_target": np.array([0.3, 0.4]), "ball_velocity": (0.0, -6.0)}, 1.0),
        ("cup-spin", {"in_target": 0.0, "ball_to_target": np.array([0.25, 0]), "ball_velocity": (3.0, 0)}, 0.5),
        ("cup-spin", {"in_target": 1.0, "ball_to_target": np.array([0.5, 0]), "ball_velocity": (9.0, 0)}, 0.0),
    ],
)
def test_extra_rewards_of_states_made_by_hand(name: str, state: dict[str, Any], reward: float) -> None:
    assert reward_of(name, **state) == pytest.approx(reward, abs=1e-12)


@needs_suite
def test_the_slopes_are_the_tolerances_of_the_suite() -> None:
    from dm_control.utils.rewards import tolerance

    for value in np.linspace(-3, 3, 61).tolist():
        line = {"bounds": (1.5, np.inf), "margin": 2.0, "value_at_margin": 0.5, "sigmoid": "linear"}
        assert control_extras.at_least(value, 1.5, margin=2.0, at_margin=0.5) == pytest.approx(tolerance(value, **line))
        bell = tolerance(value, bounds=(1.5, np.inf), margin=2.0)
        assert control_extras.nearly(value, 1.5, margin=2.0) == pytest.approx(bell)


@needs_suite
@pytest.mark.parametrize("name", control_extras.EXTRAS)
def test_an_extra_task_has_the_physics_of_its_base_and_its_own_reward(name: str) -> None:
    extra = control_extras.EXTRAS[name]
    actions = random_actions(CONTROL_TASKS[name], 30)
    environment: Any = make(name).unwrapped
    observations, rewards = play(environment, actions, seed=2)
    assert 0 <= min(rewards) <= max(rewards) <= 2
    assert environment.environment.task.get_reward(environment.environment.physics) <= rewards[-1]
    others, other_rewards = play(make(extra.base), actions, seed=2)
    assert rewards != other_rewards or not any(rewards)
    assert np.array_equal(observations, others) == (extra.start is None)


@needs_suite
def test_the_ball_to_spin_mostly_starts_in_the_cup() -> None:
    environment: Any = make("cup-spin").unwrapped
    is_in_cup, heights = [], []
    for seed in range(60):
        environment.reset(seed=seed)
        is_in_cup.append(environment.environment.physics.in_target())
        assert environment.data.ncon == 0
        heights.append(environment.data.qpos[3])
    assert 0.8 <= np.mean(is_in_cup) < 1.0
    assert 0.2 <= min(heights) <= max(heights) <= 0.5


# --- Gymnasium's tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_task_terminates_exactly_if_the_table_says_so(name: str) -> None:
    try:
        environment = make(name)
    except Exception as error:  # an environment that this installation cannot load
        pytest.skip(f"{name} does not load: {error}")
    bound, random = TASKS[name].action_bound, np.random.default_rng(0)
    num_episodes = 20 if TASKS[name].can_terminate else 1
    terminated = False
    for seed in range(num_episodes):
        environment.reset(seed=seed)
        truncated = False
        while not (terminated or truncated):
            _, _, terminated, truncated, _ = environment.step(random.uniform(-bound, bound, TASKS[name].action_dim))
        if terminated:
            break
    environment.close()
    assert terminated == TASKS[name].can_terminate
