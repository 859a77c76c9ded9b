"""gq doctor: each thing that can be wrong is found, with the command that fixes it, and nothing else is."""

import json
import platform
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from commandline import copy_run, gq
from gq import doctor
from gq.doctor import Finding, examine_versions, installed_versions
from gq.envs import gl
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


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    optional = [f"{text}; extra == '{extra}'" for extra, texts in extras for text in texts]
    return [Requirement(text) for text in [*project["dependencies"], *optional]]


def sound() -> dict[str, str]:
    """The oldest version of each package that gq declares."""
    return {one.name: next(spec.version for spec in one.specifier if spec.operator == ">=") for one in declared()}


def test_this_environment_has_no_bad_versions() -> None:
    assert problems(examine_versions(platform.python_version(), installed_versions())) == []


@pytest.mark.parametrize(
    ("changes", "subject", "fix"),
    [
        ({"torch": "2.9.1+cu128"}, "torch", 'pip install "torch>=2.10"'),
        ({"typer": "0.30.0"}, "typer", 'pip install "typer>=0.29,<0.30"'),
        ({"gymnasium": "2.0"}, "gymnasium", 'pip install "gymnasium>=1.1,<2"'),
        ({"h5py": None}, "h5py", 'pip install "h5py>=3.11"'),
        ({"dm-control": "1.0.38"}, "dm-control", 'pip install "dm-control>=1.0.50,<2"'),
        ({"mujoco": "4.0.0"}, "mujoco", 'pip install "mujoco>=3.17,<4"'),
        ({"python": "3.10.4"}, "python", "python3.11 -m venv .venv"),
    ],
)
def test_a_version_out_of_bounds_is_a_problem(changes: dict[str, str | None], subject: str, fix: str) -> None:
    assert problems(examine_versions("3.12.1", sound(), declared())) == []
    installed = {name: version for name, version in (sound() | changes).items() if version}
    found = only_problem(examine_versions(changes.get("python") or "3.12.1", installed, declared()))
    assert (found.subject, found.fix) == (subject, fix)


def test_what_is_optional_may_be_missing() -> None:
    installed = {name: version for name, version in sound().items() if name not in ("dm-control", "pytest")}
    found = {one.subject: one for one in examine_versions("3.12.1", installed, declared())}
    assert found["dm-control"].status == "note"
    assert 'pip install "gym-qwen[dmc]"' in found["dm-control"].text
    assert "pytest" not in found, "nor do users need what developers do"


def test_versions_are_compared_as_numbers() -> None:
    assert problems(examine_versions("3.12.1", sound() | {"torch": "2.10.0+cpu"}, declared())) == []
    assert problems(examine_versions("3.12.1", sound() | {"torch": "2.10.1rc1"}, declared())) == []


def test_without_an_installation_no_version_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGE", "not-installed")
    (found,) = examine_versions("3.12.1", installed_versions())
    assert (found.status, found.fix) == ("note", "pip install not-installed")


# --- machine ----------------------------------------------------------------------------------------------------------


