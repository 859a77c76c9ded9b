"""Nothing is lost where nobody reads what a command says: a broken or closed stderr ends no training."""

import errno
import os
import shlex
import signal
import subprocess
from pathlib import Path

import filelock
import pytest

from commandline import PATIENCE_S, TINY, child_environment, gq, gq_command
from gq.cli.output import ForgivingStream
from gq.errors import GqError
from gq.paths import checkpoint_folders
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from gq.runs.state import hold_run
from gq.signals import StopRequest
from gq.training import session
from test_cli_interrupt import wait_for_training
from tiny import write_hopper_file

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


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"])
def test_signals_of_terminals_and_clusters_ask_for_an_end(name: str) -> None:
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # under nohup SIGHUP would be ignored
    try:
        with StopRequest() as request:
            signal.raise_signal(number)
            assert request.requested == name
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_cluster_that_sends_several_signals_does_not_cut_the_saving_short() -> None:
    with StopRequest() as request:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert request.requested == "SIGUSR1"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.requested == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_system_without_locks_gets_its_own_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_: filelock.FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with pytest.raises(GqError, match="has no locks") as raised, hold_run(tmp_path / "run"):
        pass
    assert "local disk" in raised.value.hint


def test_the_first_checkpoint_comes_in_time_whatever_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FIRST_SAVE_S", 0.0)
    data = write_hopper_file(tmp_path / "data.hdf5")
    keep = ("--set", "checkpoint.keep=9", "--steps", "4", "--out", tmp_path / "run")
    result = gq("train", "dt", "--dataset", data, *TINY, *QUICK, *keep)
    assert result.exit_code == 0, result.stderr
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run")] == ["step-000000001", "step-000000004"]
