"""The commands that scripts/kill_and_resume.py kills: tiny, with their data, and how their results are compared."""

import http.server
import os
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

SHAPE = {
    "model.embed_dim": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.context_length": 4,
    "model.dropout": 0.1,  # so that its random stream matters
    "train.batch_size": 8,
    "train.device": "cpu",
    "train.log_every": 5,
    "eval.num_episodes": 1,
}
DT = SHAPE | {"train.steps": 60, "eval.every": 20, "checkpoint.every": 6}
ODT = DT | {
    "model.backbone": "gpt2",
    "model.num_kv_heads": 2,
    "model.acting_context": 2,
    "optim.optimizer": "lamb",
    "optim.warmup_steps": 24,
    "eval.targets": [40.0],
}
FINETUNE = {
    "online.environment_steps": 0,
    "online.iterations": 5,
    "online.rollouts": 2,
    "online.updates_per_rollout": 3,
    "online.buffer_size": 5,
    "online.final_episodes": 1,
    "eval.every": 60,
    "eval.num_episodes": 1,
    "checkpoint.every": 4,
    "train.log_every": 3,
}
WORLD = {
    "model.encoder_dim": 16,
    "model.mlp_dim": 16,
    "model.latent_dim": 16,
    "model.num_q": 2,
    "planner.num_samples": 8,
    "planner.num_policy_samples": 2,
    "planner.num_elites": 4,
    "planner.iterations": 1,
    "train.device": "cpu",
    "train.decisions": 90,
    "train.num_environments": 2,
    "train.seed_decisions": 24,
    "train.updates_per_decision": 0.25,
    "train.buffer_size": 40,
    "train.batch_size": 4,
    "train.log_every": 2,
    "eval.every": 30,
    "eval.num_episodes": 1,
    "checkpoint.every": 4,
}
WORLD_TASK = "InvertedPendulum-v5"  # whose episodes are short and end by themselves
D4RL_ID, D4RL_FILE = "d4rl/hopper-medium-v2", "gym_mujoco_v2/hopper_medium-v2.hdf5"
BUILTIN_ID = "builtin/hopper/medium"
CHUNK_BYTES = 16_384
CHUNK_DELAY_S = 0.002  # so that there is something to kill in a transfer


class Unreadable(Exception):
    """Something that lies on the disk after a kill cannot be read."""


