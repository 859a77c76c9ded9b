"""The command line, in this process and in a child, and a run to use it on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gq.cli import app
from tiny import as_flags, write_hopper_file

SOURCE = Path(__file__).parents[1] / "src"
PATIENCE_S = 500  # after which something hangs; whatever is slow on some machine ends long before
TINY = as_flags(
    {
        "model.embed_dim": 16,
        "model.num_heads": 2,
        "model.num_kv_heads": 1,
        "model.num_layers": 1,
        "model.context_length": 4,
        "eval.num_episodes": 1,
    }
)


def gq(*arguments: Any) -> Any:
    """Run a command in this process; the result has stdout, stderr and exit_code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="gq")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(*arguments: Any) -> Any:
    """Run a command with --json and return what it prints, which must be the whole of stdout."""
    result = gq(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    return json.loads(result.stdout)


def gq_command(*arguments: Any) -> list[str]:
    """Return the command as a child process would run it."""
    return [sys.executable, "-m", "gq", *map(str, arguments)]


def child_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with gq importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(SOURCE), **changes}


def gq_child(*arguments: Any, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a child process, with changes to the environment."""
    return subprocess.run(
        gq_command(*arguments),
        env=child_environment(**changes),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def train_tiny(folder: Path) -> Path:
    """Train four steps on random Hopper data; return the run, whose dataset lies beside it."""
    data = write_hopper_file(folder / "data.hdf5")
    result = gq("train", "dt", "--dataset", data, "--steps", "4", "--out", folder / "run", *TINY)
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def copy_run(run: Path, target: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(run, target))
