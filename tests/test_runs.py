"""gq runs: what is listed and shown, and that nothing that runs, and nothing unasked, is ever removed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from commandline import child_environment, copy_run, gq
from gq.config import FinetuneConfig, to_toml
from gq.errors import GqError, Interrupted
from gq.files import write_json, write_text
from gq.hub.uploads import run_uploads
from gq.paths import all_runs, checkpoint_folders
from gq.runs.card import is_own, write_card
from gq.runs.changes import REMOVED, rename
from gq.runs.details import describe
from gq.runs.folder import lock_run, may_be_unfinished, read_config
from gq.runs.records import children_of, list_runs, read_run, score_of
from gq.runs.state import FAILURE_FILE, is_held, state_of
from measured import dt_config, write_run

HOLD = """
import sys, time
from pathlib import Path
from gq.runs.folder import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def runs(own_home: Path) -> Path:
    return own_home / "runs"


@pytest.fixture
def run(trained: Path, runs: Path) -> Path:
    return copy_run(trained, runs / "hopper-v5-dt-1m-20260101-000000-abcd")


@contextmanager
def held(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process train a run."""
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def child_of(parent: Path, name: str, *, checkpoint: str = "step-000000004") -> Path:
    """Write a run that was finetuned from another, without a checkpoint."""
    child = parent.parent / name
    child.mkdir()
    config = FinetuneConfig(task="Hopper-v5", size="tiny")
    path = str(parent.resolve())
    text = to_toml(config.replace({"online.parent": path, "online.checkpoint": checkpoint}))
    write_text(child / "config.toml", text)
    write_json(child / "environment.json", {"parent": {"run": path, "checkpoint": checkpoint}})
    return child


def spoil(file: Path) -> None:
    file.write_bytes(b"{")


# --- states -----------------------------------------------------------------------------------------------------------


def test_a_run_is_finished_interrupted_or_failed(run: Path) -> None:
    assert read_run(run).state == "finished"
    more = (run / "config.toml").read_text().replace("steps = 4\n", "steps = 9\n")
    (run / "config.toml").write_text(more)
    assert read_run(run).state == "interrupted"
    with pytest.raises(ZeroDivisionError), lock_run(run):
        _ = 1 / 0
    record = read_run(run)
    assert (record.state, record.failure) == ("failed", "division by zero")
    with pytest.raises(Interrupted), lock_run(run):
        raise Interrupted("stopped by SIGTERM at step 5, everything is saved")
    assert read_run(run).state == "interrupted"


def test_the_note_of_a_failure_goes_with_the_next_attempt_and_needs_a_run(run: Path, tmp_path: Path) -> None:
    write_json(run / FAILURE_FILE, {"message": "no disk"})
    assert read_run(run).state == "finished", "what was added after the end does not undo it"
    with lock_run(run):
        assert not (run / FAILURE_FILE).exists()
    with pytest.raises(GqError), lock_run(tmp_path / "new"):
        raise GqError("refused before there is a configuration")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_a_training_that_fails_says_so_in_its_run(trained: Path, runs: Path) -> None:
    out = runs / "diverging"
    flags = ("--set", "optim.learning_rate=1e30", "--set", "train.log_every=1", "--set", "optim.warmup_steps=0")
    data = trained.parent / "data.hdf5"
    result = gq("train", "bc", "--dataset", data, "--steps", "40", "--out", out, *flags, "--set", "eval.every=0")
    assert result.exit_code == 1, result.stderr
    record = read_run(out)
    assert (record.state, record.step) == ("failed", 0)
    assert record.failure in result.stderr


def test_a_living_process_is_told_from_a_dead_one(run: Path) -> None:
    lock = run / ".lock"
    assert lock.exists()
    assert not is_held(lock)
    with held(run) as process:
        assert is_held(lock)
        assert read_run(run).state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.exists(), "it stays behind, and is nobody's"
        assert not is_held(lock)
        assert read_run(run).state == "finished"


def test_runs_of_other_versions_are_judged_by_what_is_there(run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("[train]\n", "[train]\nunheard_of = 3\n"))
    with pytest.raises(GqError):
        read_config(run)
    assert read_run(run).state == "finished"
    assert describe(run).differing["train.unheard_of"] == (3, None)
    assert "unheard_of" not in describe(run).command
    config.write_text("]")
    record = read_run(run)
    assert (record.algo, record.task, record.state) == ("", "", "finished")
    assert state_of(run, {}) == "finished"


# --- list and show ----------------------------------------------------------------------------------------------------


def test_the_score_is_the_return_at_the_highest_target() -> None:
    record = {"step": 4, "eval/target_20/return_mean": 7.0, "eval/target_100/return_mean": 9.0}
    assert score_of(record) == 9.0
    assert score_of({"eval/return_mean": 5.0, "eval/policy_return_mean": 8.0}) == 5.0
    assert score_of({"eval/target_20/return_mean": None}) is None


def test_the_list_in_three_modes(run: Path) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = score_of([record for record in metrics if any(key.startswith("eval/") for key in record)][-1])
    printed = json.loads(gq("runs", "--json").stdout)
    (row,) = printed["runs"]
    assert (row["name"], row["state"], row["step"], row["algo"]) == (run.name, "finished", 4, "dt")
    assert row["last_return"] == row["best_return"] == last
    assert row["num_bytes"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert gq("runs", "-q").stdout == gq("runs", "list", "-q").stdout == f"{run.name}\n"
    lines = gq("runs").stdout.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "step"]
    assert lines[1].split()[:3] == [run.name, "finished", "4"]


def test_the_list_is_filtered_and_sorted(trained: Path, runs: Path) -> None:
    for age, name in enumerate(("b", "a", "c")):
        path = copy_run(trained, runs / name)
        os.utime(path / "config.toml", (1000 - age, 1000 - age))
    (runs / "c" / "config.toml").write_text("algo = 'bc'\ntask = 'Ant-v5'\n[train]\nsteps = 9\n")
    os.utime(runs / "c" / "config.toml", (1, 1))
    (runs / "a" / "big").write_bytes(bytes(10**6))

    def listed(*options: str) -> list[str]:
        return gq("runs", "list", "-q", *options).stdout.split()

    assert listed() == ["b", "a", "c"]
    assert listed("--sort", "name") == ["a", "b", "c"]
    assert listed("--sort", "size")[0] == "a"
    assert listed("--task", "ant") == listed("--algo", "bc") == listed("--state", "interrupted") == ["c"]
    assert listed("--state", "failed") == []
    assert [record.name for record in list_runs(algo="dt")] == ["b", "a"]
    state = read_run(runs / "a")
    for file in (runs / "a").glob("checkpoints/*/state.json"):
        document = json.loads(file.read_text())
        document["progress"]["best_return"] = (state.best_return or 0) + 1
        file.write_text(json.dumps(document))
    assert listed("--sort", "score")[0] == "a"


def test_show_tells_what_differs_and_how_to_make_it_again(run: Path) -> None:
    assert gq("eval", run, "--target", "30", "--episodes", "1", "-q").exit_code == 0
    printed = json.loads(gq("runs", "show", "hopper-v5", "--json").stdout)
    assert printed["differing"]["model.embed_dim"] == {"run": 16, "preset": 128}
    assert not {"train.seed", "task", "size"} & printed["differing"].keys()
    assert [(one["step"], one["is_last"]) for one in printed["checkpoints"]] == [(4, True)]
    assert list(printed["evaluations"][0]["results"]) == ["30.0"]
    assert set(printed["disk"]) == {"checkpoints", "evals", "files"}
    assert sum(printed["disk"].values()) == printed["num_bytes"]
    words = printed["command"].split()
    assert words[:5] == ["gq", "train", "dt", "--size", "1m"]
    shown = gq("runs", "show", run).stdout
    assert f"again: {printed['command']}" in shown
    assert gq("runs", "show", run, "-q").stdout == f"{run}\n"


@pytest.mark.parametrize("results", [None, 3, ["x"], [{"mode": "a", "return_mean": "high"}]])
def test_an_evaluation_of_the_wrong_type_is_left_out(run: Path, results: object) -> None:
    (run / "evals").mkdir(exist_ok=True)
    (run / "evals" / "20990101-000000.json").write_text(json.dumps({"results": results}))
    result = gq("runs", "show", run)
    assert result.exit_code == 0, result.stderr
    assert "20990101" not in result.stdout


def test_a_number_that_is_too_large_is_damage(run: Path) -> None:
    (run / "checkpoints" / "best.json").write_text('{"checkpoint": "step-000000004", "score": 1e400}')
    with pytest.raises(GqError, match=r"cannot read .*best\.json"):
        run_uploads(run, "me/run")


def test_the_command_makes_an_equal_run(run: Path, tmp_path: Path) -> None:
    import shlex

    words = shlex.split(describe(run).command)[1:]
    result = gq(*words, "--out", tmp_path / "again", "-q")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert (tmp_path / "again" / "config.toml").read_text() == (run / "config.toml").read_text()


def test_damaged_files_do_not_hide_a_run(run: Path) -> None:
    for file in ("checkpoints/last.json", "environment.json", "checkpoints/step-000000004/state.json"):
        spoil(run / file)
    with (run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"eval/target_1/ret')
    record = read_run(run)
    assert (record.state, record.step, record.best_return) == ("finished", 0, None)
    assert record.last_return is not None
    assert gq("runs", "show", run).exit_code == 0


# --- names ------------------------------------------------------------------------------------------------------------

COMMANDS = [
    ["runs", "show"],
    ["runs", "remove"],
    ["runs", "prune", "--empty"],
    ["finetune"],
    ["distill"],
    ["plot"],
    ["eval"],
    ["render"],
    ["collect"],
    ["params"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_that_takes_a_run_names_the_candidates_of_a_prefix(
    command: list[str], trained: Path, runs: Path
) -> None:
    for name in ("hopper-a", "hopper-b"):
        copy_run(trained, runs / name)
    extra = ["-o", "x.hdf5"] if command == ["collect"] else []
    result = gq(*command, "hopper", *extra)
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()[-2:]
    assert error == "error: hopper fits 2 runs"
    assert "hopper-a" in hint
    assert "hopper-b" in hint


# --- rename -----------------------------------------------------------------------------------------------------------


def test_a_rename_keeps_what_points_to_the_run(run: Path, runs: Path) -> None:
    child = child_of(run, "child")
    os.utime(child / "config.toml", (5, 5))
    write_card(run)
    write_json(run / "correctors" / "two-tower" / "corrector.json", {"teacher": run.name, "teacher_sha256": "ab"})
    result = gq("runs", "rename", "hopper-v5", "best-one", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{runs / 'best-one'}\n"), result.stderr
    assert not run.exists()
    assert read_config(child).online.parent == str((runs / "best-one").resolve())  # type: ignore[union-attr]
    assert json.loads((child / "environment.json").read_text())["parent"]["run"] == str((runs / "best-one").resolve())
    assert (child / "config.toml").stat().st_mtime == 5, "which run is the newest must not change"
    assert [path.name for path in children_of(runs / "best-one")] == ["child"]
    corrector = json.loads((runs / "best-one" / "correctors" / "two-tower" / "corrector.json").read_text())
    assert (corrector["teacher"], corrector["teacher_sha256"]) == ("best-one", "ab")
    card = (runs / "best-one" / "README.md").read_text()
    assert "\n# best-one\n" in card
    assert is_own(card)
    assert gq("eval", "best", "--target", "30", "--episodes", "1", "-q").exit_code == 0


def test_a_rename_changes_no_words_that_are_not_the_name(run: Path) -> None:
    short = rename(run, "run")
    write_text(short / "README.md", "# run\n\nA run that ran.\n\n    gq eval run\n    gq eval rerun run-2\n")
    renamed = rename(short, "b")
    assert (renamed / "README.md").read_text() == "# b\n\nA run that ran.\n\n    gq eval b\n    gq eval rerun run-2\n"


@pytest.mark.parametrize("name", ["", ".hidden", "-q9", "a/b", "..", "a\nb", "taken"])
def test_a_name_that_cannot_be_one_is_refused(run: Path, runs: Path, name: str) -> None:
    (runs / "taken").mkdir()
    result = gq("runs", "rename", run, "--", name)
    assert result.exit_code == 2
    assert run.is_dir()


def test_a_rename_that_was_killed_is_completed_by_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = child_of(run, "child")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rename(run, "new")
    assert run.is_dir()
    rename(run, "new")
    assert read_config(child).online.parent == str(run.resolve().parent / "new")  # type: ignore[union-attr]


# --- remove and prune -------------------------------------------------------------------------------------------------


def test_nothing_is_removed_without_being_sure(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["remove", run.name], ["prune", "--older-than", "0"]):
        result = gq("runs", *command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1] == "hint: add --yes"
    monkeypatch.setattr("gq.cli.output.is_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert gq("runs", "remove", run.name).exit_code == 1
    assert gq("runs", "remove", run.name, "--dry-run", "-q").stdout == f"{run}\n"
    assert run.is_dir()


def test_removed_runs_are_gone(run: Path, trained: Path, runs: Path) -> None:
    other = copy_run(trained, runs / "other")
    num_bytes = read_run(run).num_bytes
    (runs / f".killed{REMOVED}").mkdir()
    result = gq("runs", "remove", "hopper", "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["freed_bytes"] == num_bytes
    assert list(runs.iterdir()) == [other], "nor is anything left of it or of earlier removals"


def test_a_running_run_is_never_removed_renamed_or_pruned(run: Path) -> None:
    with held(run):
        for command in (["remove", run.name, "--yes"], ["rename", run.name, "new"]):
            result = gq("runs", *command)
            assert result.exit_code == 1
            assert "is running" in result.stderr
        result = gq("runs", "prune", "--older-than", "0", "--failed", "--checkpoints", "--yes")
        assert (result.exit_code, result.stdout) == (0, "nothing to remove\n")
        assert gq("runs", "list", "--state", "running", "-q").stdout == f"{run.name}\n"
    assert run.is_dir()
    assert gq("runs", "remove", run.name, "--yes").exit_code == 0, "the lock of a dead process holds nothing"
    assert not run.exists()


def test_a_run_that_is_distilled_from_is_not_removed(run: Path) -> None:
    parts = run / "correctors" / ".decisions.hdf5.parts"
    with held(parts):
        result = gq("runs", "remove", run.name, "--yes")
    assert result.exit_code == 1
    assert run.is_dir()


def test_a_path_into_a_run_is_not_taken_for_the_run(run: Path) -> None:
    for inside in ("checkpoints/step-000000004", "config.toml", "checkpoints"):
        result = gq("runs", "remove", run / inside, "--yes")
        assert result.exit_code == 2
        assert "is inside a run, not a run" in result.stderr
    assert checkpoint_folders(run)
    assert gq("runs", "remove", run, "--yes").exit_code == 0


def test_an_empty_name_is_no_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    for command in (["runs", "remove", "", "--yes"], ["runs", "show", ""], ["plot", ""], ["eval", ""]):
        result = gq(*command)
        assert result.exit_code == 2, command
        assert "the run's name is empty" in result.stderr
    assert checkpoint_folders(run)


def test_of_a_link_only_the_link_is_removed(trained: Path, runs: Path) -> None:
    runs.mkdir(parents=True)
    (runs / "link").symlink_to(trained)
    assert gq("runs", "remove", "link", "--yes").exit_code == 0
    assert not (runs / "link").is_symlink()
    assert (trained / "config.toml").is_file()


def test_a_half_removed_run_is_no_run(run: Path, runs: Path) -> None:
    run.rename(runs / f".{run.name}{REMOVED}")
    assert all_runs() == []


def test_pruning_wants_to_know_by_what() -> None:
    result = gq("runs", "prune")
    assert result.exit_code == 2
    assert "--older-than DAYS" in result.stderr


def test_pruning_keeps_the_best_and_the_last_checkpoint(run: Path) -> None:
    folder = run / "checkpoints"
    for step in (1, 2, 3):
        shutil.copytree(folder / "step-000000004", folder / f"step-{step:09d}")
    write_json(folder / "best.json", {"checkpoint": "step-000000002"})
    assert len(gq("runs", "prune", "--checkpoints", "--dry-run", "-q").stdout.split()) == 2
    assert gq("runs", "prune", "--checkpoints", "--yes").exit_code == 0
    assert [path.name for path in checkpoint_folders(run)] == ["step-000000002", "step-000000004"]
    spoil(folder / "best.json")
    assert gq("runs", "prune", "--checkpoints", "--yes").stdout == "nothing to remove\n"


def test_pruning_takes_failed_empty_and_old_runs(trained: Path, runs: Path) -> None:
    for name in ("good", "bad", "old", "empty"):
        copy_run(trained, runs / name)
    (runs / "bad" / "config.toml").write_text("algo = 'dt'\ntask = 'Hopper-v5'\n[train]\nsteps = 9\n")
    write_json(runs / "bad" / FAILURE_FILE, {"message": "no disk"})
    shutil.rmtree(runs / "empty" / "checkpoints")
    (runs / "stillborn").mkdir()
    (runs / "stillborn" / ".lock").touch()
    for path in (runs / "old").rglob("*"):
        os.utime(path, (time.time() - 9 * 86_400,) * 2)

    def doomed(*options: str) -> set[str]:
        return {Path(line).name for line in gq("runs", "prune", "--dry-run", "-q", *options).stdout.split()}

    assert doomed("--failed") == {"bad"}
    assert doomed("--empty") == {"empty", "stillborn"}
    assert doomed("--older-than", "8") == {"old"}
    assert doomed("--older-than", "10") == set()
    assert doomed("--failed", "--older-than", "8") == set()
    assert doomed("good", "--failed") == set()
    assert gq("runs", "prune", "--failed", "--empty", "--yes").exit_code == 0
    assert sorted(path.name for path in runs.iterdir()) == ["good", "old"]


def test_a_child_that_could_not_begin_any_more_is_named(run: Path) -> None:
    child = child_of(run, "child")
    result = gq("runs", "remove", run.name, "--dry-run")
    assert f"warning: {child} was to begin from it, and cannot then" in result.stderr
    shutil.copytree(run / "checkpoints", child / "checkpoints")
    assert "warning" not in gq("runs", "remove", run.name, "--dry-run").stderr


def test_a_list_has_a_limit_and_says_what_is_left(own_home: Path) -> None:
    for number in range(4):
        write_run(own_home / "runs" / f"run-{number}", dt_config())
    shown = gq("runs", "--limit", "3")
    assert len(json.loads(gq("runs", "--limit", "3", "--json").stdout)["runs"]) == 3
    assert "1 more with --limit 0" in shown.stderr
    every = gq("runs", "--limit", "0", "--sort", "name", "-q")
    assert every.stdout.split() == [f"run-{number}" for number in range(4)]


def test_at_a_glance_no_run_is_taken_for_finished_that_is_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", dt_config(train__steps=200))
    assert not may_be_unfinished(run, "dt")  # its last checkpoint is at 200
    assert not may_be_unfinished(run, "bc")
    longer = write_run(tmp_path / "longer", dt_config(train__steps=201))
    assert may_be_unfinished(longer, "dt")
    odd = longer / "config.toml"
    odd.write_text(odd.read_text().replace("steps = 201", "steps=201"))  # written by hand: it is looked at closely
    assert may_be_unfinished(longer, "dt")