def interpreter(folder: Path, script: str) -> str:
    """Write a program that stands for Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_torch_that_crashes_or_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, threads = doctor.examine_torch(interpreter(tmp_path, "kill -SEGV $$"))
    assert (only_problem(found).text, threads) == ("crashed with SIGSEGV", None)
    found, _ = doctor.examine_torch(interpreter(tmp_path, "echo ImportError: libtorch >&2; exit 1"))
    assert only_problem(found).text == "ImportError: libtorch"
    monkeypatch.setattr(doctor, "TORCH_TIMEOUT_S", 0.2)
    found, _ = doctor.examine_torch(interpreter(tmp_path, "exec sleep 9"))
    assert only_problem(found).text == "nothing within 0.2 s"


def test_torch_is_not_loaded_into_this_process(tmp_path: Path) -> None:
    facts = {"version": "2.13.0", "threads": 2, "cuda": None, "capability": "AVX2", "gpus": []}
    found, threads = doctor.examine_torch(interpreter(tmp_path, f"echo '{json.dumps(facts)}'"))
    assert (problems(found), threads) == ([], 2)
    assert found[0].text == "2.13.0, AVX2"


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "num_cores", lambda: 4)
    monkeypatch.setattr(doctor, "cgroup_limit", lambda: 2.5)

    def status(threads: int | None, **environment: str) -> tuple[str, str]:
        found = {one.subject: one for one in doctor.examine_threads(threads, environment)}["threads"]
        return found.status, found.fix

    assert status(2) == ("ok", "")
    assert status(4) == ("warning", "export OMP_NUM_THREADS=2")
    assert status(4, OMP_NUM_THREADS="2") == ("ok", "")
    assert status(2, OMP_NUM_THREADS="8") == ("warning", "export OMP_NUM_THREADS=2")
    assert status(2, OMP_NUM_THREADS="many") == ("warning", "unset OMP_NUM_THREADS")
    monkeypatch.setattr(doctor, "cgroup_limit", lambda: None)
    assert status(4) == ("ok", "")
    spinning = doctor.examine_threads(1, {"OMP_WAIT_POLICY": "active"})[-1]
    assert (spinning.status, spinning.fix) == ("warning", "unset OMP_WAIT_POLICY")


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
    assert doctor.cgroup_limit(tmp_path) == limit


def test_rendering_needs_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    reasons = {"glfw": "no usable display", "egl": "", "osmesa": "crashed with SIGSEGV"}
    monkeypatch.setattr(gl, "probe", reasons.__getitem__)
    found = doctor.examine_graphics()
    assert [one.status for one in found] == ["note", "ok", "note", "ok"]
    assert found[2].text == "crashed with SIGSEGV"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert only_problem(doctor.examine_graphics()).fix == "unset MUJOCO_GL"
    monkeypatch.delenv("MUJOCO_GL")
    reasons["egl"] = "no EGL device"
    assert only_problem(doctor.examine_graphics()).fix.startswith("apt-get install libegl1")


# --- storage ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_space_or_permission_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**12

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    place = tmp_path / "not" / "there" / "yet"
    assert doctor.examine_folder("runs", place, "GQ_RUNS_DIR").status == "ok"
    Usage.free = 10**9
    assert doctor.examine_folder("runs", place, "GQ_RUNS_DIR").status == "warning"
    Usage.free = 10**7
    found = doctor.examine_folder("runs", place, "GQ_RUNS_DIR")
    assert (found.status, found.fix) == ("problem", "gq runs prune --checkpoints")
    (tmp_path / "file").touch()
    found = doctor.examine_folder("datasets", tmp_path / "file" / "x", "GQ_DATA_DIR")
    assert (found.status, found.text) == ("problem", f"cannot write in {tmp_path / 'file'}")


def test_a_changed_dataset_is_found(own_home: Path) -> None:
    assert gq("download", "builtin/hopper/medium", "--transitions", "60", "-q").exit_code == 0
    file = own_home / "datasets" / "builtin" / "hopper" / "medium.hdf5"
    assert problems(doctor.examine_cache(deep=True)) == []
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert problems(doctor.examine_cache(deep=False)) == [], "its size is right"
    found = only_problem(doctor.examine_cache(deep=True))
    assert (found.subject, found.fix) == ("dataset builtin/hopper/medium", "gq download builtin/hopper/medium")
    file.write_bytes(content[:-1])
    assert only_problem(doctor.examine_cache(deep=False)).subject == "dataset builtin/hopper/medium"


def test_a_damaged_checkpoint_is_found(run: Path) -> None:
    assert problems(doctor.examine_runs(deep=True)) == []
    weights = run / "checkpoints" / "step-000000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert problems(doctor.examine_runs(deep=False)) == []
    found = only_problem(doctor.examine_runs(deep=True))
    assert (found.subject, found.fix) == ("run hopper-a", "gq runs remove hopper-a")
    weights.write_bytes(content[:-1])
    found = doctor.examine_runs(deep=False)
    assert only_problem(found).subject == "run hopper-a"
    assert found[-1].text.startswith("those of 0 of 1 runs are sound")
    with lock_run(run):
        assert problems(doctor.examine_runs(deep=True)) == [], "the files of a running run come and go"


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("config.toml", "gq runs remove hopper-a"),
        ("checkpoints/best.json", "rm "),
        ("checkpoints/step-000000004/MANIFEST.json", "gq runs remove hopper-a"),
        ("correctors/two-tower/corrector.json", "gq distill hopper-a --force"),
    ],
)
def test_a_file_that_is_no_text_is_found(run: Path, file: str, fix: str) -> None:
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_bytes(b"\x00{")
    assert only_problem(doctor.examine_runs(deep=False)).fix.startswith(fix)


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
    assert [one.status for one in doctor.examine_hosts(offline=False)] == ["ok", "ok"], "a 404 is an answer"
    monkeypatch.setenv("GQ_D4RL_URL", f"{server}/broken")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = doctor.examine_hosts(offline=False)
    assert [one.status for one in found] == ["warning", "warning"]
    assert "503" in found[1].text
    monkeypatch.setenv("HF_ENDPOINT", "not-an-address")
    assert only_problem(doctor.examine_hosts(offline=False)).fix == "unset HF_ENDPOINT"


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked"))
    assert [one.status for one in doctor.examine_hosts(offline=True)] == ["note"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.examine_hosts(offline=False)[0].text == "not asked: HF_HUB_OFFLINE is set"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds: child processes."""
    monkeypatch.setattr("gq.doctor.examine_torch", lambda: ([Finding("torch computes", "ok", "x")], 1))
    monkeypatch.setattr("gq.doctor.examine_graphics", lambda: [Finding("rendering", "ok", "x")])
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
