"""gq doctor: each thing that can be wrong is found, with the command that mends it, and nothing else is."""

import json
import os
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from commandline import copy_run, gq
from gq.doctor import machine, network, selftest, storage
from gq.doctor.findings import Finding
from gq.doctor.sameness import differences
from gq.doctor.software import BOUNDS, OPTIONAL, examine_versions, installed_versions, is_before
from gq.envs import gl
from gq.files import write_json
from gq.runs.folder import lock_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(trained: Path, own_home: Path) -> Path:
    return copy_run(trained, own_home / "runs" / "hopper-a")


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == "problem"]


def only_problem(findings: list[Finding]) -> Finding:
    (found,) = problems(findings)
    return found


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_bounds_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dmc"]]:
        name, _, bounds = requirement.partition(">=")
        low, _, high = bounds.partition(",<")
        declared[name.split("[")[0]] = (low, high)
    ours = BOUNDS | {"dm-control": OPTIONAL["dm-control"][1:3]}
    assert {name: bounds for name, bounds in declared.items() if name in ours} == ours
    assert declared.keys() - ours.keys() == set()


def test_this_environment_has_no_bad_versions() -> None:
    assert problems(examine_versions(installed_versions())) == []


@pytest.mark.parametrize(
    ("changes", "subject", "mend"),
    [
        ({"torch": "2.9.1+cu128"}, "torch", 'pip install "torch>=2.10"'),
        ({"typer": "0.30.0"}, "typer", 'pip install "typer>=0.29,<0.30"'),
        ({"gymnasium": "2.0"}, "gymnasium", 'pip install "gymnasium>=1.1,<2"'),
        ({"h5py": None}, "h5py", 'pip install "h5py>=3.11"'),
        ({"dm-control": "1.0.38"}, "dm-control", 'pip install "dm-control>=1.0.50,<2"'),
        ({"python": "3.10.4"}, "python", "python3.11 -m venv .venv"),
    ],
)
def test_a_version_out_of_bounds_is_a_problem(changes: dict[str, str | None], subject: str, mend: str) -> None:
    sound = {name: low for name, (low, _) in BOUNDS.items()} | {"python": "3.12.1", "dm-control": "1.0.50"}
    assert problems(examine_versions(sound)) == []
    installed = {name: version for name, version in (sound | changes).items() if version}
    found = only_problem(examine_versions(installed))
    assert (found.subject, found.mend) == (subject, mend)


def test_two_that_do_not_load_together_are_named_as_a_pair() -> None:
    installed = {name: low for name, (low, _) in BOUNDS.items()} | {"python": "3.12.1", "dm-control": "1.0.50"}
    found = problems(examine_versions(installed | {"mujoco": "4.0.0"}))
    assert found[-1].subject == "mujoco and dm-control"
    assert found[-1].mend == 'pip install "mujoco>=3.17,<4"'
    without = {name: version for name, version in installed.items() if name != "dm-control"}
    assert [one.subject for one in problems(examine_versions(without | {"mujoco": "4.0.0"}))] == ["mujoco"]


def test_versions_are_compared_as_numbers() -> None:
    assert is_before("2.9", "2.10")
    assert not is_before("2.10.0+cpu", "2.10")
    assert not is_before("2.10", "2.10.0")
    assert is_before("0.29.2", "0.30")


# --- machine ----------------------------------------------------------------------------------------------------------


