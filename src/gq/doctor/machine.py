"""The machine: cores and threads, torch and its devices, a compiler, OpenGL. What can crash is tried in children."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gq.doctor.findings import Finding
from gq.envs import gl
from gq.threads import num_cores

TORCH_TIMEOUT_S = 120
TORCH_FACTS = """
import json, torch
facts = {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.version.cuda}
facts["capability"] = torch.backends.cpu.get_cpu_capability()
facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
for i in range(len(facts["gpus"])):
    assert float(torch.ones(2, device=f"cuda:{i}").sum()) == 2
assert float(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum()) == 8
print(json.dumps(facts))
"""


def examine_torch(python: str = sys.executable) -> tuple[list[Finding], int | None]:
    """Load torch in a child and compute on every device; return also how many threads it takes, None if it fails."""
    again = "pip install --force-reinstall torch"
    try:
        child = subprocess.run(
            [python, "-P", "-c", TORCH_FACTS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TORCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Finding("torch computes", "problem", f"nothing within {TORCH_TIMEOUT_S} s", again)], None
    if child.returncode:
        reason = gl.failure_reason(child.returncode, child.stderr.decode(errors="replace"))
        return [Finding("torch computes", "problem", reason, again)], None
    facts = json.loads(child.stdout.splitlines()[-1])
    found = [Finding("torch computes", "ok", f"{facts['version']}, {facts['capability']}")]
    return [*found, examine_gpus(facts), examine_compiler(bool(facts["gpus"]))], int(facts["threads"])


def examine_gpus(facts: Mapping[str, Any]) -> Finding:
    """Say which GPUs torch can use, and whether there is one that it cannot."""
    if facts["gpus"]:
        return Finding("CUDA", "ok", f"{facts['cuda']}: {', '.join(facts['gpus'])}")
    if shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists():
        built = f"is built for CUDA {facts['cuda']} and" if facts["cuda"] else "is built without CUDA and"
        return Finding("CUDA", "warning", f"there is an NVIDIA driver, but torch {built} sees no GPU", "nvidia-smi")
    return Finding("CUDA", "note", "no GPU; gq computes on the CPU")


def examine_compiler(has_gpu: bool) -> Finding:
    """Say which C++ compiler torch.compile would take."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    path = next((path for name in names if name and (path := shutil.which(name))), "")
    if path:
        return Finding("compiler", "ok", path)
    text = "no C++ compiler; torch.compile cannot work" + (" fast on this GPU" if has_gpu else "")
    return Finding("compiler", "note", text, "apt-get install g++")


def examine_threads(num_torch_threads: int | None, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Compare the threads that will compute with the cores that this process may use."""
    cores, limit = num_cores(), cgroup_limit()
    allowed = min(cores, max(1, int(limit))) if limit else cores
    text = f"{os.cpu_count()} in the machine, {cores} for this process"
    found = [Finding("cores", "ok", text + (f", a limit of {limit:g} by its group" if limit else ""))]
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads and not threads.split(",")[0].strip().isdecimal():
        unset = "unset OMP_NUM_THREADS"
        return [*found, Finding("threads", "warning", f"OMP_NUM_THREADS is {threads}, not a number", unset)]
    number = int(threads.split(",")[0]) if threads else num_torch_threads
    if number is not None and number > allowed:
        text = f"{number} threads on {allowed} cores take turns, and wait for each other"
        found.append(Finding("threads", "warning", text, f"export OMP_NUM_THREADS={allowed}"))
    elif number is not None:
        found.append(Finding("threads", "ok", f"{number} for torch" + (", by OMP_NUM_THREADS" if threads else "")))
    if environment.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        text = "idle threads spin (OMP_WAIT_POLICY=ACTIVE), which doubles the time of a step beside other work"
        found.append(Finding("idle threads", "warning", text, "unset OMP_WAIT_POLICY"))
    else:
        found.append(Finding("idle threads", "ok", "they sleep after a short spin"))
    return found


def cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many cores' time this process's control group grants, None without a limit. Reads v2 and v1."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None


def examine_graphics() -> list[Finding]:
    """Render a frame with each OpenGL backend, each in a child."""
    with ThreadPoolExecutor(len(gl.BACKENDS)) as pool:
        reasons = dict(zip(gl.BACKENDS, pool.map(gl.probe, gl.BACKENDS), strict=True))
    working = [backend for backend, reason in reasons.items() if not reason]
    found = [
        Finding(f"OpenGL {backend}", "note" if reason else "ok", reason or "renders")
        for backend, reason in reasons.items()
    ]
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in working:
        text = f"MUJOCO_GL={chosen} does not render here"
        found.append(Finding("rendering", "problem", text, "unset MUJOCO_GL"))
    elif not working:
        text = "no backend renders, so gq render cannot"
        found.append(Finding("rendering", "problem", text, "apt-get install libegl1 libosmesa6"))
    else:
        usable = [backend for backend in gl.candidates() if backend in working]
        found.append(Finding("rendering", "ok", f"gq render takes {chosen or (usable or working)[0]}"))
    return found
