"""Help, completion and usage errors are immediate, because they load nothing heavy."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from commandline import child_environment

HEAVY = ("torch", "mujoco", "gymnasium", "h5py", "numpy", "rich", "av", "imageio", "PIL", "filelock", "huggingface_hub")
RUN_EACH = f"""
import json, os, sys, tempfile
from gq.cli import main

def run(arguments, changes):
    os.environ.update(changes)
    sys.argv, exit_code = ["gq", *arguments], 0
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 1), os.dup2(heard.fileno(), 2)
        try:
            main()
        except SystemExit as ended:
            exit_code = ended.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        heard.seek(0)
        return exit_code, [name for name in {HEAVY!r} if name in sys.modules], heard.read().decode()

for case in json.load(sys.stdin):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, json.dumps(run(*case)).encode())
        os._exit(0)
    os.close(writing)
    print(os.fdopen(reading).read())
    os.wait()
"""


class Ran(NamedTuple):
    exit_code: int
    modules: list[str]  # heavy ones, imported at its end
    heard: str  # its stdout and stderr


def run_each(*commands: str, changes: Sequence[dict[str, str]] | None = None) -> list[Ran]:
    """Run commands, each in a fork of one child that has only imported the command line, with changes to its settings.

    A fork takes milliseconds, an interpreter half a second.
    """
    cases = zip(map(shlex.split, commands), changes or [{}] * len(commands), strict=True)
    command = [sys.executable, "-c", RUN_EACH]
    child = subprocess.run(
        command, input=json.dumps(list(cases)), env=child_environment(), capture_output=True, text=True, check=True
    )
    return [Ran(*json.loads(line)) for line in child.stdout.splitlines()]


COMMANDS = {
    0: [
        "--help",
        "--version",
        "train dt --help",
        "train bc --help",
        "train odt --help",
        "train tdmpc2 --help",
        "finetune --help",
        "download --help",
        "repair --help",
        "collect --help",
        "distill --help",
        "plot --help",
        "eval --help",
        "report --help",
        "compare --help",
        "render --help",
        "push --help",
        "pull --help",
        "params --help",
        "runs --help",
        "runs list --help",
        "runs prune --help",
        "doctor --help",
    ],
    2: [
        "",
        "train",
        "train tdmpc2",
        "distill nothing",
        "report nothing",
        "report --latest --output report.pdf",
        "compare nothing nothing",
        "push nothing",
        "push --latest 'no repository'",
        "pull nothing",
        "params tdmpc2 --size 7",
        "params --world-size 2",
        "trian",
        "train dt --steps many",
        "train dt --size 9b",
        "train dt --set train.stpes=3",
        "download nothing",
        "download nothing.pt --task dog-run",
        "download tdmpc2/mt30-1M",
        "finetune nothing",
        "finetune --latest",
        "plot nothing",
        "plot --latest --output curve.txt",
        "eval nothing",
        "render --latest",
        "runs shwo",
        "runs show nothing",
        "runs rename nothing new",
        "runs remove nothing",
        "runs prune",
        "runs prune nothing --empty",
    ],
}  # by exit code; nothing is there to use them on
COMPLETIONS = ["gq tr", "gq download b", "gq eval h", "gq train dt --size ", "gq params 1"]


@pytest.mark.parametrize("exit_code", COMMANDS)
def test_nothing_heavy_is_imported(exit_code: int) -> None:
    for command, ran in zip(COMMANDS[exit_code], run_each(*COMMANDS[exit_code]), strict=True):
        assert (ran.exit_code, ran.modules) == (exit_code, []), f"{command}: {ran.heard}"


def test_completion_imports_nothing_heavy() -> None:
    shell = {"_GQ_COMPLETE": "complete_bash"}
    changes = [{**shell, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))} for words in COMPLETIONS]
    for words, ran in zip(COMPLETIONS, run_each(*[""] * len(COMPLETIONS), changes=changes), strict=True):
        assert (ran.exit_code, ran.modules) == (0, []), words
        assert ran.heard, f"nothing completes {words}"


def test_the_check_would_notice() -> None:
    costs, listed = run_each("params 1m -q", "download --list")
    assert costs.exit_code == 0, costs.heard
    assert "torch" in costs.modules
    assert listed.modules == ["rich"]


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = f"import sys, gq; gq.__all__; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
