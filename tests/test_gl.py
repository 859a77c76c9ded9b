"""The OpenGL backend is chosen by trying, and a failure says what to do in two lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import PATIENCE_S
from gq.envs import gl
from gq.errors import GqError

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_working", set())


@pytest.fixture
def backend() -> str:
    try:
        return gl.select_backend()
    except GqError as error:
        pytest.skip(str(error))


def message_lines(error: GqError) -> list[str]:
    return f"error: {error}\nhint: {error.hint}".splitlines()


def test_a_working_backend_is_found_and_set(backend: str) -> None:
    assert backend in gl.BACKENDS
    assert os.environ["MUJOCO_GL"] == backend


def test_a_successful_probe_is_not_repeated(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl.subprocess, "run", None)
    assert gl.select_backend() == backend


def test_a_setting_that_works_is_kept_and_normalised(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", f" {backend.upper()} ")
    assert gl.select_backend() == backend
    assert os.environ["MUJOCO_GL"] == backend


@pytest.mark.usefixtures("backend")
def test_gymnasium_renders_even_when_mujoco_was_imported_before_the_choice() -> None:
    program = (
        "import mujoco; from gq.envs.gl import select_backend; select_backend(); from gq.envs.make import make\n"
        "from gq.envs.tasks import TASKS\n"
        "env = make(TASKS['Hopper-v5'], render_mode='rgb_array', width=64, height=48); env.reset(seed=0)\n"
        "frame = env.render(); print(frame.shape, bool(frame.any())); env.close()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"} | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "(48, 64, 3) True"


@pytest.mark.parametrize("value", ["nonsense", "cgl", "off"])
def test_an_impossible_setting_is_named_with_the_three_possible_ones(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", value)
    with pytest.raises(GqError, match=f"MUJOCO_GL={value} ") as caught:
        gl.select_backend()
    assert caught.value.exit_code == 1
    assert len(message_lines(caught.value)) == 2
    assert all(backend in caught.value.hint for backend in gl.BACKENDS)
    assert os.environ["MUJOCO_GL"] == value


def test_a_setting_that_does_not_render_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")  # as after importing mujoco with MUJOCO_GL=egl
    with pytest.raises(GqError, match="MUJOCO_GL=osmesa does not render here: ") as caught:
        gl.select_backend()
    assert len(message_lines(caught.value)) == 2
    assert "Traceback" not in str(caught.value)


def test_without_any_backend_each_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "candidates", lambda: ["egl", "osmesa"])
    monkeypatch.setattr(
        gl, "probe", lambda backend: {"egl": "no EGL device", "osmesa": "crashed with SIGSEGV"}[backend]
    )
    with pytest.raises(GqError, match=r"egl: no EGL device; osmesa: crashed with SIGSEGV") as caught:
        gl.select_backend()
    assert caught.value.exit_code == 1
    assert len(message_lines(caught.value)) == 2
    assert "libegl1" in caught.value.hint
    assert "libosmesa6" in caught.value.hint
    assert "MUJOCO_GL" not in os.environ


def test_the_next_candidate_is_tried_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "candidates", lambda: ["glfw", "egl"])
    monkeypatch.setattr(gl, "probe", lambda backend: "" if backend == "egl" else "no usable display")
    assert gl.select_backend() == "egl"


@pytest.mark.parametrize(
    ("platform", "display", "expected"),
    [
        ("linux", "", ["egl", "osmesa"]),
        ("linux", ":0", ["glfw", "egl", "osmesa"]),
        ("darwin", "", ["glfw"]),
        ("win32", "", ["glfw"]),
    ],
)
def test_a_display_decides_the_order(
    platform: str, display: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    assert gl.candidates() == expected


@pytest.mark.parametrize(
    ("program", "timeout_s", "reason"),
    [
        ("import os; os.abort()", PATIENCE_S, "crashed with SIGABRT"),
        ("import time; time.sleep(9999)", 1, "no frame within 1 s"),
        ("raise SystemExit('it renders black frames')", PATIENCE_S, "it renders black frames"),
        ("raise SystemExit(3)", PATIENCE_S, "exit code 3"),
    ],
)
def test_a_probe_that_dies_or_hangs_gives_a_short_reason(
    program: str, timeout_s: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gl, "PROBE", program)
    monkeypatch.setattr(gl, "TIMEOUT_S", timeout_s)
    assert gl.probe("egl") == reason


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("AttributeError: 'NoneType' object has no attribute 'glGetError'\n", "its library is not installed"),
        ("warning\nmujoco.FatalError: an OpenGL platform library has not been loaded into\n", "no usable display"),
        ("line\n" + "x" * 500, "x" * 97 + "..."),
    ],
)
def test_reasons_are_one_short_line(stderr: str, reason: str) -> None:
    assert gl.failure_reason(1, stderr) == reason


def test_the_module_does_not_import_mujoco() -> None:
    program = "import sys, gq.envs.gl; print('mujoco' in sys.modules, 'gymnasium' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