class Job(ABC):
    """A command that can be killed and repeated."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder_name = name.replace(" ", "-").replace("/", "-")

    @abstractmethod
    def first(self, folder: Path) -> list[str]:
        """Return the command that begins in a folder."""

    def again(self, folder: Path) -> list[str]:
        """Return the command that goes on."""
        return self.first(folder)

    def has_begun(self, folder: Path) -> bool:
        """Tell whether there is something to go on with."""
        return False

    @abstractmethod
    def check_readable(self, folder: Path) -> None:
        """Raise Unreadable unless everything that is there after a kill can be read."""

    @abstractmethod
    def differences(self, folder: Path, reference: Path) -> list[str]:
        """Return in what two results differ."""


class Training(Job):
    """gq train or gq finetune."""

    def __init__(self, name: str, arguments: list[str], settings: dict[str, object]) -> None:
        super().__init__(name)
        self.arguments = arguments
        self.settings = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    def first(self, folder: Path) -> list[str]:
        """Return the command that begins a run."""
        return [*self.name.split(), *self.arguments, "-q", "--out", str(folder / "run"), *self.settings]

    def again(self, folder: Path) -> list[str]:
        """Return the command that resumes it."""
        return [*self.name.split(), "-q", "--out", str(folder / "run"), "--resume"]

    def has_begun(self, folder: Path) -> bool:
        """Tell whether there is a run to resume."""
        return (folder / "run" / "config.toml").is_file()

    def check_readable(self, folder: Path) -> None:
        """Verify the hashes of each checkpoint, the pointers, the configuration and the environment."""
        from gq.errors import GqError
        from gq.paths import checkpoint_folders, read_json
        from gq.runs.checkpoint import pointed, verify_checkpoint
        from gq.runs.folder import read_config

        run = folder / "run"
        try:
            for checkpoint in checkpoint_folders(run):
                verify_checkpoint(checkpoint)
            for which in ("last", "best"):
                if (run / "checkpoints" / f"{which}.json").exists() and not pointed(run, which):
                    raise Unreadable(f"{which}.json points at nothing")
            if self.has_begun(folder):
                read_config(run)
            if (run / "environment.json").exists():
                read_json(run / "environment.json")
        except GqError as error:
            raise Unreadable(str(error)) from error

    def differences(self, folder: Path, reference: Path) -> list[str]:
        """Compare checkpoints with all that is in them, metrics and logs."""
        found = differences(folder / "run", reference / "run")
        return found if (folder / "run" / "README.md").is_file() else [*found, "README.md"]


class Files(Job):
    """A command that leaves files, and goes on when it is repeated."""

    def __init__(self, name: str, arguments: list[str], output: str, results: list[str], kind: str = "") -> None:
        """Take the command without the option `--output FOLDER/output`, and its results in a folder."""
        super().__init__(name)
        self.arguments, self.output, self.results, self.kind = arguments, output, results, kind

    def first(self, folder: Path) -> list[str]:
        """Return the command."""
        where = [self.output, str(folder / "made" / self.kind)] if self.output else []
        return [*self.name.split()[:1], *self.arguments, *where, "-q"]

    def check_readable(self, folder: Path) -> None:
        """Read every data file."""
        from gq.data.reading import read_trajectories
        from gq.errors import GqError
        from gq.speculation.samples import read_plan_data

        for name in self.results:
            file = folder / name
            try:
                if file.name == "decisions.hdf5" and file.exists():
                    read_plan_data(file)
                elif file.suffix == ".hdf5" and file.exists():
                    read_trajectories(file)
            except GqError as error:
                raise Unreadable(str(error)) from error

    def differences(self, folder: Path, reference: Path) -> list[str]:
        """Compare files by their bytes; what was downloaded, by its arrays, because the file says when it was."""
        from gq.files import sha256

        found = []
        for name in self.results:
            mine, other = folder / name, reference / name
            if not mine.is_file():
                found.append(f"{name} is missing")
            elif self.name.startswith("download") and mine.suffix == ".hdf5":
                found += [name] if arrays_of(mine) != arrays_of(other) else []
            elif sha256(mine) != sha256(other):
                found.append(name)
        return found


def arrays_of(file: Path) -> dict[str, bytes]:
    """Return the contents of a dataset's arrays by name."""
    import h5py

    with h5py.File(file) as root:
        return {name: root[name][()].tobytes() for name in root}


def make_jobs(work: Path) -> list[Job]:
    """Return all jobs; what they begin from is made in the work folder unless it is there."""
    common = work / "common"
    data = common / "data.hdf5"
    if not data.exists():
        common.mkdir(exist_ok=True)
        write_data(common / "data.partial", num_episodes=6)
        (common / "data.partial").replace(data)
    parent, teacher = common / "odt" / "run", common / "tdmpc2" / "run"
    pretraining = Training("train odt", ["--size", "tiny", "--dataset", str(data)], ODT)
    world = Training("train tdmpc2", ["--task", WORLD_TASK, "--size", "1"], WORLD)
    for job in (pretraining, world):
        make_once(job, common / job.name.split()[1])
    distilling = ["--checkpoint", "last", "--episodes", "3", "--rounds", "1", "--device", "cpu"]
    distilling += ["--set", "train.num_epochs=4"]
    corrector = [f"made/two-tower/{name}" for name in ("model.safetensors", "corrector.json")]
    return [
        Training("train dt", ["--dataset", str(data)], DT),
        pretraining,
        Training("finetune", [str(parent), "--checkpoint", "last"], FINETUNE),
        world,
        Files("distill", [str(teacher), *distilling], "--out", ["made/decisions.hdf5", *corrector]),
        Files("download (from a server)", [D4RL_ID], "", ["home/datasets/d4rl/hopper/medium-v2.hdf5"]),
        Files("download (simulated)", [BUILTIN_ID, "--transitions", "1000"], "", [f"home/datasets/{BUILTIN_ID}.hdf5"]),
        Files("collect", [BUILTIN_ID, "--episodes", "5"], "-o", ["made/data.hdf5"], "data.hdf5"),
    ]


