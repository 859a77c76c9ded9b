"""Help, completion and usage errors are immediate, because they load nothing heavy."""

import json
import subprocess
import sys

import pytest

from commandline import child_environment

HEAVY = ("torch", "mujoco", "gymnasium", "h5py", "numpy", "rich", "av", "PIL", "filelock")
LIST_MODULES = f"""
import atexit, json, os, sys
atexit.register(lambda: os.write(9, json.dumps([name for name in {HEAVY!r} if name in sys.modules]).encode()))
from gq.cli import main
main()
"""


def loaded(*arguments: str, **changes: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Run a command in a child; return which heavy modules it had imported at its end, and the finished process."""
    command = [sys.executable, "-c", LIST_MODULES, *arguments]
    shell = ["bash", "-c", '"$@" 9>&1 1>&2', "bash", *command]  # the list goes to stdout, all else to stderr
    result = subprocess.run(
        shell, env=child_environment(**changes), capture_output=True, text=True, check=False, timeout=60
    )
    return json.loads(result.stdout), result


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["train"], 2),
        (["train", "dt", "--help"], 0),
        (["train", "bc", "--help"], 0),
        (["train", "odt", "--help"], 0),
        (["train", "tdmpc2", "--help"], 0),
        (["train", "tdmpc2", "--task", "nowhere"], 2),
        (["finetune", "--help"], 0),
        (["download", "--help"], 0),
        (["repair", "--help"], 0),
        (["collect", "--help"], 0),
        (["distill", "--help"], 0),
        (["distill", "nothing"], 2),
        (["plot", "--help"], 0),
        (["eval", "--help"], 0),
        (["report", "--help"], 0),
        (["report", "nothing"], 2),
        (["report", "--latest", "--output", "report.pdf"], 2),
        (["compare", "--help"], 0),
        (["compare", "nothing", "nothing"], 2),
        (["render", "--help"], 0),
        (["push", "--help"], 0),
        (["push", "nothing"], 2),
        (["push", "--latest", "no repository"], 2),
        (["pull", "--help"], 0),
        (["pull", "nothing"], 2),
        (["params", "--help"], 0),
        (["runs", "--help"], 0),
        (["runs", "list", "--help"], 0),
        (["runs", "prune", "--help"], 0),
        (["doctor", "--help"], 0),
        (["params", "tdmpc2", "--size", "7"], 2),
        (["params", "--world-size", "2"], 2),
        (["trian"], 2),
        (["train", "dt", "--steps", "many"], 2),
        (["train", "dt", "--size", "9b"], 2),
        (["train", "dt", "--set", "train.stpes=3"], 2),
        (["download", "nothing"], 2),
        (["download", "nothing.pt", "--task", "dog-run"], 2),
        (["download", "tdmpc2/mt30-1M"], 2),
        (["finetune", "nothing"], 2),
        (["finetune", "--latest"], 2),
        (["plot", "nothing"], 2),
        (["plot", "--latest", "--output", "curve.txt"], 2),
        (["eval", "nothing"], 2),
        (["render", "--latest"], 2),
        (["runs", "shwo"], 2),
        (["runs", "show", "nothing"], 2),
        (["runs", "rename", "nothing", "new"], 2),
        (["runs", "remove", "nothing"], 2),
        (["runs", "prune"], 2),
        (["runs", "prune", "nothing", "--empty"], 2),
        (["doctor", "--selftest", "-1"], 2),
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str], exit_code: int) -> None:
    modules, result = loaded(*arguments)
    assert result.returncode == exit_code, result.stderr
    assert modules == []


@pytest.mark.parametrize("words", ["gq tr", "gq download b", "gq eval h", "gq train dt --size ", "gq params 1"])
def test_completion_imports_nothing_heavy(words: str) -> None:
    position = str(words.count(" "))
    modules, result = loaded(_GQ_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position)
    assert result.returncode == 0
    assert modules == []


def test_the_check_would_notice() -> None:
    modules, result = loaded("params", "1m", "-q")
    assert result.returncode == 0, result.stderr
    assert "torch" in modules
    modules, _ = loaded("download", "--list")
    assert modules == ["rich"]


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = f"import sys, gq; gq.__all__; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
