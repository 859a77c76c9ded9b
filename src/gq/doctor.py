"""`gq doctor`: examine everything that gq needs, and say what fixes what is wrong.

What can crash, such as torch and OpenGL drivers, is tried in child processes.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gq import __version__
from gq.datasets.download import DEFAULT_D4RL_URL
from gq.datasets.hub import DEFAULT_ENDPOINT, is_offline
from gq.envs import gl
from gq.envs.engines import versions
from gq.errors import GqError
from gq.files import sha256
from gq.paths import all_runs, checkpoint_folders, datasets_folder, json_or_empty, read_settings, runs_folder
from gq.runs.bound import check_run
from gq.runs.checkpoint import pointed, verify_checkpoint
from gq.runs.state import is_in_use
from gq.threads import num_cores

PACKAGE = "gym-qwen"
DEVELOPERS = "dev"  # the extra that users do not need
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
LITTLE_BYTES = 5_000_000_000  # a dataset and a few checkpoints
NOTHING_BYTES = 200_000_000  # one checkpoint of a small model
HOST_TIMEOUT_S = 5.0
HOSTS = {"HF_ENDPOINT": DEFAULT_ENDPOINT, "GQ_D4RL_URL": DEFAULT_D4RL_URL}

# A problem keeps gq, or something that was made with it, from working; a warning is worth a look; a note is no fault.
Status = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    subject: str
    status: Status
    text: str
    fix: str = ""  # the command that fixes it; every problem has one

    def __post_init__(self) -> None:
        assert self.fix or self.status != "problem", f"{self.subject}: a problem without a command that fixes it"


@dataclass(frozen=True)
class Examination:
    """What was found, and where things lie."""

    findings: list[Finding]
    datasets: Path
    runs: Path

    @property
    def problems(self) -> list[Finding]:
        """What has to be fixed."""
        return [finding for finding in self.findings if finding.status == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "num_problems": len(self.problems),
            "findings": [asdict(finding) for finding in self.findings],
            "datasets": str(self.datasets),
            "runs": str(self.runs),
        }


def examine(
    *, offline: bool = False, verify: bool = False, note: Callable[[str], None] = lambda text: None
) -> Examination:
    """Examine versions, the machine, folders, datasets, runs and servers.

    Args:
        offline: ask no server.
        verify: hash every file that has a hash on record, instead of comparing sizes.
        note: told what is being done.
    """
    findings = examine_versions(platform.python_version(), installed_versions())
    note("loading torch in a child process")
    found, num_threads = examine_torch()
    findings += [*found, *examine_threads(num_threads)]
    note("rendering with each OpenGL backend in a child process")
    findings += examine_graphics()
    note("reading datasets and runs")
    findings += [*examine_folders(), *examine_cache(deep=verify), *examine_runs(deep=verify)]
    findings += examine_hosts(offline=offline)
    return Examination(findings, datasets_folder(), runs_folder())


# Versions


def requirements() -> list[Requirement]:
    """What this installation of gq declares that it needs; empty where gq runs without being installed."""
    try:
        return [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        return []


def installed_versions() -> dict[str, str]:
    """The versions of what gq declares, by name; what is missing is left out."""
    found = {}
    for name in {requirement.name for requirement in requirements()}:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def examine_versions(python: str, installed: Mapping[str, str], needs: Sequence[Requirement] = ()) -> list[Finding]:
    """Compare versions with the bounds that gq declares.

    Args:
        installed: versions by name, as from `installed_versions`.
        needs: default: those of this installation.
    """
    needs = needs or requirements()
    if not needs:
        install = f"pip install {PACKAGE}"
        return [Finding("versions", "note", "not compared: gq is not installed, only its source is there", install)]
    oldest = metadata.metadata(PACKAGE)["Requires-Python"]
    if SpecifierSet(oldest).contains(python, prereleases=True):
        found = [Finding("python", "ok", python)]
    else:
        found = [Finding("python", "problem", f"{python} is not {oldest}", "python3.11 -m venv .venv")]
    for need in needs:
        extra = str(need.marker).rpartition("extra == ")[2].strip("\"'") if need.marker else ""
        if extra != DEVELOPERS:
            found.append(examine_version(need, installed.get(need.name), extra))
    return found


def examine_version(need: Requirement, version: str | None, extra: str) -> Finding:
    """Compare one version with its bounds; None is missing, which an optional package may be."""
    bounds = ",".join(sorted(map(str, need.specifier), reverse=True))  # from the oldest to the newest
    install = f'pip install "{need.name}{bounds}"'
    if version is None and extra:
        return Finding(need.name, "note", f'optional, not installed: pip install "{PACKAGE}[{extra}]"')
    if version is None:
        return Finding(need.name, "problem", "not installed", install)
    if not need.specifier.contains(version, prereleases=True):
        return Finding(need.name, "problem", f"gq does not work with {version}", install)
    return Finding(need.name, "ok", version)


def bug_report() -> str:
    """What a bug report needs: versions, hardware, paths. Imports torch and probes OpenGL in a child process."""
    import torch

    try:
        backend = gl.select_backend()
    except GqError as error:
        backend = f"none: {error}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines = [f"{name} {version}" for name, version in versions().items()]
    lines += [
        f"platform {platform.platform()}",
        f"CUDA {torch.version.cuda or 'not built in'}, GPU {gpu}",
        f"CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        f"OpenGL {backend}",
        f"datasets {datasets_folder()}",
        f"runs {runs_folder()}",
    ]
    return "\n".join(lines)


# The machine


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


# Files


def examine_folders() -> list[Finding]:
    """Say where datasets and runs lie, whether one can write there, and how much space is left."""
    places = {"datasets": (datasets_folder(), "GQ_DATA_DIR"), "runs": (runs_folder(), "GQ_RUNS_DIR")}
    return [examine_folder(name, folder, variable) for name, (folder, variable) in places.items()]


def examine_folder(name: str, folder: Path, variable: str) -> Finding:
    """Examine where something lies; `variable` moves it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{folder}, {free / 1e9:.1f} GB free"
    elsewhere = f"export {variable}=/path/with/space"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "problem", f"cannot write in {there}", f"export {variable}=/path/that/can/be/written")
    if free < NOTHING_BYTES:
        return Finding(name, "problem", text, elsewhere if name == "datasets" else "gq runs prune --checkpoints")
    if free < LITTLE_BYTES:
        return Finding(name, "warning", text, elsewhere if name == "datasets" else "gq runs prune --checkpoints")
    return Finding(name, "ok", text)


