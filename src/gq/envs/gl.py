"""Choose MuJoCo's OpenGL backend without asking anyone.

MuJoCo reads MUJOCO_GL when it is imported, Gymnasium's renderer when it draws its first frame; Gymnasium's reading is
what counts for `env.render()`, so `select_backend` also works after MuJoCo was imported. Nothing here imports it.
"""

import os
import signal
import subprocess
import sys

from gq.errors import GqError

BACKENDS = ("glfw", "egl", "osmesa")  # not MuJoCo's cgl, wgl and glx: Gymnasium's renderer refuses them
VALUES = "MUJOCO_GL to egl (Debian: apt install libegl1), osmesa (libosmesa6) or glfw (needs a display)"
TIMEOUT_S = 60  # a cold import of mujoco from a network disk takes a while
MAX_REASON_LENGTH = 100
# What the Python bindings say when a library or the display is missing helps nobody.
PLAIN_REASONS = {
    "'NoneType' object has no attribute": "its library is not installed",
    "OpenGL platform library has not been loaded": "no usable display",
    "Cannot initialize a EGL device display": "no EGL device",
    "PYOPENGL_PLATFORM": "PYOPENGL_PLATFORM ties this process to another backend",
}
PROBE = """
import importlib, sys
import mujoco
importlib.import_module("mujoco." + sys.argv[1])  # import mujoco alone swallows the reason
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size="1" rgba="1 1 1 1"/></worldbody></mujoco>'
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
frame = renderer.render()
renderer.close()
if not frame.any():
    raise SystemExit("it renders black frames")
"""

_working: set[str] = set()  # backends whose probe succeeded in this process


def select_backend() -> str:
    """Set MUJOCO_GL for this process to a backend that renders here, and return it: glfw, egl or osmesa.

    A MUJOCO_GL that is set already is kept if it works. Takes about a second the first time.

    Raises:
        GqError: MUJOCO_GL is set to something that does not render, or no backend does.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in BACKENDS:
        raise GqError(f"MUJOCO_GL={chosen} is not a backend that gq can render with", hint=f"unset it, or set {VALUES}")
    reasons = {}
    for backend in [chosen] if chosen else candidates():
        reason = probe(backend)
        if not reason:
            os.environ["MUJOCO_GL"] = backend
            return backend
        reasons[backend] = reason
    if chosen:
        raise GqError(f"MUJOCO_GL={chosen} does not render here: {reasons[chosen]}", hint=f"unset it, or set {VALUES}")
    tried = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
    raise GqError(f"no OpenGL backend renders here ({tried})", hint=f"install one of them, or set {VALUES}")


def candidates() -> list[str]:
    """Return the backends to try on this platform, best first."""
    if sys.platform in ("darwin", "win32"):
        return ["glfw"]
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return ["glfw", "egl", "osmesa"]
    return ["egl", "osmesa"]


def probe(backend: str) -> str:
    """Render one tiny frame with a backend in a child process; return why it failed, or "".

    In a child because a broken driver can crash or hang. It inherits the environment, so it also notices that an
    imported MuJoCo has tied this process to another backend through PYOPENGL_PLATFORM.
    """
    if backend in _working:
        return ""
    command = [sys.executable, "-P", "-c", PROBE, backend]
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {TIMEOUT_S} s"
    if child.returncode == 0:
        _working.add(backend)
        return ""
    return failure_reason(child.returncode, child.stderr.decode(errors="replace"))


def failure_reason(return_code: int, stderr: str) -> str:
    """Turn how the child ended into a few words on one line."""
    if return_code < 0:
        return f"crashed with {signal.Signals(-return_code).name}"
    for sign, reason in PLAIN_REASONS.items():
        if sign in stderr:
            return reason
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {return_code}"
    return last if len(last) <= MAX_REASON_LENGTH else last[: MAX_REASON_LENGTH - 3] + "..."