def make_once(job: Job, folder: Path) -> None:
    """Run a job in a process of its own unless it was; one that was killed goes on."""
    import subprocess
    import sys

    if (folder / "run" / "README.md").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    arguments = job.again(folder) if job.has_begun(folder) else job.first(folder)
    environment = {**os.environ, "GQ_HOME": str(folder / "home"), "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    subprocess.run([sys.executable, "-m", "gq", *arguments], env=environment, check=True)


def write_data(path: Path, *, num_episodes: int, length: int = 30) -> None:
    """Write random episodes in the shape of Hopper's, as D4RL does."""
    import h5py
    import numpy as np

    generator, num_rows = np.random.default_rng(0), num_episodes * length
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations"] = generator.standard_normal((num_rows, 11)).astype(np.float32)
        file["actions"] = generator.uniform(-1, 1, (num_rows, 3)).astype(np.float32)
        file["rewards"] = generator.uniform(0, 2, num_rows).astype(np.float32)
        file["terminals"] = np.arange(num_rows) % length == length - 1
        file["timeouts"] = np.zeros(num_rows, bool)
        file.attrs["env_id"] = "Hopper-v5"


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves files slowly, from any byte on."""

    root: Path

    def do_GET(self) -> None:
        """Send a file, or the rest of it."""
        file = self.root / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content, first = file.read_bytes(), 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and wanted.endswith("-"):
            first = int(wanted[6:-1])
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("ETag", '"only-version"')
        self.send_header("Accept-Ranges", "bytes")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        for start in range(first, len(content) if self.command == "GET" else first, CHUNK_BYTES):
            try:
                self.wfile.write(content[start : start + CHUNK_BYTES])
            except OSError:  # the other side was killed
                return
            time.sleep(CHUNK_DELAY_S)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Say nothing."""


def serve(root: Path) -> tuple[int, str]:
    """Serve a dataset from a child process; return the process and the address."""
    if not (root / D4RL_FILE).exists():
        write_data(root / "data.partial", num_episodes=1000)
        (root / D4RL_FILE).parent.mkdir(parents=True, exist_ok=True)
        (root / "data.partial").replace(root / D4RL_FILE)
    handler = type("Handler", (RangeHandler,), {"root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    parent = os.getpid()
    process = os.fork()
    if process:
        return process, f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == parent:  # a server without its script is no use
        time.sleep(1)
    os._exit(0)


# Whether two runs are the same, bit for bit, except for the time that they took.
TIMES = ("seconds", "rollout_seconds", "evaluation_seconds", "simulation_seconds")  # of a checkpoint's progress
LOGS = ("replay", "trajectories")  # what a run did, append-only


def differences(run: Path, reference: Path) -> list[str]:
    """Return the names of the files in which two finished runs differ: metrics, checkpoints, pointers, logs.

    Raises:
        GqError: a JSON file is damaged.
    """
    from gq.paths import checkpoint_folders

    names = {"metrics.jsonl", "checkpoints/last.json", "checkpoints/best.json"}
    for folder in (run, reference):
        names |= {f"checkpoints/{one.name}/{file.name}" for one in checkpoint_folders(folder) for file in one.iterdir()}
        names |= {str(file.relative_to(folder)) for log in LOGS for file in (folder / log).rglob("*.bin")}
        names |= {str(file.relative_to(folder)) for file in (folder / "checkpoints").glob(".*")}  # half written
    return sorted(name for name in names if content(run / name) != content(reference / name))


def content(file: Path) -> Any:
    """Return what is compared of a file, None where it is missing."""
    from gq.files import sha256
    from gq.paths import read_json

    if not file.exists():
        return None
    if file.name == "state.json":
        state = read_json(file)
        progress = {name: value for name, value in state["progress"].items() if name not in TIMES}
        return {name: value for name, value in state.items() if name != "times_bytes"} | {"progress": progress}
    if file.name == "MANIFEST.json":  # it has the hash of state.json
        return sorted(name for name in read_json(file)["files"])
    return sha256(file) if file.is_file() else "folder"
