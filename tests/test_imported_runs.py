"""Official TD-MPC2 checkpoints as runs: fetched or from a file, found again, evaluated, and never trained on."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from commandline import document, gq
from downloading import isolate, plain_server
from gq.config import to_toml
from gq.datasets.names import resolve
from gq.errors import DataError, GqError, UsageError
from gq.files import sha256
from gq.models.world_config import WORLD_MODEL_SIZES, PlannerConfig, WorldModelConfig
from gq.official.imported_runs import ImportedRun, import_run
from gq.official.importing import import_tdmpc2
from gq.official.names import checkpoint_task, task_in_file_name
from gq.planning.acting import PlanningPolicy
from gq.policies.loading import Acting, load_run
from gq.results.evaluate import evaluate
from gq.rollouts.episodes import EpisodeRequest
from gq.runs.folder import is_imported, newest_unfinished, read_config
from gq.training.world import train_world_model
from test_importing import TINY, official, random_model

pytestmark = pytest.mark.computes

WALKER = {"observation_dim": 24, "action_dim": 6}
REACHER = {"observation_dim": 10, "action_dim": 2}  # Gymnasium's, whose episodes have 50 decisions
FOLDER = "/nicklashansen/tdmpc2/resolve/main"


def checkpoint(path: Path, config: WorldModelConfig = TINY, layout: str = "A", **options: Any) -> Path:
    """Write a file as the official code would have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": official(random_model(config, **options), layout)}, path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A server of three checkpoints: of a task, of many tasks, in the layout from before the release."""
    isolate(monkeypatch)
    mt30 = replace(TINY, num_tasks=30, task_dim=4)
    old = tmp_path / "old.pt"
    torch.save({"model": {"_dynamics.0.0.weight": torch.zeros(2, 2)}}, old)
    files = {
        "dmcontrol/walker-walk-1.pt": checkpoint(tmp_path / "walker.pt", **WALKER),
        "multitask/mt30-1M.pt": checkpoint(tmp_path / "mt30.pt", mt30, **WALKER),
        "dmcontrol/humanoid-run-3.pt": old,
        "metaworld/mw-assembly-1.pt": old,
    }
    with plain_server({f"{FOLDER}/{name}": path.read_bytes() for name, path in files.items()}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def reacher(tmp_path: Path) -> ImportedRun:
    return import_run(checkpoint(tmp_path / "mine.pt", **REACHER), "Reacher-v5")


def refused(*arguments: Any, exit_code: int = 2) -> str:
    result = gq(*arguments)
    assert result.exit_code == exit_code, result.stdout + result.stderr
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return result.stderr


def folder_content(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# Fetched


def test_a_checkpoint_is_fetched_and_becomes_a_run(hub: Any, own_home: Path, tmp_path: Path) -> None:
    printed = document("download", "tdmpc2/walker-walk-1")
    digest = sha256(tmp_path / "walker.pt")
    run = own_home / "runs" / f"walker-walk-tdmpc2-custom-official-1-{digest[:8]}"
    assert printed["run"] == str(run)
    assert (printed["task"], printed["layout"], printed["sha256"]) == ("walker-walk", "A", digest)
    assert printed["path"] == str(resolve("tdmpc2/walker-walk-1").path)
    url = f"{hub.url}{FOLDER}/dmcontrol/walker-walk-1.pt"
    origin = {"source": url, "sha256": digest, "layout": "A", "licence": "MIT", "notes": []}
    for file in ("environment.json", "checkpoints/step-000000000/state.json"):
        assert json.loads((run / file).read_text())["imported"] == origin
    card = (run / "README.md").read_text()
    assert all(text in card for text in (url, digest, "licence: MIT", "cannot be trained on", f"gq eval {run.name}"))
    config = read_config(run)
    assert (config.algo, config.task, config.size, config.model) == ("tdmpc2", "walker-walk", "custom", TINY)
    model = random_model(**WALKER)
    loaded = load_run(run, Acting(device="cpu"))
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert printed["parameters"] == loaded.state["parameters"] == trained


@pytest.mark.usefixtures("hub")
def test_what_is_said_while_a_run_is_made() -> None:
    result = gq("download", "tdmpc2/walker-walk-1")
    (path,) = result.stdout.splitlines()
    assert (Path(path) / "config.toml").is_file()
    fetched, made, following = result.stderr.splitlines()
    assert fetched.startswith("tdmpc2/walker-walk-1: about 31.5 MB from ")
    assert made.startswith("walker-walk: size custom, ")
    assert made.endswith(" parameters, layout A")
    assert following == f"next: gq eval {Path(path).name}"
    assert gq("download", "tdmpc2/walker-walk-1", "-q").stdout == result.stdout


def test_a_second_download_finds_the_run_and_needs_no_network(hub: Any) -> None:
    run = Path(document("download", "tdmpc2/walker-walk-1")["run"])
    before = folder_content(run)
    hub.log.clear()
    again = gq("download", "tdmpc2/walker-walk-1", "--offline")
    assert again.stdout == f"{run}\n"
    assert "; it was imported before" in again.stderr
    assert folder_content(run) == before
    assert hub.log == []
    assert document("download", "tdmpc2/walker-walk-1")["was_there"] is True
    copied = import_run(resolve("tdmpc2/walker-walk-1").path)  # the same content by another way
    assert (copied.run, copied.was_there) == (run, True)


def test_one_task_of_many_is_chosen(hub: Any, tmp_path: Path) -> None:
    stderr = refused("download", "tdmpc2/mt30-1M")
    assert "error: tdmpc2/mt30-1M holds 30 tasks: choose with --task" in stderr
    assert "hint: one of walker-stand, walker-walk, " in stderr
    assert "does not hold dog-run" in refused("download", "tdmpc2/mt30-1M", "--task", "dog-run")
    assert hub.log == [], "both are known before anything is fetched"
    printed = document("download", "tdmpc2/mt30-1M", "--task", "cup-catch")
    assert Path(printed["run"]).name.startswith("cup-catch-tdmpc2-custom-official-mt30-1m-")
    model = load_run(Path(printed["run"]), Acting(device="cpu")).model
    expected = import_tdmpc2(tmp_path / "mt30.pt", "cup-catch").state
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    other = document("download", "tdmpc2/mt30-1M", "--task", "walker-run")
    assert other["run"] != printed["run"], "another task of the same file is another run"


@pytest.mark.usefixtures("hub")
def test_the_old_layout_is_refused_with_the_seeds_that_work(own_home: Path) -> None:
    stderr = refused("download", "tdmpc2/humanoid-run-3", exit_code=1)
    assert "an operation is unknown: its actions would be wrong" in stderr
    assert "gq download tdmpc2/humanoid-run-1, gq download tdmpc2/humanoid-run-2" in stderr
    assert not (own_home / "runs").exists()


@pytest.mark.usefixtures("hub")
def test_a_checkpoint_of_a_task_that_gq_lacks_is_kept_as_it_is(own_home: Path) -> None:
    result = gq("download", "tdmpc2/mw-assembly-1")
    assert result.stdout == f"{resolve('tdmpc2/mw-assembly-1').path}\n"
    assert "kept as it is: gq does not simulate mw-assembly" in result.stderr
    assert document("download", "tdmpc2/mw-assembly-1")["run"] is None
    assert not (own_home / "runs").exists()


def test_the_task_of_a_checkpoint_is_known_from_its_name() -> None:
    assert checkpoint_task(resolve("tdmpc2/dog-run-1"), None) == "dog-run"
    assert checkpoint_task(resolve("tdmpc2/dog-run-1"), "dog_run") == "dog-run"
    assert checkpoint_task(resolve("tdmpc2/reacher-three-easy-1"), None) == ""
    assert checkpoint_task(resolve("tdmpc2/mt80-5M"), "ball_in_cup-catch") == "cup-catch"
    with pytest.raises(UsageError, match="is for dog-run, not dog-walk"):
        checkpoint_task(resolve("tdmpc2/dog-run-1"), "dog-walk")
    names = {"dog-run-1": "dog-run", "walker-walk": "walker-walk", "dog-run-4": "", "mt30-5M": "", "model": ""}
    assert {name: task_in_file_name(Path("a") / f"{name}.pt") for name in names} == names


# From a file


def test_a_file_becomes_a_run(tmp_path: Path, own_home: Path) -> None:
    path = checkpoint(tmp_path / "mine.pt", layout="C", **WALKER)
    printed = document("download", path, "--task", "walker-run")
    run = Path(printed["run"])
    assert run.parent == own_home / "runs"
    assert run.name == f"walker-run-tdmpc2-custom-imported-{sha256(path)[:8]}"
    assert (printed["source"], printed["layout"], printed["licence"]) == (str(path), "C", "")
    assert is_imported(run)
    named = checkpoint(tmp_path / "walker-walk-2.pt", **WALKER)
    assert document("download", named)["task"] == "walker-walk", "its name says it"
    several = document("download", named, path, "--task", "walker-run")
    assert [one["task"] for one in several["datasets"]] == ["walker-run"] * 2


def test_a_whole_size_is_named(tmp_path: Path) -> None:
    size = WORLD_MODEL_SIZES["1"]
    found = import_run(checkpoint(tmp_path / "cartpole-swingup-2.pt", size, observation_dim=5, action_dim=1))
    assert (found.size, found.parameters) == ("1", 1_198_257)
    assert found.run.name.startswith("cartpole-swingup-tdmpc2-1-imported-")
    config = read_config(found.run)
    assert (config.size, config.model) == ("1", size)


def test_what_a_file_lacks_is_said_with_what_fits(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "mine.pt", **WALKER)
    stderr = refused("download", path)
    assert f"{path} does not say its task" in stderr
    assert "--task: walker-stand, walker-walk, walker-run" in stderr
    many = checkpoint(tmp_path / "many.pt", replace(TINY, num_tasks=30, task_dim=4), **WALKER)
    assert "hint: name it with --task: one of walker-stand, walker-walk" in refused("download", many)
    stderr = refused("download", path, "--task", "dog-run")
    assert "is for 24 observations and 6 actions, dog-run has 223 and 38" in stderr
    assert "there is no task dog-runn" in refused("download", path, "--task", "dog-runn")
    assert "there is no file" in refused("download", tmp_path / "absent.pt", "--task", "dog-run")
    assert "--task is for checkpoints" in refused("download", "hopper", "--task", "dog-run")
    (tmp_path / "text.pt").write_text("no archive")
    assert "no PyTorch file" in refused("download", tmp_path / "text.pt", "--task", "dog-run", exit_code=1)
    odd = checkpoint(tmp_path / "odd.pt", observation_dim=7, action_dim=7)
    assert "it has 7 observations and 7 actions" in refused("download", odd)


class Malicious:
    """What an unrestricted reader would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


def test_a_malicious_file_is_refused_and_runs_nothing(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": official(random_model(**WALKER)), "extra": Malicious()}, tmp_path / "walker-walk-1.pt")
    assert "which no checkpoint needs" in refused("download", "walker-walk-1.pt", exit_code=1)
    assert not (tmp_path / "canary").exists()
    assert not (own_home / "runs").exists()


def test_terminations_must_be_those_of_the_task(tmp_path: Path) -> None:
    hopper = {"observation_dim": 11, "action_dim": 3}
    with pytest.raises(DataError, match="does not predict terminations, but episodes of Hopper-v5 can end early"):
        import_run(checkpoint(tmp_path / "a.pt", **hopper), "hopper")
    with pytest.raises(DataError, match="predicts terminations, but episodes of Reacher-v5 only end at"):
        import_run(checkpoint(tmp_path / "b.pt", episodic=True, **REACHER), "Reacher-v5")
    found = import_run(checkpoint(tmp_path / "c.pt", episodic=True, **hopper), "hopper")
    assert load_run(found.run, Acting(device="cpu")).model.episodic is True


# What is there already


def test_a_damaged_or_unfinished_run_is_written_again_and_its_evaluations_stay(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "walker-walk-1.pt", **WALKER)
    first = import_run(path)
    weights = first.run / "checkpoints" / "step-000000000" / "model.safetensors"
    (first.run / "evals").mkdir()
    (first.run / "evals" / "a.json").write_text("{}")
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + b"!")
    assert import_run(path).was_there is False
    assert weights.read_bytes() == sound
    (first.run / "config.toml").unlink()  # as after a kill
    assert import_run(path).was_there is False
    (first.run / "environment.json").write_text("{}")
    assert import_run(path).was_there is False
    assert import_run(path).was_there is True
    assert import_run(path, force=True).was_there is False
    assert (first.run / "evals" / "a.json").read_text() == "{}"
    assert len(list(first.run.parent.iterdir())) == 1


def test_missing_targets_are_noted_in_the_card(tmp_path: Path) -> None:
    state = official(random_model(**WALKER))
    path = tmp_path / "walker-walk-1.pt"
    torch.save({key: value for key, value in state.items() if not key.startswith("_target")}, path)
    result = gq("download", path)
    assert "known of it: it has no target Q networks: the online ones were copied" in result.stderr
    assert "- it has no target Q networks" in (Path(result.stdout.strip()) / "README.md").read_text()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "walker-walk-1.pt", **WALKER)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GQ_RUNS_DIR", str(tmp_path / "file"))
    with pytest.raises(GqError, match="cannot write"):
        import_run(path)


# What is done with it


def test_an_imported_run_plans_as_the_original_does_by_default(reacher: ImportedRun) -> None:
    policy = load_run(reacher.run, Acting(device="cpu")).policy
    assert isinstance(policy, PlanningPolicy)
    assert policy.planner.config == PlannerConfig(termination="cut")
    assert policy.planner.discount == 0.95, "by the rule, from 50 decisions an episode"
    assert json.loads((reacher.run / "environment.json").read_text())["discount"] == 0.95


def test_an_imported_run_is_evaluated(reacher: ImportedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gq.runs.bound.MOVABLE", ("",))  # a planner that is quicker than the one that it was made with
    settings = {"planner.num_samples": 25, "planner.num_elites": 4, "planner.iterations": 1}
    quick = read_config(reacher.run).replace({**settings, "train.precision": "float32"})
    (reacher.run / "config.toml").write_text(to_toml(quick))
    evaluation = evaluate(reacher.run, Acting(device="cpu"), EpisodeRequest(1), modes=["plan", "policy"])
    assert [row.mode for row in evaluation.results] == ["plan", "policy"]
    assert [row.length_mean for row in evaluation.results] == [50, 50]
    assert (evaluation.step, evaluation.decisions, evaluation.warnings) == (0, None, [])
    result = gq("eval", reacher.run.name, "--mode", "policy", "--episodes", "1", "--device", "cpu")
    assert result.exit_code == 0, result.stderr


def test_an_imported_run_is_collected_with(reacher: ImportedRun, tmp_path: Path) -> None:
    options = ("--mode", "policy", "--episodes", "2", "--device", "cpu")
    result = gq("collect", reacher.run, "-o", tmp_path / "data.hdf5", *options)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "data.hdf5").is_file()


def test_an_imported_run_is_counted(reacher: ImportedRun) -> None:
    (model,) = json.loads(gq("params", reacher.run, "--json").stdout)["models"]
    assert (model["size"], model["parameters"]) == ("custom", reacher.parameters)


def test_an_imported_run_cannot_be_trained_on(reacher: ImportedRun) -> None:
    before = folder_content(reacher.run)
    command = ("train", "tdmpc2", "--out", reacher.run)
    stderr = refused(*command, "--resume", "--decisions", "9")
    assert "was imported: the official file has no optimiser and no replay" in stderr
    assert "--resume" not in refused(*command, "--task", "Reacher-v5").splitlines()[-1]
    config = read_config(reacher.run)
    with pytest.raises(UsageError, match="cannot be trained on"):
        train_world_model(config, reacher.run, resume=True)
    assert folder_content(reacher.run) == before
    with pytest.raises(UsageError, match="no unfinished tdmpc2 run"):
        newest_unfinished("tdmpc2")


# The recorded files


@pytest.mark.parity
@pytest.mark.parametrize(("file", "layout"), [("a", "A"), ("c", "C"), ("cprime", "C'")])
def test_recorded_files_become_runs(all_fixtures: Path, file: str, layout: str) -> None:
    printed = document("download", all_fixtures / f"tdmpc2_layout_{file}.pt", "--task", "reacher-easy")
    assert printed["layout"] == layout
    found = load_run(Path(printed["run"]), Acting(device="cpu")).model.state_dict()
    expected = import_tdmpc2(all_fixtures / "tdmpc2_layout_a.pt").state
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parity
def test_recorded_files_that_must_be_refused_are(
    all_fixtures: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(all_fixtures / "tdmpc2_layout_d.pt", "cartpole-swingup-1.pt")
    stderr = refused("download", "cartpole-swingup-1.pt", exit_code=1)
    assert (
        "hint: these can be read: gq download tdmpc2/cartpole-swingup-2, gq download tdmpc2/cartpole-swingup-3"
        in stderr
    )
    refused("download", all_fixtures / "malicious_checkpoint.pt", "--task", "reacher-easy", exit_code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cartpole-swingup-1.pt"]
    assert not own_home.exists()
