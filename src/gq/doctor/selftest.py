"""Kill a small training again and again, on the user's own file system, and compare what comes of it in the end."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gq.doctor.findings import Finding
from gq.doctor.sameness import differences
from gq.paths import is_run, runs_folder

SETTINGS = {
    "model.embed_dim": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.context_length": 4,
    "train.steps": 400,
    "train.batch_size": 8,
    "train.log_every": 5,
    "train.device": "cpu",
    "eval.every": 100,
    "eval.num_episodes": 1,
    "checkpoint.every": 10,
}
TIMEOUT_S = 300
POLL_S = 0.01


def selftest(num_kills: int, note: Callable[[str], None] = lambda text: None, seed: int | None = None) -> Finding:
    """Kill a training so many times with SIGKILL, resume it, and compare it with one that nothing disturbed.

    It takes a few seconds a kill, and a few megabytes in a temporary folder in the runs folder.

    Args:
        note: told how far it is.
        seed: of the moments of the kills; None: different each time.
    """
    chance, place = random.Random(seed), runs_folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".selftest-", dir=place) as temporary:
        folder = Path(temporary)
        data = write_data(folder / "data.hdf5")
        note("self-test: training once without a disturbance")
        life = Trial(folder / "undisturbed", data)
        life.start()
        training_s = life.end()
        if life.error:
            return problem(f"a small training failed without being killed: {life.error}")
        killed = resumed = 0
        while killed < num_kills:
            trial = Trial(folder / f"killed-{resumed}", data)
            while True:
                trial.start()
                if killed < num_kills and trial.kill_after(chance.uniform(0, training_s)):
                    killed += 1
                    note(f"self-test: {killed} of {num_kills} kills")
                    continue
                trial.end()
                if trial.error:
                    return problem(f"after {killed} kills a training could not be resumed: {trial.error}")
                break
            if found := differences(trial.run, life.run):
                return problem(f"after {killed} kills a resumed training differs: {', '.join(found[:3])}")
            resumed += 1
            shutil.rmtree(trial.run)
    return Finding("self-test", "ok", f"{killed} kills, each resumed to the bits of an undisturbed training")


def problem(text: str) -> Finding:
    """Return what is said when it fails: exactness depends on the file system that runs lie on."""
    return Finding("self-test", "problem", text, "export GQ_RUNS_DIR=/path/on/another/disk")


def write_data(path: Path) -> Path:
    """Write a small dataset of random numbers in the shape of Hopper's."""
    from gq.data.reading import time_limits, write_canonical
    from gq.data.trajectories import Trajectories

    generator, num_rows, length = np.random.default_rng(0), 600, 30
    ends = np.arange(num_rows) % length == length - 1
    trajectories = Trajectories(
        observations=generator.standard_normal((num_rows, 11)).astype(np.float32),
        actions=generator.uniform(-1, 1, (num_rows, 3)).astype(np.float32),
        rewards=generator.uniform(0, 2, num_rows).astype(np.float32),
        terminals=ends,
        offsets=np.arange(0, num_rows + 1, length, dtype=np.int64),
        source="self-test",
        task="Hopper-v5",
    )
    write_canonical(path, trajectories, timeouts=time_limits(trajectories), attributes={"origin": "random"})
    return path


class Trial:
    """A training in child processes, one after the other."""

    def __init__(self, run: Path, data: Path) -> None:
        self.run, self.data, self.error = run, data, ""

    def start(self) -> None:
        """Begin, or go on where the last process was killed."""
        command = [sys.executable, "-m", "gq", "train", "dt", "-q", "--out", str(self.run)]
        if is_run(self.run):
            command.append("--resume")
        else:
            command += ["--dataset", str(self.data)]
            command += [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
        self.began = time.time()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_training(self) -> None:
        """Wait until the process has loaded everything: it writes environment.json then; or until it ends."""
        file, latest = self.run / "environment.json", self.began + TIMEOUT_S
        while self.process.poll() is None and time.time() < latest:
            if file.exists() and file.stat().st_mtime >= self.began - 0.01:
                return
            time.sleep(POLL_S)

    def kill_after(self, delay_s: float) -> bool:
        """Kill the process so long after it began to train; return whether it was still there."""
        try:
            self.wait_for_training()
            self.process.wait(delay_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            return True
        except BaseException:
            self.process.kill()
            raise
        return False

    def end(self) -> float:
        """Wait for the end; return the seconds of training."""
        try:
            self.wait_for_training()
            began = time.monotonic()
            _, stderr = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.error = f"no end within {TIMEOUT_S} s"
            return 0.0
        except BaseException:
            self.process.kill()
            raise
        if self.process.returncode:
            self.error = (stderr.strip().splitlines() or [f"exit code {self.process.returncode}"])[0]
        return time.monotonic() - began