def interpreter(folder: Path, script: str) -> str:
    """Write a program that stands for Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_torch_that_crashes_or_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, threads = machine.examine_torch(interpreter(tmp_path, "kill -SEGV $$"))
    assert (only_problem(found).text, threads) == ("crashed with SIGSEGV", None)
    found, _ = machine.examine_torch(interpreter(tmp_path, "echo ImportError: libtorch >&2; exit 1"))
    assert only_problem(found).text == "ImportError: libtorch"
    monkeypatch.setattr(machine, "TORCH_TIMEOUT_S", 0.2)
    found, _ = machine.examine_torch(interpreter(tmp_path, "exec sleep 9"))
    assert only_problem(found).text == "nothing within 0.2 s"


def test_torch_is_not_loaded_into_this_process(tmp_path: Path) -> None:
    facts = {"version": "2.13.0", "threads": 2, "cuda": None, "capability": "AVX2", "gpus": []}
    found, threads = machine.examine_torch(interpreter(tmp_path, f"echo '{json.dumps(facts)}'"))
    assert (problems(found), threads) == ([], 2)
    assert found[0].text == "2.13.0, AVX2"


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    monkeypatch.setattr(machine, "cgroup_limit", lambda: 2.5)

    def status(threads: int | None, **environment: str) -> tuple[str, str]:
        found = {one.subject: one for one in machine.examine_threads(threads, environment)}["threads"]
        return found.status, found.mend

    assert status(2) == ("ok", "")
    assert status(4) == ("warning", "export OMP_NUM_THREADS=2")
    assert status(4, OMP_NUM_THREADS="2") == ("ok", "")
    assert status(2, OMP_NUM_THREADS="8") == ("warning", "export OMP_NUM_THREADS=2")
    assert status(2, OMP_NUM_THREADS="many") == ("warning", "unset OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "cgroup_limit", lambda: None)
    assert status(4) == ("ok", "")
    spinning = machine.examine_threads(1, {"OMP_WAIT_POLICY": "active"})[-1]
    assert (spinning.status, spinning.mend) == ("warning", "unset OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_control_group_is_read(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine.cgroup_limit(tmp_path) == limit


def test_rendering_needs_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    reasons = {"glfw": "no usable display", "egl": "", "osmesa": "crashed with SIGSEGV"}
    monkeypatch.setattr(gl, "probe", reasons.__getitem__)
    found = machine.examine_graphics()
    assert [one.status for one in found] == ["note", "ok", "note", "ok"]
    assert found[2].text == "crashed with SIGSEGV"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert only_problem(machine.examine_graphics()).mend == "unset MUJOCO_GL"
    monkeypatch.delenv("MUJOCO_GL")
    reasons["egl"] = "no EGL device"
    assert only_problem(machine.examine_graphics()).mend.startswith("apt-get install libegl1")


# --- storage ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_space_or_permission_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**12

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    place = tmp_path / "not" / "there" / "yet"
    assert storage.examine_folder("runs", place, "GQ_RUNS_DIR").status == "ok"
    Usage.free = 10**9
    assert storage.examine_folder("runs", place, "GQ_RUNS_DIR").status == "warning"
    Usage.free = 10**7
    found = storage.examine_folder("runs", place, "GQ_RUNS_DIR")
    assert (found.status, found.mend) == ("problem", "gq runs prune --checkpoints")
    (tmp_path / "file").touch()
    found = storage.examine_folder("datasets", tmp_path / "file" / "x", "GQ_DATA_DIR")
    assert (found.status, found.text) == ("problem", f"cannot write in {tmp_path / 'file'}")


def test_a_changed_dataset_is_found(own_home: Path) -> None:
    assert gq("download", "builtin/hopper/medium", "--transitions", "60", "-q").exit_code == 0
    file = own_home / "datasets" / "builtin" / "hopper" / "medium.hdf5"
    assert problems(storage.examine_cache(deep=True)) == []
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert problems(storage.examine_cache(deep=False)) == [], "its size is right"
    found = only_problem(storage.examine_cache(deep=True))
    assert (found.subject, found.mend) == ("dataset builtin/hopper/medium", "gq download builtin/hopper/medium")
    file.write_bytes(content[:-1])
    assert only_problem(storage.examine_cache(deep=False)).subject == "dataset builtin/hopper/medium"


def test_a_damaged_checkpoint_is_found(run: Path) -> None:
    assert problems(storage.examine_runs(deep=True)) == []
    weights = run / "checkpoints" / "step-000000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert problems(storage.examine_runs(deep=False)) == []
    found = only_problem(storage.examine_runs(deep=True))
    assert (found.subject, found.mend) == ("run hopper-a", "gq runs remove hopper-a")
    weights.write_bytes(content[:-1])
    found = storage.examine_runs(deep=False)
    assert only_problem(found).subject == "run hopper-a"
    assert found[-1].text.startswith("those of 0 of 1 runs are sound")
    with lock_run(run):
        assert problems(storage.examine_runs(deep=True)) == [], "the files of a running run come and go"


@pytest.mark.parametrize(
    ("file", "mend"),
    [
        ("config.toml", "gq runs remove hopper-a"),
        ("checkpoints/best.json", "rm "),
        ("checkpoints/step-000000004/MANIFEST.json", "gq runs remove hopper-a"),
        ("correctors/two-tower/corrector.json", "gq distill hopper-a --force"),
    ],
)
def test_a_file_that_is_no_text_is_found(run: Path, file: str, mend: str) -> None:
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_bytes(b"\x00{")
    assert only_problem(storage.examine_runs(deep=False)).mend.startswith(mend)


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response({"/broken": 503, "/missing": 404}.get(self.path, 200))
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.shutdown, daemon=True).start()


def test_servers_are_asked_where_the_environment_says(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setenv("GQ_D4RL_URL", f"{server}/missing")
    assert [one.status for one in network.examine_hosts(offline=False)] == ["ok", "ok"], "a 404 is an answer"
    monkeypatch.setenv("GQ_D4RL_URL", f"{server}/broken")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = network.examine_hosts(offline=False)
    assert [one.status for one in found] == ["warning", "warning"]
    assert "503" in found[1].text
    monkeypatch.setenv("HF_ENDPOINT", "not-an-address")
    assert only_problem(network.examine_hosts(offline=False)).mend == "unset HF_ENDPOINT"


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked"))
    assert [one.status for one in network.examine_hosts(offline=True)] == ["note"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert network.examine_hosts(offline=False)[0].text == "not asked: HF_HUB_OFFLINE is set"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds: child processes."""
    monkeypatch.setattr("gq.doctor.examine.examine_torch", lambda: ([Finding("torch computes", "ok", "x")], 1))
    monkeypatch.setattr("gq.doctor.examine.examine_graphics", lambda: [Finding("rendering", "ok", "x")])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**12}))


