"""The completion scripts are what `gq` prints, and complete what is there without loading the engine."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from commandline import child_environment, gq
from gq.cli import app
from gq.datasets.names import known_ids
from gq.envs.tasks import TASKS
from gq.models.config import SIZES
from tiny import write_hopper_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_completions", ROOT / "scripts" / "write_completions.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_scripts_are_current(writer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in child_environment().items():
        monkeypatch.setenv(name, value)
    assert {path.name for path in (ROOT / "completions").iterdir()} == set(writer.FILES.values())
    for shell, name in writer.FILES.items():
        committed = (ROOT / "completions" / name).read_text(encoding="utf-8")
        assert committed == writer.completion_script(shell), f"{name} is out of date: make completions"


def complete(words: str) -> list[str]:
    """Return what bash would offer for the last word."""
    environment = {"_GQ_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = CliRunner().invoke(app, [], env=environment, prog_name="gq")
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("gq tr", ["train"]),
        ("gq train ", ["dt", "bc", "odt", "td3bc", "tdmpc2"]),
        ("gq train odt --size t", ["tiny"]),
        ("gq train tdmpc2 --size ", ["1", "5", "19", "48", "317"]),
        ("gq train tdmpc2 --task dog-r", ["dog-run"]),
        ("gq train tdmpc2 --task Hop", [name for name in TASKS if name.startswith("Hop")]),
        ("gq train dt --si", ["--size"]),
        ("gq train dt --size 0", ["0.1b", "0.6b"]),
        ("gq params 0", ["0.1b", "0.6b"]),
        ("gq train dt --task Hop", [name for name in TASKS if name.startswith("Hop")]),
        ("gq download builtin/", [name for name in known_ids() if name.startswith("builtin/")]),
        ("gq train bc --dataset mujoco/ant", [name for name in known_ids() if name.startswith("mujoco/ant")]),
        ("gq params --dataset b", [name for name in known_ids() if name.startswith("b")]),
        ("gq eval --checkpoint ", ["best", "last"]),
        ("gq eval hop", []),
        ("gq train dt --dataset ./da", []),  # the shell completes files itself
    ],
)
def test_words_are_completed(words: str, offered: list[str]) -> None:
    assert complete(words) == offered


def test_runs_are_completed(own_home: Path) -> None:
    for name in ("hopper-b", "hopper-a", "ant-a"):
        (own_home / "runs" / name).mkdir(parents=True)
        (own_home / "runs" / name / "config.toml").write_text("")
    (own_home / "runs" / "hopper-without-config").mkdir()
    assert sorted(complete("gq eval hop")) == ["hopper-a", "hopper-b"]
    assert complete("gq render ant") == ["ant-a"]
    assert sorted(complete("gq params ")) == sorted([*SIZES, "tdmpc2", "ant-a", "hopper-a", "hopper-b"])


@pytest.fixture
def command_folder(tmp_path: Path) -> Path:
    """A folder for PATH with a `gq` in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gq "$@"\n')
    (folder / "gq").chmod(0o755)
    return folder


def run_shell(shell: str, code: str, command_folder: Path) -> str:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    environment = child_environment()
    environment["PATH"] = f"{command_folder}:{environment['PATH']}"
    return subprocess.run(
        [shell, "-c", code], env=environment, cwd=command_folder, capture_output=True, text=True, check=True
    ).stdout


def test_bash_completes(command_folder: Path) -> None:
    code = f"""
        source {ROOT / "completions/gq.bash"}
        COMP_WORDS=(gq train dt --size 0.); COMP_CWORD=4; _gq_completion gq
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert run_shell("bash", code, command_folder).split() == ["0.1b", "0.6b"]


def test_fish_completes(command_folder: Path) -> None:
    write_hopper_file(command_folder / "data.hdf5")
    code = f"source {ROOT / 'completions/gq.fish'}; complete -C 'gq train dt --size 0.'"
    assert run_shell("fish", code, command_folder).split() == ["0.1b", "0.6b"]


def test_zsh_reads_the_script(command_folder: Path) -> None:
    code = f"autoload -Uz compinit; compinit -D -u; source {ROOT / 'completions/_gq'}; print $_comps[gq]"
    assert run_shell("zsh", f"-f\n{code}".removeprefix("-f\n"), command_folder).strip() == "_gq_completion"


def test_a_name_that_is_completed_is_accepted() -> None:
    assert gq("params", complete("gq params 13")[0], "-q").exit_code == 0
