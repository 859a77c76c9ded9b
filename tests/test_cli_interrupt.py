"""Ctrl-C and SIGTERM save and exit with 130; a second Ctrl-C ends at once."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commandline import PATIENCE_S, TINY, child_environment, gq, gq_command
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint

# A training whose first update says so and never ends.
ENDLESS = """
import sys, time
from gq.algos.supervised import SupervisedLearner
from gq.cli import main

def update(learner, step):
    print("updating", flush=True)
    while True:
        time.sleep(1)

SupervisedLearner.update = update
main()
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start training in a child process."""
    return subprocess.Popen(
        gq_command("train", "dt", *arguments),
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_training(process: subprocess.Popen[str], run: Path, *, num_bytes: int) -> None:
    """Wait until the run's log has this many bytes."""
    deadline = time.monotonic() + PATIENCE_S
    log = run / "metrics.jsonl"
    while not log.is_file() or log.stat().st_size < num_bytes:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_can_be_finished(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    settings = ("--set", "train.log_every=1", "--set", "eval.every=0", "--set", "checkpoint.every=0")
    process = start("--dataset", data, "--out", run, "--steps", "100000", *TINY, *settings)
    wait_for_training(process, run, num_bytes=1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, stderr
    assert stdout == ""
    *_, note, error, hint = stderr.splitlines()
    assert note.startswith(f"{number.name}: saving")
    stopped = re.fullmatch(f"error: stopped by {number.name} at step (\\d+), everything is saved", error)
    assert stopped, error
    assert hint == f"hint: resume with: gq train dt --out {run} --resume"
    step = int(stopped[1])
    assert load_checkpoint(choose_checkpoint(run, "last")).state["step"] == step
    result = gq("train", "dt", "--out", run, "--resume", "--steps", step + 3, "-q")
    assert (result.exit_code, result.stdout) == (0, f"{run}\n"), result.stderr
    assert load_checkpoint(choose_checkpoint(run, "last")).state["step"] == step + 3


def test_a_second_ctrl_c_ends_at_once(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", "dt", "--dataset", data, "--out", run, *TINY)
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *map(str, command)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "updating\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr
    for line in process.stderr:
        if line.startswith("SIGINT: saving"):
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, stderr
    assert (stdout, stderr) == ("", "error: interrupted\n")
    assert not (run / "checkpoints").exists()