@pytest.mark.usefixtures("quick")
def test_the_command_in_three_modes(run: Path, own_home: Path) -> None:
    result = gq("doctor", "--offline", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert (printed["num_problems"], printed["runs"]) == (0, str(own_home / "runs"))
    assert {one["status"] for one in printed["findings"]} <= {"ok", "note", "warning"}
    (run / "config.toml").write_text("]")
    result = gq("doctor", "--offline", "-q")
    assert (result.exit_code, result.stdout) == (1, "gq runs remove hopper-a\n")
    assert result.stderr.splitlines() == ["error: 1 problem: run hopper-a", "hint: gq runs remove hopper-a"]
    result = gq("doctor", "--offline", "--json")
    assert (result.exit_code, json.loads(result.stdout)["num_problems"]) == (1, 1)
    lines = gq("doctor", "--offline").stdout.splitlines()
    assert "run hopper-a: gq runs remove hopper-a" in lines


def test_a_problem_needs_a_command() -> None:
    with pytest.raises(AssertionError):
        Finding("disk", "problem", "it is full")


# --- self-test --------------------------------------------------------------------------------------------------------


def test_a_difference_between_runs_is_found(run: Path, trained: Path) -> None:
    assert differences(run, trained) == []
    folder = run / "checkpoints" / "step-000000004"
    state = json.loads((folder / "state.json").read_text())
    write_json(folder / "state.json", state | {"progress": state["progress"] | {"seconds": 1e6}, "times_bytes": 7})
    assert differences(run, trained) == [], "times do not count"
    write_json(folder / "state.json", state | {"step": 5})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x99")
    (run / "metrics.jsonl").open("ab").write(b"\n")
    (run / "checkpoints" / ".step-5.partial").mkdir()
    (run / "replay").mkdir()
    (run / "replay" / "steps.bin").write_bytes(b"")
    names = ["checkpoints/.step-5.partial", *(f"checkpoints/{folder.name}/{name}" for name in STATE_AND_WEIGHTS)]
    assert differences(run, trained) == [*names, "metrics.jsonl", "replay/steps.bin"]


STATE_AND_WEIGHTS = ("model.safetensors", "state.json")


@pytest.mark.slow
def test_the_self_test_kills_and_finds_equal_bits(own_home: Path) -> None:
    notes: list[str] = []
    found = selftest.selftest(2, notes.append, seed=0)
    assert found.status == "ok", found.text
    assert "2 kills" in found.text
    assert notes[-1] == "self-test: 2 of 2 kills"
    assert list((own_home / "runs").iterdir()) == []


@pytest.mark.slow
def test_the_self_test_finds_a_resumption_that_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = selftest.Trial.start

    def forgetful(trial: selftest.Trial) -> None:
        log = trial.run / "metrics.jsonl"
        if trial.run.name.startswith("killed") and log.exists():
            log.write_bytes(log.read_bytes().replace(b"loss", b"lots", 1))
        plain(trial)

    monkeypatch.setattr(selftest.Trial, "start", forgetful)
    monkeypatch.setattr(selftest.Trial, "kill_after", lambda trial, delay_s: (trial.wait_for_training(), late(trial)))
    found = selftest.selftest(1, seed=0)
    assert found.status == "problem"
    assert "metrics.jsonl" in found.text


def late(trial: selftest.Trial) -> bool:
    """Kill a training as soon as there is something in its log that a checkpoint keeps."""
    while not list((trial.run / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    os.kill(trial.process.pid, 9)
    trial.process.communicate()
    return True


def test_the_self_test_says_why_a_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = selftest.selftest(1)
    assert found.status == "problem"
    assert found.text == "a small training failed without being killed: exit code 1"
    assert found.mend == "export GQ_RUNS_DIR=/path/on/another/disk"