def examine_cache(*, deep: bool) -> list[Finding]:
    """Compare cached datasets with their records: size and time, or (`deep`) every byte."""
    from gq.datasets import cache

    entries = cache.in_cache()
    if deep:
        problems = {one.id: one.problem for one in cache.verify(entries)}
    else:
        says = {"changed": "it does not have the size on record"}
        problems = {entry.id: says.get(cache.state_of(entry), "") for entry in entries}
    found = [
        Finding(f"dataset {name}", "problem", text, f"gq download {name}") for name, text in problems.items() if text
    ]
    how = "by hash" if deep else "by size; --verify hashes them"
    return [*found, Finding("cache", "ok", f"{len(entries) - len(found)} of {len(entries)} datasets are sound ({how})")]


def examine_runs(*, deep: bool) -> list[Finding]:
    """Compare the checkpoints of all runs with their manifests, by size or (`deep`) by hash."""
    runs = all_runs()
    found = [finding for run in runs for finding in examine_run(run, deep=deep)]
    bad = {finding.subject for finding in found}
    num_sound = len(runs) - len(bad)
    how = "by hash" if deep else "by size; --verify hashes them"
    return [*found, Finding("checkpoints", "ok", f"those of {num_sound} of {len(runs)} runs are sound ({how})")]


def examine_run(run: Path, *, deep: bool) -> list[Finding]:
    """Return what is wrong with a run; of one that is running, whose files come and go, nothing."""
    if is_in_use(run):
        return []
    subject, found = f"run {run.name}", list[Finding]()
    if not read_settings(run).get("algo"):
        return [Finding(subject, "problem", "config.toml is damaged", shlex.join(["gq", "runs", "remove", run.name]))]
    folders = checkpoint_folders(run)
    for folder in folders:
        try:
            verify_checkpoint(folder, deep=deep)
        except GqError as error:
            words = ["rm", "-r", str(folder)] if len(folders) > 1 else ["gq", "runs", "remove", run.name]
            found.append(Finding(subject, "problem", str(error), shlex.join(words)))
            continue
        try:
            check_run(run, folder)
        except GqError as error:
            found.append(Finding(subject, "problem", str(error), f"put back {run / 'config.toml'}"))
            break
    for which in ("last", "best"):
        pointer = run / "checkpoints" / f"{which}.json"
        try:
            pointed(run, which)
        except GqError as error:
            found.append(Finding(subject, "problem", str(error), shlex.join(["rm", str(pointer)])))
    for file in sorted((run / "correctors").glob("*/corrector.json")):
        weights, document = file.with_name("model.safetensors"), json_or_empty(file)
        is_whole = weights.is_file() and "sha256" in document
        if not is_whole or (deep and sha256(weights) != document["sha256"]):
            fix = shlex.join(["gq", "distill", run.name, "--force"])
            found.append(Finding(subject, "problem", f"the corrector {file.parent.name} is damaged", fix))
    return found


# Servers


def examine_hosts(*, offline: bool) -> list[Finding]:
    """Ask each server for its headers, all at once; with `offline` or HF_HUB_OFFLINE, none."""
    if offline or is_offline():
        return [Finding("network", "note", "not asked: " + ("--offline" if offline else "HF_HUB_OFFLINE is set"))]
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        return list(pool.map(examine_host, HOSTS))


def examine_host(variable: str) -> Finding:
    """Ask the server that a variable names for its headers; that it answers at all is enough."""
    url = os.environ.get(variable) or HOSTS[variable]
    if not url.startswith(("http://", "https://")):
        text = f"{variable} is {url}, not a web address"
        return Finding("network", "problem", text, f"unset {variable}")
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": f"gq/{__version__}"})
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=HOST_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return unreachable(url, f"it answers {error.code} {error.reason}")
    except (OSError, ValueError) as error:
        return unreachable(url, str(getattr(error, "reason", error) or error))
    return Finding("network", "ok", f"{url} answers after {1000 * (time.monotonic() - began):.0f} ms")


def unreachable(url: str, reason: str) -> Finding:
    """Return what to say of a server that cannot be reached; gq has data that need none."""
    return Finding("network", "warning", f"{url}: {reason}; gq download builtin/hopper/medium needs no network")
