"""Sweeps: what a file describes, what is refused, and that everything of a launch can be killed at no loss."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from commandline import child_environment, gq, gq_child, gq_command
from gq.errors import UsageError
from gq.paths import checkpoint_folders, find_run, find_runs
from gq.settings import toml_value
from gq.sweeps.compare import compared
from gq.sweeps.folder import (
    Sweep,
    claim,
    create_or_continue,
    is_claimed,
    read_starts,
    read_sweep,
    record_event,
    statuses,
)
from gq.sweeps.local import holders
from gq.sweeps.plan import Plan, parse_seeds, read_plan, seeds_plan
from gq.sweeps.slurm import SlurmOptions, batch_script
from tiny import SETTINGS, as_flags, write_hopper_file

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from kill_jobs import differences

SHAPE = {key: value for key, value in SETTINGS.items() if key.startswith("model.")}
REST = {key: value for key, value in SETTINGS.items() if key not in SHAPE}


def write_file(path: Path, head: str, base: dict[str, Any], rest: str = "") -> Path:
    lines = [f"{key} = {toml_value(value)}" for key, value in base.items()]
    shape = [f"{key} = {toml_value(value)}" for key, value in SHAPE.items()]
    text = [head, "[base]", *lines, "[dt]", *shape, "[bc]", "model.embed_dim = 8", rest]
    path.write_text("\n".join(text))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_hopper_file(tmp_path / "data.hdf5")


def test_axes_multiply_zips_run_side_by_side_and_own_settings_stay_with_their_algorithm(
    tmp_path: Path, data: Path
) -> None:
    other = write_hopper_file(tmp_path / "other.hdf5", seed=1)
    rest = f"""
