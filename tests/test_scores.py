"""What scores refer to: the packaged table, D4RL's for D4RL data only, and the versions behind a score."""

import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import pytest

from commandline import TINY, gq
from gq.envs.engines import installed_engines
from gq.envs.scores import D4RL, GQ_V5, Reference, origin_of, reference_for
from gq.envs.tasks import TASKS
from gq.results import evaluate as evaluating
from gq.results.evaluate import evaluate, version_warnings
from gq.rollouts.episodes import EpisodeRequest
from tiny import write_hopper_file

MAIN_TASKS = ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]
HERE = installed_engines()


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return json.loads((resources.files("gq.envs") / "reference_scores.json").read_text())


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_v5_task_has_a_measured_random_policy(table: dict[str, Any]) -> None:
    assert table["version"] == "1"
    assert set(table["tasks"]) == {task for task in TASKS if task.endswith("-v5")}
    for task, entry in table["tasks"].items():
        random = entry["random"]
        low, high = random["ci95"]
        assert random["num_episodes"] >= 200
        assert low < random["mean"] < high
        assert (high - low) / 2 == pytest.approx(1.96 * random["std"] / math.sqrt(random["num_episodes"]), rel=0.15)
        assert random["seed"] == 0
        assert random["gymnasium"]
        assert random["mujoco"]
        assert random["length_mean"] <= TASKS[task].max_episode_steps


@pytest.mark.parametrize(
    ("task", "mean", "half_interval"),
    [
        ("Hopper-v5", 18.2, 1.2),
        ("HalfCheetah-v5", -291.0, 8.8),
        ("Walker2d-v5", 1.65, 0.38),
        ("Ant-v5", -57.3, 8.2),
        ("Humanoid-v5", 113.7, 2.1),
    ],
)
def test_random_returns_agree_with_an_independent_measurement(
    table: dict[str, Any], task: str, mean: float, half_interval: float
) -> None:
    low, high = table["tasks"][task]["random"]["ci95"]
    assert low - half_interval < mean < high + half_interval


def test_experts_say_what_they_are(table: dict[str, Any]) -> None:
    """A score needs an expert: a packaged policy by its hash, measured on 100 episodes, or a published one."""
    assert {task for task, entry in table["tasks"].items() if "expert" in entry} == set(MAIN_TASKS)
    for task in MAIN_TASKS:
        expert, random = table["tasks"][task]["expert"], table["tasks"][task]["random"]
        assert expert["mean"] > random["mean"] + 20 * random["std"]
        assert expert["policy"]
        if "sha256" in expert:
            assert len(expert["sha256"]) == 64
            assert expert["num_episodes"] >= 100
            assert expert["ci95"][0] <= expert["mean"] <= expert["ci95"][1]
        else:
            assert expert["origin"].startswith("published policy")


def test_packaged_experts_are_those_that_were_measured(table: dict[str, Any]) -> None:
    from gq.files import sha256

    for task in MAIN_TASKS:
        expected = table["tasks"][task]["expert"].get("sha256")
        packaged = resources.files("gq.policies") / "packaged_weights" / f"{task.split('-')[0].lower()}.safetensors"
        if expected:
            with resources.as_file(packaged) as path:
                assert sha256(path) == expected, "measure it: python scripts/measure_reference_scores.py --expert"


# --- which reference --------------------------------------------------------------------------------------------------


def test_own_references_are_those_of_the_table(table: dict[str, Any]) -> None:
    assert set(GQ_V5) == set(MAIN_TASKS)
    for task, reference in GQ_V5.items():
        entry = table["tasks"][task]
        assert reference == Reference("gq-v5", entry["random"]["mean"], entry["expert"]["mean"], table="1")
        assert reference.title == "gq-v5 (table 1)"


@pytest.mark.parametrize(
    ("dataset", "attributes", "origin"),
    [
        ("d4rl/hopper-medium-v2", {}, "d4rl/hopper-medium-v2"),
        ("/data/repaired.hdf5", {"source": "d4rl/hopper-medium-v2"}, "d4rl/hopper-medium-v2"),
        ("/data/repaired.hdf5", {"source": "mujoco/hopper/medium-v0"}, "/data/repaired.hdf5"),
        ("/data/d4rl/hopper.hdf5", {"source": "/data/d4rl/hopper.hdf5"}, "/data/d4rl/hopper.hdf5"),
        ("/data/a.hdf5", {"source": 7}, "/data/a.hdf5"),
        ("builtin/hopper/medium", {"d4rl_ref_max_score": 3234.3}, "builtin/hopper/medium"),
    ],
)
def test_only_what_comes_from_d4rl_is_scored_as_d4rl(dataset: str, attributes: dict[str, Any], origin: str) -> None:
    assert origin_of(dataset, attributes) == origin
    found = reference_for(TASKS["Hopper-v5"], origin)
    assert found == (D4RL["hopper"] if origin.startswith("d4rl/") else GQ_V5["Hopper-v5"])


