"""Replaying stored episodes tells whose physics they are."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gq.data.reading import read_trajectories
from gq.data.trajectories import Trajectories
from gq.envs import make as making
from gq.envs.engines import differing_engines, installed_engines, mismatch, recorded_engines
from gq.envs.tasks import Task
from gq.errors import DataError, UsageError
from gq.repair.drift import DriftReport, replay_drift
from simulator import make

TASKS = ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]
HERE = {f"{name}_version": version for name, version in installed_engines().items()}


def record(task: str, *, num_rows: int = 100, max_steps: int = 60, seed: int = 0, **options: Any) -> Trajectories:
    """Simulate whole episodes of random actions, stored as files store them: float32."""
    generator = np.random.default_rng(seed)
    rows: list[tuple] = []
    offsets = [0]
    with closing(make(task, **options)) as env:
        box: Any = env.action_space
        while len(rows) < num_rows:
            observation, _ = env.reset(seed=seed + len(offsets))
            for _ in range(max_steps):
                action = generator.uniform(box.low, box.high).astype(np.float32)
                following, reward, terminated, _, _ = env.step(action)
                rows.append((observation, action, reward, terminated))
                observation = following
                if terminated:
                    break
            offsets.append(len(rows))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Trajectories(
        observations=columns[0].astype(np.float32),
        actions=columns[1],
        rewards=columns[2].astype(np.float32),
        terminals=columns[3].astype(bool),
        offsets=np.array(offsets),
        source="recorded",
        task=task,
        attributes={"env_id": task, **HERE},
    )


@pytest.fixture(scope="module")
def recorded() -> dict[str, Trajectories]:
    num_rows = {"Hopper": 200, "Walker2d": 250}  # short episodes, and clipped velocities
    return {task: record(task, num_rows=num_rows.get(task[:-3], 100)) for task in [*TASKS, "Walker2d-v4", "Hopper-v4"]}


def replay_with(change: Callable[[Any], None], trajectories: Trajectories, **options: Any) -> DriftReport:
    """Replay in a simulator whose model was changed."""

    honest = making.make

    def make_changed(task: Task) -> Any:
        env = honest(task)
        change(env.unwrapped.model)
        return env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "make", make_changed)
        return replay_drift(trajectories, 10, **options)


def more_gravity(model: Any) -> None:
    model.opt.gravity[:] *= 1.01


def stronger_motors(model: Any) -> None:
    model.actuator_gear[:] *= 1.01


def heavier(model: Any) -> None:
    model.body_mass[:] *= 1.05


def more_friction(model: Any) -> None:
    model.geom_friction[:, 0] *= 1.2


# --- the same physics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*TASKS, "Walker2d-v4"])
def test_the_same_engine_repeats_every_step(recorded: dict[str, Trajectories], task: str) -> None:
    report = replay_drift(recorded[task], 10)
    assert report.verdict == "same physics"
    assert report.agreement == report.reward_agreement == 1
    assert report.error_quantiles["max"] < 7e-5
    assert report.num_compared > 40
    assert report.fits is None
    assert report.num_fall_rewards_off == 0
    assert all(episode.reward_error_max is None or episode.reward_error_max < 1e-4 for episode in report.episodes)
    assert (report.output_agreement is None) == task.startswith(("Hopper", "HalfCheetah", "Walker2d"))
    assert report.output_agreement is None or report.output_agreement > 0.95


def test_short_episodes_do_not_diverge_by_their_actions_alone(recorded: dict[str, Trajectories]) -> None:
    report = replay_drift(recorded["Hopper-v5"], 10)
    assert len(report.episodes) >= 6
    assert {episode.diverges_at for episode in report.episodes} == {None}
    changed = replay_with(stronger_motors, recorded["Hopper-v5"])
    steps = [episode.diverges_at for episode in changed.episodes]
    assert any(step is not None and 0 < step < 30 for step in steps)


def test_a_long_chaotic_episode_diverges_though_every_step_agrees() -> None:
    report = replay_drift(record("HalfCheetah-v5", num_rows=150, max_steps=150), 1)
    (episode,) = report.episodes
    assert report.verdict == "same physics"
    assert episode.diverges_at is not None
    assert 15 < episode.diverges_at < 150
    assert episode.error_max is not None
    assert episode.error_max < 1e-4


# --- other physics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [more_gravity, stronger_motors, heavier])
@pytest.mark.parametrize("task", TASKS)
def test_another_model_moves_almost_every_step(
    recorded: dict[str, Trajectories], task: str, change: Callable[[Any], None]
) -> None:
    for attributes in (recorded[task].attributes, {}, {"mujoco_version": "2.3.7"}):
        report = replay_with(change, replace(recorded[task], attributes=attributes))
        assert report.verdict == "other physics", report.summary()
        assert report.agreement is not None
        assert report.agreement < 0.1
        if task != "Walker2d-v5":
            break  # the records do not matter; one task shows it


@pytest.mark.parametrize("task", TASKS)
def test_scaled_actions_are_other_physics(recorded: dict[str, Trajectories], task: str) -> None:
    data = recorded[task]
    report = replay_drift(replace(data, actions=data.actions * np.float32(0.9)), 10)
    assert report.verdict == "other physics"
    assert "action scaling" in report.reason
    assert report.error_quantiles["p50"] > 0.05


@pytest.mark.parametrize("task", ["Hopper-v5", "HalfCheetah-v5", "Ant-v5"])
def test_what_differs_in_some_contacts_is_judged_by_the_recorded_engine(
    recorded: dict[str, Trajectories], task: str
) -> None:
    verdicts = {}
    for name, attributes in {
        "same": HERE,
        "older": {**HERE, "mujoco_version": "3.2.3"},
        "patch": {**HERE, "mujoco_version": installed_engines()["mujoco"] + ".9"},
        "unknown": {},
    }.items():
        report = replay_with(more_friction, replace(recorded[task], attributes=attributes))
        assert report.agreement is not None
        assert 0.1 < report.agreement < 0.95
        verdicts[name] = (report.verdict, report.reason)
    assert {name: verdict for name, (verdict, _) in verdicts.items()} == {
        "same": "other physics",
        "older": "drifts",
        "patch": "other physics",
        "unknown": "drifts",
    }
    assert "versions of mujoco" in verdicts["older"][1]
    assert "do not name theirs" in verdicts["unknown"][1]


@pytest.mark.parametrize(
    ("recorded_in", "replayed_in"), [("Walker2d-v4", "Walker2d-v5"), ("Walker2d-v5", "Walker2d-v4")]
)
def test_the_other_walker_is_named(recorded: dict[str, Trajectories], recorded_in: str, replayed_in: str) -> None:
    report = replay_drift(recorded[recorded_in], 10, task=replayed_in)
    assert (report.verdict, report.fits) == ("other physics", recorded_in)
    assert report.reason == f"the data are of {recorded_in}"
    assert replay_with(more_gravity, recorded[recorded_in], task=replayed_in).fits is None


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["Ant-v5", "Humanoid-v5"])
def test_a_missing_contact_cost_is_found(task: str) -> None:
    """As in v4, whose Humanoid and Ant pay no contact cost."""
    report = replay_drift(record(task, contact_cost_weight=0.0), 10)
    assert report.verdict == "other rewards"
    assert report.agreement == 1
    assert report.reward_agreement is not None
    assert report.reward_agreement < 0.9


def test_another_control_cost_is_found() -> None:
    report = replay_drift(record("HalfCheetah-v5", ctrl_cost_weight=0.2), 10)
    assert (report.verdict, report.reward_agreement) == ("other rewards", 0)


def test_the_last_step_of_a_fall_pays_in_v4_only(recorded: dict[str, Trajectories]) -> None:
    report = replay_drift(recorded["Hopper-v4"], 5, task="Hopper-v5")
    assert report.verdict == "same physics", "all other steps pay the same"
    assert report.num_fall_rewards_off == report.num_falls == 5
    assert any("5 of 5 falls" in line for line in report.summary())
    assert replay_drift(recorded["Hopper-v4"], 10).num_fall_rewards_off == 0


# --- what is replayed -------------------------------------------------------------------------------------------------


def test_episodes_are_spread_over_the_data(recorded: dict[str, Trajectories]) -> None:
    data = recorded["Hopper-v5"]
    last = data.num_episodes - 1
    assert [e.episode for e in replay_drift(data, 3).episodes] == [0, round(last / 2), last]
    assert [e.episode for e in replay_drift(data, 1).episodes] == [0]
    every = replay_drift(data, 10_000)
    assert [e.episode for e in every.episodes] == list(range(data.num_episodes))
    assert [e.length for e in every.episodes] == data.lengths.tolist()
    assert every.num_compared == data.num_transitions - data.num_episodes, "the last rows have no next one"
    assert every.document() == replay_drift(data, data.num_episodes).document()


def test_rows_whose_velocities_were_clipped_are_left_out(recorded: dict[str, Trajectories]) -> None:
    data = recorded["Walker2d-v5"]
    report = replay_drift(data, data.num_episodes)
    clipped = (np.abs(data.observations[:, 8:]) == 10).any(axis=1)
    assert clipped.sum() > 50
    lasts = np.isin(np.arange(data.num_transitions), data.offsets[1:] - 1)
    assert report.num_compared == (~clipped & ~lasts).sum()


def test_too_few_steps_give_no_verdict(recorded: dict[str, Trajectories]) -> None:
    data = recorded["Hopper-v5"]
    one_row = replace(data.select(np.array([0])), offsets=np.array([0, 1]))
    one_row = replace(
        one_row, **{name: getattr(one_row, name)[:1] for name in ("observations", "actions", "rewards", "terminals")}
    )
    report = replay_drift(one_row, 1)
    assert (report.verdict, report.num_compared, report.agreement) == ("unknown", 0, None)
    assert len(report.summary()) == 2
    json.dumps(report.document(), allow_nan=False)


def test_the_report_is_json_and_names_the_engines(recorded: dict[str, Trajectories]) -> None:
    data = replace(recorded["Ant-v5"], attributes={"requirements": "mujoco==3.2.3, gymnasium>=1.0.0"})
    report = replay_with(more_gravity, data)
    printed = json.loads(json.dumps(report.document(), allow_nan=False))
    assert printed["recorded"] == {"mujoco": "3.2.3"}
    assert printed["installed"] == installed_engines()
    assert printed["verdict"] == "other physics"
    assert len(printed["episodes"]) == len(report.episodes)
    lines = report.summary()
    assert lines[0].startswith("other physics: almost every step differs")
    assert "mujoco 3.2.3" in lines[1]
    assert installed_engines()["mujoco"] in lines[1]
    assert max(map(len, lines)) < 200


def test_a_share_is_not_rounded_up_to_all(recorded: dict[str, Trajectories]) -> None:
    report = replace(replay_drift(recorded["Hopper-v5"], 2), agreement=0.99999)
    assert "99.9 % agree" in report.summary()[2]


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({}, {"num_episodes": 0}, UsageError, "cannot replay 0 episodes"),
        ({"task": None}, {}, UsageError, "does not say its task"),
        ({}, {"task": "Swimmer-v5"}, UsageError, "Swimmer-v5 cannot be replayed"),
        ({}, {"task": "Flyer-v5"}, UsageError, "there is no task Flyer-v5"),
        ({}, {"task": "Ant-v5"}, DataError, "has 11 observation and 3 action columns, Ant-v5 has 105 and 8"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    recorded: dict[str, Trajectories], changes: dict, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        replay_drift(replace(recorded["Hopper-v5"], **changes), **{"num_episodes": 1, **options})
    assert getattr(refused.value, "hint", "")


@pytest.mark.parametrize(
    "name",
    [
        "hopper-medium",
        "hopper-medium-replay",
        "halfcheetah-medium",
        "walker2d-medium",
        "ant-medium-replay",
        "humanoid-medium",
    ],
)
def test_recorded_data_of_trained_policies(shared_data: Path, name: str) -> None:
    data = read_trajectories(shared_data / f"{name}.hdf5")
    if differing_engines(recorded_engines(data.attributes), installed_engines()):
        pytest.skip("recorded with another engine")
    short = data.select(np.argsort(data.lengths)[: 1 if "humanoid" in name else 3])
    report = replay_drift(short, 3)
    assert (report.verdict, report.agreement) == ("same physics", 1)
    assert report.error_quantiles["max"] < 7e-5
    assert report.recorded["env_id"] == report.task


def test_minari_and_pickle_forms_replay_alike(shared_data: Path) -> None:
    paths = [shared_data / "minari/mujoco/hopper/medium-v0", shared_data / "hopper-medium-20ep.pkl"]
    reports = [replay_drift(read_trajectories(path), 1) for path in paths]
    assert reports[0].error_quantiles == reports[1].error_quantiles
    assert reports[0].verdict == reports[1].verdict == "same physics"


# --- engine versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({}, {}),
        ({"mujoco_version": "3.17.0", "gymnasium_version": "1.4.0"}, {"mujoco": "3.17.0", "gymnasium": "1.4.0"}),
        ({"requirements": "mujoco==3.2.3, gymnasium[mujoco]==1.0.0"}, {"mujoco": "3.2.3", "gymnasium": "1.0.0"}),
        ({"requirements": "mujoco-py==2.1.2, gymnasium>=1.0"}, {}),
        ({"requirements": "mujoco>=3.2.3,<4"}, {}),
        ({"env_id": "Hopper-v5", "mujoco_version": "3.1.6"}, {"env_id": "Hopper-v5", "mujoco": "3.1.6"}),
    ],
)
def test_recorded_engines(attributes: dict[str, str], found: dict[str, str]) -> None:
    assert recorded_engines(attributes) == found


@pytest.mark.parametrize(
    ("task", "there", "text"),
    [
        ("dog-run", {"mujoco": "3.17.0", "dm_control": "1.0.50"}, ""),
        ("dog-run", {"mujoco": "3.17.0", "dm_control": "1.0.34"}, "dm_control 1.0.34, not 1.0.50"),
        ("dog-run", {"mujoco": "3.2.3", "gymnasium": "0.1.0"}, "mujoco 3.2.3, not 3.17.0"),
        ("Hopper-v5", {"mujoco": "3.17.0", "dm_control": "1.0.34"}, ""),
        ("Hopper-v5", {"gymnasium": "0.1.0", "dm_control": "1.0.34"}, "gymnasium 0.1.0, not 1.4.0"),
    ],
)
def test_dm_control_counts_for_its_own_tasks_only(task: str, there: dict[str, str], text: str) -> None:
    here = {"mujoco": "3.17.0", "gymnasium": "1.4.0", "dm_control": "1.0.50"}
    assert mismatch(there, here, task) == text


def test_the_engines_of_a_control_task_are_read_back_from_its_data() -> None:
    recorded = {"env_id": "dog-run", "mujoco_version": "3.17.0", "dm_control_version": "1.0.50"}
    assert recorded_engines(recorded) == {"env_id": "dog-run", "mujoco": "3.17.0", "dm_control": "1.0.50"}
    assert "dm_control" not in recorded_engines({**recorded, "env_id": "Hopper-v5"})


@pytest.mark.parametrize(
    ("there", "text"),
    [
        ({}, ""),
        ({"mujoco": "3.17.5", "gymnasium": "1.4.1", "env_id": "Hopper-v5"}, ""),
        ({"mujoco": "3.2.3", "gymnasium": "1.4.0"}, "mujoco 3.2.3, not 3.17.0"),
        ({"mujoco": "4.17.0", "gymnasium": "1.0.0"}, "mujoco 4.17.0, not 3.17.0 and gymnasium 1.0.0, not 1.4.0"),
        ({"env_id": "Hopper-v4"}, "Hopper-v4, not Hopper-v5"),
    ],
)
def test_mismatch_of_engines(there: dict[str, str], text: str) -> None:
    here = {"mujoco": "3.17.0", "gymnasium": "1.4.0"}
    assert mismatch(there, here, "Hopper-v5") == text
