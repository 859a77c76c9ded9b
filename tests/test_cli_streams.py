"""Nothing is lost where nobody reads what a command says: a broken or closed stderr ends no training."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from commandline import PATIENCE_S, TINY, child_environment, gq_command
from gq.cli.output import ForgivingStream
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.training.lifecycle import StopRequest
from test_cli_interrupt import wait_for_training

QUICK = ("--set", "train.log_every=1", "--set", "eval.every=0", "--set", "checkpoint.every=0")


def start_unheard(*arguments: object, stdout: int) -> subprocess.Popen[str]:
    """Start a training whose stderr is a pipe that its reader has closed."""
    reader, writer = os.pipe()
    os.close(reader)
    command = gq_command("train", "dt", *arguments)
    process = subprocess.Popen(command, env=child_environment(), stdout=stdout or writer, stderr=writer, text=True)
    os.close(writer)
    return process


def test_a_training_whose_stderr_nobody_reads_is_finished(data: Path, tmp_path: Path) -> None:
    command = ("--dataset", data, "--out", tmp_path / "run", "--steps", "5", *TINY, *QUICK)
    process = start_unheard(*command, stdout=subprocess.PIPE)
    assert process.communicate(timeout=PATIENCE_S)[0] == f"{tmp_path / 'run'}\n"
    assert process.returncode == 0
    assert load_checkpoint(choose_checkpoint(tmp_path / "run", "last")).state["step"] == 5


def test_ctrl_c_that_ends_the_reader_too_saves(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_unheard("--dataset", data, "--out", run, "--steps", "100000", *TINY, *QUICK, stdout=0)
    wait_for_training(process, run, num_bytes=1)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    assert load_checkpoint(choose_checkpoint(run, "last")).state["step"] > 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    command = f"{shlex.join(gq_command('params', '1m', '--json'))} {closed}"
    result = subprocess.run(["sh", "-c", command], env=child_environment(), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert ("768,465" in result.stdout or "768465" in result.stdout) == (closed == "2>&-")


def test_a_failure_keeps_its_exit_code_where_nobody_hears_of_it() -> None:
    command = f"{shlex.join(gq_command('params', 'nothing'))} 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], env=child_environment(), check=False).returncode == 2


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_what_cannot_be_written_is_dropped(error: type[Exception]) -> None:
    class Broken:
        encoding = "utf-8"

        def write(self, *_: str) -> int:
            raise error

        flush = write

    stream = ForgivingStream(Broken())
    assert stream.write("words") == 5
    stream.flush()
    assert stream.encoding == "utf-8"


def test_a_request_to_stop_counts_although_it_cannot_be_confirmed() -> None:
    def note(_: str) -> None:
        raise BrokenPipeError

    with StopRequest(note) as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.requested == "SIGTERM"