def test_the_ant_of_d4rl_comes_with_a_remark_and_humanoid_has_no_d4rl_score() -> None:
    ant = reference_for(TASKS["Ant-v5"], "d4rl/ant-medium-v2")
    assert ant is not None
    assert "contact cost" in ant.note
    assert ant.title == "d4rl"
    assert reference_for(TASKS["Humanoid-v5"], "d4rl/humanoid-medium-v2") is None
    assert not any(reference.note for name, reference in D4RL.items() if name != "ant")


# --- an evaluation says what it rests on ------------------------------------------------------------------------------


def train(folder: Path, **attributes: str) -> Path:
    data = write_hopper_file(folder / "data.hdf5")
    with h5py.File(data, "a") as file:
        file.attrs.update(attributes)
    result = gq("train", "dt", "--dataset", data, "--steps", "2", "--out", folder / "run", *TINY)
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("own"), mujoco_version=HERE["mujoco"])


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a copy of D4RL's data, of another engine."""
    return train(tmp_path_factory.mktemp("foreign"), source="d4rl/hopper-medium-v2", mujoco_version="2.3.7")


def test_an_evaluation_names_its_reference_and_engine(run: Path) -> None:
    result = gq("eval", run, "--target", "10", "--episodes", "1", "--json")
    printed = json.loads(result.stdout)
    expected = GQ_V5["Hopper-v5"]
    assert printed["reference"] == {
        "name": "gq-v5",
        "minimum": expected.minimum,
        "maximum": expected.maximum,
        "table": "1",
        "note": "",
    }
    assert printed["results"][0]["reference"] == "gq-v5"
    assert {name: printed["versions"][name] for name in HERE} == HERE
    assert printed["warnings"] == []
    assert "warning" not in result.stderr
    (stored,) = (run / "evals").glob("*.json")
    assert json.loads(stored.read_text())["reference"] == printed["reference"]


def test_people_read_what_the_scores_refer_to(run: Path) -> None:
    lines = gq("eval", run, "--target", "10", "--episodes", "1").stdout.splitlines()
    assert "score (gq-v5)" in lines[1]
    minimum, maximum = GQ_V5["Hopper-v5"].minimum, GQ_V5["Hopper-v5"].maximum
    assert lines[-1].startswith(f"Scores by gq-v5 (table 1): 0 is a return of {minimum:g}, 100 of {maximum:g}. mujoco ")
    assert lines[-1].endswith(f"mujoco {HERE['mujoco']}, gymnasium {HERE['gymnasium']}")


def test_data_of_d4rl_and_of_another_engine_are_recognised(foreign_run: Path) -> None:
    data = foreign_run.parent / "data.hdf5"
    result = gq("eval", foreign_run, "--target", "10", "--episodes", "1", "--json")
    printed = json.loads(result.stdout)
    assert printed["reference"]["name"] == "d4rl"
    assert printed["reference"]["minimum"] == -20.272305
    warning = f"its data come from mujoco 2.3.7, not {HERE['mujoco']}: see how they differ, gq repair {data} --replay 5"
    assert printed["warnings"] == [warning]
    assert [line for line in result.stderr.splitlines() if "warning" in line] == [f"warning: {warning}"]


def test_a_run_of_another_engine_is_recognised(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "installed_engines", lambda _: {**HERE, "mujoco": "9.1.0"})
    evaluation = evaluate(run, episodes=EpisodeRequest(1, targets=[10.0]))
    assert len(evaluation.warnings) == 2, "its own, and its data's"
    there = f"the run was trained with mujoco {HERE['mujoco']}, not 9.1.0"
    assert evaluation.warnings[0] == f"{there}: evaluate all runs that you compare with one version"


@pytest.mark.parametrize(
    ("change", "num_warnings"),
    [
        (lambda state: None, 0),
        (lambda state: state.clear(), 0),  # of an older gq, which recorded less
        (lambda state: state["versions"].update(gymnasium="0.29.1"), 1),
        (lambda state: state["versions"].update(torch="1.0", numpy="1.0"), 0),
        (lambda state: state["dataset"].update(env_id="Hopper-v4"), 1),
        (lambda state: (state["dataset"].update(mujoco="3.2.3"), state["versions"].update(mujoco="2.3.7")), 2),
    ],
)
def test_what_is_warned_about(change: Callable[[dict], None], num_warnings: int) -> None:
    state = {"versions": dict(HERE), "dataset": {"origin": "x", "env_id": "Hopper-v5", **HERE}}
    change(state)
    warnings = version_warnings(state, "Hopper-v5", "x")
    assert len(warnings) == num_warnings
    assert all("\n" not in line and len(line) < 200 for line in warnings)