[axes]
algo = ["dt", "bc"]
data.dataset = ["{data}", "{other}"]
[[zip]]
optim.learning_rate = {{low = 1e-4, high = 1e-2, num = 3, log = true}}
optim.warmup_steps = [1, 2, 3]
"""
    plan = read_plan(write_file(tmp_path / "grid.toml", "seeds = '0-1'", {"train.steps": 7}, rest))
    assert plan.name == "grid"
    assert len(plan.members) == len({member.name for member in plan.members}) == 2 * 2 * 3 * 2
    pairs = Counter((m.settings["optim.learning_rate"], m.settings["optim.warmup_steps"]) for m in plan.members)
    assert pairs == {(1e-4, 1): 8, (1e-3, 2): 8, (1e-2, 3): 8}
    first, last = plan.members[0], plan.members[-1]
    assert (first.name, first.algo) == ("dt-data-lr-0.0001-warmup_steps-1-seed0", "dt")
    assert (last.name, last.algo) == ("bc-other-lr-0.01-warmup_steps-3-seed1", "bc")
    assert first.settings["model.num_layers"] == 1
    assert "model.num_layers" not in last.settings
    assert last.settings["model.embed_dim"] == 8
    assert last.settings["data.dataset"] == str(other)
    assert {member.settings["train.steps"] for member in plan.members} == {7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algo = 'dt'\n[axis]\ntrain.seed = [1]", "has no axis"),
        ("algo = 'dt'", "varies nothing"),
        ("seeds = '0-1'", "names no algorithm"),
        ("algo = 'ppo'\nseeds = '0-1'", "no algorithm ppo"),
        ("algo = 'dt'\nseeds = '4-1'", "not a range"),
        ("algo = 'dt'\nseeds = '1,0-2'", "one twice"),
        ("algo = 'dt'\n[axes]\noptim.learning_rate = 3", "not a list"),
        ("algo = 'dt'\n[axes]\noptim.learning_rate = []", "not a list"),
        ("algo = 'dt'\n[axes]\noptim.learning_rate = {low = 1, high = 0, num = 3}", "goes from 1 to 0"),
        ("algo = 'dt'\n[axes]\noptim.learning_rte = [1e-3]", "no setting optim.learning_rte"),
        ("algo = 'dt'\n[axes]\ntrain.steps = [1, 'many']", "train.steps"),
        ("algo = 'dt'\n[axes]\ntrain.steps = [1, 1]", "two members are the same"),
        ("algo = 'dt'\n[[zip]]\ntrain.steps = [1, 2]\ntrain.seed = [1]", "lists of one length"),
        ("name = '../x'\nalgo = 'dt'\nseeds = 2", "cannot be the name"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_before_anything_starts(
    tmp_path: Path, data: Path, text: str, message: str
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text + f"\n[base]\ndata.dataset = '{data}'\n")
    with pytest.raises(UsageError, match=message) as refused:
        read_plan(file)
    assert refused.value.hint


def test_seeds_are_ranges_lists_and_numbers() -> None:
    assert parse_seeds("0-2,7") == parse_seeds([0, 1, 2, 7]) == [0, 1, 2, 7]
    assert parse_seeds(3) == [3]


def test_a_sweep_on_disk_takes_new_members_and_refuses_changed_ones(tmp_path: Path, data: Path) -> None:
    settings = {"data.dataset": str(data), "train.steps": 5}
    folder = tmp_path / "sweep"
    create_or_continue(folder, seeds_plan("s", "bc", settings, [0]), threads=1)
    grown = create_or_continue(folder, seeds_plan("s", "bc", settings, [0, 1]), threads=2)
    assert [member.name for member in grown.members] == ["seed0", "seed1"]
    assert grown.threads == 1, "the number of threads decides the bits, so it stays"
    assert read_sweep(folder) == grown
    changed = seeds_plan("s", "bc", {**settings, "train.steps": 6}, [0])
    with pytest.raises(UsageError, match=r"seed0 began with train.steps = 5, not 6"):
        create_or_continue(folder, changed, threads=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds no sweep"):
        create_or_continue(tmp_path / "full", changed, threads=1)


def test_a_claim_is_held_by_the_process_that_has_the_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "claims" / "a.lock"
    descriptor = claim(file)
    assert descriptor is not None
    assert claim(file) is None
    child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    os.close(descriptor)
    assert is_claimed(file)
    assert holders([file]) == {child.pid}
    child.kill()
    child.wait()
    assert not is_claimed(file)


def test_half_a_line_of_a_killed_launcher_does_not_hide_the_next(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "s", 1, ())
    record_event(sweep, "a", "start", step=0)
    with sweep.starts.open("ab") as file:
        file.write(b'{"time": 1, "mem')
    record_event(sweep, "b", "start", step=0)
    assert [record["member"] for record in read_starts(sweep)] == ["a", "b"]


def test_print_shows_every_command_and_starts_nothing(tmp_path: Path, data: Path, own_home: Path) -> None:
    file = write_file(tmp_path / "s.toml", "algo = 'bc'\nseeds = '0-2'", {"data.dataset": str(data)})
    result = gq("sweep", file, "--print", "-q")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("gq train bc --out ") and " --resume " in line for line in lines)
    assert not (own_home / "sweeps").exists()


def test_values_are_compared_in_pairs_that_agree_in_all_else() -> None:
    a = {"0": ("a0", 10.0), "1": ("a1", 20.0), "2": ("a2", 90.0)}
    b = {"1": ("b1", 26.0), "0": ("b0", 14.0), "3": ("b3", -50.0)}
    found = compared(1e-3, 1e-2, a, b)
    assert (found.num_pairs, found.baseline_mean, found.mean, found.difference) == (2, 15.0, 20.0, 5.0)
    assert found.pairs == [("a0", "b0", 4.0), ("a1", "b1", 6.0)]
    assert found.interval is not None
    assert found.interval[0] < 4 < 6 < found.interval[1], "two pairs say little"
    assert compared(1, 2, a, {}).num_pairs == 0


def test_the_batch_file_has_the_members_that_are_left_by_their_place(tmp_path: Path, data: Path) -> None:
    plan = seeds_plan("s", "bc", {"data.dataset": str(data)}, [0, 1, 2])
    sweep = Sweep(tmp_path, "s", 3, plan.members)
    text = batch_script(sweep, [plan.members[0], plan.members[2]], SlurmOptions(jobs=2, time="1:00:00", more=("-p x",)))
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = ["--array=0,2%2", "--cpus-per-task=3", "--requeue", "--signal=B:USR1@60", "--time=1:00:00", "-p x"]
    assert set(wanted) <= {line.removeprefix("#SBATCH ") for line in lines}
    assert lines[-1].endswith(f' sweep member {tmp_path} "$SLURM_ARRAY_TASK_ID"')


def test_without_slurm_the_command_says_so(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    file = write_file(tmp_path / "s.toml", "algo = 'bc'\nseeds = '0-1'", {"data.dataset": str(data)})
    assert "#SBATCH --array=0,1" in gq("sweep", file, "--slurm", "--print").stdout
    assert not (own_home / "sweeps").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    result = gq("sweep", file, "--slurm")
    assert result.exit_code == 1
    assert "there is no sbatch here" in result.stderr


def test_a_member_that_another_process_has_is_left_to_it(data: Path, own_home: Path) -> None:
    plan = seeds_plan("s", "bc", {"data.dataset": str(data)}, [0])
    sweep = create_or_continue(own_home / "sweeps" / "s", plan, threads=1)
    descriptor = claim(sweep.claim_file("seed0"))
    assert descriptor is not None
    assert gq("sweep", "member", "s", "0").exit_code == 0
    os.close(descriptor)
    assert read_starts(sweep) == []
    assert gq("sweep", "member", "s", "1").exit_code == 2


def test_a_run_is_begun_by_resume_and_continued_by_the_same_command(tmp_path: Path, data: Path) -> None:
    command = ("train", "bc", "--dataset", data, "--out", tmp_path / "run", "--resume", "--tag", "a", "--note", "why")
    assert gq(*command, *as_flags({**REST, "train.steps": 4})).exit_code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    result = gq(*command, *as_flags({**REST, "train.steps": 8}))
    assert result.exit_code == 0, result.stderr
    after = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    text = (tmp_path / "run" / "config.toml").read_text()
    assert 'tags = ["a"]' in text
    assert 'note = "why"' in text


def test_a_named_run_is_found_by_its_name(data: Path, own_home: Path) -> None:
    flags = as_flags({**REST, "train.steps": 2, "eval.every": 0})
    assert gq("train", "bc", "--dataset", data, "--name", "mine", *flags).exit_code == 0
    assert find_run("mine")[0] == own_home / "runs" / "mine"
    again = gq("train", "bc", "--dataset", data, "--name", "mine", *flags)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert gq("train", "bc", "--dataset", data, "--name", "a", "--out", "b").exit_code == 2


def begin(file: Path, *options: str) -> "subprocess.Popen[bytes]":
    command = gq_command("sweep", file, "-q", "--jobs", "2", *options)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=child_environment(OMP_NUM_THREADS="1"), stdout=quiet, stderr=quiet)


def assert_like_undisturbed(sweep: Sweep, folder: Path) -> None:
    """Every member has the bits of an ordinary run of its settings, and none was started after it had finished."""
    for member in sweep.members:
        run = folder / member.name
        settings = {key: value for key, value in member.settings.items() if not key.startswith("log.")}
        result = gq_child("train", member.algo, "-q", "--out", run, *as_flags(settings), OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        kept = {folder.name for folder in checkpoint_folders(run)}  # a signal leaves one more
        found = [name.split("/") for name in differences(sweep.run(member.name), run)]
        assert [parts for parts in found if parts[0] != "checkpoints" or parts[1] in kept] == []
        events = [record for record in read_starts(sweep) if record["member"] == member.name]
        ends = [index for index, record in enumerate(events) if record.get("code") == 0]
        assert all(record["event"] != "start" for index in ends for record in events[index + 1 :])


def kill_some(file: Path, sweep_folder: Path, num_kills: int, seed: int) -> None:
    """Kill members and launchers at random moments, start launchers again, and let the last one finish."""
    generator, launcher = random.Random(seed), begin(file)
    for kill in range(num_kills):
        members: list[int] = []
        while not members and launcher.poll() is None:  # a launcher that runs nothing yet is no loss
            time.sleep(generator.uniform(0.1, 5.0))
            members = sorted(holders(list((sweep_folder / "claims").glob("*.lock"))) - {launcher.pid})
        victim = launcher.pid if kill % 4 == 0 or not members else generator.choice(members)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == launcher.pid:
            launcher.wait()
        if launcher.poll() is not None:
            launcher = begin(file)
    assert launcher.wait() == 0


def test_a_sweep_whose_launcher_is_killed_continues_and_a_bad_member_is_left_to_retry(
    tmp_path: Path, data: Path, own_home: Path
) -> None:
    bad = tmp_path / "bad.hdf5"
    bad.write_bytes(b"no data")
    base = {**REST, "train.steps": 60, "checkpoint.every": 5}
    file = write_file(tmp_path / "s.toml", "algo = 'bc'", base, f"[axes]\ndata.dataset = ['{data}', '{bad}']")
    folder = own_home / "sweeps" / "s"
    launcher = begin(file)
    while not list(folder.glob("runs/bc*/checkpoints/last.json")) and not list(folder.glob("runs/data/config.toml")):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    assert begin(file).wait() == 1, "one of two has failed"
    states = {one.name: one.state for one in statuses(read_sweep("s"))}
    assert states == {"data": "finished", "bad": "failed"}
    assert [run.name for run in find_runs(["s"])] == ["data"]
    assert find_run("s/data")[0] == folder / "runs" / "data"
    assert (folder / "report.html").is_file()
    num_started = len(read_starts(read_sweep("s")))
    assert begin(file).wait() == 1
    assert len(read_starts(read_sweep("s"))) == num_started, "repeated, it starts neither what has finished nor failed"
    bad.write_bytes(data.read_bytes())
    result = gq("sweep", "retry", "s", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["counts"] == {"finished": 2}
    names = [
        name for name in differences(folder / "runs" / "data", folder / "runs" / "bad") if "state.json" not in name
    ]
    assert names == [], "only the path of the data differs"


def test_stop_lets_members_save_and_the_next_launch_continues(tmp_path: Path, data: Path, own_home: Path) -> None:
    base = {**REST, "data.dataset": str(data), "train.steps": 100_000, "eval.every": 0, "checkpoint.every": 0}
    file = write_file(tmp_path / "s.toml", "algo = 'bc'\nseeds = '0'", base)
    launcher = begin(file)
    log = own_home / "sweeps" / "s" / "runs" / "seed0" / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size):
        assert launcher.poll() is None
        time.sleep(0.05)
    result = gq("sweep", "stop", "s")
    assert result.exit_code == 0, result.stderr
    assert launcher.wait() == 130
    (one,) = statuses(read_sweep("s"))
    assert one.state == "interrupted"
    assert 0 < one.step < 100_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm: scripts/local_slurm.sh start FOLDER")
def test_slurm_queues_members_whose_time_is_up_until_they_have_the_same_bits(tmp_path: Path, data: Path) -> None:
    rest = {**REST, "data.dataset": str(data), "train.steps": 15_000, "eval.every": 0, "checkpoint.every": 0}
    file = write_file(tmp_path / "s.toml", "algo = 'bc'\nseeds = '0-1'", {**rest, "train.log_every": 500})
    result = gq("sweep", file, "--slurm", "--time", "2", "--sbatch=--signal=B:USR1@30")
    assert result.exit_code == 0, result.stderr
    while {one.state for one in statuses(read_sweep("s"))} != {"finished"}:
        assert not any(one.failure for one in statuses(read_sweep("s")))
        time.sleep(5)
    sweep = read_sweep("s")
    assert all(one.starts > 1 for one in statuses(sweep)), "two minutes were to be too short"
    assert_like_undisturbed(sweep, tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twelve_members_killed_at_twenty_random_moments_end_with_the_same_bits(tmp_path: Path, own_home: Path) -> None:
    files = [write_hopper_file(tmp_path / f"{name}.hdf5", seed=seed) for seed, name in enumerate(("one", "two"))]
    base = {**REST, "train.steps": 300, "checkpoint.every": 10, "eval.every": 100}
    axes = f"[axes]\nalgo = ['dt', 'bc']\ndata.dataset = ['{files[0]}', '{files[1]}']"
    file = write_file(tmp_path / "s.toml", "seeds = '0-2'", base, axes)
    kill_some(file, own_home / "sweeps" / "s", num_kills=20, seed=1)
    sweep = read_sweep("s")
    assert {one.state for one in statuses(sweep)} == {"finished"}
    assert len(sweep.members) == 12
    assert sum(record["event"] == "start" for record in read_starts(sweep)) > 12
    page = (sweep.folder / "report.html").read_text()
    assert all(member.name in page for member in sweep.members)
    assert_like_undisturbed(sweep, tmp_path / "undisturbed")
    assert isinstance(read_plan(file), Plan)
